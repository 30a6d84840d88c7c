//! Writes a checkpoint in Phi-4's exact shapes, with its tokenizer and chat template, and random weights: what
//! `upg compress` costs can be measured on it where the real one cannot be had.
//!
//!     cargo run --release -p upg-parity --example phi4_checkpoint -- FOLDER [LAYERS]
//!
//! All 40 layers take 29.3 GB, in shards of up to 5 GB like the original's; each layer fewer takes 0.68 GB less.

use std::{
    fs::{self, File},
    io::{BufWriter, Write as _},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use half::bf16;
use serde_json::{Map, Value, json};
use upg_parity::phi4;

const HIDDEN: usize = 5120;
const MLP: usize = 17_920;
const HEADS: usize = 40;
const KV_HEADS: usize = 10;
const HEAD_DIM: usize = HIDDEN / HEADS;
const LAYERS: usize = 40;
/// Bytes of a shard, at most.
const SHARD: usize = 5_000_000_000;
const TEMPLATE: &str = include_str!("../golden/templates/phi-4.jinja");

/// A tensor's name and shape; a vector is a norm's gains.
struct Tensor {
    name: String,
    shape: Vec<usize>,
}

impl Tensor {
    fn new(name: impl Into<String>, shape: &[usize]) -> Self {
        Self { name: name.into(), shape: shape.to_vec() }
    }

    fn len(&self) -> usize {
        self.shape.iter().product()
    }

    fn bytes(&self) -> usize {
        2 * self.len()
    }
}

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let folder: PathBuf = args.next().context("give a folder to write to, and how many layers (40)")?.into();
    let layers = args.next().map_or(Ok(LAYERS), |n| n.parse()).context("LAYERS is not a number")?;
    ensure!((1..=LAYERS).contains(&layers), "Phi-4 has 1 to {LAYERS} layers");
    fs::create_dir_all(&folder)?;
    write_texts(&folder, layers)?;
    write_weights(&folder, &tensors(layers))
}

fn write_texts(folder: &Path, layers: usize) -> Result<()> {
    let write = |name: &str, value: &Value| fs::write(folder.join(name), serde_json::to_vec_pretty(value)?);
    write(
        "config.json",
        &json!({
            "architectures": ["Phi3ForCausalLM"], "model_type": "phi3", "hidden_act": "silu", "torch_dtype": "bfloat16",
            "hidden_size": HIDDEN, "intermediate_size": MLP, "num_hidden_layers": layers,
            "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "vocab_size": phi4::VOCAB,
            "max_position_embeddings": 16384, "original_max_position_embeddings": 16384,
            "rms_norm_eps": 1e-5, "rope_theta": 250_000, "rope_scaling": null, "sliding_window": null,
            "tie_word_embeddings": false, "bos_token_id": 100_257, "eos_token_id": 100_265, "pad_token_id": 100_349,
        }),
    )?;
    write("generation_config.json", &json!({"bos_token_id": 100_257, "eos_token_id": [100_257, 100_265]}))?;
    write("tokenizer_config.json", &json!({"eos_token": "<|im_end|>", "chat_template": TEMPLATE}))?;
    fs::write(folder.join("tokenizer.json"), phi4::tokenizer_json(&tiktoken_rs::cl100k_base()?)?)?;
    Ok(())
}

/// In the order of the original's files.
fn tensors(layers: usize) -> Vec<Tensor> {
    let layer = |i: usize| {
        let tensor =
            |name: &str, shape: &[usize]| Tensor::new(format!("model.layers.{i}.{name}.weight"), shape);
        [
            tensor("input_layernorm", &[HIDDEN]),
            tensor("self_attn.qkv_proj", &[(HEADS + 2 * KV_HEADS) * HEAD_DIM, HIDDEN]),
            tensor("self_attn.o_proj", &[HIDDEN, HIDDEN]),
            tensor("post_attention_layernorm", &[HIDDEN]),
            tensor("mlp.gate_up_proj", &[2 * MLP, HIDDEN]),
            tensor("mlp.down_proj", &[HIDDEN, MLP]),
        ]
    };
    std::iter::once(Tensor::new("model.embed_tokens.weight", &[phi4::VOCAB, HIDDEN]))
        .chain((0..layers).flat_map(layer))
        .chain([
            Tensor::new("model.norm.weight", &[HIDDEN]),
            Tensor::new("lm_head.weight", &[phi4::VOCAB, HIDDEN]),
        ])
        .collect()
}

