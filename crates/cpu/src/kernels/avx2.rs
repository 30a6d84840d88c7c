//! The lane-planar kernels in plain AVX2.

use std::arch::x86_64::*;

use super::planar::*;
use crate::quantize::{CHUNK, Quantized};

/// Steps that 32 bits can sum: each adds at most 4 · 127 · 256 · 1023.
const STEPS_IN_32_BITS: usize = 16;

/// Sums of the products of `N` times eight rows with one token's activations, which are loaded once for all of them, as
/// are the look-up tables.
///
/// Weights become 16 bits where they are, in the upper halves, so sums are 256 times what they should be until they are
/// shifted.
///
/// # Safety
/// Each of `tiles` points to `chunks` tiles of `K` bits a weight, one after the other, and `token` has as many chunks.
#[target_feature(enable = "avx2")]
pub(super) unsafe fn gemv<const K: usize, const N: usize>(
    mut tiles: [*const u8; N],
    chunks: usize,
    token: &Quantized,
    tables: &Tables,
) -> [RowSums; N] {
    let mut activations: *const u8 = token.paired.as_ptr().cast();
    let zero = _mm256_setzero_si256();
    let upper = _mm256_set1_epi16(-256);
    let mut totals = [[zero; 2]; N];
    for block in 0..chunks.div_ceil(BLOCK_CHUNKS) {
        let mut sums = [zero; N];
        for _ in 0..(chunks - block * BLOCK_CHUNKS).min(BLOCK_CHUNKS) {
            let mut shifted = [zero; N];
            // SAFETY: the caller's tiles and activations, a chunk at a time.
            unsafe {
                for tile in tiles {
                    super::prefetch::<K>(tile);
                }
                macro_rules! step {
                    ($i:literal) => {
                        let even = broadcast!(activations.add(8 * $i));
                        let odd = broadcast!(activations.add(8 * $i + 4));
                        for n in 0..N {
                            let weights = weights!(tiles[n], K, $i, tables);
                            let products = _mm256_add_epi32(
                                _mm256_madd_epi16(_mm256_slli_epi16::<8>(weights), even),
                                _mm256_madd_epi16(_mm256_and_si256(weights, upper), odd),
                            );
                            shifted[n] = in_order(_mm256_add_epi32(shifted[n], products));
                            if ($i + 1) % STEPS_IN_32_BITS == 0 {
                                sums[n] = _mm256_add_epi32(sums[n], _mm256_srai_epi32::<8>(shifted[n]));
                                shifted[n] = zero;
                            }
                        }
                    };
                }
                each_weight!(step);
                tiles = tiles.map(|tile| tile.add(VECTOR * 4 * K));
                activations = activations.add(2 * CHUNK);
            }
        }
        for (totals, sums) in totals.iter_mut().zip(sums) {
            add_block(totals, sums, token.multipliers[block]);
        }
    }
    totals.map(|totals| rows(totals))
}

/// Decodes a tile for [`tokens`]: weight `i` of the 32 groups as two vectors of 16 bits, the even groups' and the odd
/// groups', which are steps `2·i` and `2·i + 1`; steps are `stride` bytes apart.
///
/// # Safety
/// `tile` points to a tile of `K` bits a weight, `to` to room for 64 steps.
#[target_feature(enable = "avx2")]
pub(super) unsafe fn decode<const K: usize>(tile: *const u8, tables: &Tables, to: *mut u8, stride: usize) {
    // SAFETY: the caller's tile and room.
    unsafe {
        macro_rules! step {
            ($i:literal) => {
                let weights = weights!(tile, K, $i, tables);
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
///
/// Weights of 16 bits meet activations that already have their multipliers in them, at most 32 · 1023.
/// A step adds two products to a sum, a block of columns 64 steps: the sums of a span's four blocks stay below 2^31.
///
/// # Safety
/// `decoded` points to `steps` steps of two vectors, `activations` to `steps` dwords each; a span has no more steps.
#[target_feature(enable = "avx2")]
pub(super) unsafe fn tokens<const T: usize>(
    decoded: *const u8,
    steps: usize,
    activations: [*const u8; T],
    totals: &mut [PairTotals; T],
) {
    let mut sums = [[_mm256_setzero_si256(); 2]; T];
    for step in 0..steps {
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
    for (totals, sums) in totals.iter_mut().zip(sums) {
        totals.add(sums, 1);
    }
}
