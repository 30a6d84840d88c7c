//! What rounding each tensor does to the model's output, from one backward pass.
//!
//! To second order, errors `e` of a matrix's weights cost a divergence of `½ Σ (Σ_t g_t · e x_t)²` over texts: `x_t` are
//! its inputs, `g_t` the gradients of the log-likelihood of tokens drawn from the model itself with respect to its outputs
//! (Fisher's information). [`Cost`] is the expectation of that over the errors.

use std::sync::atomic::{AtomicBool, Ordering};

use rayon::prelude::*;
use upg_codec::Bits;
use upg_format::{TensorKind, TensorName};
use upg_pdvm::rotation::SplitMix64;

use super::{
    cost::{Moments, gradients},
    forward::{Activations, Forward, Layer, MATRICES, SHARED},
    head::Head,
    heads::Heads,
    ldlq::values,
    linalg::dot,
    measure::compare,
    text::Calibration,
};
use crate::{CompressError, Folded, Progress, Sensitivities, relative_error, round::round_rows};

/// The code that the early MLPs are rounded to.
const PROBE: Bits = Bits::B3;

/// One layer in so many, at the model's start, is early: there massive activations are made.
const EARLY: usize = 8;

const MLP: [TensorKind; 3] = [TensorKind::Gate, TensorKind::Up, TensorKind::Down];

/// Tokens whose logits one task holds.
const TASK_TOKENS: usize = 32;

/// Measures every matrix's [`Sensitivities`] on a text: one forward and one backward pass.
///
/// The expansion to second order does not see a token that rounding throws off altogether. Massive activations do that,
/// and the MLPs of the first layers make them; so these MLPs are also rounded to 3 bits, all else left as it is, and where
/// the divergence is more than expected, their sensitivities grow by as much.
///
/// Layers are loaded one at a time, twice each; the residual stream before each is held, `[tokens, hidden]`. `progress`
/// is told of [`Progress::measuring`]. Uses the current rayon pool; the result does not depend on it.
///
/// # Errors
/// Text shorter than a sequence; weights that cannot be read or rounded; activations that overflow.
pub fn sensitivities(
    folded: &Folded<'_>,
    text: &Calibration,
    progress: &dyn Progress,
    cancel: &AtomicBool,
) -> Result<Sensitivities, CompressError> {
    let text = text.sensed(folded.config())?;
    let forward = Forward::new(folded.config(), text.ctx);
    let mut sensing = Sensing {
        folded,
        tokens: &text.tokens,
        streams: Vec::new(),
        probe: Vec::new(),
        expected: 0.0,
        found: Vec::new(),
        progress,
        cancel,
        forward,
    };
    let last = sensing.forth(sensing.embeddings()?)?;
    let (gradient, seen) = sensing.head(&last)?;
    drop(last);
    let gradient = sensing.back(gradient)?;
    sensing.embedding(&gradient)?;
    sensing.correct(seen);
    match sensing.found.iter().find(|(_, harm)| !harm.is_finite()) {
        Some((name, _)) => Err(CompressError::Activations(*name)),
        None => Ok(Sensitivities::measured(sensing.found)),
    }
}

/// What one sequence's way back through a layer leaves, in the order of [`MATRICES`].
#[derive(Default)]
struct Passed {
    /// What the first of the matrices that share an input is applied to.
    inputs: [Vec<f32>; 7],
    /// See [`gradients`].
    gradients: [Vec<f32>; 7],
}

impl Passed {
    fn see(&mut self, kind: TensorKind, input: &[f32], gradient: &[f32], powers: &[Vec<f64>; 7]) {
        let at = position(kind);
        if SHARED.iter().any(|kinds| kinds[0] == kind) {
            self.inputs[at] = input.to_vec();
        }
        self.gradients[at] = gradients(gradient, &powers[at]);
    }
}

fn position(kind: TensorKind) -> usize {
    MATRICES.iter().position(|k| *k == kind).unwrap_or_else(|| panic!("{kind:?} is no matrix of a layer"))
}

/// Measuring under way.
struct Sensing<'a> {
    folded: &'a Folded<'a>,
    forward: Forward,
    tokens: &'a [u32],
    /// The residual stream before each layer.
    streams: Vec<Activations>,
    /// The stream of the model in which the early MLPs are rounded.
    probe: Activations,
    /// The divergence that this is expected to cause.
    expected: f64,
    found: Vec<(TensorName, f64)>,
    progress: &'a dyn Progress,
    cancel: &'a AtomicBool,
}

