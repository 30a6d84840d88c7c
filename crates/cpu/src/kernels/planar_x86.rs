//! What the lane-planar kernels of x86-64 share, and the choice among them: AVX2, with and without AVX-VNNI.

use std::arch::x86_64::*;

pub(super) use upg_codec::GROUP;
use upg_codec::{Bits, Isa};

use super::{
    avx2, for_bits,
    planar::{RowSums, Tables},
    vnni,
};
use crate::{
    layout::TILE_ROWS,
    quantize::{LOW_BITS, Quantized},
};

/// The most tokens that [`gemv`] takes: with four, decoding once for a panel is as fast.
pub(super) const FEW: usize = 3;

/// What makes weights unsigned, as one factor of a product of bytes has to be.
pub(super) const OFFSET: u8 = 128;

/// What [`gemv`] wants added to every weight.
pub(super) fn gemv_offset(_isa: Isa) -> u8 {
    OFFSET
}

/// Columns that a token has activations for, in all forms that the kernels read.
pub(super) fn columns(_isa: Isa, token: &Quantized) -> usize {
    token.high.len().min(token.low.len())
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
        4 => _mm256_srli_epi16::<4>(bytes),
        5 => _mm256_srli_epi16::<5>(bytes),
        6 => _mm256_srli_epi16::<6>(bytes),
        _ => _mm256_srli_epi16::<7>(bytes),
    }
}

/// `bytes << by`, likewise.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn shift_left(bytes: __m256i, by: usize) -> __m256i {
    match by {
        1 => _mm256_slli_epi16::<1>(bytes),
        2 => _mm256_slli_epi16::<2>(bytes),
        3 => _mm256_slli_epi16::<3>(bytes),
        _ => _mm256_slli_epi16::<4>(bytes),
    }
}

/// The look-up of the nibble at ring bit `$offset` (a constant once compiled). Bits 4 to 6 of an index are ignored, so a
/// mask may have bit 4.
macro_rules! look_up {
    ($tile:expr, $bits:expr, $offset:expr, $tables:expr, $masks:expr) => {{
        let (byte, bit) = ($offset / 8 % (4 * $bits), $offset % 8);
        let first = load!($tile.add(VECTOR * byte));
        if bit <= 4 {
            let index = _mm256_and_si256(shift_right(first, bit), $masks.lowest[5]);
            _mm256_shuffle_epi8(load!($tables[0].as_ptr()), index)
        } else {
            let second = load!($tile.add(VECTOR * ((byte + 1) % (4 * $bits))));
            let index = _mm256_or_si256(
                _mm256_and_si256(_mm256_srli_epi16::<4>(first), $masks.rest[bit - 4]),
                _mm256_and_si256(second, $masks.lowest[bit - 4]),
            );
            _mm256_shuffle_epi8(load!($tables[bit - 4].as_ptr()), index)
        }
    }};
}

/// Whether weight `i` has a [`window!`].
///
/// At 3 bits a weight, the high nibble of weight `i - 1` begins one bit behind the low one of weight `i`. So five bits, cut
/// out once, serve both: as they are (the look-up ignores bits 4 to 6 of an index) and shifted by one, which `vpavgb`
/// does within bytes, at no cost for masks. Where the nibbles are easily had by themselves, they are cheaper so.
pub(super) const fn has_window(bits: usize, i: usize) -> bool {
    bits == 3 && !matches!(i % 8, 4 | 5)
}

/// What [`weights!`] needs beside the tables. The compiler knows none of it: known masks it would make anew for each use.
#[derive(Clone, Copy)]
pub(super) struct Masks {
    /// The lowest one to five bits, from index 1 on.
    pub(super) lowest: [__m256i; 6],
    /// The lowest five without the lowest none to three.
    pub(super) rest: [__m256i; 4],
    /// One.
    pub(super) one: __m256i,
}

