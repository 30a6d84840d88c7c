//! The attacks: each a valid tiny file with one thing changed.

#![allow(clippy::unwrap_used)]

use serde_json::{Value, json};
use upg_format::FormatError;

use crate::{
    common::valid_file,
    image::{Image, add, seal},
};

/// A file and the error that it must give.
pub struct Attack {
    pub name: &'static str,
    pub file: Vec<u8>,
    /// The pattern of the error, to be printed.
    pub expected: &'static str,
    pub is_expected: fn(&FormatError) -> bool,
}

/// An attack that must fail with an error of this pattern.
macro_rules! attack {
    ($name:literal, $file:expr, $error:pat) => {
        Attack {
            name: $name,
            file: $file,
            expected: stringify!($error),
            is_expected: |error| {
                use FormatError::*;
                matches!(error, $error)
            },
        }
    };
}

/// The valid file with some bytes overwritten.
fn patched(at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut file = valid_file();
    file[at..at + bytes.len()].copy_from_slice(bytes);
    file
}

/// The valid file with its parts changed, then sealed.
pub fn forged(change: impl FnOnce(&mut Image)) -> Vec<u8> {
    let mut image = Image::of(&valid_file());
    change(&mut image);
    image.seal()
}

/// The valid file with one field of the tensor `layers.0.q` changed.
fn with_q(field: &str, value: Value) -> Vec<u8> {
    forged(|image| image.tensor("layers.0.q")[field] = value)
}

/// The valid file with one field of the configuration changed.
fn with_config(field: &str, value: Value) -> Vec<u8> {
    forged(|image| image.header["config"][field] = value)
}

/// The valid file with other bytes for a header.
fn with_header(header: &[u8]) -> Vec<u8> {
    let image = Image::of(&valid_file());
    seal(header, image.header_length, &image.data)
}

/// The valid file with a byte of padding behind a record (or `at` bytes into it) set.
fn with_dirt(record: impl FnOnce(&mut Image) -> Value, at: impl FnOnce(&Value) -> usize) -> Vec<u8> {
    forged(|image| {
        let record = record(image);
        let at = at(&record);
        image.bytes_of(&record)[at] = 1;
    })
}

fn length(record: &Value) -> usize {
    record["length"].as_u64().unwrap() as usize
}

/// Every attack.
pub fn attacks() -> Vec<Attack> {
    [preamble_attacks(), header_attacks(), index_attacks(), cover_attacks(), data_attacks()]
        .into_iter()
        .flatten()
        .collect()
}

fn preamble_attacks() -> Vec<Attack> {
    let valid = valid_file();
    let as_text = |file: &[u8]| file.iter().copied().filter(|byte| *byte != b'\r').collect();
    vec![
        attack!("empty", Vec::new(), TooShort { length: 0 }),
        attack!("cut-in-preamble", valid[..63].to_vec(), TooShort { length: 63 }),
        attack!("only-a-preamble", valid[..64].to_vec(), Truncated { actual: 64, .. }),
        attack!("cut-in-header", valid[..200].to_vec(), Truncated { .. }),
        attack!("cut-in-data", valid[..valid.len() - 1].to_vec(), Truncated { .. }),
        attack!("trailing-bytes", [&valid[..], &[0; 64]].concat(), TrailingBytes { .. }),
        attack!("wrong-magic", patched(0, b"GGUF"), Magic),
        attack!("transferred-as-text", as_text(&valid[..128]), Magic),
        attack!("version-zero", patched(8, &[0; 4]), Preamble(_)),
        attack!(
            "future-version",
            patched(8, &2_u32.to_le_bytes())[..64].to_vec(),
            FutureVersion { found: 2, known: 1 }
        ),
        attack!("reserved-bytes", patched(12, &[1]), Preamble(_)),
        attack!(
            "header-length-huge",
            patched(16, &[0xff; 8])[..64].to_vec(),
            HeaderTooLarge { length: u64::MAX, .. }
        ),
        attack!("header-past-end", patched(16, &(16_u64 << 20).to_le_bytes()), HeaderLength { .. }),
        attack!("header-length-zero", patched(16, &[0; 8]), HeaderLength { length: 0, .. }),
        attack!("header-length-odd", patched(16, &65_u64.to_le_bytes()), HeaderLength { length: 65, .. }),
        attack!("file-length-huge", patched(24, &[0xff; 8]), Truncated { stated: u64::MAX, .. }),
        attack!("file-length-short", patched(24, &64_u64.to_le_bytes()), TrailingBytes { .. }),
        attack!("header-checksum", patched(32, &[0; 32]), HeaderChecksum),
    ]
}

