//! Writes small checkpoints for the tests.
#![allow(dead_code, reason = "no test needs all of it")]

use std::{borrow::Cow, fs, path::Path};

use safetensors::{Dtype, View};
use serde_json::{Value, json};

/// A metadata value.
#[derive(Clone, Debug)]
pub enum Meta {
    U32(u32),
    F32(f32),
    Bool(bool),
    Str(String),
    Strs(Vec<String>),
    I32s(Vec<i32>),
    F32s(Vec<f32>),
    /// A type's number and the bytes of the value, right or wrong.
    Raw(u32, Vec<u8>),
}

impl Meta {
    pub fn str(text: &str) -> Self {
        Meta::Str(text.into())
    }

    pub fn strs(texts: &[&str]) -> Self {
        Meta::Strs(texts.iter().map(|text| (*text).to_owned()).collect())
    }

    fn write(&self, out: &mut Vec<u8>) {
        fn array(out: &mut Vec<u8>, id: u32, len: usize) {
            out.extend(9u32.to_le_bytes());
            out.extend(id.to_le_bytes());
            out.extend((len as u64).to_le_bytes());
        }
        fn scalar<const N: usize>(out: &mut Vec<u8>, id: u32, bytes: [u8; N]) {
            out.extend(id.to_le_bytes());
            out.extend(bytes);
        }
        match self {
            Meta::U32(number) => scalar(out, 4, number.to_le_bytes()),
            Meta::F32(number) => scalar(out, 6, number.to_le_bytes()),
            Meta::Bool(flag) => scalar(out, 7, [u8::from(*flag)]),
            Meta::Str(text) => {
                out.extend(8u32.to_le_bytes());
                string(out, text.as_bytes());
            }
            Meta::Strs(texts) => {
                array(out, 8, texts.len());
                texts.iter().for_each(|text| string(out, text.as_bytes()));
            }
            Meta::I32s(numbers) => {
                array(out, 5, numbers.len());
                out.extend(numbers.iter().flat_map(|number| number.to_le_bytes()));
            }
            Meta::F32s(numbers) => {
                array(out, 6, numbers.len());
                out.extend(numbers.iter().flat_map(|number| number.to_le_bytes()));
            }
            Meta::Raw(id, bytes) => {
                out.extend(id.to_le_bytes());
                out.extend(bytes);
            }
        }
    }
}

pub fn string(out: &mut Vec<u8>, text: &[u8]) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text);
}

/// An entry of the tensor list and its data.
#[derive(Clone, Debug)]
pub struct GgufTensor {
    pub name: String,
    /// Innermost first.
    pub dims: Vec<u64>,
    pub dtype: u32,
    /// Offset in the list; where `None`, the right one.
    pub offset: Option<u64>,
    pub data: Vec<u8>,
}

impl GgufTensor {
    /// `shape` is outermost first.
    pub fn f32(name: &str, shape: &[usize], numbers: &[f32]) -> Self {
        assert_eq!(shape.iter().product::<usize>(), numbers.len(), "{name}");
        Self {
            name: name.into(),
            dims: shape.iter().rev().map(|dim| *dim as u64).collect(),
            dtype: 0,
            offset: None,
            data: numbers.iter().flat_map(|number| number.to_le_bytes()).collect(),
        }
    }
}

/// A GGUF file to be written. Every field can be made wrong.
#[derive(Clone, Debug)]
pub struct GgufFile {
    pub magic: [u8; 4],
    pub version: u32,
    pub tensor_count: Option<u64>,
    pub key_count: Option<u64>,
    pub alignment: usize,
    pub metadata: Vec<(String, Meta)>,
    pub tensors: Vec<GgufTensor>,
}

impl GgufFile {
    pub fn set(&mut self, key: &str, value: Meta) -> &mut Self {
        self.remove(key);
        self.metadata.push((key.into(), value));
        self
    }

    pub fn remove(&mut self, key: &str) -> &mut Self {
        self.metadata.retain(|(known, _)| known != key);
        self
    }

