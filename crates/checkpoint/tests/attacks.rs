//! Damaged and hostile checkpoints: each gets its own error, none panics, and none makes the reader allocate more than
//! its size justifies.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    fs,
    path::Path,
};

use common::*;
use safetensors::Dtype;
use serde_json::{Value, json};
use upg_checkpoint::{Checkpoint, CheckpointError, open};

/// Counts what each thread holds; tests run side by side.
struct Counting;

thread_local! {
    static HELD: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

fn count(bytes: isize) {
    // A thread that ends frees memory after its counters are gone.
    let _ = HELD.try_with(|held| {
        held.set(held.get() + bytes);
        PEAK.with(|peak| peak.set(peak.get().max(held.get())));
    });
}

// SAFETY: every call goes to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller keeps `alloc`'s contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: the caller keeps `dealloc`'s contract.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Opens a checkpoint of `size` bytes and holds the reader to the memory that they justify: a vocabulary is held a few
/// times over while it is turned into JSON, and an entry of a list takes less in the file than in memory.
fn open_frugally(path: &Path, size: usize) -> Result<Box<dyn Checkpoint>, CheckpointError> {
    let before = HELD.get();
    PEAK.set(before);
    let result = open(path);
    let used = PEAK.get() - before;
    assert!(used <= 12 * size as isize + (1 << 16), "{used} bytes for a checkpoint of {size}");
    result
}

fn open_bytes(bytes: &[u8]) -> Result<Box<dyn Checkpoint>, CheckpointError> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    fs::write(&path, bytes).unwrap();
    open_frugally(&path, bytes.len())
}

#[track_caller]
fn refused(result: Result<Box<dyn Checkpoint>, CheckpointError>, message: &str) {
    match result {
        Ok(_) => panic!("opened, where {message:?} was expected"),
        Err(error) => assert!(error.to_string().contains(message), "{message:?} is not in: {error}"),
    }
}

#[track_caller]
fn gguf_refused(damage: impl FnOnce(&mut GgufFile), message: &str) {
    let mut file = gguf_llama();
    damage(&mut file);
    refused(open_bytes(&file.bytes()), message);
}

/// Sets a metadata key.
fn put(key: &'static str, value: Meta) -> impl FnOnce(&mut GgufFile) {
    move |file| _ = file.set(key, value)
}

/// The bytes of an array: type of its items, claimed count, items.
fn array(id: u32, count: u64, items: &[u8]) -> Meta {
    Meta::Raw(9, [&id.to_le_bytes()[..], &count.to_le_bytes(), items].concat())
}

#[test]
fn the_undamaged_ones_open() {
    assert!(open_bytes(&gguf_llama().bytes()).is_ok());
    let mut old = gguf_llama();
    old.version = 2;
    assert_eq!(open_bytes(&old.bytes()).unwrap().describe(), "GGUF v2, llama, F32");
}

#[test]
fn gguf_headers() {
    refused(open_bytes(b""), "does not start like a GGUF file");
    refused(open_bytes(b"GGUF"), "ends in the middle of the version");
    gguf_refused(|file| file.magic = *b"GGML", "does not start like a GGUF file");
    gguf_refused(|file| file.version = 1, "version 1 is not read");
    gguf_refused(|file| file.version = 4, "version 4 is not read");
    gguf_refused(|file| file.version = 3u32.swap_bytes(), "big-endian");
    gguf_refused(|file| file.tensor_count = Some(u64::MAX), "18446744073709551615 tensors are more than");
    gguf_refused(|file| file.tensor_count = Some(65536), "ends in the middle of tensors");
    gguf_refused(|file| file.key_count = Some(u64::MAX), "metadata keys are more than");
    gguf_refused(|file| file.key_count = Some(9999), "bytes of a string are more than");
}

