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

/// Decodes a tile for [`panel`]: weight `i` of the 32 groups as two vectors of 16 bits, the even groups' and the odd
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

/// Steps in a turn of [`panel`]'s loop: fewer leave the processor's front end behind, above all where a core is shared.
const TURN: usize = 4;

/// Adds the products of two decoded tiles, side by side, with a panel of `T` tokens to `sums`, two vectors a token.
///
/// Weights of 16 bits meet values of 12: a step adds at most 2 · 128 · 2047 to a sum.
///
/// # Safety
/// `decoded` points to `chunks` chunks of 64 steps of two vectors, `values` to as many of `T` dwords a step.
#[target_feature(enable = "avx2")]
pub(super) unsafe fn panel<const T: usize>(
    mut decoded: *const u8,
    chunks: usize,
    mut values: *const i32,
    sums: *mut i32,
) {
    // SAFETY: the caller's decoded weights, values and sums, a turn at a time.
    unsafe {
        let place = sums.cast::<__m256i>();
        let load = |t| [_mm256_loadu_si256(place.add(2 * t)), _mm256_loadu_si256(place.add(2 * t + 1))];
        let mut sums: [_; T] = std::array::from_fn(load);
        for _ in 0..chunks * CHUNK / 2 / TURN {
            for step in 0..TURN {
                let weights = [load!(decoded.add(step * STEP)), load!(decoded.add(step * STEP + VECTOR))];
                for (t, sums) in sums.iter_mut().enumerate() {
                    add_products(sums, weights, broadcast!(values.add(step * T + t)));
                }
            }
            decoded = decoded.add(TURN * STEP);
            values = values.add(TURN * T);
        }
        for (t, sums) in sums.into_iter().enumerate() {
            _mm256_storeu_si256(place.add(2 * t), sums[0]);
            _mm256_storeu_si256(place.add(2 * t + 1), sums[1]);
        }
    }
}

/// Adds the products of two vectors of weights with the same values. In assembly, and said to touch memory, since compilers
/// would move later loads up to where registers do not suffice.
#[inline]
#[target_feature(enable = "avx2")]
fn add_products([first, second]: &mut [__m256i; 2], weights: [__m256i; 2], values: __m256i) {
    // SAFETY: the instructions are AVX2's; in truth they touch no memory.
    unsafe {
        std::arch::asm!(
            "vpmaddwd {products}, {first_weights}, {values}",
            "vpmaddwd {values}, {second_weights}, {values}",
            "vpaddd {first}, {first}, {products}",
            "vpaddd {second}, {second}, {values}",
            first = inout(ymm_reg) *first,
            second = inout(ymm_reg) *second,
            first_weights = in(ymm_reg) weights[0],
            second_weights = in(ymm_reg) weights[1],
            values = inout(ymm_reg) values => _,
            products = out(ymm_reg) _,
            options(nostack, preserves_flags),
        );
    }
}
