//! AVX2 kernels over the lane-planar layout, with and without AVX-VNNI.
//!
//! A vector holds byte `b` of 32 groups: four neighbouring groups of each of eight rows. Step `i` finds weight `i` of
//! all 32: two nibbles of the ring, each a shift and a mask, two `vpshufb`, one addition. Its 32 products with the
//! activations of the four groups (one dword, the same for all rows) go to eight 32-bit sums, one a row.

use std::arch::x86_64::*;

use upg_codec::{Bits, Table};

use crate::{layout::TILE_ROWS, quantize::LOW_BITS};

/// Bytes of a vector.
pub(super) const VECTOR: usize = 32;

/// What weights are offset by where an instruction wants them unsigned.
pub(super) const OFFSET: u8 = 128;

/// The sums of a tile's rows.
pub(super) type RowSums = [i64; TILE_ROWS];

/// The look-up tables of one code in both halves of a vector, for every order of an index's bits.
///
/// A nibble that lies in two bytes is put together from the upper bits of the one, shifted down by four, and the lower
/// bits of the other, in place: its bits then stand rotated to the left, by as much as the second byte has of them.
/// Looking up in a table in that order saves the shifts.
pub(super) struct Tables {
    pub(super) low: [[u8; VECTOR]; 4],
    pub(super) high: [[u8; VECTOR]; 4],
}

impl Tables {
    /// The tables of a code, with `offset` added to every value (modulo 256).
    pub(super) fn new(bits: Bits, offset: u8) -> Self {
        let Table { low, high, .. } = bits.table();
        let rotated = |table: &[i8; 16], offset: u8| {
            std::array::from_fn(|rotation| {
                std::array::from_fn(|i| {
                    let index = i % 16;
                    let nibble = (index >> rotation | index << (4 - rotation)) & 15;
                    (table[nibble] as u8).wrapping_add(offset)
                })
            })
        };
        Self { low: rotated(low, offset), high: rotated(high, 0) }
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

/// Calls a macro for each of the 32 weights of a group, with a literal, so that every shift is a constant.
macro_rules! each_weight {
    ($do:ident) => {
        $do!(0);
        $do!(1);
        $do!(2);
        $do!(3);
        $do!(4);
        $do!(5);
        $do!(6);
        $do!(7);
        $do!(8);
        $do!(9);
        $do!(10);
        $do!(11);
        $do!(12);
        $do!(13);
        $do!(14);
        $do!(15);
        $do!(16);
        $do!(17);
        $do!(18);
        $do!(19);
        $do!(20);
        $do!(21);
        $do!(22);
        $do!(23);
        $do!(24);
        $do!(25);
        $do!(26);
        $do!(27);
        $do!(28);
        $do!(29);
        $do!(30);
        $do!(31);
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

pub(super) use {broadcast, each_two_weights, each_weight, load, look_up, weights};

/// The sums of products with values from those with their planes, in the order of rows.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn join(sums: [__m256i; 2]) -> RowSums {
    let [high, low] = sums.map(|sums| lanes(sums));
    std::array::from_fn(|row| (i64::from(high[row]) << LOW_BITS) + i64::from(low[row]))
}

/// The lanes of a vector.
#[inline]
#[target_feature(enable = "avx2")]
fn lanes(vector: __m256i) -> [i32; TILE_ROWS] {
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
