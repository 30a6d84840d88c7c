//! Products of T8 matrices with int8 activations. `scalar` is the oracle: all others give the same bits.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod planar;
mod scalar;

use std::ops::Range;

use upg_codec::{Bits, Isa};

use crate::{
    layout::{Layout, TILE_ROWS},
    matrix::T8,
    quantize::{CHUNK, Quantized},
};

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
    match (isa, matrix.layout) {
        #[cfg(target_arch = "x86_64")]
        (Isa::Avx2 | Isa::AvxVnni, Layout::LanePlanar) => planar_gemv(isa, matrix, rows, tokens, y),
        _ => scalar::multiply(matrix, rows, tokens, y, scratch),
    }
}

/// Calls a function that is generic over the bits a weight.
macro_rules! for_bits {
    ($bits:expr, $function:ident($($arg:expr),*)) => {
        match $bits {
            Bits::B2 => $function::<2>($($arg),*),
            Bits::B3 => $function::<3>($($arg),*),
            Bits::B4 => $function::<4>($($arg),*),
            Bits::B5 => $function::<5>($($arg),*),
            Bits::B6 => $function::<6>($($arg),*),
            Bits::B8 => $function::<8>($($arg),*),
        }
    };
}

/// Eight rows at a time, decoded anew for every token: best for a single one.
#[cfg(target_arch = "x86_64")]
fn planar_gemv(isa: Isa, matrix: &T8, rows: Range<usize>, tokens: &[Quantized], y: &mut [f32]) {
    use avx2::gemv;

    let _ = isa;
    let (chunks, width) = (matrix.cols.div_ceil(CHUNK), rows.len());
    let tables = planar::Tables::new(matrix.bits, 0);
    let tile_row = chunks * CHUNK / 8 * matrix.bits.get() * TILE_ROWS;
    for (t, token) in tokens.iter().enumerate() {
        assert!(token.ordered.len() >= chunks * CHUNK, "activations of another width");
        for row in rows.clone().step_by(TILE_ROWS) {
            let tiles = &matrix.codes[row / TILE_ROWS * tile_row..][..tile_row];
            // SAFETY: the slice holds the row's tiles, the assertion has counted the activations, and an `Isa` is
            // chosen only where the processor has it.
            let totals = unsafe { for_bits!(matrix.bits, gemv(tiles.as_ptr(), chunks, token, &tables)) };
            let end = rows.end.min(row + TILE_ROWS);
            let y = &mut y[t * width + row - rows.start..][..end - row];
            for ((y, total), scale) in y.iter_mut().zip(totals).zip(&matrix.scales[row..end]) {
                *y = output(total, token.unit, *scale);
            }
        }
    }
}

/// How far ahead codes are prefetched, in bytes: the hardware does not cross pages of 4 KiB by itself.
#[cfg(target_arch = "x86_64")]
const PREFETCH: usize = 4096;

/// Prefetches as many bytes as a tile of `K` bits a weight has, some way ahead.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn prefetch<const K: usize>(tile: *const u8) {
    use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
    for line in 0..2 * K {
        // SAFETY: a prefetch may have any address.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(tile.wrapping_add(PREFETCH + 64 * line).cast()) };
    }
}

/// The output of a row: an exact integer times two scales, in this order on every path.
#[inline(always)]
fn output(total: i64, unit: f32, scale: f32) -> f32 {
    total as f32 * (unit * scale)
}

#[cfg(test)]
mod tests;
