//! One layer after the other: gather Hessians from text that has passed the layers already compressed, round, go on.

use std::borrow::Cow;

use upg_codec::{Bits, GROUP};
use upg_format::{Encoding, TensorKind, TensorName};

use super::{
    forward::{Activations, Forward, Layer, decoded},
    hessian::{Factor, Hessian},
    ldlq::{Rounded, round, round_nearest, values},
    text::{Calibration, HELD_OUT},
};
use crate::{CompressError, Folded, Progress};

/// What is added to a Hessian's diagonal, relative to its mean: few tokens make a Hessian that claims more than it knows.
const DAMPINGS: [f64; 5] = [0.01, 0.03, 0.1, 0.3, 1.0];

/// Rows of a matrix that the damping is chosen by.
const SAMPLE_ROWS: usize = 64;

/// Columns of a matrix that the damping is chosen by, at most: five factorisations of `down`'s Hessian would take longer
/// than all else.
const SAMPLE_COLUMNS: usize = 2048;

/// What became of a matrix.
pub(crate) enum Outcome<'a> {
    /// T8 codes.
    Rounded(&'a Rounded),
    /// The plan keeps its numbers.
    Kept(&'a [f32]),
}

/// Where compressed matrices go.
pub(crate) trait Store {
    /// A matrix is begun: how it is to be stored.
    fn start(&mut self, name: TensorName) -> Result<Encoding, CompressError>;

    /// The numbers of a tensor that is in the file.
    fn known(&self, name: TensorName) -> Result<Option<Vec<f32>>, CompressError>;

    /// What a matrix became, where an earlier run has finished it.
    fn finished(&mut self, name: TensorName) -> Result<Option<Vec<f32>>, CompressError>;

    /// Takes a matrix.
    fn put(&mut self, name: TensorName, outcome: Outcome<'_>) -> Result<(), CompressError>;
}

/// A model on its way through calibration.
pub(crate) struct Walk<'a> {
    folded: &'a Folded<'a>,
    forward: Forward,
    progress: &'a dyn Progress,
    /// The residual stream before the next layer: sequences to learn from, then those held out.
    x: Activations,
    /// Tokens of `x`.
    tokens: usize,
    /// How many of them are learned from.
    learning: usize,
}

impl<'a> Walk<'a> {
    /// Starts with `embedding`, already compressed.
    pub(crate) fn new(
        folded: &'a Folded<'a>,
        calibration: &Calibration,
        embedding: &[f32],
        progress: &'a dyn Progress,
    ) -> Result<Self, CompressError> {
        let forward = Forward::new(folded.config(), calibration.ctx);
        let tokens = calibration.whole(&forward.config)?;
        let sequences: Vec<&[u32]> = tokens.chunks_exact(calibration.ctx).collect();
        let is_held = |i: &usize| i % HELD_OUT == HELD_OUT - 1;
        let (held, learning): (Vec<usize>, Vec<usize>) = (0..sequences.len()).partition(is_held);
        let order = learning.iter().chain(&held);
        let tokens: Vec<u32> = order.flat_map(|i| sequences[*i]).copied().collect();
        let learning = learning.len() * calibration.ctx;
        let x = forward.embed(embedding, &tokens);
        Ok(Self { x, folded, forward, progress, tokens: tokens.len(), learning })
    }

    /// Compresses the next layer, the `index`-th.
    pub(crate) fn layer(&mut self, index: usize, store: &mut dyn Store) -> Result<(), CompressError> {
        use TensorKind::*;
        // What is in the file already need not be read (and perhaps fetched) again.
        let mut layer = Layer::load_with(self.folded.config(), index, |name| match store.known(name)? {
            Some(numbers) => Ok(numbers),
            None => decoded(self.folded, name),
        })?;
        let mut x = std::mem::take(&mut self.x);
        let mut stage = |layer: &mut Layer, kinds: &[TensorKind], input: &[f32]| {
            let mut rest = Vec::new();
            for kind in kinds {
                let name = TensorName::new(index, *kind);
                match store.finished(name)? {
                    Some(values) => *layer.matrix_mut(*kind) = values,
                    None => rest.push(name),
                }
            }
            self.stage(&rest, layer, input, store)
        };
        let normed = self.forward.normed(&x); // [tokens, hidden]
        stage(&mut layer, &[Q, K, V], &normed)?;
        let a = self.forward.attended(&layer, &normed); // [tokens, heads·head_dim]
        drop(normed);
        stage(&mut layer, &[O], &a)?;
        self.forward.add(&layer, O, &a, &mut x);
        drop(a);
        let normed = self.forward.normed(&x); // [tokens, hidden]
        stage(&mut layer, &[Gate, Up], &normed)?;
        let h = self.forward.activated(&layer, &normed); // [tokens, mlp]
        drop(normed);
        stage(&mut layer, &[Down], &h)?;
        self.forward.add(&layer, Down, &h, &mut x);
        self.x = x;
        Ok(())
    }

    /// Rounds matrices that are applied to the same `input`, and puts what they became in their place.
    fn stage(
        &self,
        names: &[TensorName],
        layer: &mut Layer,
        input: &[f32],
        store: &mut dyn Store,
    ) -> Result<(), CompressError> {
        let mut coded = Vec::new();
        for name in names {
            match store.start(*name)? {
                Encoding::T8(bits) => coded.push((*name, bits)),
                _ => store.put(*name, Outcome::Kept(layer.matrix(name.kind())))?,
            }
        }
        let Some((first, _)) = coded.first() else { return Ok(()) };
        let width = input.len() / self.tokens;
        if !input.iter().all(|x| x.is_finite()) {
            return Err(CompressError::Activations(*first));
        }
        let choice = self.choose(&coded, layer, input);
        let factor = match choice.fed.contains(&true) {
            true => self.factor(*first, Hessian::of(input, width), choice.damping),
            false => None,
        };
        for ((name, bits), fed) in coded.into_iter().zip(choice.fed) {
            let w = layer.matrix_mut(name.kind());
            let rounded = match factor.as_ref().filter(|_| fed) {
                Some(factor) => round(bits, w, factor, width),
                None => round_nearest(bits, w, width),
            };
            if let Some(row) = rounded.scales.iter().position(|scale| !scale.is_finite()) {
                return Err(CompressError::TooLarge { name, row });
            }
            *w = values(bits, &rounded.scales, &rounded.codes, width);
            store.put(name, Outcome::Rounded(&rounded))?;
        }
        Ok(())
    }

    /// The factors at `damping`, or at the least more that gives some.
    fn factor(&self, name: TensorName, mut hessian: Hessian, damping: f64) -> Option<Factor> {
        for damping in DAMPINGS.into_iter().filter(|more| *more >= damping) {
            match hessian.factor(damping) {
                Ok(factor) => return Some(factor),
                Err(same) => hessian = same,
            }
            self.progress.message(&format!("{name}: its Hessian has no factor at damping {damping}"));
        }
        None
    }

    /// The damping with which a sample of the matrices' rows comes through best on text held out, and for which of them
    /// that is better than no feedback.
    fn choose(&self, coded: &[(TensorName, Bits)], layer: &Layer, input: &[f32]) -> Choice {
        let sample = Sample::new(input.len() / self.tokens);
        let (learning, held) = input.split_at(self.learning * sample.full);
        let (learning, held) = (sample.some_inputs(learning), sample.inputs(held));
        let [learned, held] = [learning, held].map(|x| Hessian::of(&x, sample.width()));
        let rows: Vec<Vec<f32>> =
            coded.iter().map(|(name, _)| sample.rows(layer.matrix(name.kind()))).collect();
        // Errors of the outputs on text held out, a matrix each.
        let losses = |factor: Option<&Factor>| -> Vec<f64> {
            let loss = |((_, bits), w): (&(TensorName, Bits), &Vec<f32>)| {
                let rounded = match factor {
                    Some(factor) => round(*bits, w, factor, sample.width()),
                    None => round_nearest(*bits, w, sample.width()),
                };
                let found = values(*bits, &rounded.scales, &rounded.codes, sample.width());
                held.square(&w.iter().zip(found).map(|(w, f)| w - f).collect::<Vec<_>>())
            };
            coded.iter().zip(&rows).map(loss).collect()
        };
        let plain = losses(None);
        let mut best = (DAMPINGS[0], f64::INFINITY, vec![1.0; coded.len()]);
        for damping in DAMPINGS {
            let Ok(factor) = learned.clone().factor(damping) else {
                let (name, _) = coded[0];
                self.progress.message(&format!("{name}: its Hessian has no factor at damping {damping}"));
                continue;
            };
            let relative: Vec<f64> = losses(Some(&factor)).iter().zip(&plain).map(|(l, p)| l / p).collect();
            let sum = relative.iter().sum();
            if sum < best.1 {
                best = (damping, sum, relative);
            }
        }
        let (damping, _, relative) = best;
        for ((name, _), relative) in coded.iter().zip(&relative) {
            let damping = (*relative < 1.0).then_some(damping);
            self.progress.calibrated(*name, damping, relative.min(1.0));
        }
        Choice { damping, fed: relative.into_iter().map(|relative| relative < 1.0).collect() }
    }
}

/// How matrices that share their input are rounded.
struct Choice {
    damping: f64,
    /// Whether errors are passed on, matrix by matrix.
    fed: Vec<bool>,
}

/// The part of a matrix by which the damping is chosen.
struct Sample {
    /// Width of the matrix.
    full: usize,
    /// First columns of the groups.
    groups: Vec<usize>,
}

impl Sample {
    /// Groups evenly spread: rotated columns are alike, but those of different blocks of the rotation less so.
    fn new(full: usize) -> Self {
        let (all, some) = (full / GROUP, full.min(SAMPLE_COLUMNS) / GROUP);
        Self { full, groups: (0..some).map(|i| i * all / some * GROUP).collect() }
    }

    fn width(&self) -> usize {
        self.groups.len() * GROUP
    }

    /// The columns of some rows.
    fn pick<'r>(&self, rows: impl Iterator<Item = &'r [f32]>) -> Vec<f32> {
        rows.flat_map(|row| self.groups.iter().flat_map(|first| &row[*first..][..GROUP])).copied().collect()
    }

    /// Rows of a matrix, evenly spread.
    fn rows(&self, w: &[f32]) -> Vec<f32> {
        let step = (w.len() / self.full).div_ceil(SAMPLE_ROWS);
        self.pick(w.chunks_exact(self.full).step_by(step))
    }

    /// Inputs of as small a part of some tokens as the sample's is of the columns: how much damping a Hessian needs depends on
    /// how many tokens a column has.
    fn some_inputs<'x>(&self, x: &'x [f32]) -> Cow<'x, [f32]> {
        if self.width() == self.full {
            return Cow::Borrowed(x);
        }
        let before = |token: usize| token * self.width() / self.full;
        let tokens = x.chunks_exact(self.full).enumerate();
        let some = tokens.filter(|(i, _)| before(i + 1) > before(*i));
        Cow::Owned(self.pick(some.map(|(_, x)| x)))
    }

    /// Inputs of some tokens.
    fn inputs<'x>(&self, x: &'x [f32]) -> Cow<'x, [f32]> {
        match self.width() == self.full {
            true => Cow::Borrowed(x),
            false => Cow::Owned(self.pick(x.chunks_exact(self.full))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_has_as_many_tokens_a_column_as_the_matrix() {
        let sample = Sample::new(3 * SAMPLE_COLUMNS);
        assert_eq!(sample.width(), SAMPLE_COLUMNS);
        let x = vec![0.0; 30 * sample.full];
        assert_eq!(sample.inputs(&x).len(), 30 * SAMPLE_COLUMNS);
        assert_eq!(sample.some_inputs(&x).len(), 10 * SAMPLE_COLUMNS);
        let narrow = Sample::new(96);
        assert_eq!(narrow.some_inputs(&x).len(), x.len());
    }
}
