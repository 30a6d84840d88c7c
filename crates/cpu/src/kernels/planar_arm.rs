//! The choice among the lane-planar kernels of 64-bit Arm: NEON, with and without dot products.

use std::ops::Range;

use upg_codec::{Bits, Isa};

pub(super) use super::neon::PairTotals;
use super::{
    for_bits, neon, neon_dot, neon_plain,
    planar::{RowSums, STEP, Tables},
};
use crate::quantize::{CHUNK, PLANES, Quantized};

/// The most tokens that [`gemv`] takes.
pub(super) const FEW: usize = 1;

/// The most tokens whose sums the registers hold (with dot products: see [`multiply`]).
pub(super) const MAX_TOKENS: usize = 5;

/// What [`gemv`] wants added to every weight: nothing, all multiply signed bytes.
pub(super) fn gemv_offset(_isa: Isa) -> u8 {
    0
}

/// What [`multiply`] wants added to every weight: likewise.
pub(super) fn offset(_isa: Isa) -> u8 {
    0
}

/// Columns that a token has activations for, in all forms that the kernels read.
pub(super) fn columns(_isa: Isa, token: &Quantized) -> usize {
    token.high.len().min(token.low.len()).min(token.ordered.len())
}

/// Steps of a decoded chunk.
pub(super) fn chunk_steps(_isa: Isa) -> usize {
    32
}

/// Sums of the products of eight rows with the activations of each of `T` tokens, one after the other.
///
/// # Safety
/// `tiles` points to `chunks` tiles of `bits` bits a weight, one after the other, the tokens have as many chunks, and the
/// processor has `isa`.
pub(super) unsafe fn gemv<const T: usize>(
    isa: Isa,
    bits: Bits,
    tiles: *const u8,
    chunks: usize,
    tokens: [&Quantized; T],
    tables: &Tables,
) -> [RowSums; T] {
    // SAFETY: the caller's.
    tokens.map(|token| unsafe {
        match isa {
            Isa::NeonDot => for_bits!(bits, neon_dot::gemv(tiles, chunks, token, tables)),
            _ => for_bits!(bits, neon_plain::gemv(tiles, chunks, token, tables)),
        }
    })
}

/// Decodes a tile for [`multiply`]: [`chunk_steps`] steps, [`STEP`] bytes apart.
///
/// # Safety
/// `tile` points to a tile of `bits` bits a weight, `to` to room for its steps, and the processor has `isa`.
pub(super) unsafe fn decode(_isa: Isa, bits: Bits, tile: *const u8, tables: &Tables, to: *mut u8) {
    // SAFETY: the caller's.
    unsafe { for_bits!(bits, neon::decode(tile, tables, to, STEP)) }
}

/// Adds the products of a decoded span (its chunks) of two tiles, side by side, with `T` tokens to the tokens' totals.
///
/// # Safety
/// `decoded` points to the span's steps, the tokens have its chunks, and the processor has `isa`.
pub(super) unsafe fn multiply<const T: usize>(
    isa: Isa,
    decoded: *const u8,
    tokens: [&Quantized; T],
    span: Range<usize>,
    totals: &mut [PairTotals; T],
) {
    let steps = span.len() * chunk_steps(isa);
    for plane in PLANES {
        let activations = tokens.map(|token| plane.of(token)[span.start * CHUNK..].as_ptr());
        // SAFETY: the caller's; there are four activations a step.
        unsafe {
            if isa == Isa::NeonDot {
                neon_dot::tokens(decoded, steps, activations, plane.worth(), totals);
            } else {
                // Through 16 bits a token's sums take twice the registers: one after the other.
                for (activations, totals) in activations.into_iter().zip(totals.iter_mut()) {
                    neon_plain::tokens(decoded, steps, activations, plane.worth(), totals);
                }
            }
        }
    }
}
