//! One model, however it is stored, is read as the same tensors.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use std::{fs, path::Path};

use common::*;
use safetensors::Dtype;
use serde_json::{Value, json};
use upg_checkpoint::{Checkpoint, CheckpointError, open};
use upg_format::{Architecture, RopeScaling, TensorKind, TensorName};

fn all(checkpoint: &dyn Checkpoint) -> Vec<(TensorName, Vec<f32>)> {
    let config = checkpoint.config();
    let names = TensorName::of_checkpoint(config).into_iter();
    let read = names.map(|name| {
        let [rows, cols] = name.shape(config);
        let mut numbers = vec![0.0; rows * cols];
        checkpoint.read_rows(name, 0..rows, &mut numbers).unwrap();
        (name, numbers)
    });
    read.collect()
}

fn with(base: Value, more: Value) -> Value {
    let (mut base, more) = (base.as_object().unwrap().clone(), more.as_object().unwrap().clone());
    base.extend(more);
    Value::Object(base)
}

fn open_folder(config: &Value, tensors: &[Plain]) -> Result<Box<dyn Checkpoint>, CheckpointError> {
    let folder = tempfile::tempdir().unwrap();
    write_folder(folder.path(), config, tensors, Dtype::F32);
    open(folder.path())
}

fn open_gguf(file: &GgufFile) -> Result<Box<dyn Checkpoint>, CheckpointError> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    fs::write(&path, file.bytes()).unwrap();
    open(&path)
}

fn phi3_gguf() -> GgufFile {
    let mut file = gguf_llama();
    for (key, _) in &mut file.metadata {
        *key = key.replace("llama.", "phi3.");
    }
    file.set("general.architecture", Meta::str("phi3"));
    let rename = |(name, shape, numbers): Plain| {
        let name = name.replace("model.layers", "blk").replace("input_layernorm", "attn_norm");
        let name = name.replace("post_attention_layernorm", "ffn_norm").replace("mlp.gate_up_proj", "ffn_up");
        let name = name.replace("mlp.down_proj", "ffn_down").replace("self_attn.qkv_proj", "attn_qkv");
        let name =
            name.replace("self_attn.o_proj", "attn_output").replace("model.embed_tokens", "token_embd");
        let name = name.replace("model.norm", "output_norm").replace("lm_head", "output");
        GgufTensor::f32(&name, &shape, &numbers)
    };
    file.tensors = phi3_tensors().into_iter().map(rename).collect();
    file
}

#[test]
fn every_form_has_the_same_tensors() {
    let llama = open_folder(&config_json("LlamaForCausalLM"), &llama_tensors()).unwrap();
    let phi3 = open_folder(&config_json("Phi3ForCausalLM"), &phi3_tensors()).unwrap();
    let gguf = open_gguf(&gguf_llama()).unwrap();
    let phi3_gguf = open_gguf(&phi3_gguf()).unwrap();
    let expected = all(&*llama);
    assert_eq!(expected[1].1, numbers("model.layers.0.input_layernorm.weight", HIDDEN));
    for other in [&phi3, &gguf, &phi3_gguf] {
        assert!(all(&**other) == expected, "{}", other.describe());
    }
    assert_eq!(llama.config(), gguf.config());
    assert_eq!(phi3.config(), phi3_gguf.config());
    assert_eq!(phi3.config().architecture, Architecture::Phi3);
    assert_eq!(llama.text(), gguf.text());
    assert_eq!(llama.describe(), "safetensors, llama, F32");
}

#[test]
fn shards_and_half_precision_read_the_same() {
    let config = config_json("LlamaForCausalLM");
    let expected = all(&*open_folder(&config, &llama_tensors()).unwrap());
    for dtype in [Dtype::F16, Dtype::BF16] {
        let folder = tempfile::tempdir().unwrap();
        write_folder(folder.path(), &config, &llama_tensors(), dtype);
        assert!(all(&*open(folder.path()).unwrap()) == expected, "{dtype}");
    }
    let folder = tempfile::tempdir().unwrap();
    write_shards(folder.path(), &config, &llama_tensors());
    let shards = open(folder.path()).unwrap();
    assert!(all(&*shards) == expected);
    assert_eq!(shards.sources().len(), 2);
}

