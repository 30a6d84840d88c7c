//! What the lane-planar kernels of NEON share, with and without dot products.
//!
//! A tile's vectors of 32 bytes are two halves of four rows here. Step `i` finds weight `i` of a half's 16 groups: two
//! nibbles of the ring, each a shift and a mask (or a shift and an insertion), two `tbl`, one addition.

use std::arch::{aarch64::*, asm};

use super::planar::{RowSums, Tables, VECTOR, each_weight};
use crate::{layout::TILE_ROWS, quantize::PLANES};

/// Bytes of a NEON vector: half a tile's.
pub(super) const HALF: usize = VECTOR / 2;

/// Rows of a half.
pub(super) const HALF_ROWS: usize = TILE_ROWS / 2;

/// The look-up tables in registers, and masks of the lowest one, two and three bits.
#[derive(Clone, Copy)]
pub(super) struct Registers {
    pub(super) low: [uint8x16_t; 4],
    pub(super) high: [uint8x16_t; 4],
    pub(super) lowest: [uint8x16_t; 3],
}

impl Registers {
    #[inline]
    #[target_feature(enable = "neon")]
    pub(super) fn new(tables: &Tables) -> Self {
        // SAFETY: a table has more than 16 bytes.
        let load = |tables: &[[u8; VECTOR]; 4]| tables.each_ref().map(|t| unsafe { vld1q_u8(t.as_ptr()) });
        // A known mask would be made anew for each use.
        let mask = |bits| vreinterpretq_u8_s8(opaque(vdupq_n_s8(bits)));
        let lowest = [mask(1), mask(3), mask(7)];
        Self { low: load(&tables.low), high: load(&tables.high), lowest }
    }
}

/// The same vector, of which the compiler knows nothing: where it sees that both halves are equal, say, it takes the
/// products of the upper one apart.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn opaque(mut vector: int8x16_t) -> int8x16_t {
    // SAFETY: no instruction.
    unsafe { asm!("/* {0:v} */", inout(vreg) vector, options(pure, nomem, nostack, preserves_flags)) };
    vector
}

/// `bytes >> by`.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn shift_right(bytes: uint8x16_t, by: usize) -> uint8x16_t {
    match by {
        0 => bytes,
        1 => vshrq_n_u8::<1>(bytes),
        2 => vshrq_n_u8::<2>(bytes),
        3 => vshrq_n_u8::<3>(bytes),
        _ => vshrq_n_u8::<4>(bytes),
    }
}

/// `to` with the bits of `from` that are set in `mask`: one instruction, where of the intrinsic compilers make three.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn insert(mut to: uint8x16_t, from: uint8x16_t, mask: uint8x16_t) -> uint8x16_t {
    // SAFETY: every processor of the architecture has the instruction; it touches no memory.
    unsafe {
        asm!(
            "bit {to:v}.16b, {from:v}.16b, {mask:v}.16b",
            to = inout(vreg) to,
            from = in(vreg) from,
            mask = in(vreg) mask,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    to
}

/// The look-up of the nibble at ring bit `offset` (a constant once compiled) of the groups of a half.
///
/// # Safety
/// `half` points to a half of a tile of `K` bits a weight.
#[inline]
#[target_feature(enable = "neon")]
unsafe fn look_up<const K: usize>(
    half: *const u8,
    offset: usize,
    tables: &[uint8x16_t; 4],
    lowest: &[uint8x16_t; 3],
) -> uint8x16_t {
    let (byte, bit) = (offset / 8 % (4 * K), offset % 8);
    // SAFETY: a group has 4 · K bytes.
    let first = unsafe { vld1q_u8(half.add(VECTOR * byte)) };
    if bit < 4 {
        return vqtbl1q_u8(tables[0], vandq_u8(shift_right(first, bit), vdupq_n_u8(15)));
    }
    let upper = vshrq_n_u8::<4>(first);
    if bit == 4 {
        return vqtbl1q_u8(tables[0], upper);
    }
    // The nibble's other bits are the next byte's lowest, and stand below its own: see `Tables`.
    // SAFETY: as above.
    let second = unsafe { vld1q_u8(half.add(VECTOR * ((byte + 1) % (4 * K)))) };
    vqtbl1q_u8(tables[bit - 4], insert(upper, second, lowest[bit - 5]))
}

/// Weight `i` (a constant once compiled) of the 16 groups of a half.
///
/// # Safety
/// `half` points to a half of a tile of `K` bits a weight.
#[inline]
#[target_feature(enable = "neon")]
pub(super) unsafe fn weights<const K: usize>(half: *const u8, i: usize, tables: &Registers) -> int8x16_t {
    // SAFETY: the caller's.
    let [low, high] = unsafe {
        [
            look_up::<K>(half, K * i, &tables.low, &tables.lowest),
            look_up::<K>(half, K * i + 4, &tables.high, &tables.lowest),
        ]
    };
    vreinterpretq_s8_u8(vaddq_u8(low, high))
}

/// Prefetches as many bytes as a tile has, some way ahead.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn prefetch<const K: usize>(tile: *const u8) {
    // The offsets are parts of the instructions: a register for each would be one too many.
    macro_rules! lines {
        ($($line:literal)*) => {$(
            if $line < 2 * K {
                // SAFETY: a prefetch may have any address.
                unsafe {
                    asm!(
                        "prfm pldl1strm, [{tile}, #{ahead}]",
                        tile = in(reg) tile,
                        ahead = const super::PREFETCH + 64 * $line,
                        options(readonly, nostack, preserves_flags),
                    );
                }
            }
        )*};
    }
    lines!(0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15);
}

