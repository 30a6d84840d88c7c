use upg_format::ModelConfig;

/// An instruction. `x` is the residual stream of each token of the batch, `[hidden]`; every linear is `y = W x` with
/// the tensor of that name (see [`upg_format::TensorKind`]). `norm(x) = x / sqrt(mean(x²) + norm_eps)`: gains are
/// folded into the matrices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// `x = embed[token]`.
    Embed,
    /// `q, k, v = W norm(x)` (plus biases), q and k turned by RoPE at the token's position, k and v appended to the
    /// KV cache.
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

/// A model lowered: what every machine runs.
#[derive(Clone, Debug)]
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
