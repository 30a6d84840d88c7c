use std::ops::Range;

use upg_codec::{GROUP, decode_group};

use super::{KernelScratch, output};
use crate::{
    matrix::T8,
    quantize::{BLOCK, Quantized},
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
            y[row - start] = output(dot(values, token), token.unit, matrix.scales[row]);
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

/// `Σ multiplier · Σ weight · value`, exactly: a block's sum stays below 2^24.
fn dot(weights: &[i8], token: &Quantized) -> i64 {
    let blocks = weights.chunks(BLOCK).zip(token.values.chunks_exact(BLOCK));
    let sums = blocks.zip(&token.multipliers).map(|((weights, values), &multiplier)| {
        let sum: i32 = weights.iter().zip(values).map(|(&w, &v)| i32::from(w) * i32::from(v)).sum();
        i64::from(multiplier) * i64::from(sum)
    });
    sums.sum()
}
