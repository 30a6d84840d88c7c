//! The offline fold of norm gains and rotation, by dense matrices.

use upg_format::{ModelConfig, TensorKind, TensorName};
use upg_pdvm::{
    Tensor, Weights, WeightsError,
    rotation::{Rotation, block},
};

use crate::forward::{Original, Rows};

/// A checkpoint as a machine wants it.
pub struct Folded<'a> {
    original: &'a Original,
    rotation: Option<[Rotation; 2]>,
}

impl<'a> Folded<'a> {
    pub fn new(original: &'a Original) -> Self {
        let config = &original.config;
        let rotation = config
            .rotation
            .map(|r| [Rotation::residual(config.hidden, r.seed), Rotation::mlp(config.mlp, r.seed)]);
        Self { original, rotation }
    }

    fn fold(&self, layer: usize, kind: TensorKind) -> Rows {
        use TensorKind::{AttnNorm, Down, Embed, FinalNorm, Gate, Head, K, MlpNorm, O, Q, Up, V, VBias};
        let config = &self.original.config;
        let mut w = self.original.tensor(layer, kind).clone();
        // The gain of the norm before it.
        let gain = match kind {
            Q | K | V => Some(AttnNorm),
            Gate | Up => Some(MlpNorm),
            Head => Some(FinalNorm),
            _ => None,
        };
        if let Some(gain) = gain {
            let gain = &self.original.tensor(layer, gain)[0];
            w = by_row(&w, |row| row.iter().zip(gain).map(|(w, g)| w * g).collect());
        }
        let Some([residual, mlp]) = &self.rotation else { return w };
        let residual = |x: &[f64]| hadamard(&signs(x, residual));
        let heads = |x: &[f64]| x.chunks(config.head_dim).flat_map(hadamard).collect::<Vec<_>>();
        match kind {
            Embed | Q | K | Gate | Head => by_row(&w, residual),
            V => by_column(&by_row(&w, residual), heads),
            VBias => by_row(&w, heads),
            O => by_column(&by_row(&w, heads), residual),
            Up => by_column(&by_row(&w, residual), |column| signs(column, mlp)),
            Down => by_column(&by_row(&w, |row| hadamard(&signs(row, mlp))), residual),
            _ => w,
        }
    }
}

impl Weights for Folded<'_> {
    fn config(&self) -> &ModelConfig {
        &self.original.config
    }

    fn tensor(&self, name: TensorName) -> Result<Tensor<'_>, WeightsError> {
        let [rows, cols] = name.shape(self.config());
        let folded = self.fold(name.layer().unwrap_or(0), name.kind());
        let data: Vec<f32> = folded.concat().into_iter().map(|w| w as f32).collect();
        Ok(Tensor::F32 { rows, cols, data: data.into() })
    }
}

fn signs(x: &[f64], rotation: &Rotation) -> Vec<f64> {
    x.iter().zip(rotation.signs()).map(|(x, sign)| x * f64::from(*sign)).collect()
}

/// Sylvester's matrix by its closed form: entry `(i, j)` is `(-1)^popcount(i & j) / sqrt(b)`, block after block.
fn hadamard(x: &[f64]) -> Vec<f64> {
    let b = block(x.len());
    let entry = |i: usize, j: usize| if (i & j).count_ones().is_multiple_of(2) { 1.0 } else { -1.0 };
    let row = |x: &[f64], i: usize| x.iter().enumerate().map(|(j, x)| entry(i, j) * x).sum::<f64>();
    x.chunks(b).flat_map(|x| (0..b).map(|i| row(x, i) / (b as f64).sqrt()).collect::<Vec<_>>()).collect()
}

fn by_row(w: &Rows, f: impl Fn(&[f64]) -> Vec<f64>) -> Rows {
    w.iter().map(|row| f(row)).collect()
}

fn by_column(w: &Rows, f: impl Fn(&[f64]) -> Vec<f64>) -> Rows {
    transpose(&by_row(&transpose(w), f))
}

fn transpose(w: &Rows) -> Rows {
    (0..w[0].len()).map(|c| w.iter().map(|row| row[c]).collect()).collect()
}
