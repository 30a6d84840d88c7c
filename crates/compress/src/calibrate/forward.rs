//! A batched f32 forward pass, layer by layer: what calibration and measuring run a model with.
//!
//! Texts are sequences of one length that start at position 0 and do not see each other. All of them pass a layer
//! before the next one is loaded, so one layer of weights is in memory at a time. Each instruction is that of
//! `upg_pdvm::ReferenceMachine`, over whole sequences.

use rayon::prelude::*;
use upg_codec::decode_row;
use upg_format::{ModelConfig, TensorKind, TensorName};
use upg_pdvm::{
    Tensor, Weights,
    rope::{RopeTable, rotate},
    rotation::{block, hadamard},
};

use super::linalg::{Into, View, ViewMut, multiply};
use crate::CompressError;

/// Activations of some sequences: `[sequences, ctx, width]`.
pub(crate) type Activations = Vec<f32>;

/// What all layers share: the model's shape, and cosines and sines of every position.
pub(crate) struct Forward {
    pub(crate) config: ModelConfig,
    /// Tokens of a sequence.
    pub(crate) ctx: usize,
    /// `[ctx, pairs]`.
    cos: Vec<f32>,
    /// `[ctx, pairs]`.
    sin: Vec<f32>,
    pairs: usize,
}

/// One layer's weights in f32, `[rows = outputs, cols = inputs]` each.
pub(crate) struct Layer {
    matrices: [Vec<f32>; 7],
    biases: Option<[Vec<f32>; 3]>,
}

/// The matrices of a layer, in the order in which they are applied.
pub(crate) const MATRICES: [TensorKind; 7] = [
    TensorKind::Q,
    TensorKind::K,
    TensorKind::V,
    TensorKind::O,
    TensorKind::Gate,
    TensorKind::Up,
    TensorKind::Down,
];

/// The same by input: matrices that are applied to one share its second moments.
pub(crate) const SHARED: [&[TensorKind]; 4] = [
    &[TensorKind::Q, TensorKind::K, TensorKind::V],
    &[TensorKind::O],
    &[TensorKind::Gate, TensorKind::Up],
    &[TensorKind::Down],
];

impl Layer {
    pub(crate) fn load(weights: &dyn Weights, layer: usize) -> Result<Self, CompressError> {
        Self::load_with(weights.config(), layer, |name| decoded(weights, name))
    }

    /// The same from wherever `tensor` has them.
    pub(crate) fn load_with(
        config: &ModelConfig,
        layer: usize,
        tensor: impl Fn(TensorName) -> Result<Vec<f32>, CompressError>,
    ) -> Result<Self, CompressError> {
        let tensor = |kind| tensor(TensorName::new(layer, kind));
        let biases = if config.qkv_bias {
            Some([tensor(TensorKind::QBias)?, tensor(TensorKind::KBias)?, tensor(TensorKind::VBias)?])
        } else {
            None
        };
        let [q, k, v, o, gate, up, down] = MATRICES.map(tensor);
        Ok(Self { matrices: [q?, k?, v?, o?, gate?, up?, down?], biases })
    }

    /// The numbers of one matrix.
    pub(crate) fn matrix(&self, kind: TensorKind) -> &[f32] {
        &self.matrices[index(kind)]
    }

    /// The numbers of one matrix, to change.
    pub(crate) fn matrix_mut(&mut self, kind: TensorKind) -> &mut Vec<f32> {
        &mut self.matrices[index(kind)]
    }

    /// `y = W x` for each vector of `x`.
    pub(super) fn apply(&self, kind: TensorKind, x: &[f32], cols: usize, y: &mut [f32], how: Into) {
        let w = self.matrix(kind);
        multiply(ViewMut::rows(y, w.len() / cols), how, View::rows(x, cols), View::rows(w, cols).t());
    }

    /// `x = Wᵀ y` for each vector of `y`, which are `rows` wide.
    pub(super) fn apply_transposed(
        &self,
        kind: TensorKind,
        y: &[f32],
        rows: usize,
        x: &mut [f32],
        how: Into,
    ) {
        let w = self.matrix(kind);
        let cols = w.len() / rows;
        multiply(ViewMut::rows(x, cols), how, View::rows(y, rows), View::rows(w, cols));
    }
}

