//! Kernels in AVX-512 VBMI and VNNI over groups in row order.
//!
//! Four groups of a row are spread over eight quadwords such that `vpmultishiftqb` can cut 64 states out of them at
//! once, each state a byte. Two look-ups and an addition give the values, offset to be unsigned for `vpdpbusd`. At up
//! to 3 bits a quadword holds 16 weights and serves for both halves of a chunk.
//!
//! The look-ups are `vpermb`, of whose index six bits count: tables of 16 repeated four times make two of them idle, so
//! that no index has to be masked. (A 256-entry look-up by `vpermi2b` is fewer instructions, but each is three of
//! Intel's, two of them for the one unit that permutes.)

use std::arch::x86_64::*;

use upg_codec::{Bits, GROUP, Table};

use super::panel_products::SPAN_CHUNKS;
use crate::{
    layout::spread_column,
    quantize::{CHUNK, LOW_BITS, Quantized},
};

/// Bytes of a vector.
pub(super) const VECTOR: usize = 64;

/// Vectors of weights in a chunk.
const VECTORS: usize = CHUNK / VECTOR;

/// Columns that are decoded at a time for many tokens.
pub(super) const BLOCK: usize = SPAN_CHUNKS * CHUNK;

/// Rows that [`gemv`] takes at once.
pub(super) const GEMV_ROWS: usize = 4;

/// How far ahead [`gemv`] prefetches, in bytes of a row.
const AHEAD: usize = 1024;

/// What weights are offset by.
pub(super) const OFFSET: u8 = 128;

/// Rows whose products with many tokens are lanes of a vector.
pub(super) const ROWS: usize = 16;

/// Vectors of rows that are multiplied together: each broadcast activation then serves for two.
pub(super) const PAIR: usize = 2;

/// Steps of four columns in a decoded chunk.
const CHUNK_STEPS: usize = CHUNK / 4;

/// The constants of one code.
#[repr(align(64))]
pub(super) struct Constants {
    /// For each vector of a chunk: which byte of the chunk's codes goes where.
    spread: [[u8; VECTOR]; VECTORS],
    /// And the bit of its quadword at which a byte's state begins.
    shift: [[u8; VECTOR]; VECTORS],
    /// What the lower nibble of a state is worth, offset, whatever the two bits above it.
    low: [u8; VECTOR],
    /// What the upper one is worth, likewise.
    high: [u8; VECTOR],
}

impl Constants {
    /// Those of a code, made when this was compiled.
    pub(super) fn of(bits: Bits) -> &'static Self {
        static B2: Constants = Constants::new(Bits::B2);
        static B3: Constants = Constants::new(Bits::B3);
        static B4: Constants = Constants::new(Bits::B4);
        static B5: Constants = Constants::new(Bits::B5);
        static B6: Constants = Constants::new(Bits::B6);
        static B8: Constants = Constants::new(Bits::B8);
        match bits {
            Bits::B2 => &B2,
            Bits::B3 => &B3,
            Bits::B4 => &B4,
            Bits::B5 => &B5,
            Bits::B6 => &B6,
            Bits::B8 => &B8,
        }
    }

    const fn new(bits: Bits) -> Self {
        let (k, ring) = (bits.get(), bits.group_bytes());
        let Table { low, high, .. } = bits.table();
        let zero = [0; VECTOR];
        let mut constants = Self { spread: [zero; VECTORS], shift: [zero; VECTORS], low: zero, high: zero };
        let mut byte = 0;
        while byte < VECTOR {
            constants.low[byte] = (low[byte % 16] as u8).wrapping_add(OFFSET);
            constants.high[byte] = high[byte % 16] as u8;
            let mut vector = 0;
            while vector < VECTORS {
                // The first weight of the quadword, and the first whose state it holds.
                let column = spread_column(vector * VECTOR + byte / 8 * 8);
                let first = if k <= 3 { column / 16 * 16 } else { column };
                let (group, start) = (first / GROUP, first % GROUP * k / 8);
                constants.spread[vector][byte] = (group * ring + (start + byte % 8) % ring) as u8;
                constants.shift[vector][byte] = ((column - first + byte % 8) * k) as u8;
                vector += 1;
            }
            byte += 1;
        }
        constants
    }
}

