//! The lane-planar kernels in plain AVX2.

use std::arch::x86_64::*;

use super::{planar::*, planar_x86::*};
use crate::quantize::{CHUNK, Quantized};

/// Sums of the products of eight rows (`chunks` tiles, one after the other) with the activations of each of `T` tokens;
/// weights are offset (see [`gemv_offset`]).
///
/// A pair of `vpmaddubsw` is at most 2 · 255 · 32, so 16 bits hold those of two steps. Rows of up to 2^18 columns add
/// four pairs to a sum of 32 bits 2^15 times: it stays below 2^31.
///
/// # Safety
/// `tiles` points to `chunks` tiles of `K` bits a weight, and the tokens have as many chunks.
#[target_feature(enable = "avx2")]
pub(super) unsafe fn gemv<const K: usize, const T: usize>(
    mut tiles: *const u8,
    chunks: usize,
    tokens: [&Quantized; T],
    tables: &Tables,
) -> [RowSums; T] {
    let masks = Masks::new();
    let mut planes = tokens.map(|token| [token.high.as_ptr(), token.low.as_ptr()]);
    let mut sums = [[_mm256_setzero_si256(); 2]; T];
    for _ in 0..chunks {
        // SAFETY: the caller's tiles and activations, a chunk at a time.
        unsafe {
            super::prefetch::<K>(tiles);
            let mut window = first_window!(tiles, K, masks);
            macro_rules! steps {
                ($i:literal, $j:literal) => {
                    let first = weights!(tiles, K, $i, tables, masks, window);
                    let second = weights!(tiles, K, $j, tables, masks, window);
                    for (sums, planes) in sums.iter_mut().zip(&planes) {
                        for (sum, plane) in sums.iter_mut().zip(planes) {
                            let pairs = _mm256_add_epi16(
                                _mm256_maddubs_epi16(first, broadcast!(plane.add(4 * $i))),
                                _mm256_maddubs_epi16(second, broadcast!(plane.add(4 * $j))),
                            );
                            let pairs = _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
                            *sum = in_order(_mm256_add_epi32(*sum, pairs));
                        }
                    }
                };
            }
            each_two_weights!(steps);
            tiles = tiles.add(VECTOR * 4 * K);
            planes = planes.map(|planes| planes.map(|plane| plane.add(CHUNK)));
        }
    }
    join(sums)
}

/// Decodes a tile for [`tokens`]: weight `i` of the 32 groups as two vectors of 16 bits, the even groups' and the odd
/// groups', which are steps `2·i` and `2·i + 1`; steps are `stride` bytes apart.
///
/// # Safety
/// `tile` points to a tile of `K` bits a weight, `to` to room for 64 steps.
#[target_feature(enable = "avx2")]
pub(super) unsafe fn decode<const K: usize>(tile: *const u8, tables: &Tables, to: *mut u8, stride: usize) {
    let masks = Masks::new();
    // SAFETY: the caller's tile and room.
    unsafe {
        let mut window = first_window!(tile, K, masks);
        macro_rules! step {
            ($i:literal) => {
                let weights = weights!(tile, K, $i, tables, masks, window);
                let even = _mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(weights));
                let odd = _mm256_srai_epi16::<8>(weights);
                _mm256_storeu_si256(to.add(2 * $i * stride).cast(), even);
                _mm256_storeu_si256(to.add((2 * $i + 1) * stride).cast(), odd);
            };
        }
        each_weight!(step);
    }
}

/// Adds the products of two decoded tiles, side by side, with `T` tokens' activations to the tokens' totals.
/// Meanwhile as many activations at `ahead` are fetched.
///
/// Weights of 16 bits meet values of 12: a step adds at most 2 · 127 · 2047 to a sum, so those of a span stay far below
/// 2^31.
///
/// # Safety
/// `decoded` points to `steps` steps (a multiple of [`LINE_STEPS`]) of two vectors, `activations` to `steps` dwords each, no
/// more than a span has.
#[target_feature(enable = "avx2")]
pub(super) unsafe fn tokens<const T: usize>(
    decoded: *const u8,
    steps: usize,
    activations: [*const u8; T],
    ahead: [*const u8; T],
    totals: &mut [PairTotals; T],
) {
    let mut sums = [[_mm256_setzero_si256(); 2]; T];
    for line in (0..steps).step_by(LINE_STEPS) {
        prefetch_each(ahead, 4 * line);
        // Two at a time: a loop of one leaves the processor's front end behind, above all where a core is shared.
        for first in (line..line + LINE_STEPS).step_by(2) {
            for step in [first, first + 1] {
                // SAFETY: the caller's decoded weights and activations, a step at a time.
                unsafe {
                    let weights =
                        [load!(decoded.add(2 * step * VECTOR)), load!(decoded.add((2 * step + 1) * VECTOR))];
                    for (sums, activations) in sums.iter_mut().zip(activations) {
                        let pairs = broadcast!(activations.add(4 * step));
                        for (sum, weights) in sums.iter_mut().zip(weights) {
                            *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(weights, pairs));
                        }
                    }
                }
            }
        }
    }
    for (totals, sums) in totals.iter_mut().zip(sums) {
        totals.add(sums);
    }
}
