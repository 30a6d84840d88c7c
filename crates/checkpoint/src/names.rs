//! What checkpoints call the tensors, and how they lay them out.

use upg_format::{Architecture, ModelConfig, TensorKind, TensorName};

/// Whose names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dialect {
    /// transformers': `model.layers.0.self_attn.q_proj.weight`.
    HuggingFace,
    /// llama.cpp's: `blk.0.attn_q.weight`.
    Gguf,
}

/// Which stored row a row of q or k is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RowOrder {
    /// As this program has it: RoPE turns dimension i of a head with i + head_dim / 2.
    HalfSplit,
    /// As llama.cpp stores its `llama` family: RoPE turns dimension 2i with 2i + 1.
    Interleaved {
        /// Rows of one head.
        head_dim: usize,
    },
}

impl RowOrder {
    /// Index of the stored row that is row `row` here.
    pub(crate) fn stored(self, row: usize) -> usize {
        match self {
            RowOrder::HalfSplit => row,
            RowOrder::Interleaved { head_dim } => {
                let (head, i) = (row / head_dim, row % head_dim);
                let half = head_dim / 2;
                head * head_dim + i % half * 2 + i / half
            }
        }
    }
}

/// The part of a stored tensor that is a tensor of the model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    /// Name of the stored tensor.
    pub stored: String,
    /// All its rows.
    pub stored_rows: usize,
    /// Its first row that belongs to the part.
    pub first_row: usize,
    pub order: RowOrder,
}

/// Where a checkpoint has a tensor of a model.
pub(crate) fn part(dialect: Dialect, config: &ModelConfig, name: TensorName) -> Part {
    use TensorKind::*;
    let kind = name.kind();
    let (q, kv, mlp) = (config.q_width(), config.kv_width(), config.mlp);
    // Phi-3 fuses what reads the same input; the order is q, k, v and gate, up.
    let fused = match (config.architecture, kind) {
        (Architecture::Phi3, Q) => Some((0, q + 2 * kv)),
        (Architecture::Phi3, K) => Some((q, q + 2 * kv)),
        (Architecture::Phi3, V) => Some((q + kv, q + 2 * kv)),
        (Architecture::Phi3, Gate) => Some((0, 2 * mlp)),
        (Architecture::Phi3, Up) => Some((mlp, 2 * mlp)),
        _ => None,
    };
    let (first_row, stored_rows) = fused.unwrap_or((0, name.shape(config)[0]));
    let permuted = dialect == Dialect::Gguf
        && matches!(config.architecture, Architecture::Llama | Architecture::Mistral)
        && matches!(kind, Q | K | QBias | KBias);
    let order =
        if permuted { RowOrder::Interleaved { head_dim: config.head_dim } } else { RowOrder::HalfSplit };
    let names = match dialect {
        Dialect::HuggingFace => hugging_face(kind, fused.is_some()),
        Dialect::Gguf => gguf(kind, fused.is_some()),
    };
    let stored = match (name.layer(), dialect) {
        (None, _) => names.to_owned(),
        (Some(layer), Dialect::HuggingFace) => format!("model.layers.{layer}.{names}"),
        (Some(layer), Dialect::Gguf) => format!("blk.{layer}.{names}"),
    };
    Part { stored, stored_rows, first_row, order }
}

fn hugging_face(kind: TensorKind, fused: bool) -> &'static str {
    use TensorKind::*;
    match kind {
        Embed => "model.embed_tokens.weight",
        AttnNorm => "input_layernorm.weight",
        Q | K | V if fused => "self_attn.qkv_proj.weight",
        Q => "self_attn.q_proj.weight",
        K => "self_attn.k_proj.weight",
        V => "self_attn.v_proj.weight",
        QBias => "self_attn.q_proj.bias",
        KBias => "self_attn.k_proj.bias",
        VBias => "self_attn.v_proj.bias",
        O => "self_attn.o_proj.weight",
        MlpNorm => "post_attention_layernorm.weight",
        Gate | Up if fused => "mlp.gate_up_proj.weight",
        Gate => "mlp.gate_proj.weight",
        Up => "mlp.up_proj.weight",
        Down => "mlp.down_proj.weight",
        FinalNorm => "model.norm.weight",
        Head => "lm_head.weight",
    }
}

fn gguf(kind: TensorKind, fused: bool) -> &'static str {
    use TensorKind::*;
    match kind {
        Embed => "token_embd.weight",
        AttnNorm => "attn_norm.weight",
        Q | K | V if fused => "attn_qkv.weight",
        Q => "attn_q.weight",
        K => "attn_k.weight",
        V => "attn_v.weight",
        QBias => "attn_q.bias",
        KBias => "attn_k.bias",
        VBias => "attn_v.bias",
        O => "attn_output.weight",
        MlpNorm => "ffn_norm.weight",
        Gate | Up if fused => "ffn_up.weight",
        Gate => "ffn_gate.weight",
        Up => "ffn_up.weight",
        Down => "ffn_down.weight",
        FinalNorm => "output_norm.weight",
        Head => "output.weight",
    }
}

/// The GGUF tensors that hold divisors of RoPE's frequencies: short, long, and one for all lengths. They are read as
/// part of the configuration.
pub(crate) const GGUF_ROPE_FACTORS: [&str; 3] =
    ["rope_factors_short.weight", "rope_factors_long.weight", "rope_freqs.weight"];

/// Whether a stored tensor can be left unread without changing the model.
pub(crate) fn carries_no_weights(dialect: Dialect, config: &ModelConfig, stored: &str) -> bool {
    match dialect {
        // Frequencies that follow from the configuration, saved by old versions of transformers; and a second copy
        // of the embedding.
        Dialect::HuggingFace => {
            stored.ends_with(".rotary_emb.inv_freq") || config.tied_embeddings && stored == "lm_head.weight"
        }
        Dialect::Gguf => GGUF_ROPE_FACTORS.contains(&stored),
    }
}

/// The family's name as GGUF files spell it.
pub(crate) fn family(config: &ModelConfig) -> &'static str {
    match config.architecture {
        Architecture::Llama => "llama",
        Architecture::Mistral => "mistral",
        Architecture::Phi3 => "phi3",
        Architecture::Qwen2 => "qwen2",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// llama.cpp permutes with `reshape(heads, 2, head_dim / 2, cols).swapaxes(1, 2)`.
    #[test]
    fn interleaved_rows_are_llama_cpps() {
        let (heads, head_dim) = (3, 8);
        let mut stored = Vec::new();
        for head in 0..heads {
            for i in 0..head_dim / 2 {
                for half in 0..2 {
                    stored.push(head * head_dim + half * head_dim / 2 + i);
                }
            }
        }
        let order = RowOrder::Interleaved { head_dim };
        for row in 0..heads * head_dim {
            assert_eq!(stored[order.stored(row)], row);
        }
    }
}
