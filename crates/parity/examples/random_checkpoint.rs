//! Writes a checkpoint in a known model's exact shapes, with Phi-4's tokenizer and chat template, and random weights: what
//! `upg compress` costs can be measured on it where the real one cannot be had.
//!
//!     cargo run --release -p upg-parity --example random_checkpoint -- phi-4|qwen2-1.5b|qwen2-1.5b-tied FOLDER [LAYERS]
//!
//! All 40 layers of Phi-4 take 29.3 GB, in shards of up to 5 GB like the original's; each layer fewer takes 0.68 GB less. All
//! 28 of Qwen2 take 3.6 GB, or 3.1 with tied embeddings.

use std::{
    fs::{self, File},
    io::{BufWriter, Write as _},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use half::bf16;
use serde_json::{Map, Value, json};
use upg_parity::phi4;

/// Bytes of a shard, at most.
const SHARD: usize = 5_000_000_000;
const TEMPLATE: &str = include_str!("../golden/templates/phi-4.jinja");
const USAGE: &str =
    "give phi-4, qwen2-1.5b or qwen2-1.5b-tied, a folder to write to, and perhaps how many layers";

/// What a checkpoint's tensors are.
struct Shapes {
    hidden: usize,
    mlp: usize,
    heads: usize,
    kv_heads: usize,
    layers: usize,
    /// At least that of Phi-4's tokenizer: numbers behind it are no token's, as in Qwen2's own files.
    vocab: usize,
    family: Family,
    tied: bool,
}

/// How a family names and fuses tensors.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Family {
    /// Without biases, q, k and v in one tensor, gate and up in one.
    Phi3,
    /// With biases of q, k and v, all tensors apart.
    Qwen2,
}

const PHI4: Shapes = Shapes {
    hidden: 5120,
    mlp: 17_920,
    heads: 40,
    kv_heads: 10,
    layers: 40,
    vocab: phi4::VOCAB,
    family: Family::Phi3,
    tied: false,
};

const QWEN2: Shapes = Shapes {
    hidden: 1536,
    mlp: 8960,
    heads: 12,
    kv_heads: 2,
    layers: 28,
    vocab: 151_936,
    family: Family::Qwen2,
    tied: false,
};

/// A tensor's name and shape.
struct Tensor {
    name: String,
    shape: Vec<usize>,
    /// Standard deviation of its numbers; none for a norm's gains, which are 1.
    deviation: Option<f32>,
}

impl Tensor {
    /// What keeps the power of what it is applied to.
    fn matrix(name: impl Into<String>, [rows, cols]: [usize; 2]) -> Self {
        let deviation = Some((cols as f32).powf(-0.5));
        Self { name: name.into(), shape: vec![rows, cols], deviation }
    }

    fn gains(name: impl Into<String>, len: usize) -> Self {
        Self { name: name.into(), shape: vec![len], deviation: None }
    }

    fn bias(name: impl Into<String>, len: usize) -> Self {
        Self { name: name.into(), shape: vec![len], deviation: Some(1.0) }
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
    let model = args.next().context(USAGE)?;
    let mut shapes = match model.as_str() {
        "phi-4" => PHI4,
        "qwen2-1.5b" => QWEN2,
        "qwen2-1.5b-tied" => Shapes { tied: true, ..QWEN2 },
        _ => anyhow::bail!(USAGE),
    };
    let folder: PathBuf = args.next().context(USAGE)?.into();
    let layers = args.next().map_or(Ok(shapes.layers), |n| n.parse()).context("LAYERS is not a number")?;
    ensure!((1..=shapes.layers).contains(&layers), "{model} has 1 to {} layers", shapes.layers);
    shapes.layers = layers;
    fs::create_dir_all(&folder)?;
    shapes.write_texts(&folder)?;
    write_weights(&folder, &shapes.tensors())
}

impl Shapes {
    fn head_dim(&self) -> usize {
        self.hidden / self.heads
    }

    fn write_texts(&self, folder: &Path) -> Result<()> {
        let write =
            |name: &str, value: &Value| fs::write(folder.join(name), serde_json::to_vec_pretty(value)?);
        write("config.json", &self.config())?;
        write(
            "generation_config.json",
            &json!({"bos_token_id": 100_257, "eos_token_id": [100_257, 100_265]}),
        )?;
        write("tokenizer_config.json", &json!({"eos_token": "<|im_end|>", "chat_template": TEMPLATE}))?;
        fs::write(folder.join("tokenizer.json"), phi4::tokenizer_json(&tiktoken_rs::cl100k_base()?)?)?;
        Ok(())
    }

