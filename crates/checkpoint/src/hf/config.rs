//! From `config.json` to [`ModelConfig`].

use std::path::Path;

use serde::Deserialize;
use upg_format::{Architecture, ModelConfig, RopeConfig, RopeScaling};

use super::side_files::{self, CONFIG_CAP};
use crate::CheckpointError;

/// Classes that are read.
const ARCHITECTURES: [(&str, Architecture); 4] = [
    ("LlamaForCausalLM", Architecture::Llama),
    ("MistralForCausalLM", Architecture::Mistral),
    ("Phi3ForCausalLM", Architecture::Phi3),
    ("Qwen2ForCausalLM", Architecture::Qwen2),
];

/// The fields of `config.json` that say how the model computes.
#[derive(Deserialize)]
pub(super) struct RawConfig {
    #[serde(default)]
    architectures: Vec<String>,
    hidden_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    intermediate_size: usize,
    vocab_size: usize,
    max_position_embeddings: usize,
    original_max_position_embeddings: Option<usize>,
    rms_norm_eps: Option<f32>,
    hidden_act: Option<String>,
    rope_theta: Option<f32>,
    rope_scaling: Option<RawRope>,
    /// Where transformers 5 has all about RoPE.
    rope_parameters: Option<RawRope>,
    partial_rotary_factor: Option<f64>,
    sliding_window: Option<usize>,
    use_sliding_window: Option<bool>,
    max_window_layers: Option<usize>,
    layer_types: Option<Vec<String>>,
    #[serde(default)]
    tie_word_embeddings: bool,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    mlp_bias: bool,
    quantization_config: Option<serde_json::Value>,
    pub(super) bos_token_id: Option<u32>,
    pub(super) eos_token_id: Option<OneOrMore>,
}

/// One token or several.
#[derive(Clone, Deserialize)]
#[serde(untagged)]
pub(super) enum OneOrMore {
    One(u32),
    More(Vec<u32>),
}

impl OneOrMore {
    pub(super) fn as_slice(&self) -> &[u32] {
        match self {
            OneOrMore::One(token) => std::slice::from_ref(token),
            OneOrMore::More(tokens) => tokens,
        }
    }
}

/// `rope_scaling` or `rope_parameters`.
#[derive(Deserialize)]
struct RawRope {
    rope_type: Option<String>,
    /// The same, as older files have it; many have both.
    r#type: Option<String>,
    rope_theta: Option<f32>,
    partial_rotary_factor: Option<f64>,
    factor: Option<f32>,
    low_freq_factor: Option<f32>,
    high_freq_factor: Option<f32>,
    original_max_position_embeddings: Option<usize>,
    short_factor: Option<Vec<f32>>,
    long_factor: Option<Vec<f32>>,
    attention_factor: Option<f32>,
}

impl RawConfig {
    pub(super) fn read(folder: &Path) -> Result<Self, CheckpointError> {
        let path = folder.join("config.json");
        let Some(bytes) = side_files::read_optional(&path, CONFIG_CAP)? else {
            let why = "it has no config.json; give a model's folder or a .gguf file".to_owned();
            return Err(CheckpointError::NotACheckpoint { path: folder.to_owned(), why });
        };
        side_files::parse(&path, &bytes)
    }

    /// `has_head`: the weights have a head of their own.
    pub(super) fn model_config(&self, has_head: bool) -> Result<ModelConfig, CheckpointError> {
        let architecture = self.architecture()?;
        self.refuse_unsupported(architecture)?;
        let head_dim = self.head_dim.unwrap_or(self.hidden_size / self.num_attention_heads.max(1));
        let config = ModelConfig {
            architecture,
            hidden: self.hidden_size,
            layers: self.num_hidden_layers,
            heads: self.num_attention_heads,
            kv_heads: self.num_key_value_heads.unwrap_or(self.num_attention_heads),
            head_dim,
            mlp: self.intermediate_size,
            vocab: self.vocab_size,
            context: self.max_position_embeddings,
            norm_eps: self.rms_norm_eps.unwrap_or(default_norm_eps(architecture)),
            rope: self.rope(head_dim)?,
            sliding_window: self.window(architecture)?,
            tied_embeddings: self.tie_word_embeddings || !has_head,
            qkv_bias: architecture == Architecture::Qwen2,
            rotation: None,
        };
        config.validate()?;
        Ok(config)
    }

    fn architecture(&self) -> Result<Architecture, CheckpointError> {
        let found = self.architectures.join(", ");
        ARCHITECTURES.iter().find(|known| known.0 == found).map(|known| known.1).ok_or_else(|| {
            CheckpointError::UnknownArchitecture {
                found,
                known: ARCHITECTURES.map(|known| known.0).join(", "),
            }
        })
    }

