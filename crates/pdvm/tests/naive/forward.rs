//! A transformer as the papers write it: f64, no cache, no fusion, no folding. Deliberately naive.

use std::collections::HashMap;

use upg_format::{ModelConfig, TensorKind, TensorName};
use upg_pdvm::rotation::SplitMix64;

/// A matrix, a row an output.
pub type Rows = Vec<Vec<f64>>;

/// A checkpoint: the tensors as they were trained, norm gains apart.
pub struct Original {
    pub config: ModelConfig,
    tensors: HashMap<TensorName, Rows>,
}

impl Original {
    /// Weights that keep activations of order one; every number is an f32, so that folding starts from equal ones.
    pub fn random(config: &ModelConfig, seed: u64) -> Self {
        let mut random = SplitMix64(seed);
        let mut uniform = |center: f64, width: f64| {
            let unit = (random.next() >> 11) as f64 / (1u64 << 53) as f64;
            f64::from((center + width * (2.0 * unit - 1.0)) as f32)
        };
        let tensors = TensorName::of_checkpoint(config).into_iter().map(|name| {
            use TensorKind::{AttnNorm, Embed, FinalNorm, K, MlpNorm, Q};
            let [rows, cols] = name.shape(config);
            let (center, width) = match name.kind() {
                AttnNorm | MlpNorm | FinalNorm => (1.0, 0.7),
                Embed => (0.0, 1.0),
                // Sharp attention: the order of positions must matter.
                Q | K => (0.0, 3.0 / (cols as f64).sqrt()),
                kind if kind.is_vector() => (0.0, 1.0),
                _ => (0.0, 1.7 / (cols as f64).sqrt()),
            };
            (name, (0..rows).map(|_| (0..cols).map(|_| uniform(center, width)).collect()).collect())
        });
        Self { config: config.clone(), tensors: tensors.collect() }
    }

    pub fn tensor(&self, layer: usize, kind: TensorKind) -> &Rows {
        &self.tensors[&TensorName::new(layer, kind)]
    }

    /// The logits after each token.
    pub fn forward(&self, tokens: &[u32]) -> Rows {
        let embed = self.tensor(0, TensorKind::Embed);
        let mut x: Rows = tokens.iter().map(|token| embed[*token as usize].clone()).collect();
        for layer in 0..self.config.layers {
            let normed: Rows = x.iter().map(|x| self.norm(x, layer, TensorKind::AttnNorm)).collect();
            for (x, y) in x.iter_mut().zip(self.attention(layer, &normed)) {
                *x = sum(x, &y);
            }
            for x in &mut x {
                let y = self.mlp(layer, &self.norm(x, layer, TensorKind::MlpNorm));
                *x = sum(x, &y);
            }
        }
        let head = if self.config.tied_embeddings { embed } else { self.tensor(0, TensorKind::Head) };
        x.iter().map(|x| times(head, &self.norm(x, 0, TensorKind::FinalNorm))).collect()
    }

    fn norm(&self, x: &[f64], layer: usize, gain: TensorKind) -> Vec<f64> {
        let mean = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
        let root = (mean + f64::from(self.config.norm_eps)).sqrt();
        x.iter().zip(&self.tensor(layer, gain)[0]).map(|(x, gain)| gain * x / root).collect()
    }

    fn attention(&self, layer: usize, x: &Rows) -> Rows {
        use TensorKind::{K, KBias, O, Q, QBias, V, VBias};
        let project = |kind, bias, x: &Vec<f64>| {
            let y = times(self.tensor(layer, kind), x);
            if self.config.qkv_bias { sum(&y, &self.tensor(layer, bias)[0]) } else { y }
        };
        let turned = |y: Vec<f64>, position| {
            y.chunks(self.config.head_dim).flat_map(|head| self.rope(head, position)).collect::<Vec<_>>()
        };
        let q: Rows = x.iter().enumerate().map(|(t, x)| turned(project(Q, QBias, x), t)).collect();
        let k: Rows = x.iter().enumerate().map(|(t, x)| turned(project(K, KBias, x), t)).collect();
        let v: Rows = x.iter().map(|x| project(V, VBias, x)).collect();
        let attend = |t: usize| {
            let heads = (0..self.config.heads).flat_map(|head| self.attend(t, head, &q, &k, &v));
            times(self.tensor(layer, O), &heads.collect::<Vec<_>>())
        };
        (0..x.len()).map(attend).collect()
    }

    /// One query head of the token at position `t`.
    fn attend(&self, t: usize, head: usize, q: &Rows, k: &Rows, v: &Rows) -> Vec<f64> {
        let width = self.config.head_dim;
        let kv_head = head * self.config.kv_heads / self.config.heads;
        let q = &q[t][head * width..][..width];
        let seen = (0..=t).filter(|s| self.config.sliding_window.is_none_or(|window| t - s < window));
        let mut total = 0.0;
        let mut out = vec![0.0; width];
        for s in seen {
            let score = product(q, &k[s][kv_head * width..][..width]) / (width as f64).sqrt();
            // Scores are of order ten here: no need to subtract the largest.
            let weight = score.exp();
            total += weight;
            for (out, v) in out.iter_mut().zip(&v[s][kv_head * width..]) {
                *out += weight * v;
            }
        }
        out.iter().map(|out| out / total).collect()
    }

    /// Pairs `(i, i + dim/2)` as complex numbers, turned by `position · theta^(-2i/dim)`.
    fn rope(&self, head: &[f64], position: usize) -> Vec<f64> {
        let (dim, theta) = (self.config.rope.dim, f64::from(self.config.rope.theta));
        let mut out = head.to_vec();
        for i in 0..dim / 2 {
            let angle = position as f64 / theta.powf(2.0 * i as f64 / dim as f64);
            let (re, im) = (head[i], head[i + dim / 2]);
            out[i] = re * angle.cos() - im * angle.sin();
            out[i + dim / 2] = re * angle.sin() + im * angle.cos();
        }
        out
    }

    fn mlp(&self, layer: usize, x: &[f64]) -> Vec<f64> {
        let gate = times(self.tensor(layer, TensorKind::Gate), x);
        let up = times(self.tensor(layer, TensorKind::Up), x);
        let hidden: Vec<f64> =
            gate.iter().zip(up).map(|(gate, up)| gate / (1.0 + (-gate).exp()) * up).collect();
        times(self.tensor(layer, TensorKind::Down), &hidden)
    }
}

fn product(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn times(matrix: &Rows, x: &[f64]) -> Vec<f64> {
    matrix.iter().map(|row| product(row, x)).collect()
}

fn sum(a: &[f64], b: &[f64]) -> Vec<f64> {
    a.iter().zip(b).map(|(a, b)| a + b).collect()
}
