//! How good a model is: perplexity, and divergence from another one.

use std::sync::atomic::AtomicBool;

use upg_pdvm::Machine;

use crate::EngineError;

/// How a text is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EvalOptions {
    /// Tokens a chunk.
    pub ctx: usize,
    /// Chunks; `None`: as many as the text has.
    pub chunks: Option<usize>,
    /// Replaces the first token of each chunk, as llama.cpp's perplexity does for models that start texts with bos.
    pub bos: Option<u32>,
}

/// A mean and its standard error.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize)]
pub struct Estimate {
    /// The mean.
    pub value: f64,
    /// Its standard error.
    pub error: f64,
}

/// How well a model predicts a text.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Perplexity {
    /// `exp(mean negative log-likelihood)`.
    pub perplexity: Estimate,
    /// Mean negative log-likelihood, in nats a token.
    pub nll: Estimate,
    /// Chunks.
    pub chunks: usize,
    /// Tokens a chunk.
    pub ctx: usize,
    /// Tokens scored: those of each chunk's second half.
    pub scored: usize,
}

/// How far a model is from the one that it was made from.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Comparison {
    /// The model's own perplexity.
    pub model: Perplexity,
    /// The reference's.
    pub reference: Perplexity,
    /// `model / reference` perplexity.
    pub ratio: f64,
    /// KL(reference ‖ model), in nats a token.
    pub kl: Estimate,
    /// Median.
    pub kl_median: f64,
    /// 99th percentile.
    pub kl_p99: f64,
    /// 99.9th percentile.
    pub kl_p999: f64,
    /// Largest.
    pub kl_max: f64,
    /// Fraction of tokens where both find the same token likeliest.
    pub top1: Estimate,
}

/// Perplexity of `tokens` on a machine that has a free sequence. `progress` gets the chunks done, their number, and
/// the estimate so far.
///
/// # Errors
/// A text of less than one chunk, a chunk longer than the machine's context, the machine's errors, cancellation.
pub fn perplexity(
    machine: &mut dyn Machine,
    tokens: &[u32],
    options: &EvalOptions,
    cancel: &AtomicBool,
    progress: &mut dyn FnMut(usize, usize, f64),
) -> Result<Perplexity, EngineError> {
    let _ = (machine, tokens, options, cancel, progress);
    todo!()
}

/// Compares `model` with `reference` on `tokens`; both run the same chunks side by side. `progress` gets the chunks
/// done, their number, and the mean KL so far.
///
/// # Errors
/// As [`perplexity`]'s; and models with different vocabularies.
pub fn compare(
    model: &mut dyn Machine,
    reference: &mut dyn Machine,
    tokens: &[u32],
    options: &EvalOptions,
    cancel: &AtomicBool,
    progress: &mut dyn FnMut(usize, usize, f64),
) -> Result<Comparison, EngineError> {
    let _ = (model, reference, tokens, options, cancel, progress);
    todo!()
}