    pub fn tensor(&mut self, name: &str) -> &mut GgufTensor {
        self.tensors.iter_mut().find(|tensor| tensor.name == name).unwrap()
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut out = self.magic.to_vec();
        out.extend(self.version.to_le_bytes());
        out.extend(self.tensor_count.unwrap_or(self.tensors.len() as u64).to_le_bytes());
        out.extend(self.key_count.unwrap_or(self.metadata.len() as u64).to_le_bytes());
        for (key, value) in &self.metadata {
            string(&mut out, key.as_bytes());
            value.write(&mut out);
        }
        let mut next = 0;
        for tensor in &self.tensors {
            string(&mut out, tensor.name.as_bytes());
            out.extend((tensor.dims.len() as u32).to_le_bytes());
            out.extend(tensor.dims.iter().flat_map(|dim| dim.to_le_bytes()));
            out.extend(tensor.dtype.to_le_bytes());
            out.extend(tensor.offset.unwrap_or(next as u64).to_le_bytes());
            next = (next + tensor.data.len()).next_multiple_of(self.alignment);
        }
        for tensor in &self.tensors {
            out.resize(out.len().next_multiple_of(self.alignment), 0);
            out.extend(&tensor.data);
        }
        out
    }
}

/// The sizes of the tiny model.
pub const HIDDEN: usize = 64;
pub const HEADS: usize = 4;
pub const KV_HEADS: usize = 2;
pub const HEAD_DIM: usize = 16;
pub const MLP: usize = 96;
pub const VOCAB: usize = 320;
pub const LAYERS: usize = 2;

/// Numbers that differ from tensor to tensor and from place to place, and that survive bf16.
pub fn numbers(name: &str, len: usize) -> Vec<f32> {
    let mut state = name.bytes().fold(7u32, |hash, byte| hash.wrapping_mul(31).wrapping_add(byte.into()));
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        ((state >> 25) as f32 - 64.0) / 64.0
    };
    (0..len).map(|_| next()).collect()
}

/// A tensor in f32: name, shape, numbers.
pub type Plain = (String, Vec<usize>, Vec<f32>);

/// The tiny model under transformers' names for `LlamaForCausalLM`.
pub fn llama_tensors() -> Vec<Plain> {
    let (q, kv) = (HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM);
    let mut tensors = vec![("model.embed_tokens.weight".to_owned(), vec![VOCAB, HIDDEN])];
    for layer in 0..LAYERS {
        for (name, shape) in [
            ("input_layernorm", vec![HIDDEN]),
            ("self_attn.q_proj", vec![q, HIDDEN]),
            ("self_attn.k_proj", vec![kv, HIDDEN]),
            ("self_attn.v_proj", vec![kv, HIDDEN]),
            ("self_attn.o_proj", vec![HIDDEN, q]),
            ("post_attention_layernorm", vec![HIDDEN]),
            ("mlp.gate_proj", vec![MLP, HIDDEN]),
            ("mlp.up_proj", vec![MLP, HIDDEN]),
            ("mlp.down_proj", vec![HIDDEN, MLP]),
        ] {
            tensors.push((format!("model.layers.{layer}.{name}.weight"), shape));
        }
    }
    tensors.push(("model.norm.weight".into(), vec![HIDDEN]));
    tensors.push(("lm_head.weight".into(), vec![VOCAB, HIDDEN]));
    let filled = tensors.into_iter().map(|(name, shape)| {
        let numbers = numbers(&name, shape.iter().product());
        (name, shape, numbers)
    });
    filled.collect()
}

/// The same model with what Phi-3 fuses fused.
pub fn phi3_tensors() -> Vec<Plain> {
    let mut fused: Vec<Plain> = Vec::new();
    for (name, shape, numbers) in llama_tensors() {
        let target = [("q_proj", "qkv_proj"), ("k_proj", "qkv_proj"), ("v_proj", "qkv_proj")]
            .into_iter()
            .chain([("gate_proj", "gate_up_proj"), ("up_proj", "gate_up_proj")])
            .find(|(part, _)| name.contains(&format!(".{part}.")));
        let name = target.map_or(name.clone(), |(part, whole)| name.replace(part, whole));
        match fused.iter_mut().find(|(known, ..)| *known == name) {
            Some((_, whole, all)) => {
                whole[0] += shape[0];
                all.extend(numbers);
            }
            None => fused.push((name, shape, numbers)),
        }
    }
    fused
}

