//! Products in AVX-512 with one token.

use std::ops::Range;

use super::{
    avx512::{Constants, GEMV_ROWS, OFFSET, gemv},
    for_bits, output,
};
use crate::{
    layout::row_bytes,
    matrix::T8,
    quantize::{CHUNK, Quantized},
};

/// The codes of a row from a chunk on, with room to read whole vectors past its end.
pub(super) fn codes_from(matrix: &T8, row: usize, chunk: usize) -> *const u8 {
    let row_bytes = row_bytes(matrix.bits, matrix.cols);
    assert!((row + 1) * row_bytes + CHUNK <= matrix.codes.len(), "row {row} of {}", matrix.rows);
    matrix.codes[row * row_bytes + chunk * CHUNK / 8 * matrix.bits.get()..].as_ptr()
}

/// Products with a token, some rows at a time.
pub(super) fn multiply(matrix: &T8, rows: Range<usize>, token: &Quantized, y: &mut [f32]) {
    let chunks = matrix.cols.div_ceil(CHUNK);
    assert!(token.high.len().min(token.low.len()) >= chunks * CHUNK, "activations of another width");
    let constants = Constants::of(matrix.bits);
    let offset = i64::from(OFFSET) * token.sum;
    // From a row's end to the row that takes its place.
    let skip = (GEMV_ROWS - 1) * row_bytes(matrix.bits, matrix.cols);
    for (first, y) in rows.clone().step_by(GEMV_ROWS).zip(y.chunks_mut(GEMV_ROWS)) {
        // Where fewer are left, the last one is multiplied again.
        let codes = std::array::from_fn(|i| codes_from(matrix, rows.end.min(first + i + 1) - 1, 0));
        // SAFETY: `codes_from` has seen to the codes and the room past them, the activations are counted, and
        // this layout is chosen only where the processor has AVX-512.
        let totals = unsafe { for_bits!(matrix.bits, gemv(codes, chunks, skip, token, constants)) };
        for ((y, total), scale) in y.iter_mut().zip(totals).zip(&matrix.scales[first..]) {
            *y = output((total - offset) as f64, token.unit, *scale);
        }
    }
}
