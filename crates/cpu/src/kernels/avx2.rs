//! The lane-planar kernels in plain AVX2.

use std::arch::x86_64::*;

use super::planar::*;
use crate::quantize::{BLOCK, CHUNK, Quantized};

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
    debug_assert!(chunks * CHUNK <= token.ordered.len() && token.ordered.len() == token.magnitudes.len());
    let (mut signed, mut unsigned) = (token.ordered.as_ptr(), token.magnitudes.as_ptr());
    let mut totals = [_mm256_setzero_si256(); 2];
    for block in 0..chunks.div_ceil(BLOCK / CHUNK) {
        let mut sums = _mm256_setzero_si256();
        for _ in 0..(chunks - block * (BLOCK / CHUNK)).min(BLOCK / CHUNK) {
            // SAFETY: the caller's tiles and activations, a chunk at a time; prefetching is harmless anywhere.
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