#[test]
fn gguf_metadata() {
    let long = [&(1u64 << 40).to_le_bytes()[..], b"x"].concat();
    gguf_refused(put("a", Meta::Raw(8, long)), "bytes of a string are more than");
    let past_the_end = (1u64 << 23).to_le_bytes().to_vec();
    gguf_refused(put("a", Meta::Raw(8, past_the_end)), "ends in the middle of bytes of a string");
    let latin1 = [&1u64.to_le_bytes()[..], &[0xE9]].concat();
    gguf_refused(put("a", Meta::Raw(8, latin1)), "is not UTF-8");
    gguf_refused(put("a", Meta::Raw(99, vec![])), "\"a\" has a value of type 99");
    gguf_refused(put("a", array(99, 1, &[])), "\"a\" has a value of type 99");
    gguf_refused(put("a", Meta::Raw(7, vec![2])), "the boolean at byte");
    gguf_refused(put("a", array(4, u64::MAX, &[])), "items of an array are more than");
    gguf_refused(put("a", array(8, 1 << 22, &[])), "ends in the middle of items of an array");
    // Arrays of arrays of arrays …, deep enough to overflow the stack of a reader that follows them.
    let deep: Vec<u8> =
        (0..100_000).flat_map(|_| [&9u32.to_le_bytes()[..], &1u64.to_le_bytes()].concat()).collect();
    gguf_refused(put("a", Meta::Raw(9, deep)), "array of arrays");
    gguf_refused(|file| file.metadata.push(("general.architecture".into(), Meta::U32(1))), "twice");
    for alignment in [Meta::U32(0), Meta::U32(24), Meta::U32(1 << 31), Meta::str("32")] {
        gguf_refused(put("general.alignment", alignment), "not a power of two");
    }
}

#[test]
fn gguf_tensors() {
    let embed = "token_embd.weight";
    gguf_refused(|file| file.tensor(embed).dims = vec![1; 5], "dimensions of a tensor are more than");
    gguf_refused(|file| file.tensor(embed).dims = vec![u32::MAX.into(); 1], "bytes; download it again");
    gguf_refused(|file| file.tensor(embed).dims = vec![1 << 40, 1 << 40], "has the shape [1099511627776");
    gguf_refused(|file| file.tensor(embed).dims = vec![1 << 62, 1], "ends after the file");
    gguf_refused(|file| file.tensor(embed).dims = vec![64, 0], "has the shape [64, 0]");
    gguf_refused(|file| file.tensor(embed).dims = vec![], "has the shape []");
    gguf_refused(
        |file| file.tensor(embed).dtype = 23,
        "has type IQ4_XS, which is not read; known are: F32, F16",
    );
    gguf_refused(|file| file.tensor(embed).dtype = 77, "has type number 77");
    gguf_refused(
        |file| file.tensor(embed).dtype = 12,
        "a row of 64 numbers is not a whole number of Q4_K blocks",
    );
    gguf_refused(|file| file.tensor(embed).offset = Some(4), "starts at offset 4, not a multiple of 32");
    gguf_refused(|file| file.tensor(embed).offset = Some(u64::MAX - 31), "ends after the file");
    gguf_refused(|file| file.tensor("output.weight").offset = Some(0), "overlap");
    gguf_refused(|file| file.tensor("output.weight").name = embed.into(), "is there twice");
    gguf_refused(|file| file.tensors.retain(|tensor| tensor.name != embed), "it is missing");
    gguf_refused(|file| file.tensors.retain(|tensor| tensor.name != "blk.1.ffn_up.weight"), "layers.1.up");
    gguf_refused(
        |file| file.tensors.push(GgufTensor::f32("blk.0.attn_output.bias", &[HIDDEN], &[0.0; HIDDEN])),
        "a llama model has no such tensor",
    );
    gguf_refused(
        |file| *file.tensor("output_norm.weight") = GgufTensor::f32("output_norm.weight", &[32], &[0.0; 32]),
        "its shape is [32], where [1, 64] is expected",
    );
    gguf_refused(
        |file| file.tensors.push(GgufTensor::f32("rope_freqs.weight", &[4], &[1.0; 4])),
        "its shape is [4], where [8] is expected",
    );
    gguf_refused(
        |file| file.tensors.push(GgufTensor::f32("rope_freqs.weight", &[8], &[0.0; 8])),
        "rope.scaling is",
    );
    gguf_refused(
        |file| file.tensors.push(GgufTensor::f32("rope_factors_long.weight", &[8], &[1.0; 8])),
        "there must be both",
    );
}