/// [`Constants`] in registers.
#[derive(Clone, Copy)]
struct Registers {
    spread: [__m512i; VECTORS],
    shift: [__m512i; VECTORS],
    low: __m512i,
    high: __m512i,
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni")]
fn registers(constants: &Constants) -> Registers {
    // SAFETY: an array is a vector long.
    let load = |bytes: &[u8; VECTOR]| unsafe { _mm512_loadu_si512(bytes.as_ptr().cast()) };
    let Constants { spread: [spread_0, spread_1], shift: [shift_0, shift_1], low, high } = constants;
    Registers {
        spread: [load(spread_0), load(spread_1)],
        shift: [load(shift_0), load(shift_1)],
        low: load(low),
        high: load(high),
    }
}

/// The values of a chunk of `K` bits a weight, in the order of [`spread_column`].
///
/// # Safety
/// A vector can be read at `codes`, two where `K` is above 4.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni")]
unsafe fn chunk<const K: usize>(codes: *const u8, r: &Registers) -> [__m512i; VECTORS] {
    // SAFETY: the caller's.
    let first = unsafe { _mm512_loadu_si512(codes.cast()) };
    let quadwords = if K <= 3 {
        // The two vectors' quadwords are the same.
        [_mm512_permutexvar_epi8(r.spread[0], first); VECTORS]
    } else if K == 4 {
        [_mm512_permutexvar_epi8(r.spread[0], first), _mm512_permutexvar_epi8(r.spread[1], first)]
    } else {
        // SAFETY: the caller's.
        let second = unsafe { _mm512_loadu_si512(codes.add(VECTOR).cast()) };
        [
            _mm512_permutex2var_epi8(first, r.spread[0], second),
            _mm512_permutex2var_epi8(first, r.spread[1], second),
        ]
    };
    [
        values(_mm512_multishift_epi64_epi8(r.shift[0], quadwords[0]), r),
        values(_mm512_multishift_epi64_epi8(r.shift[1], quadwords[1]), r),
    ]
}

/// The values of 64 states, offset.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni")]
fn values(states: __m512i, r: &Registers) -> __m512i {
    let low = _mm512_permutexvar_epi8(states, r.low);
    // What comes from the neighbouring byte does not count.
    let high = _mm512_permutexvar_epi8(_mm512_srli_epi16::<4>(states), r.high);
    _mm512_add_epi8(low, high)
}

/// The sums of the products of some rows with a token's activations; weights are offset.
///
/// Four rows share the loads of activations and hide each other's latencies. Codes are prefetched `AHEAD` bytes on in a
/// row; those past its end are of the row that comes `skip` bytes after it.
///
/// # Safety
/// Each of `codes` points to `chunks` chunks of `K` bits a weight with [`CHUNK`] more bytes to read, and `token` has as
/// many chunks.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni")]
pub(super) unsafe fn gemv<const K: usize>(
    codes: [*const u8; GEMV_ROWS],
    chunks: usize,
    skip: usize,
    token: &Quantized,
    constants: &Constants,
) -> [i64; GEMV_ROWS] {
    let r = registers(constants);
    let (mut high, mut low) = (token.high.as_ptr(), token.low.as_ptr());
    let last = chunks.saturating_sub(AHEAD / (CHUNK / 8 * K));
    // A chunk adds at most 8 · 255 · 32 to a lane: those of rows of up to 2^18 columns stay far below 2^31.
    let mut sums = [[_mm512_setzero_si512(); 2]; GEMV_ROWS];
    for chunk in 0..chunks {
        let ahead = if chunk < last { AHEAD } else { AHEAD + skip };
        // SAFETY: the caller's codes and activations, a chunk at a time; a prefetch may have any address.
        unsafe {
            let load = |plane: *const i8, vector| _mm512_loadu_si512(plane.add(vector * VECTOR).cast());
            let high_values = [load(high, 0), load(high, 1)];
            let low_values = [load(low, 0), load(low, 1)];
            for (codes, sums) in codes.iter().zip(&mut sums) {
                let codes = codes.add(chunk * (CHUNK / 8 * K));
                _mm_prefetch::<_MM_HINT_T0>(codes.wrapping_add(ahead).cast());
                let weights = self::chunk::<K>(codes, &r);
                for (sum, values) in sums.iter_mut().zip([high_values, low_values]) {
                    *sum = _mm512_dpbusd_epi32(*sum, weights[0], values[0]);
                    *sum = _mm512_dpbusd_epi32(*sum, weights[1], values[1]);
                }
            }
            (high, low) = (high.add(CHUNK), low.add(CHUNK));
        }
    }
    sums.map(|[high, low]| (total(high) << LOW_BITS) + total(low))
}

/// The sum of all lanes.
#[inline]
#[target_feature(enable = "avx512f")]
fn total(lanes: __m512i) -> i64 {
    let first = _mm512_cvtepi32_epi64(_mm512_castsi512_si256(lanes));
    let second = _mm512_cvtepi32_epi64(_mm512_extracti64x4_epi64::<1>(lanes));
    _mm512_reduce_add_epi64(_mm512_add_epi64(first, second))
}

/// Decodes a block (`chunks` chunks) of a row into `to`, offset.
///
/// # Safety
/// As for [`gemv`]; `to` has room for a block.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni")]
pub(super) unsafe fn decode<const K: usize>(
    codes: *const u8,
    chunks: usize,
    constants: &Constants,
    to: *mut u8,
) {
    let r = registers(constants);
    for i in 0..chunks {
        // SAFETY: the caller's codes and room, a chunk at a time.
        unsafe {
            let weights = chunk::<K>(codes.add(i * CHUNK / 8 * K), &r);
            for (vector, weights) in weights.into_iter().enumerate() {
                _mm512_storeu_si512(to.add(i * CHUNK + vector * VECTOR).cast(), weights);
            }
        }
    }
}

/// Turns a decoded block of [`ROWS`] rows of [`BLOCK`] bytes into vectors of one dword a row, a step each, `PAIR` vectors apart.
///
/// # Safety
/// `to` points to room for the first vectors of all steps of a block.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni")]
pub(super) unsafe fn transpose(rows: &[[u8; BLOCK]; ROWS], to: *mut u8) {
    for part in 0..BLOCK / VECTOR {
        let row = |i: usize| {
            let bytes = &rows[i][part * VECTOR..][..VECTOR];
            // SAFETY: the slice is a vector long.
            unsafe { _mm512_loadu_si512(bytes.as_ptr().cast()) }
        };
        // four[g][k]: in lane l, column 4·l + k of the rows 4·g to 4·g + 3.
        let four: [[__m512i; 4]; 4] = std::array::from_fn(|g| {
            let [a, b, c, d] = [row(4 * g), row(4 * g + 1), row(4 * g + 2), row(4 * g + 3)];
            let (ab, cd) = (_mm512_unpacklo_epi32(a, b), _mm512_unpacklo_epi32(c, d));
            let (ab_high, cd_high) = (_mm512_unpackhi_epi32(a, b), _mm512_unpackhi_epi32(c, d));
            [
                _mm512_unpacklo_epi64(ab, cd),
                _mm512_unpackhi_epi64(ab, cd),
                _mm512_unpacklo_epi64(ab_high, cd_high),
                _mm512_unpackhi_epi64(ab_high, cd_high),
            ]
        });
        // By index: of each of four.
        #[allow(clippy::needless_range_loop)]
        for k in 0..4 {
            let even = _mm512_shuffle_i32x4::<0x88>(four[0][k], four[1][k]);
            let even_more = _mm512_shuffle_i32x4::<0x88>(four[2][k], four[3][k]);
            let odd = _mm512_shuffle_i32x4::<0xdd>(four[0][k], four[1][k]);
            let odd_more = _mm512_shuffle_i32x4::<0xdd>(four[2][k], four[3][k]);
            let columns = [
                _mm512_shuffle_i32x4::<0x88>(even, even_more),
                _mm512_shuffle_i32x4::<0x88>(odd, odd_more),
                _mm512_shuffle_i32x4::<0xdd>(even, even_more),
                _mm512_shuffle_i32x4::<0xdd>(odd, odd_more),
            ];
            for (lane, column) in columns.into_iter().enumerate() {
                let step = part * ROWS + 4 * lane + k;
                // SAFETY: the caller's room.
                unsafe { _mm512_storeu_si512(to.add(step * PAIR * VECTOR).cast(), column) };
            }
        }
    }
}

/// Adds the products of a decoded span with both planes of a panel of `T` tokens to `sums`, [`PAIR`] vectors a token.
///
/// # Safety
/// `decoded` points to `chunks` chunks (at most [`SPAN_CHUNKS`]) of [`CHUNK_STEPS`] steps of [`PAIR`] vectors, `values` to as
/// many of `T` dwords a step and plane.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni")]
pub(super) unsafe fn panel<const T: usize>(
    decoded: *const u8,
    chunks: usize,
    values: *const i32,
    sums: *mut i32,
) {
    let mut products = [[_mm512_setzero_si512(); PAIR]; T];
    // The high plane first: it is worth 2^LOW_BITS when the low one's products are added to it. All of it stays below
    // 4 · 128 · 255 · 2080, which is far below 2^31.
    for plane in 0..2 {
        // By index: iterators over arrays of vectors are not unrolled, and the sums would go through memory.
        #[allow(clippy::needless_range_loop)]
        for t in 0..T {
            products[t] = products[t].map(|sums| _mm512_slli_epi32::<{ LOW_BITS as u32 }>(sums));
        }
        for chunk in 0..chunks {
            for step in 0..CHUNK_STEPS {
                // SAFETY: the caller's decoded weights and values, a step at a time.
                unsafe {
                    let weights = decoded.add((chunk * CHUNK_STEPS + step) * PAIR * VECTOR);
                    let values = values.add(((2 * chunk + plane) * CHUNK_STEPS + step) * T);
                    let first = _mm512_loadu_si512(weights.cast());
                    let second = _mm512_loadu_si512(weights.add(VECTOR).cast());
                    for (t, products) in products.iter_mut().enumerate() {
                        let values = _mm512_set1_epi32(values.add(t).read());
                        products[0] = _mm512_dpbusd_epi32(products[0], first, values);
                        products[1] = _mm512_dpbusd_epi32(products[1], second, values);
                    }
                }
            }
        }
    }
    for (i, products) in products.as_flattened().iter().enumerate() {
        // SAFETY: the caller's sums.
        unsafe {
            let place = sums.cast::<__m512i>().add(i);
            _mm512_storeu_si512(place, _mm512_add_epi32(_mm512_loadu_si512(place), *products));
        }
    }
}