    fn config(&self) -> Value {
        let (architecture, kind, context, theta, eps) = match self.family {
            Family::Phi3 => ("Phi3ForCausalLM", "phi3", 16_384, 250_000, 1e-5),
            Family::Qwen2 => ("Qwen2ForCausalLM", "qwen2", 32_768, 1_000_000, 1e-6),
        };
        json!({
            "architectures": [architecture], "model_type": kind, "hidden_act": "silu", "torch_dtype": "bfloat16",
            "hidden_size": self.hidden, "intermediate_size": self.mlp, "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads, "num_key_value_heads": self.kv_heads, "vocab_size": self.vocab,
            "max_position_embeddings": context, "original_max_position_embeddings": context,
            "rms_norm_eps": eps, "rope_theta": theta, "rope_scaling": null, "sliding_window": null,
            "tie_word_embeddings": self.tied, "bos_token_id": 100_257, "eos_token_id": 100_265,
            "pad_token_id": 100_349,
        })
    }

    /// In the order of the original's files.
    fn tensors(&self) -> Vec<Tensor> {
        let rows = [self.vocab, self.hidden];
        let embedding = Tensor { deviation: Some(1.0), ..Tensor::matrix("model.embed_tokens.weight", rows) };
        std::iter::once(embedding)
            .chain((0..self.layers).flat_map(|layer| self.layer(layer)))
            .chain([Tensor::gains("model.norm.weight", self.hidden)])
            .chain((!self.tied).then(|| Tensor::matrix("lm_head.weight", rows)))
            .collect()
    }

    fn layer(&self, layer: usize) -> Vec<Tensor> {
        let (hidden, mlp, kv) = (self.hidden, self.mlp, self.kv_heads * self.head_dim());
        let name = |part: &str| format!("model.layers.{layer}.{part}");
        let matrix = |part: &str, shape| Tensor::matrix(name(part) + ".weight", shape);
        // They write to the residual stream, each layer's a part of it.
        let depth = (2.0 * self.layers as f32).powf(-0.5);
        let writing = |part: &str, cols: usize| {
            let tensor = matrix(part, [hidden, cols]);
            Tensor { deviation: tensor.deviation.map(|deviation| deviation * depth), ..tensor }
        };
        let bias = |part: &str, len| Tensor::bias(name(part) + ".bias", len);
        let mut tensors = vec![Tensor::gains(name("input_layernorm.weight"), hidden)];
        match self.family {
            Family::Phi3 => tensors.push(matrix("self_attn.qkv_proj", [hidden + 2 * kv, hidden])),
            Family::Qwen2 => {
                tensors.extend([("q", hidden), ("k", kv), ("v", kv)].into_iter().flat_map(|(which, rows)| {
                    let part = format!("self_attn.{which}_proj");
                    [matrix(&part, [rows, hidden]), bias(&part, rows)]
                }))
            }
        }
        tensors.push(writing("self_attn.o_proj", hidden));
        tensors.push(Tensor::gains(name("post_attention_layernorm.weight"), hidden));
        match self.family {
            Family::Phi3 => tensors.push(matrix("mlp.gate_up_proj", [2 * mlp, hidden])),
            Family::Qwen2 => tensors
                .extend(["gate", "up"].map(|which| matrix(&format!("mlp.{which}_proj"), [mlp, hidden]))),
        }
        tensors.push(writing("mlp.down_proj", mlp));
        tensors
    }
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
        match tensor.deviation {
            None => file.write_all(&bf16::ONE.to_le_bytes().repeat(tensor.len()))?,
            Some(deviation) => random.write(&mut file, tensor.len(), deviation)?,
        }
    }
    file.flush()?;
    Ok(())
}

/// Gaussian numbers, looked up by 16 random bits.
struct Random {
    table: Vec<f32>,
    state: u64,
}

impl Random {
    fn new() -> Self {
        let mut random = Self { table: vec![], state: 1 };
        let mut uniform = || (random.next() >> 11) as f64 / (1u64 << 53) as f64;
        // Box and Muller's transform.
        let normal = |_| {
            let radius = (-2.0 * (1.0 - uniform()).ln()).sqrt();
            (radius * (std::f64::consts::TAU * uniform()).cos()) as f32
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

    /// Writes `n` numbers in bf16, a multiple of four.
    fn write(&mut self, file: &mut BufWriter<File>, n: usize, deviation: f32) -> Result<()> {
        let scaled = |x: &f32| bf16::from_f32(deviation * x).to_le_bytes();
        let table: Vec<[u8; 2]> = self.table.iter().map(scaled).collect();
        for _ in 0..n / 4 {
            let bits = self.next();
            let value = |i: u32| table[(bits >> (16 * i)) as usize & 0xffff];
            file.write_all([value(0), value(1), value(2), value(3)].as_flattened())?;
        }
        Ok(())
    }
}
