//! From GGUF metadata to [`ModelConfig`].

use upg_format::{Architecture, ModelConfig, RopeConfig, RopeScaling};

use super::{
    file::Gguf,
    metadata::{Value, field, required},
};
use crate::{CheckpointError, names::GGUF_ROPE_FACTORS};

/// Values of `general.architecture` that are read. llama.cpp converts Mistral as `llama`.
const ARCHITECTURES: [(&str, Architecture); 3] =
    [("llama", Architecture::Llama), ("phi3", Architecture::Phi3), ("qwen2", Architecture::Qwen2)];

/// Keys after the architecture's name that change what a model computes, and that this program does not do.
const UNSUPPORTED: [&str; 11] = [
    "attention.scale",
    "attention.clamp_kqv",
    "attention.max_alibi_bias",
    "attention.q_lora_rank",
    "attn_logit_softcapping",
    "final_logit_softcapping",
    "embedding_scale",
    "logit_scale",
    "residual_scale",
    "expert_count",
    "use_parallel_residual",
];

impl Gguf<'_> {
    /// What the metadata and the tensors' shapes say about the model.
    pub(super) fn config(&self) -> Result<ModelConfig, CheckpointError> {
        let name = required("general.architecture", self.metadata.str("general.architecture")?)?;
        let Some((name, architecture)) = ARCHITECTURES.into_iter().find(|known| known.0 == name) else {
            return Err(CheckpointError::UnknownArchitecture {
                found: name.to_owned(),
                known: ARCHITECTURES.map(|known| known.0).join(", "),
            });
        };
        let keys = Keys { gguf: self, name };
        keys.refuse_unsupported()?;
        let (hidden, heads) = (keys.uint("embedding_length")?, keys.uint("attention.head_count")?);
        let context = keys.uint("context_length")?;
        let head_dim = keys.head_dim(hidden, heads)?;
        let config = ModelConfig {
            architecture,
            hidden,
            layers: keys.uint("block_count")?,
            heads,
            kv_heads: keys.optional_uint("attention.head_count_kv")?.unwrap_or(heads),
            head_dim,
            mlp: keys.uint("feed_forward_length")?,
            vocab: self.vocab()?,
            context,
            norm_eps: keys.float("attention.layer_norm_rms_epsilon")?,
            rope: keys.rope(head_dim, context)?,
            // 0 is how converters write that there is none.
            sliding_window: keys
                .optional_uint("attention.sliding_window")?
                .filter(|window| (1..context).contains(window)),
            tied_embeddings: !self.tensors.contains_key("output.weight"),
            qkv_bias: self.tensors.contains_key("blk.0.attn_q.bias"),
            rotation: None,
        };
        config.validate()?;
        Ok(config)
    }

    /// Rows of the embedding.
    fn vocab(&self) -> Result<usize, CheckpointError> {
        let name = "token_embd.weight";
        let embed = self.tensors.get(name).ok_or_else(|| CheckpointError::Tensor {
            name: name.into(),
            why: "it is missing; is this the first part of a split model?".into(),
        })?;
        Ok(if let [rows, _] = embed.shape[..] { rows } else { 0 })
    }
}

/// Looks up keys that start with the architecture's name.
struct Keys<'a> {
    gguf: &'a Gguf<'a>,
    name: &'static str,
}

