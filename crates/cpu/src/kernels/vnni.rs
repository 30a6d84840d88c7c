//! The lane-planar kernels with AVX-VNNI, whose `vpdpbusd` wants unsigned weights: they are offset by
//! [`OFFSET`], and what that adds is taken off again at the end.

use std::arch::x86_64::*;

use super::planar::*;
use crate::quantize::{CHUNK, LOW_BITS, Quantized};

/// Sums of the products of `N` times eight rows with one token's activations, which are loaded once for all of them, as
/// are the look-up tables; weights are offset.
///
/// A block's sums stay below 2^25.
///
/// # Safety
/// Each of `tiles` points to `chunks` tiles of `K` bits a weight, one after the other, and `token` has as many chunks.
#[target_feature(enable = "avx2,avxvnni")]
pub(super) unsafe fn gemv<const K: usize, const N: usize>(
    mut tiles: [*const u8; N],
    chunks: usize,
    token: &Quantized,
    tables: &Tables,
) -> [RowSums; N] {
    let (mut high, mut low) = (token.high.as_ptr(), token.low.as_ptr());
    let zero = _mm256_setzero_si256();
    let mut totals = [[zero; 2]; N];
    for block in 0..chunks.div_ceil(BLOCK_CHUNKS) {
        let (mut sums, mut low_sums) = ([zero; N], [zero; N]);
        for _ in 0..(chunks - block * BLOCK_CHUNKS).min(BLOCK_CHUNKS) {
            // SAFETY: the caller's tiles and activations, a chunk at a time.
            unsafe {
                for tile in tiles {
                    super::prefetch::<K>(tile);
                }
                macro_rules! step {
                    ($i:literal) => {
                        let activations = broadcast!(high.add(4 * $i));
                        for n in 0..N {
                            let weights = weights!(tiles[n], K, $i, tables);
                            sums[n] = in_order(_mm256_dpbusd_avx_epi32(sums[n], weights, activations));
                            let activations = broadcast!(low.add(4 * $i));
                            low_sums[n] = _mm256_dpbusd_avx_epi32(low_sums[n], weights, activations);
                        }
                    };
                }
                each_weight!(step);
                tiles = tiles.map(|tile| tile.add(VECTOR * 4 * K));
                (high, low) = (high.add(CHUNK), low.add(CHUNK));
            }
        }
        for ((totals, high), low) in totals.iter_mut().zip(sums).zip(low_sums) {
            let sums = _mm256_add_epi32(_mm256_slli_epi32::<{ LOW_BITS as i32 }>(high), low);
            add_block(totals, sums, token.multipliers[block]);
        }
    }
    totals.map(|totals| rows(totals))
}

/// Decodes a tile for [`tokens`]: step `i` is weight `i` of the 32 groups, offset; steps are `stride` bytes apart.
///
/// # Safety
/// `tile` points to a tile of `K` bits a weight, `to` to room for 32 steps.
#[target_feature(enable = "avx2,avxvnni")]
pub(super) unsafe fn decode<const K: usize>(tile: *const u8, tables: &Tables, to: *mut u8, stride: usize) {
    // SAFETY: the caller's tile and room.
    unsafe {
        macro_rules! step {
            ($i:literal) => {
                _mm256_storeu_si256(to.add($i * stride).cast(), weights!(tile, K, $i, tables));
            };
        }
        each_weight!(step);
    }
}

/// Adds the products of two decoded tiles, side by side, with a plane of `T` tokens' activations to the tokens' totals.
///
/// # Safety
/// `decoded` points to `steps` steps of two vectors, `activations` to `steps` dwords each.
#[target_feature(enable = "avx2,avxvnni")]
pub(super) unsafe fn tokens<const T: usize>(
    decoded: *const u8,
    steps: usize,
    activations: [*const u8; T],
    multipliers: [i32; T],
    totals: &mut [PairTotals; T],
) {
    let mut sums = [[_mm256_setzero_si256(); 2]; T];
    for step in 0..steps {
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
    for ((totals, sums), multiplier) in totals.iter_mut().zip(sums).zip(multipliers) {
        totals.add(sums, multiplier);
    }
}
