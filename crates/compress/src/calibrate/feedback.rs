//! How matrices that share their input are rounded: chosen on tokens held out.

use rayon::prelude::*;
use upg_codec::{Bits, GROUP};
use upg_format::TensorName;

use super::{
    clock::{Clock, Phase},
    hessian::{Factor, Hessian},
    ldlq::{Rounded, round, round_nearest, values},
    linalg::dot,
};
use crate::Progress;

/// What is added to a Hessian's diagonal, relative to its mean: few tokens make a Hessian that claims more than it knows.
const DAMPINGS: [f64; 5] = [0.01, 0.03, 0.1, 0.3, 1.0];

/// Rows of a matrix that the choice is made by.
const SAMPLE_ROWS: usize = 64;

/// Columns of a matrix that the choice is made by, at most: five factorisations of `down`'s Hessian would take longer than
/// all else.
const SAMPLE_COLUMNS: usize = 2048;

/// What an embedding's own relative error counts beside that of the logits that it makes.
const READING: f64 = 0.125;

/// What matrices are applied to.
#[derive(Clone, Copy)]
pub(crate) struct Inputs<'a> {
    /// `[tokens, width]`: tokens to learn from, then those held out.
    pub(crate) x: &'a [f32],
    pub(crate) width: usize,
    /// Tokens to learn from.
    pub(crate) learning: usize,
}

/// A matrix that is to be rounded.
pub(crate) struct Candidate {
    pub(crate) name: TensorName,
    pub(crate) bits: Bits,
    /// The rows that the choice is made by (see [`sampled`]), `[samples, width]`.
    pub(crate) rows: Vec<f32>,
    /// Whether its rows are also read as they are, as embeddings: then their own errors count as well.
    pub(crate) is_read: bool,
}

/// The rows of a matrix that the choice is made by, evenly spread.
pub(crate) fn sampled(rows: usize) -> impl Iterator<Item = usize> {
    (0..rows).step_by(rows.div_ceil(SAMPLE_ROWS).max(1))
}

/// How matrices that share their input are rounded.
pub(crate) struct Choice {
    damping: f64,
    /// Of all inputs, where the choice was made by all columns.
    hessian: Option<Hessian>,
    /// Whether errors are passed on, matrix by matrix.
    pub(crate) fed: Vec<bool>,
}

impl Choice {
    /// The damping with which the samples come through best on tokens held out, and for which matrices that is better than
    /// no feedback.
    pub(crate) fn new(
        candidates: &[Candidate],
        inputs: Inputs<'_>,
        progress: &dyn Progress,
        clock: &Clock,
    ) -> Self {
        let part = Part::new(inputs);
        let [learned, held] = clock.time(Phase::Moments, || {
            [&part.learned, &part.held]
                .map(|tokens| Hessian::of(&part.columns(inputs.x, tokens), part.width()))
        });
        clock.time(Phase::Choice, || Self::by(candidates, &part, learned, held, progress))
    }

    /// The same from the part's moments.
    fn by(
        candidates: &[Candidate],
        part: &Part,
        mut learned: Hessian,
        held: Hessian,
        progress: &dyn Progress,
    ) -> Self {
        let trials: Vec<Trial> =
            candidates.iter().map(|candidate| Trial::new(candidate, part, &held)).collect();
        let (mut best, mut chosen) = (vec![1.0; trials.len()], DAMPINGS[0]);
        let tried: Vec<Option<Vec<f64>>> = DAMPINGS
            .into_par_iter()
            .map(|damping| {
                let factor = learned.clone().factor(damping).ok()?;
                Some(trials.par_iter().map(|trial| trial.relative(&factor, &held)).collect())
            })
            .collect();
        for (damping, relative) in DAMPINGS.into_iter().zip(tried) {
            let Some(relative) = relative else {
                progress.message(&without_factor(candidates[0].name, damping));
                continue;
            };
            if relative.iter().sum::<f64>() < best.iter().sum() {
                (best, chosen) = (relative, damping);
            }
        }
        for (candidate, relative) in candidates.iter().zip(&best) {
            let damping = (*relative < 1.0).then_some(chosen);
            progress.calibrated(candidate.name, damping, relative.min(1.0));
        }
        let hessian = (part.width() == part.full).then(|| {
            learned += &held;
            learned
        });
        Self { damping: chosen, hessian, fed: best.into_iter().map(|relative| relative < 1.0).collect() }
    }

