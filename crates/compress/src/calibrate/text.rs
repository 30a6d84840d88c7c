//! The text that a model is calibrated on, and how much of it fits in memory.

use upg_format::ModelConfig;

use super::{heads::SEQUENCES, measure::whole_sequences};
use crate::CompressError;

/// One sequence of this many is held out: it chooses the damping.
pub(crate) const HELD_OUT: usize = 8;

/// Tokens that sensitivities are measured on: they need fewer than Hessians.
const SENSED: usize = 2048;

/// The most of them that stand in one sequence: the beginnings of many texts say more than a few long ones, which come to
/// repeat themselves where the model writes them.
const SENSED_CTX: usize = 128;

/// How calibration runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Calibration {
    /// The text, in the model's tokens.
    pub tokens: Vec<u32>,
    /// Tokens of a sequence.
    pub ctx: usize,
    /// Where the text came from: what the file says of itself.
    pub source: String,
}

impl Calibration {
    /// Sequences that calibration needs at least.
    pub const MIN_SEQUENCES: usize = HELD_OUT;

    /// One line that says what the text was.
    pub fn describe(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        self.tokens.iter().for_each(|token| {
            hasher.update(&token.to_le_bytes());
        });
        let hash = &hasher.finalize().to_hex()[..16];
        format!("{}: {} tokens in sequences of {}, blake3 {hash}", self.source, self.tokens.len(), self.ctx)
    }

    /// Whole sequences to calibrate on.
    pub(crate) fn whole(&self, config: &ModelConfig) -> Result<&[u32], CompressError> {
        let tokens = whole_sequences(&self.tokens, self.ctx, config.vocab)?;
        if tokens.len() >= HELD_OUT * self.ctx {
            return Ok(tokens);
        }
        let (least, found) = (HELD_OUT * self.ctx, tokens.len());
        Err(CompressError::Text(format!(
            "calibration needs at least {least} tokens, the text has {found}: give more text"
        )))
    }

    /// The text's first `sequences`.
    pub(crate) fn start(&self, sequences: usize) -> Self {
        let tokens = self.tokens.iter().copied().take(sequences * self.ctx).collect();
        Self { tokens, ctx: self.ctx, source: self.source.clone() }
    }

    /// Whole sequences, those to learn from before those held out, and the number of tokens to learn from.
    pub(crate) fn split(&self, config: &ModelConfig) -> Result<(Vec<u32>, usize), CompressError> {
        let sequences: Vec<&[u32]> = self.whole(config)?.chunks_exact(self.ctx).collect();
        let is_held = |i: &usize| i % HELD_OUT == HELD_OUT - 1;
        let (held, learning): (Vec<usize>, Vec<usize>) = (0..sequences.len()).partition(is_held);
        let tokens = learning.iter().chain(&held).flat_map(|i| sequences[*i]).copied().collect();
        Ok((tokens, learning.len() * self.ctx))
    }

    /// What sensitivities are measured on: shorter sequences, from the beginnings of sequences all over the text; of few ones,
    /// from what follows too.
    pub(crate) fn sensed(&self, config: &ModelConfig) -> Result<Self, CompressError> {
        let tokens = whole_sequences(&self.tokens, self.ctx, config.vocab)?;
        let ctx = self.ctx.min(SENSED_CTX);
        let (wanted, sequences) = (SENSED / ctx, tokens.len() / self.ctx);
        let spread = sequences.min(wanted);
        let begins = (0..self.ctx / ctx)
            .flat_map(|piece| (0..spread).map(move |i| i * sequences / spread * self.ctx + piece * ctx));
        let tokens = begins.take(wanted).flat_map(|begin| &tokens[begin..begin + ctx]).copied().collect();
        Ok(Self { tokens, ctx, source: self.source.clone() })
    }

    /// About the bytes that calibrating a model on this text holds, the most at once.
    pub(crate) fn memory(&self, config: &ModelConfig) -> u64 {
        bytes(config, self.tokens.len(), self.ctx)
    }

    /// The start of the text, as much as can be calibrated on in this much memory.
    pub(crate) fn within(&self, config: &ModelConfig, memory: Option<u64>) -> Result<Self, CompressError> {
        self.whole(config)?;
        let limit = memory.unwrap_or(u64::MAX);
        let fits = |sequences: &usize| bytes(config, sequences * self.ctx, self.ctx) <= limit;
        let Some(sequences) = (HELD_OUT..=self.tokens.len() / self.ctx).rev().find(fits) else {
            return Err(CompressError::Memory(bytes(config, HELD_OUT * self.ctx, self.ctx)));
        };
        Ok(self.start(sequences))
    }
}

/// The largest of: the embedding with its codes; rounding `down` (its inputs, its Hessian, the streams, the layer); and
/// the passes that measure sensitivities (the streams before each layer; the head, or a layer). Gradients of queries and keys
/// are gone before `down`'s Hessian is there. A thread holds one sequence's activations besides.
fn bytes(config: &ModelConfig, tokens: usize, ctx: usize) -> u64 {
    let [hidden, mlp, q, kv] =
        [config.hidden, config.mlp, config.q_width(), config.kv_width()].map(|n| n as u64);
    let (tokens, threads) = (tokens as u64, rayon::current_num_threads() as u64);
    let layer = hidden * (2 * q + 2 * kv + 3 * mlp);
    let head = config.vocab as u64 * hidden;
    let own = threads * (ctx as u64 * (4 * mlp + 6 * hidden + 4 * q) + 2 * (ctx * ctx) as u64);
    let gradients = tokens.min((SEQUENCES * ctx) as u64) * 2 * (q + kv);
    let rounding = tokens * (mlp + 2 * hidden) + (mlp * mlp).max(gradients) + layer + own;
    let streams = config.layers + 4;
    let sensed = tokens.min(SENSED as u64);
    // A layer's inputs, and their products: as they are, factored, and at each damping.
    let moments = sensed * (mlp + 2 * hidden + q) + 5 * sensed * sensed;
    let sensing = sensed * hidden * streams as u64 + head.max(layer + own + moments);
    4 * rounding.max(sensing).max(head + head / 4)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // a failed helper is a failed test

    use upg_pdvm::synthetic::preset;

    use super::*;

    #[test]
    fn sensitivities_are_measured_on_beginnings_all_over_the_text() {
        let config = preset("smollm2-135m").unwrap();
        let text = |sequences: u32, ctx: usize| {
            let tokens = (0..sequences * ctx as u32).collect();
            Calibration { tokens, ctx, source: "numbers".into() }.sensed(&config).unwrap()
        };
        let begins = |text: &Calibration| -> Vec<u32> {
            assert!(text.tokens.chunks(text.ctx).all(|t| t.is_sorted_by_key(|token| *token)));
            text.tokens.chunks(text.ctx).map(|t| t[0]).collect()
        };
        let many = text(32, 512);
        assert_eq!(many.ctx, SENSED_CTX);
        assert_eq!(begins(&many), (0..16).map(|i| i * 1024).collect::<Vec<u32>>());
        let few = text(3, 512);
        assert_eq!(begins(&few)[..4], [0, 512, 1024, 128]);
        assert_eq!(few.tokens.len(), 3 * 512);
        assert_eq!(text(40, 32).ctx, 32);
    }
}