fn index(kind: TensorKind) -> usize {
    MATRICES.iter().position(|k| *k == kind).unwrap_or_else(|| panic!("{kind:?} is no matrix of a layer"))
}

/// A tensor in f32.
pub(crate) fn decoded(weights: &dyn Weights, name: TensorName) -> Result<Vec<f32>, CompressError> {
    match weights.tensor(name)?.checked(name, weights.config())? {
        Tensor::F32 { data, .. } => Ok(data.into_owned()),
        Tensor::T8 { bits, cols, scales, codes, .. } => {
            let mut out = vec![0.0; scales.len() * cols];
            let row_bytes = codes.len() / scales.len();
            let rows = out.par_chunks_mut(cols).zip(codes.par_chunks(row_bytes)).zip(scales.par_iter());
            rows.for_each_init(
                || vec![0_i8; cols],
                |values, ((out, codes), scale)| {
                    decode_row(bits, codes, values);
                    let scale = scale.to_f32();
                    out.iter_mut().zip(values).for_each(|(out, v)| *out = scale * f32::from(*v));
                },
            );
            Ok(out)
        }
    }
}

impl Forward {
    /// For sequences of `ctx` tokens.
    pub(crate) fn new(config: &ModelConfig, ctx: usize) -> Self {
        let rope = RopeTable::new(config);
        let pairs = rope.pairs();
        let (mut cos, mut sin) = (vec![0.0; ctx * pairs], vec![0.0; ctx * pairs]);
        let positions = cos.chunks_exact_mut(pairs).zip(sin.chunks_exact_mut(pairs));
        positions.enumerate().for_each(|(position, (cos, sin))| rope.fill(position, ctx, cos, sin));
        Self { config: config.clone(), ctx, cos, sin, pairs }
    }

    /// Calls `f` for each sequence of `x` and `y`, whose tokens are `x_width` and `y_width` wide, on all threads.
    fn each(
        &self,
        (x, x_width): (&[f32], usize),
        (y, y_width): (&mut [f32], usize),
        f: impl Fn(&[f32], &mut [f32]) + Sync,
    ) {
        x.par_chunks(self.ctx * x_width).zip(y.par_chunks_mut(self.ctx * y_width)).for_each(|(x, y)| f(x, y));
    }

    /// The embeddings of tokens: `[tokens, hidden]`.
    ///
    /// # Panics
    /// If a token is not of the vocabulary.
    pub(crate) fn embed(&self, embedding: &[f32], tokens: &[u32]) -> Activations {
        let hidden = self.config.hidden;
        tokens.iter().flat_map(|token| &embedding[*token as usize * hidden..][..hidden]).copied().collect()
    }

    /// `x / rms(x)`: what q, k and v, and gate and up, are applied to.
    pub(crate) fn normed(&self, x: &[f32]) -> Activations {
        let hidden = self.config.hidden;
        let mut normed = x.to_vec();
        normed.par_chunks_mut(hidden).for_each(|x| {
            let scale = self.norm_scale(x);
            x.iter_mut().for_each(|x| *x = (f64::from(*x) * scale) as f32);
        });
        normed
    }

    /// `1 / rms(x)` of one token.
    pub(super) fn norm_scale(&self, x: &[f32]) -> f64 {
        let square: f64 = x.iter().map(|x| f64::from(*x).powi(2)).sum();
        1.0 / (square / x.len() as f64 + f64::from(self.config.norm_eps)).sqrt()
    }

    /// What `o` is applied to.
    pub(crate) fn attended(&self, layer: &Layer, normed: &[f32]) -> Activations {
        let (hidden, width) = (self.config.hidden, self.config.q_width());
        let mut a = vec![0.0; normed.len() / hidden * width];
        self.each((normed, hidden), (&mut a, width), |normed, a| self.attend(layer, normed, a));
        a
    }

    /// What `down` is applied to.
    pub(crate) fn activated(&self, layer: &Layer, normed: &[f32]) -> Activations {
        let mut h = Vec::new();
        self.activated_in(&mut h, layer, normed);
        h
    }

