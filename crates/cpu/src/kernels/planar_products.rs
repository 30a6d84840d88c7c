//! Products over the lane-planar layout with few tokens: weights are decoded in registers.

use std::ops::Range;

use upg_codec::Isa;

#[cfg(target_arch = "aarch64")]
use super::planar_arm as arch;
#[cfg(target_arch = "x86_64")]
use super::planar_x86 as arch;
use super::{
    output,
    planar::{RowSums, Tables, tile_row_bytes},
};
use crate::{
    layout::TILE_ROWS,
    matrix::T8,
    quantize::{CHUNK, Quantized},
};

/// Products with up to [`arch::FEW`] tokens.
pub(super) fn multiply(isa: Isa, matrix: &T8, rows: Range<usize>, tokens: &[Quantized], y: &mut [f32]) {
    match tokens {
        [a] => few(isa, matrix, rows, [a], y),
        [a, b] if arch::FEW >= 2 => few(isa, matrix, rows, [a, b], y),
        [a, b, c] if arch::FEW >= 3 => few(isa, matrix, rows, [a, b, c], y),
        _ => unreachable!("{} tokens are not few", tokens.len()),
    }
}

/// Few tokens: eight rows at a time, decoded in registers.
fn few<const T: usize>(isa: Isa, matrix: &T8, rows: Range<usize>, tokens: [&Quantized; T], y: &mut [f32]) {
    let (offset, width) = (arch::gemv_offset(isa), rows.len());
    let tables = Tables::new(matrix.bits, offset);
    for first in rows.clone().step_by(TILE_ROWS) {
        let end = rows.end.min(first + TILE_ROWS);
        let totals = totals(isa, matrix, first, tokens, &tables);
        for ((token, totals), y) in tokens.iter().zip(totals).zip(y.chunks_exact_mut(width)) {
            let (offset, y) = (i64::from(offset) * token.sum, &mut y[first - rows.start..end - rows.start]);
            for ((y, total), scale) in y.iter_mut().zip(totals).zip(&matrix.scales[first..]) {
                *y = output((total - offset) as f64, token.unit, *scale);
            }
        }
    }
}

/// What the kernel makes of the eight rows from `row` on.
fn totals<const T: usize>(
    isa: Isa,
    matrix: &T8,
    row: usize,
    tokens: [&Quantized; T],
    tables: &Tables,
) -> [RowSums; T] {
    let (chunks, bytes) = (matrix.cols.div_ceil(CHUNK), tile_row_bytes(matrix));
    for token in tokens {
        assert!(arch::columns(isa, token) >= chunks * CHUNK, "activations of another width");
    }
    let tiles = matrix.codes[row / TILE_ROWS * bytes..][..bytes].as_ptr();
    // SAFETY: the slice holds the tiles of eight rows, the activations are counted, and an `Isa` is chosen only where
    // the processor has it.
    unsafe { arch::gemv(isa, matrix.bits, tiles, chunks, tokens, tables) }
}