#[test]
fn gguf_configurations() {
    gguf_refused(
        put("general.architecture", Meta::str("mamba")),
        "architecture \"mamba\" are not supported; known are: llama, phi3, qwen2",
    );
    gguf_refused(put("general.architecture", Meta::U32(1)), "a string is expected");
    gguf_refused(put("llama.block_count", Meta::U32(u32::MAX)), "layers is 4294967295");
    gguf_refused(put("llama.block_count", Meta::str("two")), "a number that is not negative is expected");
    gguf_refused(put("llama.attention.head_count", Meta::U32(0)), "0 heads do not divide");
    gguf_refused(put("llama.attention.head_count_kv", Meta::U32(3)), "cannot share 3");
    gguf_refused(put("llama.attention.head_count_kv", Meta::U32(0)), "kv_heads is 0");
    gguf_refused(put("llama.attention.layer_norm_rms_epsilon", Meta::F32(f32::NAN)), "norm_eps is NaN");
    gguf_refused(put("llama.rope.dimension_count", Meta::U32(17)), "rope.dim is 17");
    gguf_refused(put("llama.rope.scaling.type", Meta::str("yarn")), "RoPE scaling \"yarn\" is not supported");
    gguf_refused(put("llama.expert_count", Meta::U32(8)), "llama.expert_count asks for something");
    gguf_refused(put("split.count", Meta::U32(3)), "llama-gguf-split --merge");
    gguf_refused(|file| _ = file.remove("llama.context_length"), "llama.context_length: it is missing");
    gguf_refused(|file| _ = file.remove("tokenizer.ggml.pre"), "tokenizer.ggml.pre: it is missing");
}

/// Every length that a broken download may have.
#[test]
fn gguf_cut_short_anywhere() {
    let bytes = gguf_llama().bytes();
    let header = bytes.len() - gguf_llama().tensors.iter().map(|tensor| tensor.data.len()).sum::<usize>();
    for len in (0..header).step_by(7).chain((header..bytes.len()).step_by(4096)) {
        assert!(open_bytes(&bytes[..len]).is_err(), "{len}");
    }
    assert!(open_bytes(&bytes[..bytes.len() - 1]).is_err());
}

/// One wrong bit at a time: an error or a model, never a panic and never much memory.
#[test]
fn gguf_with_flipped_bits() {
    let mut bytes = gguf_llama().bytes();
    let header = bytes.len() - gguf_llama().tensors.iter().map(|tensor| tensor.data.len()).sum::<usize>();
    for at in 0..header {
        let bit = 1 << (at * 5 % 8);
        bytes[at] ^= bit;
        let _ = open_bytes(&bytes);
        bytes[at] ^= bit;
    }
}

/// Damages one file of a sound folder.
#[track_caller]
fn folder_refused(damage: impl FnOnce(&Path), message: &str) {
    let folder = tempfile::tempdir().unwrap();
    write_shards(folder.path(), &config_json("LlamaForCausalLM"), &llama_tensors());
    assert!(open(folder.path()).is_ok());
    damage(folder.path());
    let sizes = fs::read_dir(folder.path()).unwrap().map(|file| file.unwrap().metadata().unwrap().len());
    let size = sizes.sum::<u64>() as usize;
    refused(open_frugally(folder.path(), size), message);
}

/// Changes one field of a JSON file.
fn patch(file: &'static str, key: &'static str, value: Value) -> impl FnOnce(&Path) {
    move |folder| {
        let path = folder.join(file);
        let mut json: Value =
            fs::read(&path).map_or_else(|_| json!({}), |bytes| serde_json::from_slice(&bytes).unwrap());
        json[key] = value;
        write_json(&path, &json);
    }
}

fn config(key: &'static str, value: Value) -> impl FnOnce(&Path) {
    patch("config.json", key, value)
}

const INDEX: &str = "model.safetensors.index.json";
const SHARD: &str = "model-00001-of-00002.safetensors";

#[test]
fn folders_without_a_file() {
    for (file, message) in [
        ("config.json", "it has no config.json"),
        ("tokenizer.json", "it has no tokenizer.json"),
        (INDEX, "neither model.safetensors nor"),
        (SHARD, "No such file"),
    ] {
        folder_refused(|folder| fs::remove_file(folder.join(file)).unwrap(), message);
    }
    refused(open(Path::new("/no/such/file")), "No such file");
    refused(open(Path::new("/dev/zero")), "neither a file nor a folder");
}

