use std::ops::Range;

use upg_codec::{GROUP, decode_group};

use super::{KernelScratch, output};
use crate::{
    matrix::T8,
    quantize::{CHUNK, Quantized},
};

/// The plain kernel: decodes each row once and multiplies it by every token.
pub(super) fn multiply(
    matrix: &T8,
    rows: Range<usize>,
    tokens: &[Quantized],
    y: &mut [f32],
    scratch: &mut KernelScratch,
) {
    let (start, width) = (rows.start, rows.len());
    let values = &mut scratch.values;
    values.resize(matrix.cols, 0);
    for row in rows {
        decode(matrix, row, values);
        for (token, y) in tokens.iter().zip(y.chunks_exact_mut(width)) {
            y[row - start] = output(dot(values, token) as f64, token.unit, matrix.scales[row]);
        }
    }
}

/// The values of a row.
fn decode(matrix: &T8, row: usize, values: &mut [i8]) {
    let (groups, _) = values.as_chunks_mut::<GROUP>();
    let mut codes = [0; 32];
    let codes = &mut codes[..matrix.bits.group_bytes()];
    for (group, values) in groups.iter_mut().enumerate() {
        matrix.layout.group(matrix.bits, matrix.cols, &matrix.codes, (row, group), codes);
        decode_group(matrix.bits, codes, values);
    }
}

/// `Σ weight · value`, exactly: a chunk's sum stays below 2^25.
fn dot(weights: &[i8], token: &Quantized) -> i64 {
    let chunks = weights.chunks(CHUNK).zip(token.values.chunks_exact(CHUNK));
    let sums = chunks.map(|(weights, values)| {
        weights.iter().zip(values).map(|(&w, &v)| i32::from(w) * i32::from(v)).sum::<i32>()
    });
    sums.map(i64::from).sum()
}