impl Sensing<'_> {
    /// The forward pass; returns the stream after the last layer.
    fn forth(&mut self, mut x: Activations) -> Result<Activations, CompressError> {
        let layers = self.forward.config.layers;
        for index in 0..layers {
            let mut layer = Layer::load(self.folded, index)?;
            self.streams.push(x.clone());
            self.forward.layer(&layer, &mut x);
            if index == 0 {
                self.probe = self.streams[0].clone();
            }
            if is_early(index, layers) {
                for kind in MLP {
                    let name = TensorName::new(index, kind);
                    rounded(name, layer.matrix_mut(kind), name.shape(&self.forward.config)[1])?;
                }
            }
            self.forward.layer(&layer, &mut self.probe);
            self.step(0.4 * (index + 1) as f64 / layers as f64)?;
        }
        Ok(x)
    }

    fn step(&self, done: f64) -> Result<(), CompressError> {
        self.progress.measuring(done);
        if self.cancel.load(Ordering::Relaxed) { Err(CompressError::Cancelled) } else { Ok(()) }
    }

    /// The gradient with respect to the stream after the last layer, and the divergence of the probe.
    fn head(&mut self, x: &[f32]) -> Result<(Activations, f64), CompressError> {
        let head = Head::load(self.folded)?;
        let hidden = self.forward.config.hidden;
        let input = head.input(&self.forward, x);
        let power = row_powers(head.matrix(), hidden);
        let width = TASK_TOKENS * hidden;
        let tasks = x.par_chunks(width).zip(input.par_chunks(width)).enumerate();
        let found: Vec<(Activations, Vec<f64>)> = tasks
            .map(|(task, (x, input))| {
                let mut logits = head.logits(input, hidden);
                let rows = logits.chunks_exact_mut(power.len()).enumerate();
                let weights = rows.map(|(i, row)| {
                    let mut random = SplitMix64((task * TASK_TOKENS + i) as u64);
                    let uniform = (random.next() >> 11) as f64 / (1_u64 << 53) as f64;
                    draw(row, uniform, &power)
                });
                let weights = weights.collect();
                (head.back(&self.forward, x, &logits), weights)
            })
            .collect();
        let (gradients, weights): (Vec<Activations>, Vec<Vec<f64>>) = found.into_iter().unzip();
        let (gradient, weights) = (gradients.concat(), weights.concat());
        let harm = Moments::new(&input, hidden, self.forward.ctx).apart(&weights).fed;
        let kind = if self.forward.config.tied_embeddings { TensorKind::Embed } else { TensorKind::Head };
        self.found.push((TensorName::global(kind), self.mean(harm)));
        let probe = head.input(&self.forward, &std::mem::take(&mut self.probe));
        Ok((gradient, compare((&head, &input), (&head, &probe), hidden).mean()))
    }

    /// The backward pass; returns the gradient with respect to the embeddings.
    fn back(&mut self, mut gradient: Activations) -> Result<Activations, CompressError> {
        let (layers, width) = (self.forward.config.layers, self.forward.ctx * self.forward.config.hidden);
        while let Some(x) = self.streams.pop() {
            let index = self.streams.len();
            let layer = Layer::load(self.folded, index)?;
            let powers = self.powers(index, &layer, &x);
            let sequences = x.par_chunks(width).zip(gradient.par_chunks_mut(width));
            let passed: Vec<Passed> = sequences
                .map(|(x, gradient)| {
                    let mut passed = Passed::default();
                    self.forward.layer_back(&layer, x, gradient, &mut |kind, input, g| {
                        passed.see(kind, input, g, &powers);
                    });
                    passed
                })
                .collect();
            drop(layer);
            for kinds in SHARED {
                let first = position(kinds[0]);
                let input: Vec<f32> =
                    passed.iter().flat_map(|passed| &passed.inputs[first]).copied().collect();
                let moments = Moments::new(&input, input.len() / self.tokens.len(), self.forward.ctx);
                for kind in kinds {
                    let cost = moments
                        .cost(passed.iter().map(|passed| passed.gradients[position(*kind)].as_slice()));
                    let [plain, fed] = [cost.plain, cost.fed].map(|harm| self.mean(harm));
                    self.found.push((TensorName::new(index, *kind), fed));
                    if MLP.contains(kind) && is_early(index, layers) {
                        self.expected += plain * relative_error(PROBE);
                    }
                }
            }
            self.step(1.0 - 0.6 * index as f64 / layers as f64)?;
        }
        Ok(gradient)
    }

    /// What errors of a code have in each row of a layer's matrices, those that feedback between rows takes away not
    /// counted; `x` is the stream before the layer.
    fn powers(&self, index: usize, layer: &Layer, x: &[f32]) -> [Vec<f64>; 7] {
        let config = &self.forward.config;
        let heads = Heads::new(&self.forward, layer, &self.forward.normed(x));
        MATRICES.map(|kind| {
            let mut powers = row_powers(layer.matrix(kind), TensorName::new(index, kind).shape(config)[1]);
            for (powers, head) in powers.chunks_exact_mut(config.head_dim).zip(heads.of(kind).unwrap_or(&[]))
            {
                let left = head.left();
                powers.iter_mut().for_each(|power| *power *= left);
            }
            powers
        })
    }

    /// The embeddings of the text, read row by row: the whole matrix may be larger than a layer.
    fn embeddings(&self) -> Result<Activations, CompressError> {
        let hidden = self.forward.config.hidden;
        let mut x = vec![0.0; self.tokens.len() * hidden];
        let name = TensorName::global(TensorKind::Embed);
        for (token, x) in self.tokens.iter().zip(x.chunks_exact_mut(hidden)) {
            let row = *token as usize;
            self.folded.rows(name, row..row + 1, x)?;
        }
        Ok(x)
    }

    /// What rounding the embeddings costs where they enter.
    fn embedding(&mut self, gradient: &[f32]) -> Result<(), CompressError> {
        let hidden = self.forward.config.hidden;
        let x = self.embeddings()?;
        let tokens = x.chunks_exact(hidden).zip(gradient.chunks_exact(hidden));
        let harm = tokens.map(|(x, g)| dot(x, x) / hidden as f64 * dot(g, g)).sum();
        let (embed, harm) = (TensorName::global(TensorKind::Embed), self.mean(harm));
        match self.found.iter_mut().find(|(name, _)| *name == embed) {
            Some((_, head)) => {
                let text = format!(
                    "the embedding costs {harm:.3} where it is read, {head:.3} where it makes logits"
                );
                self.progress.message(&text);
                *head += harm;
            }
            None => self.found.push((embed, harm)),
        }
        Ok(())
    }

    /// Lets the sensitivities of the early MLPs grow to the divergence that was seen.
    fn correct(&mut self, seen: f64) {
        let layers = self.forward.config.layers;
        let early = |name: &TensorName| {
            MLP.contains(&name.kind()) && name.layer().is_some_and(|layer| is_early(layer, layers))
        };
        let expected = self.expected;
        let text =
            format!("the MLPs of the first layers in 3 bits: divergence {seen:.4}, expected {expected:.4}");
        self.progress.message(&text);
        let factor = (seen / expected).max(1.0);
        if factor.is_finite() {
            self.found.iter_mut().filter(|(name, _)| early(name)).for_each(|(_, harm)| *harm *= factor);
        }
    }

    /// A token's share of a cost, with the expansion's ½.
    fn mean(&self, harm: f64) -> f64 {
        0.5 * harm / self.tokens.len() as f64
    }
}

