//! What the lane-planar kernels of x86-64 share, and the choice among them: AVX2, with and without AVX-VNNI.

use std::{arch::x86_64::*, ops::Range};

use upg_codec::{Bits, Isa};

use super::{
    avx2, for_bits,
    planar::{RowSums, STEP, Tables, VECTOR},
    vnni,
};
use crate::{
    layout::TILE_ROWS,
    matrix::T8,
    quantize::{CHUNK, LIFT, LOW_BITS, PLANES, Quantized},
};

/// The most tokens that [`gemv`] takes: with four, decoding once for [`multiply`] is as fast.
pub(super) const FEW: usize = 3;

/// The most tokens that [`multiply`] takes: their sums stay in registers.
pub(super) const MAX_TOKENS: usize = 6;

/// What weights are offset by where an instruction wants them unsigned.
const OFFSET: u8 = 128;

/// What the kernels of a path want added to every weight.
pub(super) fn offset(isa: Isa) -> u8 {
    if isa == Isa::AvxVnni { OFFSET } else { 0 }
}

/// What is in a row's total with one token that is not its product: the offset on every weight, or the lift of every
/// activation.
pub(super) fn surplus(isa: Isa, matrix: &T8, row: usize, token: &Quantized) -> i64 {
    match isa {
        Isa::AvxVnni => i64::from(OFFSET) * token.sum,
        _ => i64::from(LIFT) * i64::from(matrix.sums[row]),
    }
}

/// Columns that a token has activations for, in all forms that the kernels of a path read.
pub(super) fn columns(isa: Isa, token: &Quantized) -> usize {
    let planes = token.high.len().min(token.low.len());
    if isa == Isa::AvxVnni { planes } else { planes.min(token.paired.len()) }
}

/// Steps of a decoded chunk.
pub(super) fn chunk_steps(isa: Isa) -> usize {
    if isa == Isa::AvxVnni { 32 } else { 64 }
}

/// Sums of the products of eight rows with the activations of each of `T` tokens.
///
/// # Safety
/// `tiles` points to `chunks` tiles of `bits` bits a weight, one after the other, the tokens have as many chunks, and the
/// processor has `isa`.
pub(super) unsafe fn gemv<const T: usize>(
    isa: Isa,
    bits: Bits,
    tiles: *const u8,
    chunks: usize,
    tokens: [&Quantized; T],
    tables: &Tables,
) -> [RowSums; T] {
    // SAFETY: the caller's.
    unsafe {
        match isa {
            Isa::AvxVnni => for_bits!(bits, vnni::gemv::<T>(tiles, chunks, tokens, tables)),
            _ => for_bits!(bits, avx2::gemv::<T>(tiles, chunks, tokens, tables)),
        }
    }
}

/// The sum of the weights of each of the rows of a strip of tiles, those beyond the rows' end included. The processor
/// has AVX2: this layout is for no other.
pub(super) fn row_sums(bits: Bits, cols: usize, strip: &[u8]) -> [i32; TILE_ROWS] {
    let chunks = cols.div_ceil(CHUNK);
    let strip = &strip[..chunks * 4 * bits.get() * VECTOR];
    let tables = Tables::new(bits, 0);
    // SAFETY: the slice holds as many tiles; the processor's instructions as above.
    unsafe { for_bits!(bits, avx2::row_sums(strip.as_ptr(), chunks, &tables)) }
}

/// Decodes a tile for [`multiply`]: [`chunk_steps`] steps, [`STEP`] bytes apart.
///
/// # Safety
/// `tile` points to a tile of `bits` bits a weight, `to` to room for its steps, and the processor has `isa`.
pub(super) unsafe fn decode(isa: Isa, bits: Bits, tile: *const u8, tables: &Tables, to: *mut u8) {
    // SAFETY: the caller's.
    unsafe {
        match isa {
            Isa::AvxVnni => for_bits!(bits, vnni::decode(tile, tables, to, STEP)),
            _ => for_bits!(bits, avx2::decode(tile, tables, to, STEP)),
        }
    }
}

/// Adds the products of a decoded span (its chunks) of two tiles, side by side, with `T` tokens to the tokens' totals.
/// Activations are not lifted here: AVX2 multiplies many tokens in 16 bits.
///
/// # Safety
/// `decoded` points to the span's steps, the tokens have its chunks, and the processor has `isa`.
pub(super) unsafe fn multiply<const T: usize>(
    isa: Isa,
    decoded: *const u8,
    tokens: [&Quantized; T],
    span: Range<usize>,
    totals: &mut [PairTotals; T],
) {
    let steps = span.len() * chunk_steps(isa);
    if isa != Isa::AvxVnni {
        let activations = tokens.map(|token| token.paired[span.start * CHUNK..].as_ptr().cast());
        // SAFETY: the caller's; there are two activations a step.
        unsafe { avx2::tokens(decoded, steps, activations, totals) };
        return;
    }
    for plane in PLANES {
        let activations = tokens.map(|token| plane.of(token)[span.start * CHUNK..].as_ptr().cast());
        // SAFETY: as above, with four activations a step.
        unsafe { vnni::tokens(decoded, steps, activations, plane.worth(), totals) };
    }
}

/// Loads a vector.
macro_rules! load {
    ($from:expr) => {
        // Used inside unsafe blocks, which say why 32 bytes can be read there.
        _mm256_loadu_si256($from.cast())
    };
}