fn write_weights(folder: &Path, tensors: &[Tensor]) -> Result<()> {
    let mut shards: Vec<Vec<&Tensor>> = vec![vec![]];
    let mut room = SHARD;
    for tensor in tensors {
        if tensor.bytes() > room {
            shards.push(vec![]);
            room = SHARD;
        }
        room -= tensor.bytes();
        shards.last_mut().context("no shard")?.push(tensor);
    }
    let name = |i: usize| format!("model-{:05}-of-{:05}.safetensors", i + 1, shards.len());
    let mut random = Random::new();
    let mut map = Map::new();
    for (i, shard) in shards.iter().enumerate() {
        eprintln!("{}", name(i));
        write_shard(&folder.join(name(i)), shard, &mut random)?;
        map.extend(shard.iter().map(|tensor| (tensor.name.clone(), json!(name(i)))));
    }
    let total: usize = tensors.iter().map(Tensor::bytes).sum();
    let index = json!({"metadata": {"total_size": total}, "weight_map": map});
    Ok(fs::write(folder.join("model.safetensors.index.json"), serde_json::to_vec_pretty(&index)?)?)
}

/// The `safetensors` crate wants a shard in memory; the layout is simple enough to be streamed.
fn write_shard(path: &Path, tensors: &[&Tensor], random: &mut Random) -> Result<()> {
    let mut header = Map::new();
    let mut at = 0;
    for tensor in tensors {
        let end = at + tensor.bytes();
        let entry = json!({"dtype": "BF16", "shape": tensor.shape, "data_offsets": [at, end]});
        header.insert(tensor.name.clone(), entry);
        at = end;
    }
    let mut header = serde_json::to_vec(&header)?;
    header.resize(header.len().next_multiple_of(8), b' ');
    let mut file = BufWriter::with_capacity(8 << 20, File::create(path)?);
    file.write_all(&(header.len() as u64).to_le_bytes())?;
    file.write_all(&header)?;
    for tensor in tensors {
        match *tensor.shape {
            [len] => file.write_all(&bf16::ONE.to_le_bytes().repeat(len))?,
            _ => random.write(&mut file, tensor.len())?,
        }
    }
    file.flush()?;
    Ok(())
}

/// Gaussian numbers in bf16, of standard deviation 0.02, looked up by 16 random bits.
struct Random {
    table: Vec<[u8; 2]>,
    state: u64,
}

impl Random {
    fn new() -> Self {
        let mut random = Self { table: vec![], state: 1 };
        let mut uniform = || (random.next() >> 11) as f64 / (1u64 << 53) as f64;
        // Box and Muller's transform.
        let normal = |_| {
            let radius = (-2.0 * (1.0 - uniform()).ln()).sqrt();
            bf16::from_f64(0.02 * radius * (std::f64::consts::TAU * uniform()).cos()).to_le_bytes()
        };
        let table = (0..1 << 16).map(normal).collect();
        Self { table, state: 2 }
    }

    /// SplitMix64 (Steele, Lea and Flood 2014).
    fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.state ^ (self.state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Writes `n` numbers, a multiple of four.
    fn write(&mut self, file: &mut BufWriter<File>, n: usize) -> Result<()> {
        for _ in 0..n / 4 {
            let bits = self.next();
            let value = |i: u32| self.table[(bits >> (16 * i)) as usize & 0xffff];
            file.write_all([value(0), value(1), value(2), value(3)].as_flattened())?;
        }
        Ok(())
    }
}
