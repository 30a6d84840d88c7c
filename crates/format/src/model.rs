use serde::{Deserialize, Serialize};

/// The families of models that the program covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Architecture {
    /// `LlamaForCausalLM`: Llama, SmolLM2 and kin.
    Llama,
    /// `MistralForCausalLM`.
    Mistral,
    /// `Phi3ForCausalLM`: Phi-3, Phi-3.5 and Phi-4.
    Phi3,
    /// `Qwen2ForCausalLM`: biases on q, k and v.
    Qwen2,
}

/// Rotary position embedding (Su et al. 2021), in the half-split ("NeoX") pairing: dimension `i` turns with
/// dimension `i + dim/2`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RopeConfig {
    /// Leading dimensions of a head that are turned (all of them, but for partial rotary); even.
    pub dim: usize,
    /// Base of the frequencies.
    pub theta: f32,
    /// How frequencies are stretched past the trained context.
    pub scaling: RopeScaling,
}

/// Frequency scaling for long contexts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum RopeScaling {
    /// Plain RoPE.
    None,
    /// Every frequency divided by `factor`.
    Linear {
        /// Divisor of the frequencies.
        factor: f32,
    },
    /// Llama 3.1: low frequencies divided by `factor`, high ones kept, a ramp between.
    Llama3 {
        /// Divisor of the low frequencies.
        factor: f32,
        /// Wavelengths above `original_context / low_freq_factor` are low frequencies.
        low_freq_factor: f32,
        /// Wavelengths below `original_context / high_freq_factor` are high frequencies.
        high_freq_factor: f32,
        /// Trained context, in tokens.
        original_context: usize,
    },
    /// LongRoPE (Ding et al. 2024): one divisor per frequency, chosen by the sequence's length.
    LongRope {
        /// `dim / 2` divisors for sequences up to `original_context`.
        short_factor: Vec<f32>,
        /// `dim / 2` divisors for longer ones.
        long_factor: Vec<f32>,
        /// Trained context, in tokens.
        original_context: usize,
        /// Factor on cosines and sines (1 for none).
        attention_factor: f32,
    },
}

impl RopeScaling {
    /// Whether the positions of a sequence of `length` tokens turn by LongRoPE's long factors.
    pub fn is_long(&self, length: usize) -> bool {
        matches!(self, RopeScaling::LongRope { original_context, .. } if length > *original_context)
    }
}

/// The rotation that was folded into the weights (see `upg_pdvm::rotation` for its exact definition).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RotationConfig {
    /// Seed of the random signs of the residual stream's rotation.
    pub seed: u64,
}

/// What a model is, apart from its weights.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelConfig {
    /// The family.
    pub architecture: Architecture,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Number of layers.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key/value heads; divides `heads`.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Width of the MLP.
    pub mlp: usize,
    /// Entries of the vocabulary, padding included: rows of the embedding.
    pub vocab: usize,
    /// The longest sequence, in tokens.
    pub context: usize,
    /// RMSNorm's epsilon.
    pub norm_eps: f32,
    /// Rotary position embedding.
    pub rope: RopeConfig,
    /// A token sees itself and the `window - 1` tokens before it; `None`: all before it.
    pub sliding_window: Option<usize>,
    /// The head is the embedding.
    pub tied_embeddings: bool,
    /// q, k and v have biases.
    pub qkv_bias: bool,
    /// The rotation folded into the weights; `None`: none, norm gains are still folded.
    pub rotation: Option<RotationConfig>,
}

/// The longest context, in tokens.
const MAX_CONTEXT: usize = 1 << 24;

/// A configuration that makes no sense, or that is larger than any model this program is meant for.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("the model configuration is wrong: {0}")]
pub struct ModelConfigError(pub String);

impl ModelConfig {
    /// Checks every relation between the fields and caps every size, so that later arithmetic cannot overflow.
    ///
    /// # Errors
    /// Names the first field that is wrong.
    pub fn validate(&self) -> Result<(), ModelConfigError> {
        let fail = |what: String| Err(ModelConfigError(what));
        for (name, value, cap) in [
            ("hidden", self.hidden, 1 << 16),
            ("layers", self.layers, 1 << 10),
            ("heads", self.heads, 1 << 10),
            ("kv_heads", self.kv_heads, 1 << 10),
            ("head_dim", self.head_dim, 1 << 10),
            ("mlp", self.mlp, 1 << 18),
            ("vocab", self.vocab, 1 << 20),
            ("context", self.context, MAX_CONTEXT),
        ] {
            if value == 0 || value > cap {
                return fail(format!("{name} is {value}, not in 1..={cap}"));
            }
        }
        for (name, width) in
            [("hidden", self.hidden), ("mlp", self.mlp), ("heads x head_dim", self.heads * self.head_dim)]
        {
            if !width.is_multiple_of(32) {
                return fail(format!("{name} is {width}, not a multiple of 32"));
            }
        }
        if !self.heads.is_multiple_of(self.kv_heads) {
            return fail(format!("{} heads cannot share {} key/value heads", self.heads, self.kv_heads));
        }
        if self.rope.dim == 0 || !self.rope.dim.is_multiple_of(2) || self.rope.dim > self.head_dim {
            return fail(format!(
                "rope.dim is {}, not an even number in 2..={}",
                self.rope.dim, self.head_dim
            ));
        }
        if !(self.norm_eps >= 0.0 && self.norm_eps < 1.0) {
            return fail(format!("norm_eps is {}", self.norm_eps));
        }
        if !(self.rope.theta >= 1.0 && self.rope.theta.is_finite()) {
            return fail(format!("rope.theta is {}", self.rope.theta));
        }
        if let Some(window) = self.sliding_window
            && !(1..=MAX_CONTEXT).contains(&window)
        {
            return fail(format!("sliding_window is {window}, not in 1..={MAX_CONTEXT}"));
        }
        self.validate_scaling()
    }

    fn validate_scaling(&self) -> Result<(), ModelConfigError> {
        let positive = |x: f32| x.is_finite() && x > 0.0;
        let ok = match &self.rope.scaling {
            RopeScaling::None => true,
            RopeScaling::Linear { factor } => positive(*factor),
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } => {
                positive(*factor)
                    && positive(*low_freq_factor)
                    && positive(*high_freq_factor)
                    && high_freq_factor > low_freq_factor
                    && (1..=MAX_CONTEXT).contains(original_context)
            }
            RopeScaling::LongRope { short_factor, long_factor, original_context, attention_factor } => {
                let pairs = self.rope.dim / 2;
                short_factor.len() == pairs
                    && long_factor.len() == pairs
                    && short_factor.iter().chain(long_factor).all(|f| positive(*f))
                    && (1..=MAX_CONTEXT).contains(original_context)
                    && positive(*attention_factor)
            }
        };
        if ok { Ok(()) } else { Err(ModelConfigError(format!("rope.scaling is {:?}", self.rope.scaling))) }
    }

    /// Rows of q's matrix: `heads · head_dim`.
    pub fn q_width(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Rows of k's (and v's) matrix: `kv_heads · head_dim`.
    pub fn kv_width(&self) -> usize {
        self.kv_heads * self.head_dim
    }
}
