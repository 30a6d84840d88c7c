//! Divergence of models from the one that they were made of.

use rayon::prelude::*;
use upg_format::{TensorKind, TensorName};
use upg_pdvm::Weights;

use super::{
    forward::{Activations, Forward, Layer, decoded},
    head::Head,
};
use crate::CompressError;

/// Tokens whose logits one task holds, of two models.
const TASK_TOKENS: usize = 32;

/// KL(reference ‖ model) in nats, token by token.
#[derive(Clone, Debug, PartialEq)]
pub struct Divergence {
    sorted: Vec<f64>,
    agreeing: usize,
}

impl Divergence {
    /// The mean.
    pub fn mean(&self) -> f64 {
        self.sorted.iter().sum::<f64>() / self.sorted.len() as f64
    }

    /// The standard error of the mean, tokens taken as independent.
    pub fn error(&self) -> f64 {
        let (mean, n) = (self.mean(), self.sorted.len() as f64);
        (self.sorted.iter().map(|kl| (kl - mean).powi(2)).sum::<f64>() / n / n).sqrt()
    }

    /// The value that a fraction `p` of the tokens do not exceed.
    pub fn percentile(&self, p: f64) -> f64 {
        let last = self.sorted.len() - 1;
        self.sorted[((p * self.sorted.len() as f64).ceil() as usize).saturating_sub(1).min(last)]
    }

    /// The fraction of tokens for which both models find the same next token likeliest.
    pub fn top1(&self) -> f64 {
        self.agreeing as f64 / self.sorted.len() as f64
    }
}

/// How far each of `models` is from `reference`, over the second half of each chunk of `ctx` tokens; a rest of `tokens`
/// shorter than that is left out. All run in f32, activations unrounded: this measures the weights alone.
///
/// One layer of one model is in memory at a time, and one head. Uses the current rayon pool.
///
/// # Errors
/// Text shorter than a chunk; weights that cannot be read.
pub fn divergence(
    reference: &dyn Weights,
    models: &[&dyn Weights],
    tokens: &[u32],
    ctx: usize,
) -> Result<Vec<Divergence>, CompressError> {
    let hidden = reference.config().hidden;
    let tokens = whole_sequences(tokens, ctx, reference.config().vocab)?;
    let outputs = |weights: &dyn Weights| {
        let (forward, head) = (Forward::new(weights.config(), ctx), Head::load(weights)?);
        let x = second_halves(&run(&forward, weights, tokens)?, ctx, hidden);
        let input = head.input(&forward, &x);
        Ok::<_, CompressError>((head, input))
    };
    let (head, truth) = outputs(reference)?;
    let compared = models.iter().map(|model| {
        let (own, found) = outputs(*model)?;
        Ok(compare((&head, &truth), (&own, &found), hidden))
    });
    compared.collect()
}

/// The tokens that make whole sequences.
pub(crate) fn whole_sequences(tokens: &[u32], ctx: usize, vocab: usize) -> Result<&[u32], CompressError> {
    if tokens.len() < ctx {
        let n = tokens.len();
        return Err(CompressError::Text(format!(
            "the text has {n} tokens, a sequence {ctx}: give more text"
        )));
    }
    if let Some(odd) = tokens.iter().find(|token| **token as usize >= vocab) {
        return Err(CompressError::Text(format!(
            "token {odd} is not of the model's vocabulary of {vocab}: use the model's own tokenizer"
        )));
    }
    Ok(&tokens[..tokens.len() / ctx * ctx])
}

/// The residual stream after the last layer.
pub(super) fn run(
    forward: &Forward,
    weights: &dyn Weights,
    tokens: &[u32],
) -> Result<Activations, CompressError> {
    let mut x = forward.embed(&decoded(weights, TensorName::global(TensorKind::Embed))?, tokens);
    for layer in 0..forward.config.layers {
        forward.layer(&Layer::load(weights, layer)?, &mut x);
    }
    Ok(x)
}

/// The second half of each sequence.
pub(crate) fn second_halves(x: &[f32], ctx: usize, width: usize) -> Activations {
    x.chunks_exact(ctx * width).flat_map(|x| &x[ctx / 2 * width..]).copied().collect()
}

/// Compares two heads' logits, each from its own input.
pub(crate) fn compare(truth: (&Head, &[f32]), found: (&Head, &[f32]), hidden: usize) -> Divergence {
    let width = TASK_TOKENS * hidden;
    let pairs = truth.1.par_chunks(width).zip(found.1.par_chunks(width));
    let rows: Vec<(f64, bool)> = pairs
        .flat_map_iter(|(p, q)| {
            let [p, q] = [(truth.0, p), (found.0, q)].map(|(head, input)| head.logits(input, hidden));
            let vocab = truth.0.vocab(hidden);
            let both = p.chunks_exact(vocab).zip(q.chunks_exact(vocab));
            both.map(|(p, q)| kl(p, q)).collect::<Vec<_>>()
        })
        .collect();
    let agreeing = rows.iter().filter(|row| row.1).count();
    let mut sorted: Vec<f64> = rows.into_iter().map(|row| row.0).collect();
    sorted.sort_unstable_by(f64::total_cmp);
    Divergence { sorted, agreeing }
}

/// `Σ p (log p - log q)` of two rows of logits, and whether their largest are at the same place.
fn kl(p: &[f32], q: &[f32]) -> (f64, bool) {
    let [(p_best, p_max), (q_best, q_max)] = [p, q].map(largest);
    let (mut p_sum, mut q_sum, mut difference) = (0.0, 0.0, 0.0);
    for (p, q) in p.iter().zip(q) {
        let (p, q) = (p - p_max, q - q_max);
        let e = f64::from(p.exp());
        p_sum += e;
        q_sum += f64::from(q.exp());
        difference += e * f64::from(p - q);
    }
    // Rounding can make the divergence of equal distributions a little less than none.
    ((difference / p_sum - p_sum.ln() + q_sum.ln()).max(0.0), p_best == q_best)
}

fn largest(x: &[f32]) -> (usize, f32) {
    let pick = |best: (usize, f32), (i, &x): (usize, &f32)| if x > best.1 { (i, x) } else { best };
    x.iter().enumerate().fold((0, f32::NEG_INFINITY), pick)
}
