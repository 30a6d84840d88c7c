//! The backward pass of a layer, for one sequence.
//!
//! Activations are computed again from the layer's input, so that a whole model's backward pass holds one layer's.

use upg_format::TensorKind;
use upg_pdvm::rotation::{SplitMix64, block, hadamard};

use super::{
    forward::{Activations, Forward, Layer, Projected},
    linalg::{Into, View, ViewMut, multiply},
};

/// Who looks at a matrix in passing: what it is applied to, and the loss's gradient with respect to its outputs, each
/// `[ctx, width]`.
pub(crate) type See<'a> = &'a mut dyn FnMut(TensorKind, &[f32], &[f32]);

impl Forward {
    /// Turns the loss's gradient with respect to a layer's output into that with respect to its input `x`, in place, for
    /// one sequence: both are `[ctx, hidden]`. Runs on this thread, but for norms.
    pub(crate) fn layer_back(&self, layer: &Layer, x: &[f32], gradient: &mut [f32], see: See<'_>) {
        let normed = self.normed(x);
        let qkv = self.project(layer, &normed);
        let a = self.attended(layer, &normed);
        let mut middle = x.to_vec();
        self.add(layer, TensorKind::O, &a, &mut middle);
        let mut through = self.mlp_back(layer, &self.normed(&middle), gradient, see);
        self.norm_back(&middle, &mut through);
        add(gradient, &through);
        see(TensorKind::O, &a, gradient);
        let mut through = self.attention_back(layer, &normed, &qkv, gradient, see);
        self.norm_back(x, &mut through);
        add(gradient, &through);
    }

    /// From the gradient with respect to `x / rms(x)` to that with respect to `x`, in place.
    pub(crate) fn norm_back(&self, x: &[f32], gradient: &mut [f32]) {
        let hidden = self.config.hidden;
        for (x, g) in x.chunks_exact(hidden).zip(gradient.chunks_exact_mut(hidden)) {
            let scale = self.norm_scale(x);
            let dot: f64 = x.iter().zip(&*g).map(|(x, g)| f64::from(*x) * f64::from(*g)).sum();
            let along = dot * scale * scale / hidden as f64;
            g.iter_mut()
                .zip(x)
                .for_each(|(g, x)| *g = (scale * (f64::from(*g) - along * f64::from(*x))) as f32);
        }
    }

    /// From the gradient of the MLP's output to that of its normed input.
    fn mlp_back(&self, layer: &Layer, normed: &[f32], gradient: &[f32], see: See<'_>) -> Vec<f32> {
        let (hidden, mlp) = (self.config.hidden, self.config.mlp);
        let [mut gate, mut up] = [TensorKind::Gate, TensorKind::Up].map(|kind| {
            let mut y = vec![0.0; self.ctx * mlp];
            layer.apply(kind, normed, hidden, &mut y, Into::Fresh);
            y
        });
        let rotate = |x: &mut [f32]| {
            if self.config.rotation.is_some() {
                hadamard(x, block(mlp));
            }
        };
        let mut h: Vec<f32> = gate.iter().zip(&up).map(|(gate, up)| silu(*gate) * up).collect();
        rotate(&mut h);
        see(TensorKind::Down, &h, gradient);
        let mut g = h;
        layer.apply_transposed(TensorKind::Down, gradient, hidden, &mut g, Into::Fresh);
        rotate(&mut g);
        for ((gate, up), g) in gate.iter_mut().zip(&mut up).zip(&g) {
            (*gate, *up) = (g * *up * silu_slope(*gate), g * silu(*gate));
        }
        let mut back = vec![0.0; normed.len()];
        for (kind, g, how) in [(TensorKind::Gate, &gate, Into::Fresh), (TensorKind::Up, &up, Into::Plus)] {
            see(kind, normed, g);
            layer.apply_transposed(kind, g, mlp, &mut back, how);
        }
        back
    }

    /// From the gradient of the attention's output to that of its normed input.
    fn attention_back(
        &self,
        layer: &Layer,
        normed: &[f32],
        qkv: &Projected,
        gradient: &[f32],
        see: See<'_>,
    ) -> Vec<f32> {
        let c = &self.config;
        let mut a = vec![0.0; self.ctx * c.q_width()];
        layer.apply_transposed(TensorKind::O, gradient, c.hidden, &mut a, Into::Fresh);
        let back = self.heads_back(qkv, &a);
        let mut through = vec![0.0; normed.len()];
        let parts = [
            (TensorKind::Q, &back.q, c.q_width(), Into::Fresh),
            (TensorKind::K, &back.k, c.kv_width(), Into::Plus),
            (TensorKind::V, &back.v, c.kv_width(), Into::Plus),
        ];
        for (kind, g, width, how) in parts {
            see(kind, normed, g);
            layer.apply_transposed(kind, g, width, &mut through, how);
        }
        through
    }

    /// The gradients of queries and keys, as their matrices give them, for one sequence of normed inputs, where that of what
    /// the heads give is noise of a `seed`.
    pub(crate) fn noise_back(&self, layer: &Layer, normed: &[f32], seed: u64) -> [Activations; 2] {
        let qkv = self.project(layer, normed);
        let mut random = SplitMix64(seed);
        let noise: Vec<f32> =
            (0..qkv.q.len()).map(|_| if random.next() >> 63 == 0 { 1.0 } else { -1.0 }).collect();
        let back = self.heads_back(&qkv, &noise);
        [back.q, back.k]
    }