impl Masks {
    #[inline]
    #[target_feature(enable = "avx2")]
    pub(super) fn new() -> Self {
        let repeat = |byte: i8| opaque(_mm256_set1_epi8(byte));
        let [none, five] = [repeat(0), repeat(31)];
        Self {
            lowest: [none, repeat(1), repeat(3), repeat(7), repeat(15), five],
            rest: [five, repeat(30), repeat(28), repeat(24)],
            one: repeat(1),
        }
    }
}

/// The same vector, of which the compiler knows nothing.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn opaque(mut vector: __m256i) -> __m256i {
    // SAFETY: no instruction.
    unsafe {
        std::arch::asm!("/* {0} */", inout(ymm_reg) vector, options(pure, nomem, nostack, preserves_flags))
    };
    vector
}

/// Keeps the compiler from mixing steps: it would have more numbers on their way than there are registers.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn in_order(mut vector: __m256i) -> __m256i {
    // SAFETY: no instruction.
    unsafe { std::arch::asm!("/* {0} */", inout(ymm_reg) vector, options(nomem, nostack, preserves_flags)) };
    vector
}

/// `bytes / 2 + 1`, within bytes, given ones. In assembly, since compilers take the intrinsic apart.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn half_and_one(bytes: __m256i, ones: __m256i) -> __m256i {
    let mut halves;
    // SAFETY: the instruction is AVX2's; it touches no memory.
    unsafe {
        std::arch::asm!(
            "vpavgb {halves}, {bytes}, {ones}",
            halves = lateout(ymm_reg) halves,
            bytes = in(ymm_reg) bytes,
            ones = in(ymm_reg) ones,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    halves
}

/// The five bits of the ring from the low nibble of weight `$i` on, as the lowest bits of bytes whose other ones are zero.
macro_rules! window {
    ($tile:expr, $bits:expr, $i:expr, $masks:expr) => {{
        let (byte, bit) = ($bits * $i / 8, $bits * $i % 8);
        let first = shift_right(load!($tile.add(VECTOR * byte)), bit);
        if bit <= 3 {
            _mm256_and_si256(first, $masks.lowest[5])
        } else {
            let from_first = 8 - bit;
            let second = load!($tile.add(VECTOR * ((byte + 1) % (4 * $bits))));
            let second = _mm256_and_si256(second, $masks.lowest[5 - from_first]);
            _mm256_or_si256(
                _mm256_and_si256(first, $masks.lowest[from_first]),
                shift_left(second, from_first),
            )
        }
    }};
}

/// What [`weights!`] wants to have been left by the weight before, for the first one of a tile.
macro_rules! first_window {
    ($tile:expr, $bits:expr, $masks:expr) => {
        if has_window($bits, 0) { window!($tile, $bits, 0, $masks) } else { _mm256_setzero_si256() }
    };
}

/// Weight `$i` of the 32 groups of a tile. `$window` is the weight's [`window!`], where it has one, and becomes the next
/// weight's.
macro_rules! weights {
    ($tile:expr, $bits:expr, $i:expr, $tables:expr, $masks:expr, $window:ident) => {{
        let low = if has_window($bits, $i) {
            _mm256_shuffle_epi8(load!($tables.low[0].as_ptr()), $window)
        } else {
            look_up!($tile, $bits, $bits * $i, $tables.low, $masks)
        };
        let high = if has_window($bits, $i + 1) {
            $window = window!($tile, $bits, (($i + 1) % GROUP), $masks);
            _mm256_shuffle_epi8(load!($tables.high_after.as_ptr()), half_and_one($window, $masks.one))
        } else {
            look_up!($tile, $bits, $bits * $i + 4, $tables.high, $masks)
        };
        _mm256_add_epi8(low, high)
    }};
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

pub(super) use {broadcast, each_two_weights, first_window, load, look_up, weights, window};

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
fn lanes(vector: __m256i) -> [i32; TILE_ROWS] {
    let mut lanes = [0; TILE_ROWS];
    // SAFETY: the array is as large as the vector.
    unsafe { _mm256_storeu_si256(lanes.as_mut_ptr().cast(), vector) };
    lanes
}
