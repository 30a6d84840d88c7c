use upg_codec::decode_row;
use upg_format::{TensorKind, TensorName};

use super::math::dot;
use crate::{MachineError, Tensor, Weights, rotation::Rotation};

/// Rows of a matrix that are applied to a token at a time.
const TILE_ROWS: usize = 16;

/// A matrix of plain numbers: `[rows = outputs, cols = inputs]`, row after row.
#[derive(Debug)]
pub(super) struct Matrix {
    rows: usize,
    cols: usize,
    data: Vec<f32>,
}

impl Matrix {
    pub(super) fn row(&self, row: usize) -> &[f32] {
        &self.data[row * self.cols..(row + 1) * self.cols]
    }

    /// `y = W x` for `n` vectors: x is `[n, cols]`, y `[n, rows]`; both may be longer.
    pub(super) fn apply(&self, n: usize, x: &[f32], y: &mut [f32]) {
        let x = &x[..n * self.cols];
        // A tile of rows stays in the cache while all tokens pass: each weight is read from memory once.
        for (tile, rows) in self.data.chunks(TILE_ROWS * self.cols).enumerate() {
            for (token, x) in x.chunks_exact(self.cols).enumerate() {
                let y = &mut y[token * self.rows + tile * TILE_ROWS..];
                for (y, row) in y.iter_mut().zip(rows.chunks_exact(self.cols)) {
                    *y = dot(row, x);
                }
            }
        }
    }

    fn bytes(&self) -> u64 {
        self.data.len() as u64 * 4
    }
}

/// The weights of one layer.
#[derive(Debug)]
pub(super) struct Layer {
    pub(super) q: Matrix,
    pub(super) k: Matrix,
    pub(super) v: Matrix,
    /// Of q, k and v.
    pub(super) biases: Option<[Vec<f32>; 3]>,
    pub(super) o: Matrix,
    pub(super) gate: Matrix,
    pub(super) up: Matrix,
    pub(super) down: Matrix,
}

/// What makes logits of the last normed vector.
#[derive(Debug)]
pub(super) enum Head {
    /// A matrix of its own, with the final norm's gain folded in.
    Own(Matrix),
    /// The embedding.
    Tied {
        /// The final norm's gain, not folded.
        gain: Vec<f32>,
        /// The rotation that the embedding's rows carry and the gain does not.
        rotation: Option<Rotation>,
    },
}

#[derive(Debug)]
pub(super) struct Model {
    pub(super) embed: Matrix,
    pub(super) layers: Vec<Layer>,
    pub(super) head: Head,
}

impl Model {
    pub(super) fn load(weights: &dyn Weights) -> Result<Self, MachineError> {
        let config = weights.config();
        let global = |kind| decode(weights, TensorName::global(kind));
        let head = if config.tied_embeddings {
            let rotation = config.rotation.map(|r| Rotation::residual(config.hidden, r.seed));
            Head::Tied { gain: global(TensorKind::FinalNorm)?.data, rotation }
        } else {
            Head::Own(global(TensorKind::Head)?)
        };
        let layers = (0..config.layers).map(|layer| Layer::load(weights, layer));
        Ok(Self {
            embed: global(TensorKind::Embed)?,
            layers: layers.collect::<Result<_, MachineError>>()?,
            head,
        })
    }

    /// Bytes of weights that one token reads: all, but of an untied embedding one row.
    pub(super) fn bytes_per_token(&self) -> u64 {
        let layer = |l: &Layer| {
            [&l.q, &l.k, &l.v, &l.o, &l.gate, &l.up, &l.down].map(Matrix::bytes).into_iter().sum::<u64>()
        };
        let head = match &self.head {
            Head::Own(head) => head.bytes(),
            Head::Tied { .. } => self.embed.bytes(),
        };
        self.layers.iter().map(layer).sum::<u64>() + head + self.embed.cols as u64 * 4
    }
}

impl Layer {
    fn load(weights: &dyn Weights, layer: usize) -> Result<Self, MachineError> {
        let tensor = |kind| decode(weights, TensorName::new(layer, kind));
        let biases = if weights.config().qkv_bias {
            let bias = |kind| Ok::<_, MachineError>(tensor(kind)?.data);
            Some([bias(TensorKind::QBias)?, bias(TensorKind::KBias)?, bias(TensorKind::VBias)?])
        } else {
            None
        };
        Ok(Self {
            q: tensor(TensorKind::Q)?,
            k: tensor(TensorKind::K)?,
            v: tensor(TensorKind::V)?,
            biases,
            o: tensor(TensorKind::O)?,
            gate: tensor(TensorKind::Gate)?,
            up: tensor(TensorKind::Up)?,
            down: tensor(TensorKind::Down)?,
        })
    }
}

/// One tensor, T8 decoded by the codec's oracle.
fn decode(weights: &dyn Weights, name: TensorName) -> Result<Matrix, MachineError> {
    match weights.tensor(name)?.checked(name, weights.config())? {
        Tensor::F32 { rows, cols, data } => Ok(Matrix { rows, cols, data: data.into_owned() }),
        Tensor::T8 { bits, rows, cols, scales, codes } => {
            let mut data = Vec::with_capacity(rows * cols);
            let mut values = vec![0; cols];
            for (codes, scale) in codes.chunks_exact(codes.len() / rows).zip(scales.iter()) {
                decode_row(bits, codes, &mut values);
                data.extend(values.iter().map(|value| scale.to_f32() * f32::from(*value)));
            }
            Ok(Matrix { rows, cols, data })
        }
    }
}