/// 64-bit totals of a half's rows.
#[derive(Clone, Copy)]
pub(super) struct HalfTotals([int64x2_t; 2]);

impl HalfTotals {
    #[inline]
    #[target_feature(enable = "neon")]
    pub(super) fn zero() -> Self {
        Self([vdupq_n_s64(0); 2])
    }

    /// Adds `sums · worth`.
    #[inline]
    #[target_feature(enable = "neon")]
    pub(super) fn add(&mut self, sums: int32x4_t, worth: i32) {
        let worth = vdupq_n_s32(worth);
        self.0[0] = vmlal_s32(self.0[0], vget_low_s32(sums), vget_low_s32(worth));
        self.0[1] = vmlal_high_s32(self.0[1], sums, worth);
    }

    #[inline]
    #[target_feature(enable = "neon")]
    fn rows(self) -> [i64; HALF_ROWS] {
        let mut rows = [0; HALF_ROWS];
        for (totals, rows) in self.0.into_iter().zip(rows.chunks_exact_mut(2)) {
            // SAFETY: the chunk is as large as the vector.
            unsafe { vst1q_s64(rows.as_mut_ptr(), totals) };
        }
        rows
    }
}

/// The totals of a tile's halves.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn rows(totals: [HalfTotals; 2]) -> RowSums {
    let mut rows = [0; TILE_ROWS];
    for (totals, rows) in totals.into_iter().zip(rows.chunks_exact_mut(HALF_ROWS)) {
        rows.copy_from_slice(&totals.rows());
    }
    rows
}

/// The sums of products with values from those with their planes, of each the two halves'.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn join(sums: [[int32x4_t; 2]; 2]) -> RowSums {
    let mut totals = [HalfTotals::zero(); 2];
    for (plane, sums) in PLANES.into_iter().zip(sums) {
        for (totals, sums) in totals.iter_mut().zip(sums) {
            totals.add(sums, plane.worth());
        }
    }
    rows(totals)
}

/// Decodes a tile for the products with several tokens: step `i` is weight `i` of the 32 groups; steps are `stride` bytes
/// apart.
///
/// # Safety
/// `tile` points to a tile of `K` bits a weight, `to` to room for 32 steps.
#[target_feature(enable = "neon")]
pub(super) unsafe fn decode<const K: usize>(tile: *const u8, tables: &Tables, to: *mut u8, stride: usize) {
    let tables = Registers::new(tables);
    // SAFETY: the caller's tile and room.
    unsafe {
        macro_rules! step {
            ($i:literal) => {
                for half in [0, HALF] {
                    vst1q_s8(to.add($i * stride + half).cast(), weights::<K>(tile.add(half), $i, &tables));
                }
            };
        }
        each_weight!(step);
    }
}

/// The totals of one token and the rows of two tiles.
#[derive(Clone, Copy)]
pub(super) struct PairTotals([[HalfTotals; 2]; 2]);

impl PairTotals {
    /// Nothing yet.
    #[inline]
    #[target_feature(enable = "neon")]
    pub(super) fn zero() -> Self {
        Self([[HalfTotals::zero(); 2]; 2])
    }

    /// Adds `sums · worth`, those of four halves.
    #[inline]
    #[target_feature(enable = "neon")]
    pub(super) fn add(&mut self, sums: [int32x4_t; 4], worth: i32) {
        for (totals, sums) in self.0.as_flattened_mut().iter_mut().zip(sums) {
            totals.add(sums, worth);
        }
    }

    /// The totals in the order of rows.
    #[inline]
    #[target_feature(enable = "neon")]
    pub(super) fn rows(&self) -> [RowSums; 2] {
        [rows(self.0[0]), rows(self.0[1])]
    }
}

/// The four vectors of step `i` of two decoded tiles.
///
/// # Safety
/// `decoded` points to more than `i` steps.
#[inline]
#[target_feature(enable = "neon")]
pub(super) unsafe fn decoded_step(decoded: *const u8, i: usize) -> [int8x16_t; 4] {
    // SAFETY: the caller's.
    [0, 1, 2, 3].map(|part| unsafe { vld1q_s8(decoded.add(2 * VECTOR * i + HALF * part).cast()) })
}