fn is_early(layer: usize, layers: usize) -> bool {
    layer * EARLY < layers
}

/// Mean square of each row.
fn row_powers(w: &[f32], cols: usize) -> Vec<f64> {
    w.par_chunks(cols).map(|row| dot(row, row) / cols as f64).collect()
}

/// Turns a token's logits into the gradient of the likelihood of a token drawn from them, and returns what errors of
/// these powers cost: `Σ power · p (1 - p)`.
fn draw(logits: &mut [f32], uniform: f64, power: &[f64]) -> f64 {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    logits.iter_mut().for_each(|x| *x = (*x - max).exp());
    let sum: f64 = logits.iter().map(|x| f64::from(*x)).sum();
    let (mut left, mut drawn) = (uniform * sum, logits.len() - 1);
    for (i, x) in logits.iter().enumerate() {
        left -= f64::from(*x);
        if left < 0.0 {
            drawn = i;
            break;
        }
    }
    let mut cost = 0.0;
    for (x, power) in logits.iter_mut().zip(power) {
        let p = f64::from(*x) / sum;
        cost += power * p * (1.0 - p);
        *x = p as f32;
    }
    logits[drawn] -= 1.0;
    cost
}

/// Rounds a matrix to [`PROBE`], in place.
fn rounded(name: TensorName, w: &mut [f32], cols: usize) -> Result<(), CompressError> {
    let row_bytes = cols / upg_codec::GROUP * PROBE.group_bytes();
    let rows = w.len() / cols;
    let (mut scales, mut codes) = (vec![half::f16::ZERO; rows], vec![0; rows * row_bytes]);
    round_rows(PROBE, w, cols, &mut scales, &mut codes)
        .map_err(|row| CompressError::TooLarge { name, row: row.0 })?;
    w.copy_from_slice(&values(PROBE, &scales, &codes, cols));
    Ok(())
}