/// The same model as llama.cpp converts it: its names, and q and k permuted.
pub fn gguf_llama_tensors() -> Vec<GgufTensor> {
    let renamed = |name: &str| {
        let name = name.replace("model.embed_tokens", "token_embd").replace("lm_head", "output");
        let name = name.replace("model.norm", "output_norm").replace("model.layers", "blk");
        let name =
            name.replace("input_layernorm", "attn_norm").replace("post_attention_layernorm", "ffn_norm");
        let name = name.replace("self_attn.o_proj", "attn_output").replace("self_attn.", "attn_");
        name.replace("mlp.", "ffn_").replace("_proj", "")
    };
    let convert = |(name, shape, numbers): Plain| {
        let permuted = name.contains("q_proj") || name.contains("k_proj");
        let numbers = if permuted { permute(&numbers) } else { numbers };
        GgufTensor::f32(&renamed(&name), &shape, &numbers)
    };
    llama_tensors().into_iter().map(convert).collect()
}

/// llama.cpp's `reshape(heads, 2, head_dim / 2, cols).swapaxes(1, 2)`.
fn permute(matrix: &[f32]) -> Vec<f32> {
    let rows: Vec<&[f32]> = matrix.chunks(HIDDEN).collect();
    let mut out = Vec::new();
    for head in rows.chunks(HEAD_DIM) {
        let (first, second) = head.split_at(HEAD_DIM / 2);
        first.iter().zip(second).for_each(|(a, b)| out.extend([*a, *b].concat()));
    }
    out
}

/// A byte-level vocabulary: three special tokens, one for each printable ASCII letter, and two joined ones.
pub fn byte_level_tokens() -> Vec<(String, i32)> {
    let special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"].map(|token| (token.to_owned(), 3));
    let letters = ('!'..='~').chain(['Ġ', 'Ċ']).map(|letter| (letter.to_string(), 1));
    special.into_iter().chain(letters).chain([("he".into(), 1), ("hel".into(), 1)]).collect()
}

/// A sound GGUF file of the tiny model.
pub fn gguf_llama() -> GgufFile {
    let tokens = byte_level_tokens();
    let mut file = GgufFile {
        magic: *b"GGUF",
        version: 3,
        tensor_count: None,
        key_count: None,
        alignment: 32,
        metadata: Vec::new(),
        tensors: gguf_llama_tensors(),
    };
    file.set("general.architecture", Meta::str("llama"))
        .set("llama.block_count", Meta::U32(LAYERS as u32))
        .set("llama.context_length", Meta::U32(256))
        .set("llama.embedding_length", Meta::U32(HIDDEN as u32))
        .set("llama.feed_forward_length", Meta::U32(MLP as u32))
        .set("llama.attention.head_count", Meta::U32(HEADS as u32))
        .set("llama.attention.head_count_kv", Meta::U32(KV_HEADS as u32))
        .set("llama.attention.layer_norm_rms_epsilon", Meta::F32(1e-5))
        .set("tokenizer.ggml.model", Meta::str("gpt2"))
        .set("tokenizer.ggml.pre", Meta::str("gpt-2"))
        .set("tokenizer.ggml.tokens", Meta::Strs(tokens.iter().map(|token| token.0.clone()).collect()))
        .set("tokenizer.ggml.token_type", Meta::I32s(tokens.iter().map(|token| token.1).collect()))
        .set("tokenizer.ggml.merges", Meta::strs(&["h e", "he l"]))
        .set("tokenizer.ggml.bos_token_id", Meta::U32(1))
        .set("tokenizer.ggml.eos_token_id", Meta::U32(2));
    file
}