    /// The same in memory that was taken before: of many tokens it is much, and new pages take time.
    pub(crate) fn activated_in(&self, h: &mut Activations, layer: &Layer, normed: &[f32]) {
        let (hidden, mlp) = (self.config.hidden, self.config.mlp);
        h.resize(normed.len() / hidden * mlp, 0.0);
        self.each((normed, hidden), (h, mlp), |normed, h| {
            let mut up = vec![0.0; h.len()];
            layer.apply(TensorKind::Gate, normed, hidden, h, Into::Fresh);
            layer.apply(TensorKind::Up, normed, hidden, &mut up, Into::Fresh);
            h.iter_mut().zip(&up).for_each(|(h, up)| *h = *h / (1.0 + (-*h).exp()) * up);
            if self.config.rotation.is_some() {
                hadamard(h, block(self.config.mlp));
            }
        });
    }

    /// `x += W y`, `W` being `o` or `down`.
    pub(crate) fn add(&self, layer: &Layer, kind: TensorKind, y: &[f32], x: &mut [f32]) {
        let hidden = self.config.hidden;
        let width = y.len() / (x.len() / hidden);
        self.each((y, width), (x, hidden), |y, x| layer.apply(kind, y, width, x, Into::Plus));
    }

    /// The whole layer.
    pub(crate) fn layer(&self, layer: &Layer, x: &mut [f32]) {
        // A few sequences at a time: the MLP's activations of all of them may not fit.
        for x in x.chunks_mut(self.ctx * self.config.hidden * 4 * rayon::current_num_threads()) {
            let a = self.attended(layer, &self.normed(x));
            self.add(layer, TensorKind::O, &a, x);
            let h = self.activated(layer, &self.normed(x));
            self.add(layer, TensorKind::Down, &h, x);
        }
    }

    /// One sequence's attention: `[ctx, hidden]` to `[ctx, heads·head_dim]`.
    fn attend(&self, layer: &Layer, normed: &[f32], a: &mut [f32]) {
        let qkv = self.project(layer, normed);
        let mut seen = vec![0.0; self.ctx * self.ctx];
        for head in 0..self.config.heads {
            self.probabilities(&qkv, head, &mut seen);
            multiply(
                self.own_mut(a, head),
                Into::Fresh,
                View::rows(&seen, self.ctx),
                self.shared(&qkv.v, head),
            );
        }
    }

    /// One sequence's queries, keys and values.
    pub(super) fn project(&self, layer: &Layer, normed: &[f32]) -> Projected {
        let c = &self.config;
        let project = |i: usize, width: usize| {
            let mut y = vec![0.0; self.ctx * width];
            layer.apply(MATRICES[i], normed, c.hidden, &mut y, Into::Fresh);
            if let Some(biases) = &layer.biases {
                let add = |y: &mut [f32]| y.iter_mut().zip(&biases[i]).for_each(|(y, b)| *y += b);
                y.chunks_exact_mut(width).for_each(add);
            }
            y
        };
        let (mut q, mut k, v) = (project(0, c.q_width()), project(1, c.kv_width()), project(2, c.kv_width()));
        self.turn(&mut q, c.q_width(), 1.0);
        self.turn(&mut k, c.kv_width(), 1.0);
        Projected { q, k, v }
    }

    /// Where one head looks: `[ctx, ctx]`.
    pub(super) fn probabilities(&self, qkv: &Projected, head: usize, out: &mut [f32]) {
        let ctx = self.ctx;
        multiply(ViewMut::rows(out, ctx), Into::Fresh, self.own(&qkv.q, head), self.shared(&qkv.k, head).t());
        for (token, scores) in out.chunks_exact_mut(ctx).enumerate() {
            let start = (token + 1).saturating_sub(self.config.sliding_window.unwrap_or(ctx));
            softmax(scores, start, token + 1, self.score_scale());
        }
    }

    /// What scores are multiplied by.
    pub(super) fn score_scale(&self) -> f32 {
        1.0 / (self.config.head_dim as f32).sqrt()
    }

