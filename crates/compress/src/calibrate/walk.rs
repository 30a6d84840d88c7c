//! One layer after the other: gather Hessians from text that has passed the layers already compressed, round, go on.

use std::mem;

use upg_format::{Encoding, TensorKind, TensorName};

use super::{
    clock::{Clock, Phase},
    feedback::{Candidate, Choice, Inputs, sampled},
    forward::{Activations, Forward, Layer, SHARED, decoded},
    heads::Heads,
    ldlq::{Rounded, round, round_heads, round_nearest, values},
    output::Outputs,
    text::Calibration,
};
use crate::{CompressError, Folded, Progress};

/// What became of a matrix.
pub(crate) enum Outcome<'a> {
    /// T8 codes.
    Rounded(&'a Rounded),
    /// The plan keeps its numbers.
    Kept(&'a [f32]),
}

/// Where compressed matrices go.
pub(crate) trait Store {
    /// How a matrix is to be stored.
    fn encoding(&self, name: TensorName) -> Result<Encoding, CompressError>;

    /// A matrix is begun: how it is to be stored.
    fn start(&mut self, name: TensorName) -> Result<Encoding, CompressError>;

    /// Whether a tensor is in the file.
    fn is_known(&self, name: TensorName) -> bool;

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
    clock: &'a Clock,
    /// The residual stream before the next layer: sequences to learn from, then those held out.
    x: Activations,
    /// What the last layer's `down` was applied to: its memory serves the next.
    h: Activations,
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
        clock: &'a Clock,
    ) -> Result<Self, CompressError> {
        let forward = Forward::new(folded.config(), calibration.ctx);
        let (tokens, learning) = calibration.split(&forward.config)?;
        let x = forward.embed(embedding, &tokens);
        Ok(Self { x, h: Vec::new(), folded, forward, progress, clock, tokens: tokens.len(), learning })
    }

    /// Compresses the next layer, the `index`-th.
    pub(crate) fn layer(&mut self, index: usize, store: &mut dyn Store) -> Result<(), CompressError> {
        let [qkv, o, gate_up, down] = SHARED;
        // What is in the file already need not be read (and perhaps fetched) again.
        let mut layer = self.clock.time(Phase::Weights, || {
            Layer::load_with(self.folded.config(), index, |name| match store.known(name)? {
                Some(numbers) => Ok(numbers),
                None => decoded(self.folded, name),
            })
        })?;
        let (mut x, mut h) = (mem::take(&mut self.x), mem::take(&mut self.h));
        let normed = self.forward.normed(&x); // [tokens, hidden]
        let heads = self.heads(index, &mut layer, &normed, store)?;
        let mut stage = |layer: &mut Layer, kinds: &[TensorKind], input: &[f32]| {
            let mut names = Vec::new();
            for kind in kinds {
                let name = TensorName::new(index, *kind);
                let finished = store.finished(name)?;
                names.push((name, finished.is_some()));
                if let Some(values) = finished {
                    *layer.matrix_mut(*kind) = values;
                }
            }
            self.stage(&names, layer, (input, heads.as_ref()), store)
        };
        stage(&mut layer, qkv, &normed)?;
        let a = self.clock.time(Phase::Forward, || self.forward.attended(&layer, &normed)); // [tokens, heads·head_dim]
        drop(normed);
        stage(&mut layer, o, &a)?;
        self.clock.time(Phase::Forward, || self.forward.add(&layer, TensorKind::O, &a, &mut x));
        drop(a);
        let normed = self.forward.normed(&x); // [tokens, hidden]
        stage(&mut layer, gate_up, &normed)?;
        self.clock.time(Phase::Forward, || self.forward.activated_in(&mut h, &layer, &normed)); // [tokens, mlp]
        drop(normed);
        stage(&mut layer, down, &h)?;
        self.clock.time(Phase::Forward, || self.forward.add(&layer, TensorKind::Down, &h, &mut x));
        (self.x, self.h) = (x, h);
        Ok(())
    }

    /// What a head of its own is applied to, behind all layers.
    pub(crate) fn outputs(self) -> Outputs {
        Outputs::new(&self.forward, &self.x, self.learning)
    }

    /// How errors of queries and keys are passed on within heads, where one of their matrices is still to be rounded: by the
    /// layer's own weights, so that a run that is gone on with does not see what it has rounded before.
    fn heads(
        &self,
        index: usize,
        layer: &mut Layer,
        normed: &[f32],
        store: &dyn Store,
    ) -> Result<Option<Heads>, CompressError> {
        let [q, k, v] =
            [TensorKind::Q, TensorKind::K, TensorKind::V].map(|kind| TensorName::new(index, kind));
        if store.is_known(q) && store.is_known(k) {
            return Ok(None);
        }
        let mut known = Vec::new();
        for name in [q, k, v].into_iter().filter(|name| store.is_known(*name)) {
            let own = self.clock.time(Phase::Weights, || decoded(self.folded, name))?;
            known.push((name.kind(), mem::replace(layer.matrix_mut(name.kind()), own)));
        }
        let heads = self.clock.time(Phase::Moments, || Heads::new(&self.forward, layer, normed));
        known.into_iter().for_each(|(kind, numbers)| *layer.matrix_mut(kind) = numbers);
        Ok(Some(heads))
    }

    /// Rounds matrices that are applied to the same `input`, and puts what they became in their place. `names`: all of
    /// them, and whether an earlier run has finished them. Those too have their say in the damping that is chosen, as they
    /// had in a run that was not interrupted.
    fn stage(
        &self,
        names: &[(TensorName, bool)],
        layer: &mut Layer,
        (input, heads): (&[f32], Option<&Heads>),
        store: &mut dyn Store,
    ) -> Result<(), CompressError> {
        let mut coded = Vec::new();
        for (name, finished) in names {
            match if *finished { store.encoding(*name)? } else { store.start(*name)? } {
                Encoding::T8(bits) => coded.push((*name, bits, *finished)),
                _ if *finished => (),
                _ => store.put(*name, Outcome::Kept(layer.matrix(name.kind())))?,
            }
        }
        let Some((first, ..)) = coded.iter().find(|(.., finished)| !finished) else { return Ok(()) };
        let width = input.len() / self.tokens;
        if !input.iter().all(|x| x.is_finite()) {
            return Err(CompressError::Activations(*first));
        }
        let inputs = Inputs { x: input, width, learning: self.learning };
        let mut candidates = Vec::with_capacity(coded.len());
        for (name, bits, finished) in &coded {
            let own;
            let w = if *finished {
                own = self.clock.time(Phase::Weights, || decoded(self.folded, *name))?;
                &own
            } else {
                layer.matrix(name.kind())
            };
            let rows = sampled(w.len() / width).flat_map(|row| &w[row * width..][..width]);
            candidates.push(Candidate {
                name: *name,
                bits: *bits,
                rows: rows.copied().collect(),
                is_read: false,
            });
        }
        let mut choice = Choice::new(&candidates, inputs, self.progress, self.clock);
        let factor = choice.factor(*first, inputs, self.progress, self.clock);
        for ((name, bits, _), fed) in
            coded.into_iter().zip(choice.fed).filter(|((.., finished), _)| !finished)
        {
            let w = layer.matrix_mut(name.kind());
            let rounded = self.clock.time(Phase::Rounding, || match factor.as_ref().filter(|_| fed) {
                Some(factor) => match heads.and_then(|heads| heads.of(name.kind())) {
                    Some(heads) => round_heads(bits, w, factor, heads, width),
                    None => round(bits, w, factor, width),
                },
                None => round_nearest(bits, w, width),
            });
            if let Some(row) = rounded.scales.iter().position(|scale| !scale.is_finite()) {
                return Err(CompressError::TooLarge { name, row });
            }
            *w = values(bits, &rounded.scales, &rounded.codes, width);
            store.put(name, Outcome::Rounded(&rounded))?;
        }
        Ok(())
    }
}
