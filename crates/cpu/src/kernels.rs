//! Products of T8 matrices with int8 activations. `scalar` is the oracle: all others give the same bits.

mod scalar;

use std::ops::Range;

use upg_codec::Isa;

use crate::{matrix::T8, quantize::Quantized};

/// A thread's memory for decoded weights.
pub(crate) struct KernelScratch {
    /// A row's values (scalar code).
    values: Vec<i8>,
}

impl KernelScratch {
    /// Room for matrices of up to `cols` columns.
    pub(crate) fn new(cols: usize) -> Self {
        Self { values: Vec::with_capacity(cols) }
    }
}

/// See [`crate::matrix::Matrix::multiply`]. `y` is `[tokens.len(), rows.len()]`.
pub(crate) fn multiply(
    isa: Isa,
    matrix: &T8,
    rows: Range<usize>,
    tokens: &[Quantized],
    y: &mut [f32],
    scratch: &mut KernelScratch,
) {
    debug_assert!(rows.start.is_multiple_of(matrix.layout.tile_rows()) && rows.end <= matrix.rows);
    let _ = isa;
    scalar::multiply(matrix, rows, tokens, y, scratch);
}

/// The output of a row: an exact integer times two scales, in this order on every path.
#[inline(always)]
fn output(total: i64, unit: f32, scale: f32) -> f32 {
    total as f32 * (unit * scale)
}
