//! Packing lane-planar tiles with AVX2.

use std::arch::x86_64::*;

use upg_codec::Bits;

use super::{CHUNK_GROUPS, MAX_WORDS, TILE_GROUPS, TILE_ROWS};
use crate::kernels::for_bits;

/// Packs the chunks that `rows` (of `row` bytes) fill: none where there are fewer than [`TILE_ROWS`]. Returns their
/// number. The processor has AVX2.
pub(super) fn whole_chunks(bits: Bits, rows: &[u8], row: usize, tiles: &mut [u8]) -> usize {
    if rows.len() < TILE_ROWS * row {
        return 0;
    }
    let chunks = row / (CHUNK_GROUPS * bits.group_bytes());
    let tiles = &mut tiles[..chunks * TILE_GROUPS * bits.group_bytes()];
    // SAFETY: there are eight rows with as many chunks, and `tiles` has room for them; the caller's processor.
    unsafe { for_bits!(bits, pack(rows.as_ptr(), row, chunks, tiles.as_mut_ptr())) };
    chunks
}

/// Packs `chunks` chunks of `K` bits a weight: words of all rows side by side first, then bytes of all groups.
///
/// # Safety
/// `rows` points to eight rows, `row` bytes apart, and `tiles` to room for as many tiles as each has chunks.
#[target_feature(enable = "avx2")]
unsafe fn pack<const K: usize>(rows: *const u8, row: usize, chunks: usize, tiles: *mut u8) {
    for chunk in 0..chunks {
        let mut words = [_mm256_setzero_si256(); CHUNK_GROUPS * MAX_WORDS];
        for (i, words) in words.as_chunks_mut::<4>().0.iter_mut().take(K).enumerate() {
            let four = |r: usize| {
                let at = 16 * (chunk * K + i);
                // SAFETY: 16 bytes of a chunk of the rows `r` and `r + 4`.
                unsafe {
                    let low = _mm_loadu_si128(rows.add(r * row + at).cast());
                    let high = _mm_loadu_si128(rows.add((r + 4) * row + at).cast());
                    _mm256_set_m128i(high, low)
                }
            };
            *words = transpose_words([four(0), four(1), four(2), four(3)]);
        }
        for w in 0..K {
            let bytes = transpose_bytes([words[w], words[K + w], words[2 * K + w], words[3 * K + w]]);
            for (b, lanes) in bytes.into_iter().enumerate() {
                // SAFETY: the vector is within the chunk's tile.
                unsafe {
                    let to = tiles.add((chunk * 4 * K + 4 * w + b) * TILE_GROUPS);
                    _mm256_storeu_si256(to.cast(), lanes);
                }
            }
        }
    }
}

/// From four words of rows `r` and `r + 4` (one in each half) for each `r`: vectors of one word of all eight rows.
#[inline]
#[target_feature(enable = "avx2")]
fn transpose_words([a, b, c, d]: [__m256i; 4]) -> [__m256i; 4] {
    let [ab, cd] = [_mm256_unpacklo_epi32(a, b), _mm256_unpacklo_epi32(c, d)];
    let [ab_high, cd_high] = [_mm256_unpackhi_epi32(a, b), _mm256_unpackhi_epi32(c, d)];
    [
        _mm256_unpacklo_epi64(ab, cd),
        _mm256_unpackhi_epi64(ab, cd),
        _mm256_unpacklo_epi64(ab_high, cd_high),
        _mm256_unpackhi_epi64(ab_high, cd_high),
    ]
}

/// From the same word of four groups: vectors of one byte of all four, side by side in a word.
#[inline]
#[target_feature(enable = "avx2")]
fn transpose_bytes([a, b, c, d]: [__m256i; 4]) -> [__m256i; 4] {
    let odd_bytes = _mm256_set1_epi16(-256);
    // Bytes 0 and 2 of both, and bytes 1 and 3.
    let pairs = |x, y| {
        let even = _mm256_blendv_epi8(x, _mm256_slli_epi16::<8>(y), odd_bytes);
        let odd = _mm256_blendv_epi8(_mm256_srli_epi16::<8>(x), y, odd_bytes);
        [even, odd]
    };
    let [[ab_even, ab_odd], [cd_even, cd_odd]] = [pairs(a, b), pairs(c, d)];
    let first = |x, y| _mm256_blend_epi16::<0xaa>(x, _mm256_slli_epi32::<16>(y));
    let second = |x, y| _mm256_blend_epi16::<0xaa>(_mm256_srli_epi32::<16>(x), y);
    [first(ab_even, cd_even), first(ab_odd, cd_odd), second(ab_even, cd_even), second(ab_odd, cd_odd)]
}
