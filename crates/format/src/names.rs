use std::{fmt, str::FromStr};

use crate::ModelConfig;

/// What a tensor is for. Matrices are stored one row per output, `[rows, cols]`; vectors as one row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TensorKind {
    /// Token embedding, `[vocab, hidden]`; also the head where embeddings are tied.
    Embed,
    /// Gain of the RMSNorm before attention, `[1, hidden]`. Folded away in a `.upg`.
    AttnNorm,
    /// Query projection, `[heads·head_dim, hidden]`.
    Q,
    /// Key projection, `[kv_heads·head_dim, hidden]`.
    K,
    /// Value projection, `[kv_heads·head_dim, hidden]`.
    V,
    /// Query bias, `[1, heads·head_dim]`.
    QBias,
    /// Key bias, `[1, kv_heads·head_dim]`.
    KBias,
    /// Value bias, `[1, kv_heads·head_dim]`.
    VBias,
    /// Attention's output projection, `[hidden, heads·head_dim]`.
    O,
    /// Gain of the RMSNorm before the MLP, `[1, hidden]`. Folded away in a `.upg`.
    MlpNorm,
    /// SwiGLU's gate, `[mlp, hidden]`.
    Gate,
    /// SwiGLU's up projection, `[mlp, hidden]`.
    Up,
    /// SwiGLU's down projection, `[hidden, mlp]`.
    Down,
    /// Gain of the last RMSNorm, `[1, hidden]`. In a `.upg` only where embeddings are tied.
    FinalNorm,
    /// Head, `[vocab, hidden]`. Absent where embeddings are tied.
    Head,
}

use TensorKind::{
    AttnNorm, Down, Embed, FinalNorm, Gate, Head, K, KBias, MlpNorm, O, Q, QBias, Up, V, VBias,
};

/// The kinds of one layer, in the order of a file.
const LAYER_KINDS: [TensorKind; 12] = [AttnNorm, Q, K, V, QBias, KBias, VBias, O, MlpNorm, Gate, Up, Down];

impl TensorKind {
    /// Whether each layer has one.
    pub const fn in_layer(self) -> bool {
        !matches!(self, Embed | FinalNorm | Head)
    }

    /// Whether it is a vector (a norm's gain or a bias) rather than a matrix.
    pub const fn is_vector(self) -> bool {
        matches!(self, AttnNorm | MlpNorm | FinalNorm | QBias | KBias | VBias)
    }

    const fn name(self) -> &'static str {
        match self {
            Embed => "embed",
            AttnNorm => "attn_norm",
            Q => "q",
            K => "k",
            V => "v",
            QBias => "q_bias",
            KBias => "k_bias",
            VBias => "v_bias",
            O => "o",
            MlpNorm => "mlp_norm",
            Gate => "gate",
            Up => "up",
            Down => "down",
            FinalNorm => "final_norm",
            Head => "head",
        }
    }
}

/// A tensor's name: `embed`, `layers.7.gate`, `final_norm`, …
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TensorName {
    /// The layer, for kinds that each layer has; 0 for the others.
    layer: u32,
    kind: TensorKind,
}

/// A string that names no tensor.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not the name of a tensor")]
pub struct TensorNameError(pub String);

impl TensorName {
    /// The tensor `kind` of `layer`; for the kinds outside the layers, `layer` does not matter.
    pub const fn new(layer: usize, kind: TensorKind) -> Self {
        Self { layer: if kind.in_layer() { layer as u32 } else { 0 }, kind }
    }

    /// A tensor outside the layers: embedding, final norm or head.
    pub const fn global(kind: TensorKind) -> Self {
        Self::new(0, kind)
    }

    /// What the tensor is for.
    pub const fn kind(self) -> TensorKind {
        self.kind
    }

    /// Its layer, where it belongs to one.
    pub const fn layer(self) -> Option<usize> {
        if self.kind.in_layer() { Some(self.layer as usize) } else { None }
    }

    /// Its shape `[rows, cols]` in a model of this configuration.
    pub fn shape(self, config: &ModelConfig) -> [usize; 2] {
        match self.kind {
            Embed | Head => [config.vocab, config.hidden],
            AttnNorm | MlpNorm | FinalNorm => [1, config.hidden],
            Q => [config.q_width(), config.hidden],
            K | V => [config.kv_width(), config.hidden],
            QBias => [1, config.q_width()],
            KBias | VBias => [1, config.kv_width()],
            O => [config.hidden, config.q_width()],
            Gate | Up => [config.mlp, config.hidden],
            Down => [config.hidden, config.mlp],
        }
    }

    /// Every tensor of a checkpoint of this configuration, in the order of execution.
    pub fn of_checkpoint(config: &ModelConfig) -> Vec<TensorName> {
        let biased = |kind| config.qkv_bias || !matches!(kind, QBias | KBias | VBias);
        let layers = (0..config.layers)
            .flat_map(|layer| LAYER_KINDS.into_iter().map(move |kind| TensorName::new(layer, kind)));
        let ends = [FinalNorm, Head].into_iter().filter(|kind| *kind != Head || !config.tied_embeddings);
        std::iter::once(TensorName::global(Embed))
            .chain(layers.filter(|name| biased(name.kind)))
            .chain(ends.map(TensorName::global))
            .collect()
    }

    /// Every tensor of a `.upg` of this configuration: norm gains are folded into the matrices that follow them,
    /// but for the last one's before a tied head.
    pub fn of_upg(config: &ModelConfig) -> Vec<TensorName> {
        let folded = |kind| match kind {
            AttnNorm | MlpNorm => true,
            FinalNorm => !config.tied_embeddings,
            _ => false,
        };
        Self::of_checkpoint(config).into_iter().filter(|name| !folded(name.kind)).collect()
    }
}

impl fmt::Display for TensorName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.layer() {
            Some(layer) => write!(f, "layers.{layer}.{}", self.kind.name()),
            None => f.write_str(self.kind.name()),
        }
    }
}

impl FromStr for TensorName {
    type Err = TensorNameError;

    fn from_str(name: &str) -> Result<Self, TensorNameError> {
        let parse = || {
            if let Some(rest) = name.strip_prefix("layers.") {
                let (layer, kind) = rest.split_once('.')?;
                let kind = LAYER_KINDS.into_iter().find(|k| k.name() == kind)?;
                Some(TensorName::new(layer.parse::<u16>().ok()?.into(), kind))
            } else {
                [Embed, FinalNorm, Head].into_iter().find(|k| k.name() == name).map(TensorName::global)
            }
        };
        // "layers.+7.q" and "layers.07.q" parse too: only the canonical spelling is a name.
        parse().filter(|n| n.to_string() == name).ok_or_else(|| TensorNameError(name.to_owned()))
    }
}
