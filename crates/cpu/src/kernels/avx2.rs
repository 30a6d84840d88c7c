//! The lane-planar kernels in plain AVX2.

use std::arch::x86_64::*;

use super::planar::*;
use crate::quantize::{CHUNK, Quantized};

/// Sums of the products of eight rows (`chunks` tiles, one after the other) with one token's activations.
///
/// # Safety
/// `tiles` points to `chunks` tiles of `K` bits a weight, and `token` has as many chunks.
#[target_feature(enable = "avx2")]
pub(super) unsafe fn gemv<const K: usize>(
    tiles: *const u8,
    chunks: usize,
    token: &Quantized,
    tables: &Tables,
) -> RowSums {
    // SAFETY: the caller's.
    unsafe {
        if token.is_fine() {
            planes::<K, true>(tiles, chunks, token, tables)
        } else {
            planes::<K, false>(tiles, chunks, token, tables)
        }
    }
}

/// Steps after which the low plane's sums are widened: in 16 bits a step adds at most 2 · 7 · 127.
const LOW_STEPS: usize = 16;

/// [`gemv`] over the high plane and, where `FINE`, the low one.
///
/// The 16-bit pairs of `vpmaddubsw` cannot overflow. For the high plane its unsigned operand is the activation's
/// magnitude, its signed one the weight with the activation's sign, so a pair is at most 2 · 127 · 127; the low plane is
/// unsigned as it is, and so small that its pairs need widening only now and then.
///
/// # Safety
/// As for [`gemv`]; `token` has a low plane where `FINE`.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn planes<const K: usize, const FINE: bool>(
    mut tiles: *const u8,
    chunks: usize,
    token: &Quantized,
    tables: &Tables,
) -> RowSums {
    let (mut signed, mut unsigned) = (token.high.as_ptr(), token.magnitudes.as_ptr());
    let mut low = token.low.as_ptr();
    let ones = _mm256_set1_epi16(1);
    let mut totals = [_mm256_setzero_si256(); 2];
    for block in 0..chunks.div_ceil(BLOCK_CHUNKS) {
        let (mut sums, mut low_sums) = (_mm256_setzero_si256(), _mm256_setzero_si256());
        for _ in 0..(chunks - block * BLOCK_CHUNKS).min(BLOCK_CHUNKS) {
            let mut low_pairs = _mm256_setzero_si256();
            // SAFETY: the caller's tiles and activations, a chunk at a time.
            unsafe {
                super::prefetch::<K>(tiles);
                macro_rules! step {
                    ($i:literal) => {
                        let weights = weights!(tiles, K, $i, tables);
                        let turned = _mm256_sign_epi8(weights, broadcast!(signed.add(4 * $i)));
                        let pairs = _mm256_maddubs_epi16(broadcast!(unsigned.add(4 * $i)), turned);
                        sums = _mm256_add_epi32(sums, _mm256_madd_epi16(pairs, ones));
                        if FINE {
                            let pairs = _mm256_maddubs_epi16(broadcast!(low.add(4 * $i)), weights);
                            low_pairs = _mm256_add_epi16(low_pairs, pairs);
                            if ($i + 1) % LOW_STEPS == 0 {
                                low_sums = _mm256_add_epi32(low_sums, _mm256_madd_epi16(low_pairs, ones));
                                low_pairs = _mm256_setzero_si256();
                            }
                        }
                    };
                }
                each_weight!(step);
                tiles = tiles.add(VECTOR * 4 * K);
                (signed, unsigned) = (signed.add(CHUNK), unsigned.add(CHUNK));
                if FINE {
                    low = low.add(CHUNK);
                }
            }
        }
        if FINE {
            sums = join(sums, low_sums);
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
/// multiplies 16-bit weights by activations that already have their multipliers in them (at most 32 · 1016), 8 at most to
/// a sum and block of columns: the sums of [`super::planar_products::SPAN_BLOCKS`] blocks stay below 2^31.
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
