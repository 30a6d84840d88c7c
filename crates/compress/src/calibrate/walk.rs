//! One layer after the other: gather Hessians from text that has passed the layers already compressed, round, go on.

use upg_codec::Bits;
use upg_format::{Encoding, TensorKind, TensorName};

use super::{
    forward::{Activations, Forward, Layer, decoded},
    hessian::{Factor, Hessian},
    ldlq::{Rounded, dot, round, values},
    measure::whole_sequences,
};
use crate::{CompressError, Folded, Progress};

/// One sequence of this many is held out: it chooses the damping.
const HELD_OUT: usize = 8;

/// What is added to a Hessian's diagonal, relative to its mean: few tokens make a Hessian that claims more than it knows.
const DAMPINGS: [f64; 5] = [0.01, 0.03, 0.1, 0.3, 1.0];

/// Rows of a matrix that the damping is chosen by.
const SAMPLE_ROWS: usize = 128;

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
    /// One line that says what the text was.
    pub fn describe(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        self.tokens.iter().for_each(|token| {
            hasher.update(&token.to_le_bytes());
        });
        let hash = &hasher.finalize().to_hex()[..16];
        format!("{}: {} tokens in sequences of {}, blake3 {hash}", self.source, self.tokens.len(), self.ctx)
    }
}

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
        let tokens = whole_sequences(&calibration.tokens, calibration.ctx, forward.config.vocab)?;
        let sequences: Vec<&[u32]> = tokens.chunks_exact(calibration.ctx).collect();
        if sequences.len() < HELD_OUT {
            let (least, found) = (HELD_OUT * calibration.ctx, tokens.len());
            let text =
                format!("calibration needs at least {least} tokens, the text has {found}: give more text");
            return Err(CompressError::Text(text));
        }
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
            let Some(first) = rest.first() else { return Ok(()) };
            let hessians = self.hessians(*first, input)?;
            rest.iter()
                .try_for_each(|name| self.matrix(*name, layer.matrix_mut(name.kind()), &hessians, store))
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

    /// Second moments of `input`: of the sequences to learn from and of those held out.
    fn hessians(&self, name: TensorName, input: &[f32]) -> Result<[Hessian; 2], CompressError> {
        let width = input.len() / self.tokens;
        let (learning, held) = input.split_at(self.learning * width);
        let hessians = [learning, held].map(|x| {
            let mut h = Hessian::new(width);
            h.add(x);
            h.mirror();
            h
        });
        match hessians.iter().all(Hessian::is_finite) {
            true => Ok(hessians),
            false => Err(CompressError::Activations(name)),
        }
    }

    /// Compresses one matrix and puts what it became in its place.
    fn matrix(
        &self,
        name: TensorName,
        w: &mut Vec<f32>,
        hessians: &[Hessian; 2],
        store: &mut dyn Store,
    ) -> Result<(), CompressError> {
        let Encoding::T8(bits) = store.start(name)? else { return store.put(name, Outcome::Kept(w)) };
        let damping = self.choose(name, bits, w, hessians);
        let mut all = hessians[0].clone();
        all.join(&hessians[1]);
        let factor = damping.and_then(|damping| self.factor(name, &all, damping));
        let rounded = round(bits, w, &all, factor.as_ref(), all.width());
        if let Some(row) = rounded.scales.iter().position(|scale| !scale.is_finite()) {
            return Err(CompressError::TooLarge { name, row });
        }
        *w = values(bits, &rounded.scales, &rounded.codes, all.width());
        store.put(name, Outcome::Rounded(&rounded))
    }

    /// The factors at `damping`, or at the least more that gives some.
    fn factor(&self, name: TensorName, hessian: &Hessian, damping: f64) -> Option<Factor> {
        DAMPINGS.into_iter().filter(|more| *more >= damping).find_map(|damping| {
            let factor = hessian.factor(damping).ok();
            if factor.is_none() {
                self.progress.message(&format!("{name}: its Hessian has no factor at damping {damping}"));
            }
            factor
        })
    }

    /// The damping with which a sample of rows comes through best on text held out; `None`: without feedback.
    fn choose(&self, name: TensorName, bits: Bits, w: &[f32], [learned, held]: &[Hessian; 2]) -> Option<f64> {
        let cols = learned.width();
        let step = (w.len() / cols).div_ceil(SAMPLE_ROWS);
        let sample: Vec<f32> = w.chunks_exact(cols).step_by(step).flatten().copied().collect();
        let loss = |damping: Option<f64>| {
            let factor = damping.map(|d| learned.factor(d)).transpose().ok()?;
            let rounded = round(bits, &sample, learned, factor.as_ref(), cols);
            Some(output_error(&sample, &values(bits, &rounded.scales, &rounded.codes, cols), held))
        };
        let plain = loss(None)?;
        let mut best = (None, plain);
        for damping in DAMPINGS {
            match loss(Some(damping)) {
                Some(loss) if loss < best.1 => best = (Some(damping), loss),
                Some(_) => {}
                None => {
                    self.progress.message(&format!("{name}: its Hessian has no factor at damping {damping}"));
                }
            }
        }
        self.progress.calibrated(name, best.0, best.1 / plain);
        best.0
    }
}

/// Squared error of the outputs of `found` in place of `wanted`.
fn output_error(wanted: &[f32], found: &[f32], hessian: &Hessian) -> f64 {
    let error: Vec<f32> = wanted.iter().zip(found).map(|(w, f)| w - f).collect();
    dot(&error, &hessian.times(&error))
}