#[test]
fn folder_configurations() {
    folder_refused(
        config("architectures", json!(["RwkvForCausalLM"])),
        "\"RwkvForCausalLM\" are not supported",
    );
    folder_refused(config("architectures", json!([])), "known are: LlamaForCausalLM");
    folder_refused(config("hidden_size", json!(-1)), "config.json: invalid value");
    folder_refused(config("hidden_size", json!(1u64 << 60)), "hidden is 1152921504606846976");
    folder_refused(config("num_attention_heads", json!(0)), "heads is 0");
    folder_refused(config("num_key_value_heads", json!(3)), "4 heads cannot share 3");
    folder_refused(config("rms_norm_eps", json!("small")), "invalid type");
    folder_refused(config("hidden_act", json!("gelu")), "gelu is not supported");
    folder_refused(config("attention_bias", json!(true)), "attention_bias");
    folder_refused(config("mlp_bias", json!(true)), "mlp_bias");
    folder_refused(config("quantization_config", json!({ "bits": 4 })), "quantised already");
    folder_refused(
        config("rope_scaling", json!({ "type": "yarn", "factor": 4.0 })),
        "\"yarn\" is not supported",
    );
    folder_refused(config("rope_scaling", json!({ "factor": 4.0 })), "without a type");
    folder_refused(config("rope_scaling", json!({ "type": "linear" })), "factor: it is missing");
    let short = json!({ "type": "longrope", "short_factor": [1.0], "long_factor": [1.0],
                        "original_max_position_embeddings": 64 });
    folder_refused(config("rope_scaling", short), "rope.scaling is");
    folder_refused(config("eos_token_id", json!(320)), "token 320 has no embedding");
    folder_refused(config("vocab_size", json!(321)), "its shape is [320, 64], where [321, 64] is expected");
    let deep = |folder: &Path| fs::write(folder.join("config.json"), "[".repeat(1 << 20)).unwrap();
    folder_refused(deep, "config.json: ");
    let not_text = |folder: &Path| fs::write(folder.join("config.json"), [0xFF, 0xFE]).unwrap();
    folder_refused(not_text, "config.json: ");
    let huge = |folder: &Path| {
        fs::File::create(folder.join("config.json")).unwrap().set_len(1 << 40).unwrap();
    };
    folder_refused(huge, "1099511627776 bytes, more than");
}

#[test]
fn folder_texts() {
    folder_refused(patch("tokenizer.json", "added_tokens", json!(5)), "tokenizer.json: invalid type");
    let absent = patch("tokenizer_config.json", "eos_token", json!("<|gone|>"));
    folder_refused(absent, "\"<|gone|>\" is not among the added tokens");
    let no_bos = |folder: &Path| {
        patch("tokenizer_config.json", "add_bos_token", json!(true))(folder);
        patch("tokenizer_config.json", "eos_token", json!("<|im_end|>"))(folder);
    };
    folder_refused(no_bos, "it is missing, but add_bos_token asks for it");
    let unnamed = patch("tokenizer_config.json", "chat_template", json!([{ "name": "rag", "template": "" }]));
    folder_refused(unnamed, "none is called default; there are: rag");
    folder_refused(
        patch("generation_config.json", "eos_token_id", json!([1, 4_000_000_000u32])),
        "no embedding",
    );
    let latin1 = |folder: &Path| fs::write(folder.join("chat_template.jinja"), [0xE9]).unwrap();
    folder_refused(latin1, "chat_template.jinja: it is not UTF-8");
}

#[test]
fn shard_names_that_leave_the_folder() {
    for name in [
        "../model.safetensors",
        "/etc/model.safetensors",
        "sub/model.safetensors",
        "./model.safetensors",
        "..",
        "",
        "a\\..\\b.safetensors",
        "C:x.safetensors",
        "nul\0.safetensors",
        "model.bin",
    ] {
        let map = json!({ "model.norm.weight": name });
        folder_refused(patch(INDEX, "weight_map", map), "is not a plain .safetensors file name");
    }
    let many: Value = (0..2000).map(|i| (i.to_string(), json!(format!("{i}.safetensors")))).collect();
    folder_refused(patch(INDEX, "weight_map", many), "names 2000 shards");
}

