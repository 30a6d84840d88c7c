//! The lane-planar kernels in plain AVX2.

use std::arch::x86_64::*;

use super::planar::*;
use crate::quantize::{CHUNK, Quantized};

/// Sums of the products of eight rows (`chunks` tiles, one after the other) with one token's activations.
///
/// The 16-bit pairs of `vpmaddubsw` cannot overflow: its unsigned operand is the activation's magnitude, its signed
/// one the weight with the activation's sign, so a pair is at most 2 · 127 · 127.
///
/// # Safety
/// `tiles` points to `chunks` tiles of `K` bits a weight, and `token` has as many chunks.
#[target_feature(enable = "avx2")]
pub(super) unsafe fn gemv<const K: usize>(
    mut tiles: *const u8,
    chunks: usize,
    token: &Quantized,
    tables: &Tables,
) -> RowSums {
    let (mut signed, mut unsigned) = (token.ordered.as_ptr(), token.magnitudes.as_ptr());
    let mut totals = [_mm256_setzero_si256(); 2];
    for block in 0..chunks.div_ceil(BLOCK_CHUNKS) {
        let mut sums = _mm256_setzero_si256();
        for _ in 0..(chunks - block * BLOCK_CHUNKS).min(BLOCK_CHUNKS) {
            // SAFETY: the caller's tiles and activations, a chunk at a time.
            unsafe {
                super::prefetch::<K>(tiles);
                macro_rules! step {
                    ($i:literal) => {
                        let weights = weights!(tiles, K, $i, tables);
                        let weights = _mm256_sign_epi8(weights, broadcast!(signed.add(4 * $i)));
                        let pairs = _mm256_maddubs_epi16(broadcast!(unsigned.add(4 * $i)), weights);
                        sums = _mm256_add_epi32(sums, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
                    };
                }
                each_weight!(step);
                tiles = tiles.add(VECTOR * 4 * K);
                (signed, unsigned) = (signed.add(CHUNK), unsigned.add(CHUNK));
            }
        }
        add_block(&mut totals, sums, token.multipliers[block]);
    }
    rows(totals)
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

/// Adds the products of two decoded tiles, side by side, with `T` tokens' activations to the tokens' totals. A step
/// multiplies 16-bit weights by activations that already have their multipliers in them (at most 64 · 127): a block's
/// sums stay below 2^28.
///
/// # Safety
/// `decoded` points to `steps` steps of two vectors, `activations` to `steps` dwords each.
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
