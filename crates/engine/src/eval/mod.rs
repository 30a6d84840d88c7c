//! How good a model is: perplexity, and divergence from another one.
//!
//! A text is cut into chunks, and the second half of each is scored, so that every scored token has at least half a
//! chunk before it: as llama.cpp's `perplexity` does, whose numbers are comparable. Sums are kept in f64.

mod rows;
mod scorer;
mod statistics;

use std::sync::atomic::{AtomicBool, Ordering};

use upg_pdvm::Machine;

use crate::EngineError;
pub(crate) use rows::{log_probabilities, logits};
pub use scorer::{MachineScorer, Scorer};
pub use statistics::Estimate;
use statistics::{Mean, percentile};

/// Rows of logits held at once: those of a whole chunk would take hundreds of megabytes.
const ROWS: usize = 64;

/// How a text is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EvalOptions {
    /// Tokens a chunk, at least 4.
    pub ctx: usize,
    /// Chunks; `None`: as many as the text has.
    pub chunks: Option<usize>,
    /// Replaces the first token of each chunk, as llama.cpp's perplexity does for models that start texts with bos.
    pub bos: Option<u32>,
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
    /// Tokens scored: those of each chunk's second half, but for its first token.
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
    perplexity_scorer(&mut MachineScorer::new(machine)?, tokens, options, cancel, progress)
}

/// [`perplexity`] for any source of logits.
///
/// # Errors
/// As [`perplexity`]'s.
pub fn perplexity_scorer(
    scorer: &mut dyn Scorer,
    tokens: &[u32],
    options: &EvalOptions,
    cancel: &AtomicBool,
    progress: &mut dyn FnMut(usize, usize, f64),
) -> Result<Perplexity, EngineError> {
    let mut likelihood = Likelihood::default();
    let chunks = Chunks::new(tokens, options)?;
    chunks.run(&mut [scorer], cancel, &mut |done, row| match row {
        None => progress(done, chunks.count, likelihood.mean.estimate().value.exp()),
        Some(row) => likelihood.add(&LogSoftmax::of(row.logits[0]), row.target),
    })?;
    Ok(likelihood.perplexity(&chunks))
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
    let mut model = MachineScorer::new(model)?;
    let mut reference = MachineScorer::new(reference)?;
    compare_scorers(&mut model, &mut reference, tokens, options, cancel, progress)
}

/// [`compare`] for any two sources of logits: a cache of the reference's, a model run layer by layer.
///
/// # Errors
/// As [`compare`]'s.
pub fn compare_scorers(
    model: &mut dyn Scorer,
    reference: &mut dyn Scorer,
    tokens: &[u32],
    options: &EvalOptions,
    cancel: &AtomicBool,
    progress: &mut dyn FnMut(usize, usize, f64),
) -> Result<Comparison, EngineError> {
    let chunks = Chunks::new(tokens, options)?;
    let mut own = [Likelihood::default(), Likelihood::default()];
    let (mut kl, mut agree, mut all) = (Mean::default(), Mean::default(), Vec::new());
    chunks.run(&mut [model, reference], cancel, &mut |done, row| match row {
        None => progress(done, chunks.count, kl.estimate().value),
        Some(row) => {
            let [q, p] = [0, 1].map(|i| LogSoftmax::of(row.logits[i]));
            own[0].add(&q, row.target);
            own[1].add(&p, row.target);
            let divergence = p.kl(&q);
            kl.add(divergence);
            all.push(divergence);
            agree.add(if p.best() == q.best() { 1.0 } else { 0.0 });
        }
    })?;
    all.sort_unstable_by(f64::total_cmp);
    let [model, reference] = own.map(|likelihood| likelihood.perplexity(&chunks));
    Ok(Comparison {
        ratio: (model.nll.value - reference.nll.value).exp(),
        model,
        reference,
        kl: kl.estimate(),
        kl_median: percentile(&all, 0.5),
        kl_p99: percentile(&all, 0.99),
        kl_p999: percentile(&all, 0.999),
        kl_max: percentile(&all, 1.0),
        top1: agree.estimate(),
    })
}

/// The logits of every scorer for one token, and the token that came.
struct Row<'r, 'l> {
    logits: &'r [&'l [f32]],
    target: usize,
}

/// A text cut into chunks.
struct Chunks<'a> {
    tokens: &'a [u32],
    ctx: usize,
    count: usize,
    bos: Option<u32>,
}

impl EvalOptions {
    /// Chunks that a text of so many tokens has, of those asked for.
    pub fn whole_chunks(&self, tokens: usize) -> usize {
        (tokens / self.ctx.max(1)).min(self.chunks.unwrap_or(usize::MAX))
    }

    /// Tokens of a text that are scored, of as many chunks as it has of those asked for.
    pub fn scored(&self, tokens: usize) -> usize {
        self.whole_chunks(tokens) * self.ctx.saturating_sub(1).saturating_sub(self.ctx / 2)
    }
}

