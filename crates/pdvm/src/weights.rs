use std::borrow::Cow;

use half::f16;
use upg_codec::Bits;
use upg_format::{ModelConfig, TensorName};

/// A tensor as a machine gets it, before it repacks it into a layout of its own. Rows are outputs.
#[derive(Clone, Debug)]
pub enum Tensor<'a> {
    /// T8 codes: weight `(r, c)` is `scales[r]` times the value of the code.
    T8 {
        /// Bits a weight.
        bits: Bits,
        /// Rows.
        rows: usize,
        /// Columns, a multiple of [`upg_codec::GROUP`].
        cols: usize,
        /// One scale a row.
        scales: Cow<'a, [f16]>,
        /// `rows · bits.row_bytes(cols)` bytes, row after row.
        codes: Cow<'a, [u8]>,
    },
    /// Plain numbers, row after row.
    F32 {
        /// Rows.
        rows: usize,
        /// Columns.
        cols: usize,
        /// `rows · cols` numbers.
        data: Cow<'a, [f32]>,
    },
}

impl Tensor<'_> {
    /// The tensor itself, where its shape is the configuration's and its parts have the lengths that follow from it.
    ///
    /// # Errors
    /// [`WeightsError::Shape`] and [`WeightsError::Length`].
    pub fn checked(self, name: TensorName, config: &ModelConfig) -> Result<Self, WeightsError> {
        let (found, expected) = (self.shape(), name.shape(config));
        if found != expected {
            return Err(WeightsError::Shape { name, found, expected });
        }
        let [rows, cols] = found;
        let whole = match &self {
            Tensor::F32 { data, .. } => rows.checked_mul(cols) == Some(data.len()),
            Tensor::T8 { bits, scales, codes, .. } => {
                let length = bits.row_bytes(cols).and_then(|row| row.checked_mul(rows));
                scales.len() == rows && length == Some(codes.len())
            }
        };
        if whole { Ok(self) } else { Err(WeightsError::Length { name, shape: found }) }
    }

    /// `[rows, cols]`.
    pub fn shape(&self) -> [usize; 2] {
        match self {
            Tensor::T8 { rows, cols, .. } | Tensor::F32 { rows, cols, .. } => [*rows, *cols],
        }
    }
}

/// Why a model's weights could not be had.
#[derive(Debug, thiserror::Error)]
pub enum WeightsError {
    /// The source has no such tensor.
    #[error("the model has no tensor {0}: fetch it again or compress anew")]
    Missing(TensorName),
    /// The source's tensor has another shape than the configuration asks for.
    #[error("tensor {name} is {found:?}, not {expected:?}: fetch the model again or compress anew")]
    Shape {
        /// The tensor.
        name: TensorName,
        /// Its `[rows, cols]`.
        found: [usize; 2],
        /// What the configuration asks for.
        expected: [usize; 2],
    },
    /// Scales, codes or numbers are more or fewer than the shape says, or T8 cannot store the shape.
    #[error("tensor {name} does not hold the numbers of its shape {shape:?}: fetch the model again")]
    Length {
        /// The tensor.
        name: TensorName,
        /// Its `[rows, cols]`.
        shape: [usize; 2],
    },
    /// The source failed (I/O, a damaged file, …); its message says what to do.
    #[error("tensor {name}: {source}")]
    Source {
        /// The tensor.
        name: TensorName,
        /// The source's own error.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// Where a machine loads a model from: a `.upg` file, a checkpoint folded on the fly, or synthetic weights.
///
/// The tensors are those of [`TensorName::of_upg`]: norm gains folded, rotation applied as the configuration says.
pub trait Weights: Sync {
    /// The model's configuration.
    fn config(&self) -> &ModelConfig;

    /// One tensor. May be called from several threads; may compute the tensor anew at each call.
    ///
    /// # Errors
    /// See [`WeightsError`]. The shape is already checked against the configuration.
    fn tensor(&self, name: TensorName) -> Result<Tensor<'_>, WeightsError>;

    /// Says that a tensor will not be asked for again soon, as the machine has a copy: its memory may be given back.
    fn release(&self, _name: TensorName) {}
}
