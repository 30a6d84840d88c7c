//! The lane-planar kernels with AVX-VNNI, whose `vpdpbusd` wants unsigned weights: they are offset
//! (see [`gemv_offset`]), and what that adds is taken off again at the end.
//!
//! Processors with AVX-VNNI have GFNI as well: `vgf2p8affineqb` multiplies each byte by a matrix of bits, so that it
//! shifts and masks at once.

use std::arch::x86_64::*;

use super::{planar::*, planar_x86::*};
use crate::quantize::{CHUNK, LOW_BITS, Quantized};

/// The matrix that takes `count` bits of a byte, from bit `from` on, to bit `to` on, and clears the others. Row `i` of
/// its rows, the last one first, has the bits whose parity becomes bit `i`.
const fn cut_matrix(from: usize, count: usize, to: usize) -> i64 {
    let (mut rows, mut bit) = ([0; 8], 0);
    while bit < count {
        rows[7 - (to + bit)] = 1 << (from + bit);
        bit += 1;
    }
    i64::from_le_bytes(rows)
}

/// `$count` bits of each byte, from `$from` on, moved to `$to` on (constants).
macro_rules! cut {
    ($bytes:expr, $from:expr, $count:expr, $to:expr) => {
        _mm256_gf2p8affine_epi64_epi8::<0>(
            $bytes,
            _mm256_set1_epi64x(const { cut_matrix($from, $count, $to) }),
        )
    };
}

/// The `$count` ring bits from `$start` on, which lie in two bytes, as the lowest bits of bytes.
macro_rules! cut_across {
    ($tile:expr, $bits:expr, $start:expr, $count:expr) => {{
        let first = load!($tile.add(VECTOR * ($start / 8 % (4 * $bits))));
        let second = load!($tile.add(VECTOR * (($start / 8 + 1) % (4 * $bits))));
        _mm256_or_si256(
            cut!(first, $start % 8, 8 - $start % 8, 0),
            cut!(second, 0, ($start % 8 + $count).saturating_sub(8), 8 - $start % 8),
        )
    }};
}

/// The nibble at ring bit `$start`, as the lowest bits of bytes.
macro_rules! nibble {
    ($tile:expr, $bits:expr, $start:expr) => {
        if $start % 8 <= 4 {
            cut!(load!($tile.add(VECTOR * ($start / 8 % (4 * $bits)))), $start % 8 % 5, 4, 0)
        } else {
            cut_across!($tile, $bits, $start, 4)
        }
    };
}

/// Weight `$i` of the 32 groups of a tile. The look-ups ignore bits 4 to 6 of an index.
///
/// At 3 bits, a high nibble and a low one that come soon after each other cross each third byte's end. `$window` gets the
/// bits of both from two bytes at once.
macro_rules! weights {
    ($tile:expr, $bits:expr, $i:expr, $tables:expr, $window:ident) => {{
        let low = match ($bits, $i % 8) {
            (3, 2 | 7) => $window,
            (3, 5) => cut!($window, 2, 4, 0),
            _ => nibble!($tile, $bits, $bits * $i),
        };
        let high = match ($bits, $i % 8) {
            (3, 1 | 6) => {
                $window = cut_across!($tile, $bits, $bits * $i + 3, 5);
                cut!($window, 1, 4, 0)
            }
            (3, 3) => {
                $window = cut_across!($tile, $bits, $bits * $i + 4, 6);
                $window
            }
            _ => nibble!($tile, $bits, $bits * $i + 4),
        };
        _mm256_add_epi8(
            _mm256_shuffle_epi8(load!($tables.low[0].as_ptr()), low),
            _mm256_shuffle_epi8(load!($tables.high[0].as_ptr()), high),
        )
    }};
}