impl<'a> Chunks<'a> {
    fn new(tokens: &'a [u32], options: &EvalOptions) -> Result<Self, EngineError> {
        let EvalOptions { ctx, chunks, bos } = *options;
        if ctx < 4 {
            let value = ctx.to_string();
            return Err(EngineError::Option { option: "ctx", value, remedy: "give at least 4 tokens" });
        }
        let count = (tokens.len() / ctx).min(chunks.unwrap_or(usize::MAX));
        if tokens.len() < ctx {
            return Err(EngineError::ShortText { tokens: tokens.len(), chunk: ctx });
        }
        if count == 0 {
            return Err(EngineError::Option {
                option: "chunks",
                value: "0".into(),
                remedy: "give at least 1",
            });
        }
        Ok(Self { tokens, ctx, count, bos })
    }

    /// Runs every scorer over every chunk; `visit` gets the number of chunks done and a scored token's row, or none at
    /// the end of a chunk.
    fn run(
        &self,
        scorers: &mut [&mut dyn Scorer],
        cancel: &AtomicBool,
        visit: &mut dyn FnMut(usize, Option<Row<'_, '_>>),
    ) -> Result<(), EngineError> {
        let vocab = scorers.first().map_or(0, |scorer| scorer.vocab());
        if let Some(other) = scorers.iter().map(|scorer| scorer.vocab()).find(|&other| other != vocab) {
            return Err(EngineError::Vocabularies(vocab, other));
        }
        let mut logits: Vec<Vec<f32>> = scorers.iter().map(|_| vec![0.0; ROWS * vocab]).collect();
        for (done, chunk) in self.tokens.chunks_exact(self.ctx).take(self.count).enumerate() {
            let mut chunk = chunk.to_vec();
            if let Some(bos) = self.bos {
                chunk[0] = bos;
            }
            for scorer in scorers.iter_mut() {
                scorer.begin()?;
            }
            // The last token is only ever a target.
            let (first, last) = (self.ctx / 2, self.ctx - 1);
            for start in (first..last).step_by(ROWS) {
                if cancel.load(Ordering::Relaxed) {
                    return Err(EngineError::Cancelled);
                }
                let end = last.min(start + ROWS);
                for (scorer, logits) in scorers.iter_mut().zip(&mut logits) {
                    scorer.rows(&chunk, start..end, &mut logits[..(end - start) * vocab])?;
                }
                for i in start..end {
                    let rows: Vec<&[f32]> =
                        logits.iter().map(|l| &l[(i - start) * vocab..][..vocab]).collect();
                    visit(done, Some(Row { logits: &rows, target: chunk[i + 1] as usize }));
                }
            }
            visit(done + 1, None);
        }
        Ok(())
    }
}

/// Negative log-likelihoods of the tokens that came.
#[derive(Default)]
struct Likelihood {
    mean: Mean,
}

impl Likelihood {
    fn add(&mut self, row: &LogSoftmax<'_>, target: usize) {
        self.mean.add(-row.log_p(target));
    }

    fn perplexity(&self, chunks: &Chunks<'_>) -> Perplexity {
        let nll = self.mean.estimate();
        let value = nll.value.exp();
        Perplexity {
            perplexity: Estimate { value, error: value * nll.error },
            nll,
            chunks: chunks.count,
            ctx: chunks.ctx,
            scored: self.mean.count(),
        }
    }
}

/// A row of logits as log-probabilities.
struct LogSoftmax<'a> {
    logits: &'a [f32],
    best: usize,
    log_sum: f64,
}

impl<'a> LogSoftmax<'a> {
    fn of(logits: &'a [f32]) -> Self {
        let (mut best, mut max) = (0, f32::NEG_INFINITY);
        for (i, &logit) in logits.iter().enumerate() {
            if logit > max {
                (best, max) = (i, logit);
            }
        }
        let sum: f64 = logits.iter().map(|&logit| f64::from(logit - max).exp()).sum();
        Self { logits, best, log_sum: f64::from(max) + sum.ln() }
    }

    fn log_p(&self, token: usize) -> f64 {
        f64::from(self.logits[token]) - self.log_sum
    }

    /// The likeliest token, the lowest of several.
    fn best(&self) -> usize {
        self.best
    }

    /// `Σ p (log p - log q)`, in nats.
    fn kl(&self, other: &LogSoftmax<'_>) -> f64 {
        let shift = self.log_sum - other.log_sum;
        let term = |(&a, &b): (&f32, &f32)| {
            let p = (f64::from(a) - self.log_sum).exp();
            // 0 log 0 = 0.
            if p == 0.0 { 0.0 } else { p * (f64::from(a) - f64::from(b) - shift) }
        };
        // Rounding can make the divergence of equal distributions a little less than none.
        self.logits.iter().zip(other.logits).map(term).sum::<f64>().max(0.0)
    }
}

#[cfg(test)]
mod tests;
