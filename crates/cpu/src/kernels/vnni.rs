//! The lane-planar kernels with AVX-VNNI, whose `vpdpbusd` wants unsigned weights: they are offset
//! (see [`gemv_offset`]), and what that adds is taken off again at the end.

use std::arch::x86_64::*;

use super::{planar::*, planar_x86::*};
use crate::quantize::{CHUNK, Quantized};

/// Sums of the products of eight rows (`chunks` tiles, one after the other) with the activations of each of `T` tokens;
/// weights are offset.
///
/// A step adds at most 4 · 255 · 32 to a sum: those of rows of up to 2^18 columns stay below 2^31.
///
/// # Safety
/// `tiles` points to `chunks` tiles of `K` bits a weight, and the tokens have as many chunks.
#[target_feature(enable = "avx2,avxvnni")]
pub(super) unsafe fn gemv<const K: usize, const T: usize>(
    mut tiles: *const u8,
    chunks: usize,
    tokens: [&Quantized; T],
    tables: &Tables,
) -> [RowSums; T] {
    let masks = Masks::new();
    let planes = tokens.map(|token| [token.high.as_ptr(), token.low.as_ptr()]);
    let mut sums = [[_mm256_setzero_si256(); 2]; T];
    for chunk in 0..chunks {
        // SAFETY: the caller's tiles and activations, a chunk at a time.
        unsafe {
            super::prefetch::<K>(tiles);
            let mut window = first_window!(tiles, K, masks);
            macro_rules! step {
                ($i:literal) => {
                    let weights = weights!(tiles, K, $i, tables, masks, window);
                    for (sums, planes) in sums.iter_mut().zip(&planes) {
                        for (sum, plane) in sums.iter_mut().zip(planes) {
                            let activations = broadcast!(plane.add(chunk * CHUNK + 4 * $i));
                            *sum = _mm256_dpbusd_avx_epi32(*sum, weights, activations);
                        }
                    }
                };
            }
            each_weight!(step);
            tiles = tiles.add(VECTOR * 4 * K);
        }
    }
    join(sums)
}

/// Decodes a tile for [`tokens`]: step `i` is weight `i` of the 32 groups, offset; steps are `stride` bytes apart.
///
/// # Safety
/// `tile` points to a tile of `K` bits a weight, `to` to room for 32 steps.
#[target_feature(enable = "avx2,avxvnni")]
pub(super) unsafe fn decode<const K: usize>(tile: *const u8, tables: &Tables, to: *mut u8, stride: usize) {
    let masks = Masks::new();
    // SAFETY: the caller's tile and room.
    unsafe {
        let mut window = first_window!(tile, K, masks);
        macro_rules! step {
            ($i:literal) => {
                _mm256_storeu_si256(to.add($i * stride).cast(), weights!(tile, K, $i, tables, masks, window));
            };
        }
        each_weight!(step);
    }
}

/// Adds the products of two decoded tiles, side by side, with a plane of `T` tokens' activations, `worth` so much
/// each, to the tokens' totals. Meanwhile as many activations at `ahead` are fetched.
///
/// # Safety
/// `decoded` points to `steps` steps (a multiple of [`LINE_STEPS`]) of two vectors, `activations` to `steps` dwords each.
#[target_feature(enable = "avx2,avxvnni")]
pub(super) unsafe fn tokens<const T: usize>(
    decoded: *const u8,
    steps: usize,
    activations: [*const u8; T],
    ahead: [*const u8; T],
    worth: i32,
    totals: &mut [PairTotals; T],
) {
    let mut sums = [[_mm256_setzero_si256(); 2]; T];
    for line in (0..steps).step_by(LINE_STEPS) {
        prefetch_each(ahead, 4 * line);
        for step in line..line + LINE_STEPS {
            // SAFETY: the caller's decoded weights and activations, a step at a time.
            unsafe {
                let weights =
                    [load!(decoded.add(2 * step * VECTOR)), load!(decoded.add((2 * step + 1) * VECTOR))];
                for (sums, activations) in sums.iter_mut().zip(activations) {
                    let activations = broadcast!(activations.add(4 * step));
                    for (sum, weights) in sums.iter_mut().zip(weights) {
                        *sum = _mm256_dpbusd_avx_epi32(*sum, weights, activations);
                    }
                }
            }
        }
    }
    for (totals, sums) in totals.iter_mut().zip(sums) {
        totals.add(sums, worth);
    }
}