#[test]
fn indexes_that_lie() {
    let moved = |folder: &Path| {
        let mut index: Value = serde_json::from_slice(&fs::read(folder.join(INDEX)).unwrap()).unwrap();
        index["weight_map"]["model.embed_tokens.weight"] = json!("model-00002-of-00002.safetensors");
        write_json(&folder.join(INDEX), &index);
    };
    folder_refused(moved, "the index says that it is in model-00002");
    let unlisted = |folder: &Path| {
        let mut index: Value = serde_json::from_slice(&fs::read(folder.join(INDEX)).unwrap()).unwrap();
        index["weight_map"].as_object_mut().unwrap().remove("lm_head.weight");
        write_json(&folder.join(INDEX), &index);
    };
    folder_refused(unlisted, "the index does not list it");
    let twice = |folder: &Path| {
        fs::copy(folder.join(SHARD), folder.join("model-00002-of-00002.safetensors")).unwrap();
    };
    folder_refused(twice, "model-00002-of-00002.safetensors have it");
}

#[cfg(unix)]
#[test]
fn links_that_lead_nowhere() {
    let linked = |target: &'static str| {
        move |folder: &Path| {
            fs::remove_file(folder.join(SHARD)).unwrap();
            std::os::unix::fs::symlink(target, folder.join(SHARD)).unwrap();
        }
    };
    folder_refused(linked("."), "neither a file nor a folder");
    folder_refused(linked(SHARD), "symbolic links");
    folder_refused(linked("gone"), "No such file");
}

#[test]
fn safetensors_files() {
    let shard = |header: &'static str, data: usize| {
        move |folder: &Path| {
            let bytes =
                [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &vec![0; data]].concat();
            fs::write(folder.join(SHARD), bytes).unwrap();
        }
    };
    let raw = |bytes: &'static [u8]| move |folder: &Path| fs::write(folder.join(SHARD), bytes).unwrap();
    let not_sound = "is not a sound safetensors file";
    folder_refused(raw(b""), not_sound);
    folder_refused(raw(b"\xff\xff\xff\xff\xff\xff\xff\xff{}"), not_sound);
    folder_refused(raw(b"\x00\x00\x00\x10\x00\x00\x00\x00{}"), not_sound);
    folder_refused(raw(b"\x02\x00\x00\x00\x00\x00\x00\x00\xff\xff"), not_sound);
    folder_refused(shard("[[[[", 0), not_sound);
    let past = r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#;
    folder_refused(shard(past, 4), not_sound);
    folder_refused(shard(past, 12), not_sound);
    let hole = r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}"#;
    folder_refused(shard(hole, 8), not_sound);
    let overflow = r#"{"a":{"dtype":"F32","shape":[4294967296,4294967296,4],"data_offsets":[0,8]}}"#;
    folder_refused(shard(overflow, 8), not_sound);
    let overlap = r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},
                      "b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}}"#;
    folder_refused(shard(overlap, 12), not_sound);
    let doubles = r#"{"a":{"dtype":"F64","shape":[1],"data_offsets":[0,8]}}"#;
    folder_refused(shard(doubles, 8), "its type is F64; known are: F32, F16, BF16");
    let cut = |folder: &Path| {
        let bytes = fs::read(folder.join(SHARD)).unwrap();
        fs::write(folder.join(SHARD), &bytes[..bytes.len() - 1]).unwrap();
    };
    folder_refused(cut, not_sound);
}

#[test]
fn shapes_of_a_folder() {
    let folder = tempfile::tempdir().unwrap();
    let mut tensors = llama_tensors();
    let (_, shape, _) = tensors.iter_mut().find(|tensor| tensor.0.contains("1.mlp.down_proj")).unwrap();
    shape.reverse();
    write_folder(folder.path(), &config_json("LlamaForCausalLM"), &tensors, Dtype::F32);
    refused(open(folder.path()), "its shape is [96, 64], where [64, 96] is expected");
    // Phi-3's fused matrices are unknown to a llama model, and the other way round.
    write_folder(folder.path(), &config_json("LlamaForCausalLM"), &phi3_tensors(), Dtype::F32);
    refused(open(folder.path()), "q_proj.weight\": it is missing");
}