    /// A query head's part of one sequence's queries or outputs.
    pub(super) fn own<'d>(&self, data: &'d [f32], head: usize) -> View<'d> {
        let c = &self.config;
        View::rows(data, c.q_width()).columns(head * c.head_dim..(head + 1) * c.head_dim)
    }

    /// The same, to change.
    pub(super) fn own_mut<'d>(&self, data: &'d mut [f32], head: usize) -> ViewMut<'d> {
        let c = &self.config;
        ViewMut::strided(&mut data[head * c.head_dim..], [self.ctx, c.head_dim], c.q_width())
    }

    /// The part of one sequence's keys or values that a query head shares with others.
    pub(super) fn shared<'d>(&self, data: &'d [f32], head: usize) -> View<'d> {
        let c = &self.config;
        let first = head / (c.heads / c.kv_heads) * c.head_dim;
        View::rows(data, c.kv_width()).columns(first..first + c.head_dim)
    }

    /// The same, to change.
    pub(super) fn shared_mut<'d>(&self, data: &'d mut [f32], head: usize) -> ViewMut<'d> {
        let c = &self.config;
        let first = head / (c.heads / c.kv_heads) * c.head_dim;
        ViewMut::strided(&mut data[first..], [self.ctx, c.head_dim], c.kv_width())
    }

    /// Turns every head of one sequence by its token's position; back with a `sign` of -1.
    pub(super) fn turn(&self, x: &mut [f32], width: usize, sign: f32) {
        for (position, x) in x.chunks_exact_mut(width).enumerate() {
            let at = position * self.pairs..(position + 1) * self.pairs;
            let sin: Vec<f32> = self.sin[at.clone()].iter().map(|sin| sign * sin).collect();
            for head in x.chunks_exact_mut(self.config.head_dim) {
                rotate(head, &self.cos[at.clone()], &sin);
            }
        }
    }
}

/// One sequence's queries and keys, turned by their positions, and its values.
pub(super) struct Projected {
    pub(super) q: Vec<f32>,
    pub(super) k: Vec<f32>,
    pub(super) v: Vec<f32>,
}

/// `softmax(scale · x)` over `x[start..end]`; zero elsewhere.
fn softmax(x: &mut [f32], start: usize, end: usize, scale: f32) {
    x[..start].fill(0.0);
    x[end..].fill(0.0);
    let seen = &mut x[start..end];
    let max = seen.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut sum = 0.0;
    for x in seen.iter_mut() {
        *x = ((*x - max) * scale).exp();
        sum += *x;
    }
    seen.iter_mut().for_each(|x| *x /= sum);
}

#[cfg(test)]
mod tests {
    use upg_pdvm::{
        Logits, Machine as _, MachineOptions, ReferenceMachine, Segment, conformance::tiny_models,
    };

    use super::{super::head::Head, *};

    #[test]
    fn logits_are_the_reference_machine_s() {
        for (model, weights) in tiny_models() {
            let config = weights.config().clone();
            let ctx = 24;
            let tokens: Vec<u32> = (0..2 * ctx).map(|i| (i * i + 3) as u32 % config.vocab as u32).collect();
            let (forward, head) = (Forward::new(&config, ctx), Head::load(&weights).unwrap());
            let embedding = decoded(&weights, TensorName::global(TensorKind::Embed)).unwrap();
            let mut x = forward.embed(&embedding, &tokens);
            for layer in 0..config.layers {
                forward.layer(&Layer::load(&weights, layer).unwrap(), &mut x);
            }
            let found = head.logits(&head.input(&forward, &x), config.hidden);

            let options = MachineOptions {
                context: 64,
                sequences: 2,
                kv: upg_pdvm::KvKind::F32,
                max_batch: 64,
                ..MachineOptions::default()
            };
            let mut machine = ReferenceMachine::new(&weights, &options).unwrap();
            let mut expected = vec![0.0; found.len()];
            let half = expected.len() / 2;
            for (tokens, logits) in tokens.chunks(ctx).zip(expected.chunks_mut(half)) {
                let seq = machine.kv_mut().open().unwrap();
                machine.run(&[Segment { seq, tokens, logits: Logits::All }], logits).unwrap();
            }
            let size = expected.iter().fold(0.0_f32, |m, x| m.max(x.abs()));
            let worst = found.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(worst < 1e-4 * size, "{model}: {worst} of {size}");
        }
    }
}
