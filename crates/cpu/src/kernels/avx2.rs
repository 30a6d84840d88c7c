//! The lane-planar kernels in plain AVX2.

use std::arch::x86_64::*;

use super::planar::*;
use crate::quantize::{CHUNK, Quantized};

/// Steps whose products with the high plane 16 bits can sum: each adds at most 2 · 63 · 127.
const HIGH_STEPS: usize = 2;

/// And with the low plane: each adds at most 2 · 15 · 127.
const LOW_STEPS: usize = 8;

/// Sums of the products of `N` times eight rows with one token's activations, which are loaded once for all of them, as
/// are the look-up tables.
///
/// The 16-bit sums of `vpmaddubsw` cannot overflow. For the high plane its unsigned operand is the activation's magnitude,
/// its signed one the weight with the activation's sign; the low plane is unsigned as it is.
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
    let (mut signed, mut unsigned) = (token.high.as_ptr(), token.magnitudes.as_ptr());
    let mut low = token.low.as_ptr();
    let zero = _mm256_setzero_si256();
    let mut totals = [[zero; 2]; N];
    for block in 0..chunks.div_ceil(BLOCK_CHUNKS) {
        let (mut sums, mut low_sums) = ([zero; N], [zero; N]);
        for _ in 0..(chunks - block * BLOCK_CHUNKS).min(BLOCK_CHUNKS) {
            let (mut pairs, mut low_pairs) = ([zero; N], [zero; N]);
            // SAFETY: the caller's tiles and activations, a chunk at a time.
            unsafe {
                for tile in tiles {
                    super::prefetch::<K>(tile);
                }
                macro_rules! step {
                    ($i:literal) => {
                        let (signs, magnitudes) =
                            (broadcast!(signed.add(4 * $i)), broadcast!(unsigned.add(4 * $i)));
                        for n in 0..N {
                            let weights = weights!(tiles[n], K, $i, tables);
                            let turned = _mm256_sign_epi8(weights, signs);
                            pairs[n] = _mm256_add_epi16(pairs[n], _mm256_maddubs_epi16(magnitudes, turned));
                            if ($i + 1) % HIGH_STEPS == 0 {
                                widen(&mut sums[n], &mut pairs[n]);
                            }
                            let products = _mm256_maddubs_epi16(broadcast!(low.add(4 * $i)), weights);
                            low_pairs[n] = _mm256_add_epi16(low_pairs[n], products);
                            if ($i + 1) % LOW_STEPS == 0 {
                                widen(&mut low_sums[n], &mut low_pairs[n]);
                            }
                        }
                    };
                }
                each_weight!(step);
                tiles = tiles.map(|tile| tile.add(VECTOR * 4 * K));
                (signed, unsigned) = (signed.add(CHUNK), unsigned.add(CHUNK));
                low = low.add(CHUNK);
            }
        }
        for ((totals, sums), low_sums) in totals.iter_mut().zip(sums).zip(low_sums) {
            add_block(totals, join(sums, low_sums), token.multipliers[block]);
        }
    }
    totals.map(|totals| rows(totals))
}

/// Adds pairs of 16 bits to sums of 32, and begins new ones.
#[inline]
#[target_feature(enable = "avx2")]
fn widen(sums: &mut __m256i, pairs: &mut __m256i) {
    *sums = _mm256_add_epi32(*sums, _mm256_madd_epi16(*pairs, _mm256_set1_epi16(1)));
    *pairs = _mm256_setzero_si256();
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
/// Weights of 16 bits meet activations that already have their multipliers in them, at most 32 · 1008.
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