    /// From the gradient of what the heads give to those of queries, keys (both as their matrices give them) and values.
    fn heads_back(&self, qkv: &Projected, a: &[f32]) -> Projected {
        let ctx = self.ctx;
        let zeros = |x: &[f32]| vec![0.0; x.len()];
        let mut back = Projected { q: zeros(&qkv.q), k: zeros(&qkv.k), v: zeros(&qkv.v) };
        let (mut seen, mut scores) = (vec![0.0; ctx * ctx], vec![0.0; ctx * ctx]);
        for head in 0..self.config.heads {
            self.probabilities(qkv, head, &mut seen);
            let g = self.own(a, head);
            multiply(self.shared_mut(&mut back.v, head), Into::Plus, View::rows(&seen, ctx).t(), g);
            multiply(ViewMut::rows(&mut scores, ctx), Into::Fresh, g, self.shared(&qkv.v, head).t());
            for (p, s) in seen.chunks_exact(ctx).zip(scores.chunks_exact_mut(ctx)) {
                let mean: f32 = p.iter().zip(&*s).map(|(p, s)| p * s).sum();
                s.iter_mut().zip(p).for_each(|(s, p)| *s = p * (*s - mean) * self.score_scale());
            }
            let scores = View::rows(&scores, ctx);
            multiply(self.own_mut(&mut back.q, head), Into::Plus, scores, self.shared(&qkv.k, head));
            multiply(self.shared_mut(&mut back.k, head), Into::Plus, scores.t(), self.own(&qkv.q, head));
        }
        self.turn(&mut back.q, self.config.q_width(), -1.0);
        self.turn(&mut back.k, self.config.kv_width(), -1.0);
        back
    }
}

fn silu(x: f32) -> f32 {
    x / (1.0 + (-x).exp())
}

fn silu_slope(x: f32) -> f32 {
    let s = 1.0 / (1.0 + (-x).exp());
    s * (1.0 + x * (1.0 - s))
}

fn add(x: &mut [f32], y: &[f32]) {
    x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
}

#[cfg(test)]
mod tests {
    use upg_pdvm::{Weights as _, conformance::tiny_models};

    use super::*;

    fn noise(len: usize, seed: u64) -> Vec<f32> {
        let mut random = SplitMix64(seed);
        (0..len).map(|_| (random.next() >> 40) as f32 / (1 << 23) as f32 - 1.0).collect()
    }

    /// The loss is the output's product with fixed weights; its change along a direction is the gradient's product with it.
    #[test]
    fn gradients_are_finite_differences() {
        for (model, weights) in tiny_models() {
            let config = weights.config().clone();
            let ctx = 12;
            let forward = Forward::new(&config, ctx);
            let mut layer = Layer::load(&weights, 0).unwrap();
            let x = noise(ctx * config.hidden, 1);
            let loss_weights = noise(x.len(), 2);
            let loss = |layer: &Layer, x: &[f32]| {
                let mut y = x.to_vec();
                forward.layer(layer, &mut y);
                y.iter().zip(&loss_weights).map(|(y, w)| f64::from(*y) * f64::from(*w)).sum::<f64>()
            };
            let mut gradient = loss_weights.clone();
            let mut seen = Vec::new();
            forward.layer_back(&layer, &x, &mut gradient, &mut |kind, input, g| {
                seen.push((kind, input.to_vec(), g.to_vec()));
            });
            let dot =
                |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
            let check = |what: &str, found: f64, expected: f64| {
                let size = expected.abs().max(0.1);
                assert!((found - expected).abs() < 0.02 * size, "{model} {what}: {found}, not {expected}");
            };

            let along = noise(x.len(), 3);
            let step = 1e-2;
            let moved =
                |sign: f32| -> Vec<f32> { x.iter().zip(&along).map(|(x, d)| x + sign * step * d).collect() };
            let slope = (loss(&layer, &moved(1.0)) - loss(&layer, &moved(-1.0))) / (2.0 * f64::from(step));
            check("input", dot(&gradient, &along), slope);

            assert_eq!(seen.len(), 7, "{model}");
            for (kind, input, g) in seen {
                let kept = layer.matrix(kind).to_vec();
                let (cols, rows) = (input.len() / ctx, g.len() / ctx);
                assert_eq!(rows * cols, kept.len(), "{model} {kind:?}");
                let along = noise(kept.len(), 4);
                let step = 1e-2 / (cols as f32).sqrt();
                let mut at = |sign: f32| {
                    let moved = kept.iter().zip(&along).map(|(w, d)| w + sign * step * d).collect();
                    *layer.matrix_mut(kind) = moved;
                    loss(&layer, &x)
                };
                let slope = (at(1.0) - at(-1.0)) / (2.0 * f64::from(step));
                *layer.matrix_mut(kind) = kept;
                let mut weight_gradient = vec![0.0; rows * cols];
                let out = ViewMut::rows(&mut weight_gradient, cols);
                multiply(out, Into::Fresh, View::rows(&g, rows).t(), View::rows(&input, cols));
                check(&format!("{kind:?}"), dot(&weight_gradient, &along), slope);
            }
        }
    }
}