    fn refuse_unsupported(&self, architecture: Architecture) -> Result<(), CheckpointError> {
        let fail = |what: &str| Err(CheckpointError::Unsupported(format!("config.json: {what}")));
        if self.quantization_config.is_some() {
            return fail("quantization_config: the weights are quantised already; take the original model");
        }
        if self.attention_bias && architecture != Architecture::Qwen2 {
            return fail("attention_bias: a bias after attention is not supported");
        }
        if self.mlp_bias {
            return fail("mlp_bias: biases in the MLP are not supported");
        }
        match self.hidden_act.as_deref() {
            None | Some("silu" | "swish") => Ok(()),
            Some(other) => fail(&format!("hidden_act: {other} is not supported, only silu")),
        }
    }

    fn rope(&self, head_dim: usize) -> Result<RopeConfig, CheckpointError> {
        // Where a file says a thing twice, the order is transformers'.
        let raw = self.rope_scaling.as_ref().or(self.rope_parameters.as_ref());
        let partial =
            raw.and_then(|raw| raw.partial_rotary_factor).or(self.partial_rotary_factor).unwrap_or(1.0);
        let theta = raw.and_then(|raw| raw.rope_theta).or(self.rope_theta).unwrap_or(10_000.0);
        Ok(RopeConfig {
            // Rounded down, as transformers does; the conversion saturates and `validate` checks the result.
            dim: (head_dim as f64 * partial) as usize,
            theta,
            scaling: raw.map_or(Ok(RopeScaling::None), |raw| self.scaling(raw))?,
        })
    }

    fn scaling(&self, raw: &RawRope) -> Result<RopeScaling, CheckpointError> {
        let original_context = || {
            let context = self.original_max_position_embeddings.or(raw.original_max_position_embeddings);
            required("original_max_position_embeddings", context)
        };
        match raw.rope_type.as_deref().or(raw.r#type.as_deref()) {
            Some("default") => Ok(RopeScaling::None),
            None if raw.factor.is_none() && raw.short_factor.is_none() => Ok(RopeScaling::None),
            Some("linear") => Ok(RopeScaling::Linear { factor: required("factor", raw.factor)? }),
            Some("llama3") => Ok(RopeScaling::Llama3 {
                factor: required("factor", raw.factor)?,
                low_freq_factor: required("low_freq_factor", raw.low_freq_factor)?,
                high_freq_factor: required("high_freq_factor", raw.high_freq_factor)?,
                original_context: original_context()?,
            }),
            // "su" is what the first Phi-3 files called it.
            Some("longrope" | "su") => {
                let original_context = original_context()?;
                Ok(RopeScaling::LongRope {
                    short_factor: required("short_factor", raw.short_factor.clone())?,
                    long_factor: required("long_factor", raw.long_factor.clone())?,
                    original_context,
                    attention_factor: raw.attention_factor.unwrap_or_else(|| {
                        let stretch = self.max_position_embeddings as f64 / original_context as f64;
                        longrope_attention_factor(raw.factor.map_or(stretch, f64::from), original_context)
                    }),
                })
            }
            other => Err(CheckpointError::Unsupported(format!(
                "config.json: RoPE scaling {:?} is not supported; known are: default, linear, llama3, longrope",
                other.unwrap_or("without a type")
            ))),
        }
    }

    /// The window of every layer; this program does not mix layers with and without.
    fn window(&self, architecture: Architecture) -> Result<Option<usize>, CheckpointError> {
        let layers_with = match (&self.layer_types, architecture) {
            (Some(types), _) => types.iter().filter(|kind| *kind == "sliding_attention").count(),
            (None, Architecture::Qwen2) if !self.use_sliding_window.unwrap_or(false) => 0,
            // Qwen2 gives a window only to the layers from this one on.
            (None, Architecture::Qwen2) => {
                self.num_hidden_layers.saturating_sub(self.max_window_layers.unwrap_or(28))
            }
            (None, Architecture::Llama) => 0,
            (None, Architecture::Mistral | Architecture::Phi3) => self.num_hidden_layers,
        };
        let useful = self.sliding_window.filter(|window| *window < self.max_position_embeddings);
        match (useful, layers_with) {
            (None, _) | (_, 0) => Ok(None),
            (window, layers) if layers == self.num_hidden_layers => Ok(window),
            (_, layers) => Err(CheckpointError::Unsupported(format!(
                "config.json: {layers} of {} layers have a sliding window; all or none is supported",
                self.num_hidden_layers
            ))),
        }
    }
}

/// What transformers takes when `rms_norm_eps` is missing.
fn default_norm_eps(architecture: Architecture) -> f32 {
    if architecture == Architecture::Phi3 { 1e-5 } else { 1e-6 }
}

/// The factor on cosines and sines where the file gives none: √(1 + ln(stretch) / ln(original)) (Ding et al. 2024), as
/// transformers computes it. `stretch` is the file's `factor`, or else the ratio of the contexts.
fn longrope_attention_factor(stretch: f64, original: usize) -> f32 {
    if stretch <= 1.0 { 1.0 } else { (1.0 + stretch.ln() / (original as f64).ln()).sqrt() as f32 }
}

fn required<T>(field: &str, value: Option<T>) -> Result<T, CheckpointError> {
    let missing = || CheckpointError::Field {
        field: format!("config.json: {field}"),
        why: "it is missing; download the file again".into(),
    };
    value.ok_or_else(missing)
}