    /// The factor by which errors are passed on: at the damping chosen, or at the least more that gives one; none where
    /// nothing is passed on.
    pub(crate) fn factor(
        &mut self,
        name: TensorName,
        inputs: Inputs<'_>,
        progress: &dyn Progress,
        clock: &Clock,
    ) -> Option<Factor> {
        if !self.fed.contains(&true) {
            return None;
        }
        let hessian = self.hessian.take();
        let mut hessian =
            hessian.unwrap_or_else(|| clock.time(Phase::Moments, || Hessian::of(inputs.x, inputs.width)));
        for damping in DAMPINGS.into_iter().filter(|more| *more >= self.damping) {
            match clock.time(Phase::Factors, || hessian.factor(damping)) {
                Ok(factor) => return Some(factor),
                Err(same) => hessian = same,
            }
            progress.message(&without_factor(name, damping));
        }
        None
    }
}

fn without_factor(name: TensorName, damping: f64) -> String {
    format!("{name}: its Hessian has no factor at damping {damping}")
}

/// The part of the columns and tokens by which the choice is made.
struct Part {
    full: usize,
    /// First columns of the groups: evenly spread, for rotated columns are alike, but those of different blocks of the
    /// rotation less so.
    groups: Vec<usize>,
    /// As small a part of the tokens as of the columns: how much damping a Hessian needs depends on how many tokens a column
    /// has.
    learned: Vec<usize>,
    held: Vec<usize>,
}

impl Part {
    fn new(inputs: Inputs<'_>) -> Self {
        let full = inputs.width;
        let (all, some) = (full / GROUP, full.min(SAMPLE_COLUMNS) / GROUP);
        let before = |token: usize| token * some / all;
        Self {
            full,
            groups: (0..some).map(|i| i * all / some * GROUP).collect(),
            learned: (0..inputs.learning).filter(|i| before(i + 1) > before(*i)).collect(),
            held: (inputs.learning..inputs.x.len() / full).collect(),
        }
    }

    fn width(&self) -> usize {
        self.groups.len() * GROUP
    }

    /// The part's columns of some rows of `x`.
    fn columns(&self, x: &[f32], rows: &[usize]) -> Vec<f32> {
        let mut out = Vec::with_capacity(rows.len() * self.width());
        for row in rows {
            let row = &x[row * self.full..][..self.full];
            self.groups.iter().for_each(|first| out.extend_from_slice(&row[*first..][..GROUP]));
        }
        out
    }
}

/// A matrix's part by which the choice is made.
struct Trial {
    bits: Bits,
    w: Vec<f32>,
    is_read: bool,
    /// Of rounding to the nearest code.
    nearest: Losses,
}

/// Squared errors.
struct Losses {
    /// Of the outputs, on tokens held out.
    outputs: f64,
    /// Of the numbers themselves.
    own: f64,
}

impl Trial {
    fn new(candidate: &Candidate, part: &Part, held: &Hessian) -> Self {
        let rows: Vec<usize> = (0..candidate.rows.len() / part.full).collect();
        let w = part.columns(&candidate.rows, &rows);
        let nearest = losses(candidate.bits, &w, &round_nearest(candidate.bits, &w, part.width()), held);
        Self { bits: candidate.bits, w, is_read: candidate.is_read, nearest }
    }

    /// What rounding with feedback loses, relative to the nearest code.
    fn relative(&self, factor: &Factor, held: &Hessian) -> f64 {
        let fed = losses(self.bits, &self.w, &round(self.bits, &self.w, factor, held.width()), held);
        let outputs = fed.outputs / self.nearest.outputs;
        let own = fed.own / self.nearest.own;
        if self.is_read { outputs + READING * (own - outputs) } else { outputs }
    }
}

fn losses(bits: Bits, w: &[f32], rounded: &Rounded, held: &Hessian) -> Losses {
    let found = values(bits, &rounded.scales, &rounded.codes, held.width());
    let error: Vec<f32> = w.iter().zip(found).map(|(w, f)| w - f).collect();
    Losses { outputs: held.square(&error), own: dot(&error, &error) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_has_as_many_tokens_a_column_as_the_matrix() {
        let width = 3 * SAMPLE_COLUMNS;
        let x = vec![0.0; 40 * width];
        let part = Part::new(Inputs { x: &x, width, learning: 30 });
        assert_eq!(part.width(), SAMPLE_COLUMNS);
        assert_eq!((part.learned.len(), part.held.len()), (10, 10));
        let narrow = Part::new(Inputs { x: &x[..40 * 96], width: 96, learning: 30 });
        assert_eq!((narrow.width(), narrow.learned.len()), (96, 30));
    }
}