/// Sums of the products of eight rows (`chunks` tiles, one after the other) with the activations of each of `T` tokens;
/// weights are offset.
///
/// A step adds at most 4 · 255 · 32 to a sum: those of rows of up to 2^18 columns stay below 2^31.
///
/// # Safety
/// `tiles` points to `chunks` tiles of `K` bits a weight, and the tokens have as many chunks.
#[target_feature(enable = "avx2,avxvnni,gfni")]
pub(super) unsafe fn gemv<const K: usize, const T: usize>(
    mut tiles: *const u8,
    chunks: usize,
    tokens: [&Quantized; T],
    tables: &Tables,
) -> [RowSums; T] {
    let planes = tokens.map(|token| [token.high.as_ptr(), token.low.as_ptr()]);
    let mut sums = [[_mm256_setzero_si256(); 2]; T];
    for chunk in 0..chunks {
        // SAFETY: the caller's tiles and activations, a chunk at a time.
        unsafe {
            super::prefetch::<K>(tiles);
            let mut window = _mm256_setzero_si256();
            macro_rules! step {
                ($i:literal) => {
                    let weights = weights!(tiles, K, $i, tables, window);
                    for (sums, planes) in sums.iter_mut().zip(&planes) {
                        for (sum, plane) in sums.iter_mut().zip(planes) {
                            let activations = broadcast!(plane.add(chunk * CHUNK + 4 * $i));
                            *sum = in_order(_mm256_dpbusd_avx_epi32(*sum, weights, activations));
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

/// Decodes a tile for [`panel`]: step `i` is weight `i` of the 32 groups, offset; steps are `stride` bytes apart.
///
/// # Safety
/// `tile` points to a tile of `K` bits a weight, `to` to room for 32 steps.
#[target_feature(enable = "avx2,avxvnni,gfni")]
pub(super) unsafe fn decode<const K: usize>(tile: *const u8, tables: &Tables, to: *mut u8, stride: usize) {
    // SAFETY: the caller's tile and room.
    unsafe {
        let mut window = _mm256_setzero_si256();
        macro_rules! step {
            ($i:literal) => {
                _mm256_storeu_si256(to.add($i * stride).cast(), weights!(tile, K, $i, tables, window));
            };
        }
        each_weight!(step);
    }
}

/// Adds the products of two decoded tiles, side by side, with both planes of a panel of `T` tokens to `sums`, two vectors a
/// token.
///
/// # Safety
/// `decoded` points to `chunks` chunks (at most 8) of 32 steps of two vectors, `values` to as many of `T` dwords a step and
/// plane.
#[target_feature(enable = "avx2,avxvnni,gfni")]
pub(super) unsafe fn panel<const T: usize>(
    decoded: *const u8,
    chunks: usize,
    values: *const i32,
    sums: *mut i32,
) {
    const STEPS: usize = CHUNK / 4;
    let mut products = [[_mm256_setzero_si256(); 2]; T];
    // The high plane first: it is worth 2^LOW_BITS when the low one's products are added to it. All of it stays below
    // 8 · 128 · 255 · 2080, which is far below 2^31.
    for plane in 0..2 {
        // By index: iterators over arrays of vectors are not unrolled, and the sums would go through memory.
        #[allow(clippy::needless_range_loop)]
        for t in 0..T {
            products[t] = products[t].map(|sums| _mm256_slli_epi32::<{ LOW_BITS as i32 }>(sums));
        }
        for chunk in 0..chunks {
            for step in 0..STEPS {
                // SAFETY: the caller's decoded weights and values, a step at a time.
                unsafe {
                    let weights = decoded.add((chunk * STEPS + step) * STEP);
                    let values = values.add(((2 * chunk + plane) * STEPS + step) * T);
                    let weights = [load!(weights), load!(weights.add(VECTOR))];
                    for (t, products) in products.iter_mut().enumerate() {
                        let values = broadcast!(values.add(t));
                        products[0] = _mm256_dpbusd_avx_epi32(products[0], weights[0], values);
                        products[1] = _mm256_dpbusd_avx_epi32(products[1], weights[1], values);
                    }
                }
            }
        }
    }
    for (i, products) in products.as_flattened().iter().enumerate() {
        // SAFETY: the caller's sums.
        unsafe {
            let place = sums.cast::<__m256i>().add(i);
            _mm256_storeu_si256(place, _mm256_add_epi32(_mm256_loadu_si256(place), *products));
        }
    }
}