fn header_attacks() -> Vec<Attack> {
    let json = serde_json::to_string(&Image::of(&valid_file()).header).unwrap();
    let twice = json.replacen("{", "{\"blobs\":[],", 1);
    let infinite = json.replacen("10000.0", "1e999", 1);
    vec![
        attack!("header-bit-flip", patched(100, &[valid_file()[100] ^ 4]), HeaderChecksum),
        attack!("header-empty", with_header(b""), HeaderJson(_)),
        attack!("header-not-json", with_header(b"\xff\xfe\0"), HeaderJson(_)),
        attack!("header-nested-deep", with_header(&[b'['; 100_000]), HeaderJson(_)),
        attack!("header-goes-on", with_header(format!("{json}{{}}").as_bytes()), HeaderJson(_)),
        attack!("field-twice", with_header(twice.as_bytes()), HeaderJson(_)),
        attack!("number-infinite", with_header(infinite.as_bytes()), HeaderJson(_)),
        attack!("field-unknown", forged(|image| image.header["loader"] = json!("sh")), HeaderJson(_)),
        attack!("config-field-unknown", with_config("experts", json!(8)), HeaderJson(_)),
        attack!("architecture-unknown", with_config("architecture", json!("rwkv")), HeaderJson(_)),
        attack!("rope-none-with-fields", with_rope_scaling(json!({"none": {"factor": 2}})), HeaderJson(_)),
        attack!("layers-huge", with_config("layers", json!(u64::MAX)), Config(_)),
        attack!("vocab-huge", with_config("vocab", json!(1_u64 << 40)), Config(_)),
        attack!("window-huge", with_config("sliding_window", json!(u64::MAX)), Config(_)),
        attack!("width-odd", with_config("hidden", json!(33)), Config(_)),
        attack!("rope-factors-many", with_rope_scaling(many_rope_factors()), Config(_)),
        attack!("stop-tokens-many", forged(many_stop_tokens), Token { token: 9, .. }),
        attack!(
            "bos-past-vocabulary",
            forged(|image| image.header["text"]["bos"] = json!(9)),
            Token { role: "bos", .. }
        ),
    ]
}

fn with_rope_scaling(scaling: Value) -> Vec<u8> {
    forged(|image| image.header["config"]["rope"]["scaling"] = scaling)
}

fn many_rope_factors() -> Value {
    let factors = vec![1; 100_000];
    json!({"longrope": {
        "short_factor": factors, "long_factor": factors, "original_context": 32, "attention_factor": 1.0
    }})
}

fn many_stop_tokens(image: &mut Image) {
    image.header["text"]["stop_tokens"] = vec![9; 200_000].into();
}