#[test]
fn any_rows_are_the_same_rows() {
    for model in [
        open_gguf(&gguf_llama()).unwrap(),
        open_folder(&config_json("Phi3ForCausalLM"), &phi3_tensors()).unwrap(),
    ] {
        for (name, whole) in all(&*model) {
            let [rows, cols] = name.shape(model.config());
            let range = rows / 3..(rows / 2).max(rows / 3);
            let mut part = vec![0.0; range.len() * cols];
            model.read_rows(name, range.clone(), &mut part).unwrap();
            assert_eq!(part, whole[range.start * cols..range.end * cols], "{name}");
        }
    }
}

#[test]
fn a_head_that_is_the_embedding() {
    let without: Vec<Plain> =
        llama_tensors().into_iter().filter(|tensor| tensor.0 != "lm_head.weight").collect();
    let config = config_json("LlamaForCausalLM");
    assert!(open_folder(&config, &without).unwrap().config().tied_embeddings);
    // A saved copy of a tied head is not an unknown tensor.
    let tied = with(config, json!({ "tie_word_embeddings": true }));
    assert!(open_folder(&tied, &llama_tensors()).unwrap().config().tied_embeddings);
    let mut gguf = gguf_llama();
    gguf.tensors.retain(|tensor| tensor.name != "output.weight");
    assert!(open_gguf(&gguf).unwrap().config().tied_embeddings);
}

#[test]
fn qwen2_has_biases() {
    let mut tensors = llama_tensors();
    let (q, kv) = (HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM);
    for layer in 0..LAYERS {
        for (part, len) in [("q", q), ("k", kv), ("v", kv)] {
            let name = format!("model.layers.{layer}.self_attn.{part}_proj.bias");
            tensors.push((name.clone(), vec![len], numbers(&name, len)));
        }
    }
    let model = open_folder(&config_json("Qwen2ForCausalLM"), &tensors).unwrap();
    assert!(model.config().qkv_bias);
    let mut bias = vec![0.0; q];
    model.read_rows(TensorName::new(1, TensorKind::QBias), 0..1, &mut bias).unwrap();
    assert_eq!(bias, numbers("model.layers.1.self_attn.q_proj.bias", q));
    // The same numbers as llama.cpp permutes them for its llama family.
    let mut gguf = gguf_llama();
    for layer in 0..LAYERS {
        for (part, len) in [("q", q), ("k", kv), ("v", kv)] {
            let numbers = numbers(&format!("model.layers.{layer}.self_attn.{part}_proj.bias"), len);
            let permuted = |i: usize| i / HEAD_DIM * HEAD_DIM + i % 2 * HEAD_DIM / 2 + i % HEAD_DIM / 2;
            let stored: Vec<f32> =
                (0..len).map(|i| numbers[if part == "v" { i } else { permuted(i) }]).collect();
            gguf.tensors.push(GgufTensor::f32(&format!("blk.{layer}.attn_{part}.bias"), &[len], &stored));
        }
    }
    assert!(all(&*open_gguf(&gguf).unwrap()) == all(&*model));
}

#[test]
fn partial_rotary_longrope_and_windows() {
    let factors = |first: f32| (0..6).map(|i| first + i as f32).collect::<Vec<f32>>();
    let config = with(
        config_json("Phi3ForCausalLM"),
        json!({
            "partial_rotary_factor": 0.75,
            "original_max_position_embeddings": 64,
            "sliding_window": 100,
            "rope_scaling": { "type": "longrope", "rope_type": "longrope",
                              "short_factor": factors(1.0), "long_factor": factors(2.5) }
        }),
    );
    let model = open_folder(&config, &phi3_tensors()).unwrap();
    assert_eq!(model.config().rope.dim, 12);
    assert_eq!(model.config().sliding_window, Some(100));
    // √(1 + ln 4 / ln 64)
    let attention_factor = (4.0f64 / 3.0).sqrt() as f32;
    let expected = RopeScaling::LongRope {
        short_factor: factors(1.0),
        long_factor: factors(2.5),
        original_context: 64,
        attention_factor,
    };
    assert_eq!(model.config().rope.scaling, expected);

    let mut gguf = phi3_gguf();
    gguf.set("phi3.rope.dimension_count", Meta::U32(12))
        .set("phi3.rope.scaling.original_context_length", Meta::U32(64))
        .set("phi3.rope.scaling.attn_factor", Meta::F32(attention_factor))
        .set("phi3.attention.sliding_window", Meta::U32(100));
    gguf.tensors.push(GgufTensor::f32("rope_factors_short.weight", &[6], &factors(1.0)));
    gguf.tensors.push(GgufTensor::f32("rope_factors_long.weight", &[6], &factors(2.5)));
    assert_eq!(open_gguf(&gguf).unwrap().config(), model.config());

    // A window as long as the context hides nothing.
    let wide = with(config, json!({ "sliding_window": 256 }));
    assert_eq!(open_folder(&wide, &phi3_tensors()).unwrap().config().sliding_window, None);
}