impl Keys<'_> {
    fn key(&self, suffix: &str) -> String {
        format!("{}.{suffix}", self.name)
    }

    fn optional_uint(&self, suffix: &str) -> Result<Option<usize>, CheckpointError> {
        self.gguf.metadata.uint(&self.key(suffix))
    }

    fn uint(&self, suffix: &str) -> Result<usize, CheckpointError> {
        required(&self.key(suffix), self.optional_uint(suffix)?)
    }

    fn optional_float(&self, suffix: &str) -> Result<Option<f32>, CheckpointError> {
        self.gguf.metadata.float(&self.key(suffix))
    }

    fn float(&self, suffix: &str) -> Result<f32, CheckpointError> {
        required(&self.key(suffix), self.optional_float(suffix)?)
    }

    fn refuse_unsupported(&self) -> Result<(), CheckpointError> {
        let means_nothing = |value: &Value<'_>| match value {
            Value::Unsigned(number) => *number == 0,
            Value::Bool(flag) => !flag,
            Value::Float(x) => *x == 0.0,
            _ => false,
        };
        for suffix in UNSUPPORTED {
            if self.gguf.metadata.get(&self.key(suffix)).is_some_and(|value| !means_nothing(value)) {
                let why = format!("{} asks for something that this program does not do", self.key(suffix));
                return Err(CheckpointError::Unsupported(why));
            }
        }
        match self.gguf.metadata.uint("split.count")? {
            Some(2..) => Err(CheckpointError::Unsupported(
                "the model is split over several GGUF files; merge them with `llama-gguf-split --merge`"
                    .into(),
            )),
            _ => Ok(()),
        }
    }

    fn head_dim(&self, hidden: usize, heads: usize) -> Result<usize, CheckpointError> {
        let head_dim = match self.optional_uint("attention.key_length")? {
            Some(head_dim) => head_dim,
            None if heads != 0 && hidden.is_multiple_of(heads) => hidden / heads,
            None => {
                let why = format!("{heads} heads do not divide the width {hidden}");
                return Err(field(&self.key("attention.head_count"), why));
            }
        };
        match self.optional_uint("attention.value_length")? {
            Some(values) if values != head_dim => Err(CheckpointError::Unsupported(format!(
                "keys of {head_dim} and values of {values} numbers a head; this program needs them equal"
            ))),
            _ => Ok(head_dim),
        }
    }

    fn rope(&self, head_dim: usize, context: usize) -> Result<RopeConfig, CheckpointError> {
        let dim = self.optional_uint("rope.dimension_count")?.unwrap_or(head_dim);
        let theta = self.optional_float("rope.freq_base")?.unwrap_or(10_000.0);
        let [short, long, all] = GGUF_ROPE_FACTORS;
        let scaling = match (self.factors(short, dim)?, self.factors(long, dim)?, self.factors(all, dim)?) {
            (None, None, None) => self.scaling()?,
            // Llama 3's ramp, already worked out: one divisor a frequency for all lengths. LongRoPE with equal
            // divisors is the same thing.
            (None, None, Some(factors)) => RopeScaling::LongRope {
                short_factor: factors.clone(),
                long_factor: factors,
                original_context: context,
                attention_factor: 1.0,
            },
            (Some(short_factor), Some(long_factor), None) => RopeScaling::LongRope {
                short_factor,
                long_factor,
                original_context: self.uint("rope.scaling.original_context_length")?,
                attention_factor: self.float("rope.scaling.attn_factor")?,
            },
            _ => {
                let why = format!("of {short} and {long} there must be both, and then no {all}");
                return Err(CheckpointError::Tensor { name: short.into(), why });
            }
        };
        Ok(RopeConfig { dim, theta, scaling })
    }

    /// Scaling that needs no tensor.
    fn scaling(&self) -> Result<RopeScaling, CheckpointError> {
        let key = self.key("rope.scaling.type");
        let old = self.optional_float("rope.scale_linear")?;
        match (self.gguf.metadata.str(&key)?, old) {
            (None | Some("none"), None) => Ok(RopeScaling::None),
            (None, Some(factor)) => Ok(RopeScaling::Linear { factor }),
            (Some("linear"), _) => Ok(RopeScaling::Linear { factor: self.float("rope.scaling.factor")? }),
            (Some("longrope"), _) => {
                Err(field(&key, "it is longrope, but the tensors with the factors are missing"))
            }
            (Some(other), _) => Err(CheckpointError::Unsupported(format!(
                "RoPE scaling {other:?} is not supported; known are: none, linear, longrope"
            ))),
        }
    }

    /// The divisors of `dim / 2` frequencies, where the file has them.
    fn factors(&self, name: &str, dim: usize) -> Result<Option<Vec<f32>>, CheckpointError> {
        let Some(found) = self.gguf.tensors.get(name) else { return Ok(None) };
        let fail = |why: String| Err(CheckpointError::Tensor { name: name.to_owned(), why });
        if found.shape != [dim / 2] {
            return fail(format!("its shape is {:?}, where [{}] is expected", found.shape, dim / 2));
        }
        let mut factors = vec![0.0; dim / 2];
        found.dtype.to_f32(&self.gguf.bytes[found.bytes.clone()], &mut factors);
        Ok(Some(factors))
    }
}
