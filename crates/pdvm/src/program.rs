use std::fmt;

use upg_format::{ModelConfig, TensorKind, TensorName};

/// An instruction. `x` is the residual stream of each token of the batch, `[hidden]`; every linear is `y = W x` with
/// the tensor of that name (see [`upg_format::TensorKind`]). `norm(x) = x / sqrt(mean(x²) + norm_eps)`: gains are
/// folded into the matrices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// `x = embed[token]`.
    Embed,
    /// `q, k, v = W norm(x)` (plus biases), q and k turned by RoPE at the token's position (and transformed, where the
    /// cache's kind is quantised: see [`crate::kv_kind`]), k and v appended to the KV cache.
    NormQkvRope {
        /// The layer.
        layer: usize,
    },
    /// `a = softmax(q kᵀ / sqrt(head_dim)) v` per query head over the tokens that it sees (Dao et al. 2022, online
    /// softmax); query head `h` uses key/value head `h / (heads / kv_heads)`.
    Attend {
        /// The layer.
        layer: usize,
    },
    /// `x += O a`.
    OutAdd {
        /// The layer.
        layer: usize,
    },
    /// `h = hadamard(silu(gate n) · (up n))` with `n = norm(x)`; the Hadamard is absent where nothing is rotated.
    NormGateUp {
        /// The layer.
        layer: usize,
    },
    /// `x += down h`.
    DownAdd {
        /// The layer.
        layer: usize,
    },
    /// `logits = head norm(x)`; with tied embeddings `embed R(g · Rᵀ norm(x))` (R: the residual rotation, g: the
    /// final norm's gain). Only for the tokens whose logits are asked for.
    NormHead,
}

impl Op {
    /// The layer it belongs to, where it belongs to one.
    pub const fn layer(self) -> Option<usize> {
        match self {
            Op::Embed | Op::NormHead => None,
            Op::NormQkvRope { layer }
            | Op::Attend { layer }
            | Op::OutAdd { layer }
            | Op::NormGateUp { layer }
            | Op::DownAdd { layer } => Some(layer),
        }
    }

    /// The tensors that it reads. Every tensor of a `.upg` is read by some instruction; a tied embedding by two.
    pub fn tensors(self, config: &ModelConfig) -> Vec<TensorName> {
        use TensorKind::{Down, Embed, FinalNorm, Gate, Head, K, KBias, O, Q, QBias, Up, V, VBias};
        let kinds: &[TensorKind] = match self {
            Op::Embed => &[Embed],
            Op::NormQkvRope { .. } if config.qkv_bias => &[Q, K, V, QBias, KBias, VBias],
            Op::NormQkvRope { .. } => &[Q, K, V],
            Op::Attend { .. } => &[],
            Op::OutAdd { .. } => &[O],
            Op::NormGateUp { .. } => &[Gate, Up],
            Op::DownAdd { .. } => &[Down],
            Op::NormHead if config.tied_embeddings => &[FinalNorm, Embed],
            Op::NormHead => &[Head],
        };
        kinds.iter().map(|kind| TensorName::new(self.layer().unwrap_or(0), *kind)).collect()
    }

    const fn mnemonic(self) -> &'static str {
        match self {
            Op::Embed => "embed",
            Op::NormQkvRope { .. } => "norm_qkv_rope",
            Op::Attend { .. } => "attend",
            Op::OutAdd { .. } => "out_add",
            Op::NormGateUp { .. } => "norm_gate_up",
            Op::DownAdd { .. } => "down_add",
            Op::NormHead => "norm_head",
        }
    }
}

/// A model lowered: what every machine runs. Prints as a listing, a line an instruction.
#[derive(Clone, Debug, PartialEq)]
pub struct Program {
    /// The model's configuration.
    pub config: ModelConfig,
    /// The instructions, in order.
    pub ops: Vec<Op>,
}

/// Lowers a model to its program.
pub fn lower(config: &ModelConfig) -> Program {
    let layer_ops = |layer| {
        [
            Op::NormQkvRope { layer },
            Op::Attend { layer },
            Op::OutAdd { layer },
            Op::NormGateUp { layer },
            Op::DownAdd { layer },
        ]
    };
    let ops = std::iter::once(Op::Embed)
        .chain((0..config.layers).flat_map(layer_ops))
        .chain(std::iter::once(Op::NormHead))
        .collect();
    Program { config: config.clone(), ops }
}

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, op) in self.ops.iter().enumerate() {
            let layer = op.layer().map_or_else(|| "-".into(), |layer| layer.to_string());
            let line = format!("{i:4}  {:<13}  {layer:>3}  {}", op.mnemonic(), self.operands(*op));
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

impl Program {
    /// What an instruction reads, for people: its tensors with their shapes, or attention's heads.
    fn operands(&self, op: Op) -> String {
        let config = &self.config;
        if let Op::Attend { .. } = op {
            let window =
                config.sliding_window.map_or_else(String::new, |window| format!(", window {window}"));
            return format!("heads {}/{} x {}{window}", config.heads, config.kv_heads, config.head_dim);
        }
        let tensor = |name: TensorName| {
            let [rows, cols] = name.shape(config);
            // The listing has a column for the layer.
            let name = name.to_string();
            format!("{}[{rows}, {cols}]", name.rsplit('.').next().unwrap_or(&name))
        };
        op.tensors(config).into_iter().map(tensor).collect::<Vec<_>>().join(" ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::synthetic;

    #[test]
    fn the_listing_of_two_layers() {
        let config = ModelConfig { layers: 2, sliding_window: Some(2047), ..synthetic::phi4() };
        assert_eq!(lower(&config).to_string(), include_str!("program_listing.txt"));
    }

    #[test]
    fn instructions_read_every_tensor_of_a_file() {
        for (tied_embeddings, qkv_bias) in [(false, false), (true, false), (false, true), (true, true)] {
            let config = ModelConfig { layers: 3, tied_embeddings, qkv_bias, ..synthetic::phi4() };
            let ops = lower(&config).ops.into_iter();
            let mut read: Vec<_> = ops.flat_map(|op| op.tensors(&config)).collect();
            let mut all = TensorName::of_upg(&config);
            read.sort();
            read.dedup();
            all.sort();
            assert_eq!(read, all);
        }
    }
}