/// Repeats a dword in all lanes.
macro_rules! broadcast {
    ($from:expr) => {
        // Used inside unsafe blocks, which say why 4 bytes can be read there.
        _mm256_set1_epi32($from.cast::<i32>().read_unaligned())
    };
}

/// `bytes >> by`, in 16-bit lanes: the caller masks the bits that come from the neighbour.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn shift_right(bytes: __m256i, by: usize) -> __m256i {
    match by {
        0 => bytes,
        1 => _mm256_srli_epi16::<1>(bytes),
        2 => _mm256_srli_epi16::<2>(bytes),
        3 => _mm256_srli_epi16::<3>(bytes),
        _ => _mm256_srli_epi16::<4>(bytes),
    }
}

/// The look-up of the nibble at ring bit `$offset` (a constant once compiled).
macro_rules! look_up {
    ($tile:expr, $bits:expr, $offset:expr, $tables:expr) => {{
        let (byte, bit) = ($offset / 8 % (4 * $bits), $offset % 8);
        let first = load!($tile.add(VECTOR * byte));
        if bit <= 4 {
            let index = _mm256_and_si256(shift_right(first, bit), _mm256_set1_epi8(15));
            _mm256_shuffle_epi8(load!($tables[0].as_ptr()), index)
        } else {
            let second = load!($tile.add(VECTOR * ((byte + 1) % (4 * $bits))));
            let from_second = (1 << (bit - 4)) - 1;
            let index = _mm256_or_si256(
                _mm256_and_si256(_mm256_srli_epi16::<4>(first), _mm256_set1_epi8(15 & !from_second)),
                _mm256_and_si256(second, _mm256_set1_epi8(from_second)),
            );
            _mm256_shuffle_epi8(load!($tables[bit - 4].as_ptr()), index)
        }
    }};
}

/// Weight `$i` of the 32 groups of a tile.
macro_rules! weights {
    ($tile:expr, $bits:expr, $i:expr, $tables:expr) => {
        _mm256_add_epi8(
            look_up!($tile, $bits, $bits * $i, $tables.low),
            look_up!($tile, $bits, $bits * $i + 4, $tables.high),
        )
    };
}

/// Calls a macro for each two neighbouring weights of a group.
macro_rules! each_two_weights {
    ($do:ident) => {
        $do!(0, 1);
        $do!(2, 3);
        $do!(4, 5);
        $do!(6, 7);
        $do!(8, 9);
        $do!(10, 11);
        $do!(12, 13);
        $do!(14, 15);
        $do!(16, 17);
        $do!(18, 19);
        $do!(20, 21);
        $do!(22, 23);
        $do!(24, 25);
        $do!(26, 27);
        $do!(28, 29);
        $do!(30, 31);
    };
}

pub(super) use {broadcast, each_two_weights, load, look_up, weights};

/// The sums of products with values from those with their planes, in the order of rows.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn join<const T: usize>(sums: [[__m256i; 2]; T]) -> [RowSums; T] {
    let mut joined = [RowSums::default(); T];
    for (joined, [high, low]) in joined.iter_mut().zip(sums) {
        for ((sum, high), low) in joined.iter_mut().zip(lanes(high)).zip(lanes(low)) {
            *sum = (i64::from(high) << LOW_BITS) + i64::from(low);
        }
    }
    joined
}

/// The lanes of a vector.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn lanes(vector: __m256i) -> [i32; TILE_ROWS] {
    let mut lanes = [0; TILE_ROWS];
    // SAFETY: the array is as large as the vector.
    unsafe { _mm256_storeu_si256(lanes.as_mut_ptr().cast(), vector) };
    lanes
}

/// The totals of one token and the rows of two tiles: of each, the even rows' and the odd rows'.
#[derive(Clone, Copy)]
pub(super) struct PairTotals([[__m256i; 2]; 2]);

impl PairTotals {
    /// Nothing yet.
    #[inline]
    #[target_feature(enable = "avx2")]
    pub(super) fn zero() -> Self {
        Self([[_mm256_setzero_si256(); 2]; 2])
    }

    /// Adds `sums · worth`.
    #[inline]
    #[target_feature(enable = "avx2")]
    pub(super) fn add(&mut self, sums: [__m256i; 2], worth: i32) {
        let worth = _mm256_set1_epi32(worth);
        for ([even, odd], sums) in self.0.iter_mut().zip(sums) {
            *even = _mm256_add_epi64(*even, _mm256_mul_epi32(sums, worth));
            *odd = _mm256_add_epi64(*odd, _mm256_mul_epi32(_mm256_srli_epi64::<32>(sums), worth));
        }
    }

    /// The totals in the order of rows.
    #[inline]
    #[target_feature(enable = "avx2")]
    pub(super) fn rows(&self) -> [RowSums; 2] {
        self.0.map(|halves| {
            let mut rows = [0; TILE_ROWS];
            for (parity, totals) in halves.into_iter().enumerate() {
                let mut four = [0i64; 4];
                // SAFETY: the array is as large as the vector.
                unsafe { _mm256_storeu_si256(four.as_mut_ptr().cast(), totals) };
                for (i, total) in four.into_iter().enumerate() {
                    rows[2 * i + parity] = total;
                }
            }
            rows
        })
    }
}