/// A sound `config.json` of the tiny model.
pub fn config_json(class: &str) -> Value {
    json!({
        "architectures": [class],
        "hidden_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "intermediate_size": MLP,
        "vocab_size": VOCAB,
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "rope_theta": 10000.0,
        "eos_token_id": 2,
        "bos_token_id": 1,
        "tie_word_embeddings": false
    })
}

/// A sound `tokenizer.json` with the vocabulary of [`byte_level_tokens`].
pub fn tokenizer_json() -> Value {
    let tokens = byte_level_tokens();
    let vocab: Value = tokens.iter().zip(0..).map(|((token, _), id)| (token.clone(), json!(id))).collect();
    let added = tokens.iter().zip(0..).filter(|((_, kind), _)| *kind == 3).map(|((content, _), id)| {
        json!({ "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true })
    });
    json!({
        "version": "1.0",
        "added_tokens": added.collect::<Vec<_>>(),
        "pre_tokenizer": { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true },
        "post_processor": null,
        "decoder": { "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true },
        "model": { "type": "BPE", "vocab": vocab, "merges": ["h e", "he l"] }
    })
}

struct Numbers<'a>(&'a Plain, Dtype);

impl View for Numbers<'_> {
    fn dtype(&self) -> Dtype {
        self.1
    }

    fn shape(&self) -> &[usize] {
        &self.0.1
    }

    fn data(&self) -> Cow<'_, [u8]> {
        let numbers = self.0.2.iter();
        match self.1 {
            Dtype::F32 => numbers.flat_map(|x| x.to_le_bytes()).collect(),
            Dtype::F16 => numbers.flat_map(|x| half::f16::from_f32(*x).to_le_bytes()).collect(),
            Dtype::BF16 => numbers.flat_map(|x| half::bf16::from_f32(*x).to_le_bytes()).collect(),
            other => vec![0; self.0.2.len() * other.bitsize() / 8].into(),
        }
    }

    fn data_len(&self) -> usize {
        self.0.2.len() * self.1.bitsize() / 8
    }
}

/// Writes tensors to a safetensors file.
pub fn write_safetensors(path: &Path, tensors: &[Plain], dtype: Dtype) {
    let views = tensors.iter().map(|tensor| (tensor.0.clone(), Numbers(tensor, dtype)));
    fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}

pub fn write_json(path: &Path, value: &Value) {
    fs::write(path, serde_json::to_vec(value).unwrap()).unwrap();
}

/// Writes a sound folder with one safetensors file.
pub fn write_folder(folder: &Path, config: &Value, tensors: &[Plain], dtype: Dtype) {
    fs::create_dir_all(folder).unwrap();
    write_json(&folder.join("config.json"), config);
    write_json(&folder.join("tokenizer.json"), &tokenizer_json());
    write_safetensors(&folder.join("model.safetensors"), tensors, dtype);
}

/// Writes a sound folder with two shards.
pub fn write_shards(folder: &Path, config: &Value, tensors: &[Plain]) {
    write_shards_of(folder, config, tensors, 2);
}

/// Writes a sound folder with `count` shards of about as many tensors each.
pub fn write_shards_of(folder: &Path, config: &Value, tensors: &[Plain], count: usize) {
    fs::create_dir_all(folder).unwrap();
    write_json(&folder.join("config.json"), config);
    write_json(&folder.join("tokenizer.json"), &tokenizer_json());
    let mut weight_map = serde_json::Map::new();
    for i in 0..count {
        let part = &tensors[i * tensors.len() / count..(i + 1) * tensors.len() / count];
        let shard = format!("model-{:05}-of-{count:05}.safetensors", i + 1);
        write_safetensors(&folder.join(&shard), part, Dtype::F32);
        weight_map.extend(part.iter().map(|tensor| (tensor.0.clone(), json!(shard))));
    }
    write_json(&folder.join("model.safetensors.index.json"), &json!({ "weight_map": weight_map }));
}