fn index_attacks() -> Vec<Attack> {
    vec![
        attack!("tensor-unknown", with_q("name", json!("layers.0.z")), UnknownTensor(_)),
        attack!("tensor-name-padded", with_q("name", json!("layers.00.q")), UnknownTensor(_)),
        attack!("tensor-name-long", with_q("name", json!("q".repeat(100_000))), UnknownTensor(_)),
        attack!("tensor-of-no-layer", with_q("name", json!("layers.7.q")), UnexpectedTensor(_)),
        attack!("tensor-folded", with_q("name", json!("layers.0.attn_norm")), UnexpectedTensor(_)),
        attack!("tensor-twice", with_q("name", json!("layers.0.k")), DuplicateTensor(_)),
        attack!("tensors-many", forged(many_tensors), DuplicateTensor(_)),
        attack!("tensor-missing", forged(without_last), MissingTensors { listed: 8, expected: 9 }),
        attack!(
            "tensors-none",
            forged(|image| image.header["tensors"] = json!([])),
            MissingTensors { listed: 0, .. }
        ),
        attack!(
            "layers-without-tensors",
            with_config("layers", json!(1024)),
            MissingTensors { listed: 9, expected: 1024 }
        ),
        attack!("shape-overflows", with_q("shape", json!([u64::MAX, u64::MAX])), Shape { .. }),
        attack!("shape-zero", with_q("shape", json!([0, 32])), Shape { .. }),
        attack!(
            "shape-transposed",
            forged(|image| image.tensor("embed")["shape"] = json!([32, 9])),
            Shape { .. }
        ),
        attack!("shape-three-axes", with_q("shape", json!([32, 32, 1])), HeaderJson(_)),
        attack!("shape-negative", with_q("shape", json!([-32, -32])), HeaderJson(_)),
        attack!("encoding-unknown", with_q("encoding", json!("t8-7")), HeaderJson(_)),
        attack!("encoding-other", with_q("encoding", json!("f32")), TensorLength { .. }),
        attack!(
            "vector-in-t8",
            forged(|image| image.tensor("final_norm")["encoding"] = json!("t8-2")),
            Encoding { .. }
        ),
        attack!(
            "length-short",
            forged(|image| add(image.tensor("layers.0.q"), "length", -1)),
            TensorLength { .. }
        ),
        attack!("length-huge", with_q("length", json!(u64::MAX)), TensorLength { .. }),
        attack!("checksum-short", with_q("checksum", json!("00")), HeaderJson(_)),
        attack!("checksum-uppercase", with_q("checksum", json!("A".repeat(64))), HeaderJson(_)),
        attack!("blob-none", forged(|image| image.header["blobs"] = json!([])), Blobs(_)),
        attack!("blob-unknown", forged(|image| image.blob()["name"] = json!("run.sh")), Blobs(_)),
        attack!("blobs-many", forged(many_blobs), Blobs(_)),
        attack!(
            "blob-claims-more-than-any",
            forged(|image| image.blob()["raw_length"] = json!(1_u64 << 30)),
            BlobTooLarge { .. }
        ),
        attack!(
            "blob-claims-bomb",
            forged(|image| image.blob()["raw_length"] = json!(1 << 20)),
            BlobTooLarge { .. }
        ),
        attack!(
            "blob-length-huge",
            forged(|image| image.blob()["length"] = json!(u64::MAX)),
            OutOfBounds { .. }
        ),
    ]
}

fn many_tensors(image: &mut Image) {
    let record = image.tensor("layers.0.q").clone();
    image.header["tensors"] = vec![record; 2_000].into();
}

fn without_last(image: &mut Image) {
    image.header["tensors"].as_array_mut().unwrap().pop();
}

fn many_blobs(image: &mut Image) {
    let record = image.blob().clone();
    image.header["blobs"] = vec![record; 2_000].into();
}

