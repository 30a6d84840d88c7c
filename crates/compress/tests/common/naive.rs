//! A transformer as its papers write it, on the checkpoint as it is: no folding, no rotation, no cache, f64.

use upg_checkpoint::Checkpoint;
use upg_format::{ModelConfig, RopeScaling, TensorKind, TensorName};

type Vector = Vec<f64>;

fn matrix(checkpoint: &dyn Checkpoint, layer: usize, kind: TensorKind) -> Vec<Vector> {
    let name = TensorName::new(layer, kind);
    let [rows, cols] = name.shape(checkpoint.config());
    let mut data = vec![0.0; rows * cols];
    checkpoint.read_rows(name, 0..rows, &mut data).unwrap();
    data.chunks_exact(cols).map(|row| row.iter().map(|&x| f64::from(x)).collect()).collect()
}

fn vector(checkpoint: &dyn Checkpoint, layer: usize, kind: TensorKind) -> Vector {
    matrix(checkpoint, layer, kind).remove(0)
}

fn mul(w: &[Vector], x: &[f64]) -> Vector {
    w.iter().map(|row| row.iter().zip(x).map(|(w, x)| w * x).sum()).collect()
}

fn add(x: &mut [f64], y: &[f64]) {
    x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
}

fn rms_norm(x: &[f64], gain: &[f64], eps: f64) -> Vector {
    let mean = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
    x.iter().zip(gain).map(|(x, g)| x / (mean + eps).sqrt() * g).collect()
}

fn rope(x: &mut [f64], position: usize, config: &ModelConfig) {
    assert_eq!(config.rope.scaling, RopeScaling::None, "plain RoPE only");
    let dim = config.rope.dim;
    for head in x.chunks_exact_mut(config.head_dim) {
        for i in 0..dim / 2 {
            let angle = position as f64 * f64::from(config.rope.theta).powf(-2.0 * i as f64 / dim as f64);
            let (a, b) = (head[i], head[i + dim / 2]);
            head[i] = a * angle.cos() - b * angle.sin();
            head[i + dim / 2] = b * angle.cos() + a * angle.sin();
        }
    }
}

fn attend(q: &[f64], keys: &[Vector], values: &[Vector], config: &ModelConfig) -> Vector {
    let (dim, group) = (config.head_dim, config.heads / config.kv_heads);
    let mut out = vec![0.0; q.len()];
    for head in 0..config.heads {
        let (q, kv) = (&q[head * dim..][..dim], head / group * dim);
        let score =
            |k: &Vector| q.iter().zip(&k[kv..]).map(|(q, k)| q * k).sum::<f64>() / (dim as f64).sqrt();
        let weights: Vector = keys.iter().map(|k| score(k).exp()).collect();
        let total: f64 = weights.iter().sum();
        for (weight, value) in weights.iter().zip(values) {
            for (out, v) in out[head * dim..][..dim].iter_mut().zip(&value[kv..]) {
                *out += weight / total * v;
            }
        }
    }
    out
}

fn attention(checkpoint: &dyn Checkpoint, layer: usize, xs: &mut [Vector]) {
    use TensorKind::*;
    let config = checkpoint.config();
    let gain = vector(checkpoint, layer, AttnNorm);
    let project = |kind, bias, x: &Vector| {
        let mut y = mul(&matrix(checkpoint, layer, kind), x);
        if config.qkv_bias {
            add(&mut y, &vector(checkpoint, layer, bias));
        }
        y
    };
    let normed: Vec<_> = xs.iter().map(|x| rms_norm(x, &gain, config.norm_eps.into())).collect();
    let turned = |kind, bias| -> Vec<Vector> {
        let each = normed.iter().enumerate().map(|(position, x)| {
            let mut y = project(kind, bias, x);
            rope(&mut y, position, config);
            y
        });
        each.collect()
    };
    let (queries, keys) = (turned(Q, QBias), turned(K, KBias));
    let values: Vec<_> = normed.iter().map(|x| project(V, VBias, x)).collect();
    let out = matrix(checkpoint, layer, O);
    for (t, x) in xs.iter_mut().enumerate() {
        add(x, &mul(&out, &attend(&queries[t], &keys[..=t], &values[..=t], config)));
    }
}

fn mlp(checkpoint: &dyn Checkpoint, layer: usize, xs: &mut [Vector]) {
    use TensorKind::*;
    let gain = vector(checkpoint, layer, MlpNorm);
    let [gate, up, down] = [Gate, Up, Down].map(|kind| matrix(checkpoint, layer, kind));
    for x in xs {
        let normed = rms_norm(x, &gain, checkpoint.config().norm_eps.into());
        let (gate, up) = (mul(&gate, &normed), mul(&up, &normed));
        let hidden: Vector = gate.iter().zip(up).map(|(g, up)| g / (1.0 + (-g).exp()) * up).collect();
        add(x, &mul(&down, &hidden));
    }
}

/// The logits after each token.
pub fn logits(checkpoint: &dyn Checkpoint, tokens: &[u32]) -> Vec<Vector> {
    let config = checkpoint.config();
    let embed = matrix(checkpoint, 0, TensorKind::Embed);
    let mut xs: Vec<_> = tokens.iter().map(|t| embed[*t as usize].clone()).collect();
    for layer in 0..config.layers {
        attention(checkpoint, layer, &mut xs);
        mlp(checkpoint, layer, &mut xs);
    }
    let gain = vector(checkpoint, 0, TensorKind::FinalNorm);
    let head = if config.tied_embeddings { embed } else { matrix(checkpoint, 0, TensorKind::Head) };
    xs.iter().map(|x| mul(&head, &rms_norm(x, &gain, config.norm_eps.into()))).collect()
}