#[test]
fn llama3_and_linear_scaling() {
    let config = with(
        config_json("LlamaForCausalLM"),
        json!({ "rope_scaling": { "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
                                  "high_freq_factor": 4.0, "original_max_position_embeddings": 128 } }),
    );
    let scaling = open_folder(&config, &llama_tensors()).unwrap().config().rope.scaling.clone();
    let expected = RopeScaling::Llama3 {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_context: 128,
    };
    assert_eq!(scaling, expected);

    let mut gguf = gguf_llama();
    let factors = [1.0, 1.0, 1.5, 3.0, 8.0, 8.0, 8.0, 8.0];
    gguf.tensors.push(GgufTensor::f32("rope_freqs.weight", &[8], &factors));
    let expected = RopeScaling::LongRope {
        short_factor: factors.to_vec(),
        long_factor: factors.to_vec(),
        original_context: 256,
        attention_factor: 1.0,
    };
    assert_eq!(open_gguf(&gguf).unwrap().config().rope.scaling, expected);

    let mut gguf = gguf_llama();
    gguf.set("llama.rope.scaling.type", Meta::str("linear")).set("llama.rope.scaling.factor", Meta::F32(4.0));
    assert_eq!(open_gguf(&gguf).unwrap().config().rope.scaling, RopeScaling::Linear { factor: 4.0 });

    // transformers 5 has everything about RoPE in one place.
    let mut config = config_json("MistralForCausalLM");
    config.as_object_mut().unwrap().remove("rope_theta");
    let config = with(
        config,
        json!({ "rope_parameters": { "rope_type": "linear", "factor": 2.0, "rope_theta": 5e5 } }),
    );
    let rope = open_folder(&config, &llama_tensors()).unwrap().config().rope.clone();
    assert_eq!((rope.theta, rope.scaling), (5e5, RopeScaling::Linear { factor: 2.0 }));
}

#[test]
fn only_qwen2_can_switch_its_window_off() {
    let window = |config: Value| open_folder(&config, &llama_tensors()).map(|m| m.config().sliding_window);
    let config = with(config_json("MistralForCausalLM"), json!({ "sliding_window": 32 }));
    assert_eq!(window(config.clone()).unwrap(), Some(32));
    let mixed = with(config, json!({ "layer_types": ["full_attention", "sliding_attention"] }));
    let error = window(mixed).unwrap_err().to_string();
    assert!(error.contains("1 of 2 layers have a sliding window"), "{error}");
}

fn write_text_files(folder: &Path) {
    write_json(&folder.join("generation_config.json"), &json!({ "eos_token_id": [2, 97] }));
    write_json(
        &folder.join("tokenizer_config.json"),
        &json!({
            "bos_token": { "content": "<|im_start|>", "lstrip": false },
            "eos_token": "<|endoftext|>",
            "pad_token": null,
            "chat_template": [{ "name": "tool_use", "template": "tools" }, { "name": "default", "template": "chat" }]
        }),
    );
}

#[test]
fn special_tokens_and_templates_of_a_folder() {
    let folder = tempfile::tempdir().unwrap();
    write_folder(folder.path(), &config_json("LlamaForCausalLM"), &llama_tensors(), Dtype::F32);
    write_text_files(folder.path());
    let text = open(folder.path()).unwrap().text().clone();
    assert_eq!((text.bos, text.eos, text.pad, text.add_bos), (Some(1), Some(0), None, false));
    // 2 from config.json, 97 from generation_config.json, 0 from tokenizer_config.json.
    assert_eq!(text.stop_tokens, [0, 2, 97]);
    assert_eq!(text.chat_template.as_deref(), Some("chat"));

    // The file wins, and a post-processor that starts with the token means that prompts do.
    fs::write(folder.path().join("chat_template.jinja"), "file").unwrap();
    let post = json!({ "type": "Sequence", "processors": [
        { "type": "ByteLevel" },
        { "type": "TemplateProcessing",
          "single": [{ "SpecialToken": { "id": "<|im_start|>", "type_id": 0 } }, { "Sequence": { "id": "A" } }] }
    ] });
    write_json(
        &folder.path().join("tokenizer.json"),
        &with(tokenizer_json(), json!({ "post_processor": post })),
    );
    let text = open(folder.path()).unwrap().text().clone();
    assert_eq!((text.chat_template.as_deref(), text.add_bos), (Some("file"), true));
}