fn cover_attacks() -> Vec<Attack> {
    vec![
        attack!(
            "misaligned",
            forged(|image| add(image.tensor("layers.0.q"), "offset", 4)),
            Misaligned { .. }
        ),
        attack!("overlap", forged(|image| add(image.tensor("layers.0.q"), "offset", -64)), Overlap { .. }),
        attack!("overlap-header", forged(|image| image.blob()["offset"] = json!(64)), Overlap { .. }),
        attack!("overlap-all", forged(all_at_one_place), Overlap { .. }),
        attack!("hole", forged(hole_before_last), Hole { .. }),
        attack!("hole-at-end", forged(|image| image.data.extend([0; 64])), Hole { .. }),
        attack!("offset-huge", with_q("offset", json!(u64::MAX - 63)), Hole { .. }),
        attack!("swapped", forged(swap_gate_and_up), Hole { .. }),
        attack!("past-end", forged(|image| image.data.truncate(image.data.len() - 64)), OutOfBounds { .. }),
        attack!(
            "past-end-by-padding",
            forged(|image| image.data.truncate(image.data.len() - 1)),
            OutOfBounds { .. }
        ),
        attack!("dirt-behind-tokenizer", with_dirt(|image| image.blob().clone(), length), Padding { .. }),
        attack!(
            "dirt-behind-tensor",
            with_dirt(|image| image.tensor("embed").clone(), length),
            Padding { .. }
        ),
        attack!(
            "dirt-behind-scales",
            with_dirt(|image| image.tensor("embed").clone(), |_| 18),
            Padding { .. }
        ),
    ]
}

fn all_at_one_place(image: &mut Image) {
    let offset = image.tensor("embed")["offset"].clone();
    for tensor in image.header["tensors"].as_array_mut().unwrap() {
        tensor["offset"] = offset.clone();
    }
}

fn hole_before_last(image: &mut Image) {
    add(image.last(), "offset", 64);
    image.data.extend([0; 64]);
}

fn swap_gate_and_up(image: &mut Image) {
    let gate = image.tensor("layers.0.gate")["offset"].take();
    image.tensor("layers.0.gate")["offset"] = image.tensor("layers.0.up")["offset"].take();
    image.tensor("layers.0.up")["offset"] = gate;
}

fn data_attacks() -> Vec<Attack> {
    let flipped = |record: fn(&mut Image) -> Value| with_flip(record, 5);
    vec![
        attack!("tensor-bit-flip", flipped(|image| image.tensor("layers.0.up").clone()), Checksum { .. }),
        attack!("tensor-checksum", with_q("checksum", json!("0".repeat(64))), Checksum { .. }),
        attack!("tokenizer-bit-flip", flipped(|image| image.blob().clone()), Checksum { .. }),
        attack!(
            "tokenizer-checksum",
            forged(|image| image.blob()["checksum"] = json!("0".repeat(64))),
            Checksum { .. }
        ),
        attack!(
            "tokenizer-longer-than-stated",
            forged(|image| add(image.blob(), "raw_length", -1)),
            Inflate { .. }
        ),
        attack!(
            "tokenizer-shorter-than-stated",
            forged(|image| add(image.blob(), "raw_length", 1)),
            Inflate { .. }
        ),
        attack!("tokenizer-bomb", forged(bomb), Inflate { .. }),
        attack!(
            "tokenizer-no-deflate",
            forged(|image| replace_tokenizer(image, &[0xff; 40])),
            Inflate { .. }
        ),
    ]
}

fn with_flip(record: fn(&mut Image) -> Value, at: usize) -> Vec<u8> {
    forged(|image| {
        let record = record(image);
        image.bytes_of(&record)[at] ^= 0x10;
    })
}

/// A million zeros in a thousand bytes, said to be as long as the valid tokenizer.
fn bomb(image: &mut Image) {
    let mut encoder = flate2::read::DeflateEncoder::new(&[0; 1_000_000][..], flate2::Compression::best());
    let mut stored = Vec::new();
    std::io::Read::read_to_end(&mut encoder, &mut stored).unwrap();
    replace_tokenizer(image, &stored);
}

/// Puts other stored bytes in the tokenizer's place, its checksum right, and moves the tensors accordingly.
fn replace_tokenizer(image: &mut Image, stored: &[u8]) {
    let (old, new) = (length(image.blob()).next_multiple_of(64), stored.len().next_multiple_of(64));
    let padding = vec![0; new - stored.len()];
    image.data.splice(..old, stored.iter().copied().chain(padding));
    image.blob()["length"] = stored.len().into();
    image.blob()["checksum"] = blake3::hash(stored).to_hex().as_str().into();
    image.move_tensors(new as i64 - old as i64);
}
