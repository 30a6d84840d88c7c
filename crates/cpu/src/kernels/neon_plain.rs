//! The lane-planar kernels in NEON without dot products: several steps at a time go through 16 bits.

use std::arch::{aarch64::*, asm};

use upg_codec::GROUP;

use super::{
    neon::*,
    neon_ring::{Ring, cuts},
    planar::{RowSums, Tables, each_weight},
};
use crate::{layout::TILE_ROWS, quantize::Quantized};

/// The activations of step `STEP` of four (four each), repeated for every row.
#[inline]
#[target_feature(enable = "neon")]
fn repeat<const STEP: i32>(activations: int8x16_t) -> int8x16_t {
    opaque(vreinterpretq_s8_s32(vdupq_laneq_s32::<STEP>(vreinterpretq_s32_s8(activations))))
}

/// Sums of products in 16 bits: those of the first and of the second eight bytes.
#[derive(Clone, Copy)]
pub(super) struct Pairs([int16x8_t; 2]);

impl Pairs {
    #[inline]
    #[target_feature(enable = "neon")]
    pub(super) fn zero() -> Self {
        Self([vdupq_n_s16(0); 2])
    }

    /// Adds the products of a step, at most 32 · 127 to a lane: there is room for eight.
    #[inline]
    #[target_feature(enable = "neon")]
    pub(super) fn add_products(&mut self, weights: int8x16_t, activations: int8x16_t) {
        self.0[0] = vmlal_s8(self.0[0], vget_low_s8(weights), vget_low_s8(activations));
        self.0[1] = vmlal_high_s8(self.0[1], weights, activations);
    }
}

/// Sums of four rows in the making, two lanes a row.
#[derive(Clone, Copy)]
pub(super) struct Halves([int32x4_t; 2]);

impl Halves {
    #[inline]
    #[target_feature(enable = "neon")]
    pub(super) fn zero() -> Self {
        Self([vdupq_n_s32(0); 2])
    }

    #[inline]
    #[target_feature(enable = "neon")]
    pub(super) fn add(&mut self, pairs: Pairs) {
        for (sums, pairs) in self.0.iter_mut().zip(pairs.0) {
            *sums = vpadalq_s16(*sums, pairs);
        }
    }

    /// A lane a row.
    #[inline]
    #[target_feature(enable = "neon")]
    pub(super) fn rows(self) -> int32x4_t {
        vpaddq_s32(self.0[0], self.0[1])
    }
}

/// The most chunks whose products fit 32 bits: a chunk adds at most 32 · 127 · 2047 to a lane.
const SAFE_CHUNKS: usize = 256;

/// The next four of `values`, repeated, in one instruction (of the intrinsics compilers make another for the address) and in
/// order (see `neon_ring`).
///
/// # Safety
/// `values` points to four values.
#[inline]
#[target_feature(enable = "neon")]
unsafe fn next_four(values: &mut *const i16) -> int16x8_t {
    let four;
    // SAFETY: the caller's values; every processor of the architecture has the instruction.
    unsafe {
        asm!(
            "ld1r {{{four:v}.2d}}, [{values}], #8",
            four = lateout(vreg) four,
            values = inout(reg) *values,
            options(nostack, preserves_flags),
        );
    }
    four
}

/// Adds the products of the weights of 16 groups (each a sum of two look-ups) with four activations, repeated.
///
/// The addition widens weights to 16 bits, which meet whole activations: as many multiplications as for the two planes'
/// bytes, and nothing to widen after them.
#[inline]
#[target_feature(enable = "neon")]
fn add_products(sums: &mut [int32x4_t; HALF_ROWS], [low, high]: [uint8x16_t; 2], four: int16x8_t) {
    let [a, b, c, d] = sums;
    // SAFETY: every processor of the architecture has the instructions; in truth they touch no memory (see `neon_ring`).
    unsafe {
        asm!(
            "saddl {first:v}.8h, {low:v}.8b, {high:v}.8b",
            "saddl2 {high:v}.8h, {low:v}.16b, {high:v}.16b",
            "smlal {a:v}.4s, {first:v}.4h, {four:v}.4h",
            "smlal2 {b:v}.4s, {first:v}.8h, {four:v}.8h",
            "smlal {c:v}.4s, {high:v}.4h, {four:v}.4h",
            "smlal2 {d:v}.4s, {high:v}.8h, {four:v}.8h",
            a = inout(vreg) *a,
            b = inout(vreg) *b,
            c = inout(vreg) *c,
            d = inout(vreg) *d,
            low = in(vreg) low,
            high = inout(vreg) high => _,
            four = in(vreg) four,
            first = out(vreg) _,
            options(nostack, preserves_flags),
        );
    }
}

/// Sums of the products of eight rows (`chunks` tiles, one after the other) with one token's activations.
///
/// # Safety
/// `tiles` points to `chunks` tiles of `K` bits a weight, and `token` has as many chunks.
#[target_feature(enable = "neon")]
pub(super) unsafe fn gemv<const K: usize>(
    mut tiles: *const u8,
    chunks: usize,
    token: &Quantized,
    tables: &Tables,
) -> RowSums {
    let tables = Registers::new(tables);
    let mut values = token.ordered.as_ptr();
    let mut totals = [0; TILE_ROWS];
    for start in (0..chunks).step_by(SAFE_CHUNKS) {
        // Four lanes a row, one for each group.
        let mut sums = [[vdupq_n_s32(0); HALF_ROWS]; 2];
        for _ in start..chunks.min(start + SAFE_CHUNKS) {
            prefetch::<K>(tiles);
            // SAFETY: the caller's tiles and activations, a chunk at a time.
            unsafe {
                let mut ring = Ring::new(tiles);
                let mut lows = [0, 1].map(|half| ring.look_up(half, 0, 0, &tables.low, &tables));
                macro_rules! step {
                    ($i:literal) => {
                        let [before, first, second] = cuts::<K>($i);
                        ring.load::<K>(before, first);
                        ring.load::<K>(first, second);
                        let four = next_four(&mut values);
                        for (half, (sums, low)) in sums.iter_mut().zip(&mut lows).enumerate() {
                            let this = *low;
                            let mut high = vdupq_n_u8(0);
                            for [before, at] in [[before, first], [first, second]] {
                                if at == K * $i + 4 {
                                    high = ring.look_up(half, before, at, &tables.high, &tables);
                                }
                                if at == K * ($i + 1) && $i + 1 < GROUP {
                                    *low = ring.look_up(half, before, at, &tables.low, &tables);
                                }
                            }
                            add_products(sums, [this, high], four);
                        }
                    };
                }
                each_weight!(step);
                tiles = ring.next_tile();
            }
        }
        for (total, sums) in totals.iter_mut().zip(sums.as_flattened()) {
            *total += vaddlvq_s32(*sums);
        }
    }
    totals
}

/// Adds the products of two decoded tiles, side by side, with a plane of one token's activations to the token's totals.
///
/// # Safety
/// `decoded` points to `steps` steps (a multiple of eight) of two vectors, `activations` to `steps` dwords.
#[target_feature(enable = "neon")]
pub(super) unsafe fn tokens(
    decoded: *const u8,
    steps: usize,
    activations: *const i8,
    worth: i32,
    totals: &mut PairTotals,
) {
    let mut sums = [Halves::zero(); 4];
    for eight in (0..steps).step_by(8) {
        let mut pairs = [Pairs::zero(); 4];
        for first in [eight, eight + 4] {
            // SAFETY: the caller's decoded weights and activations, four steps at a time.
            unsafe {
                let four = vld1q_s8(activations.add(4 * first));
                let four = [repeat::<0>(four), repeat::<1>(four), repeat::<2>(four), repeat::<3>(four)];
                for (i, activations) in four.into_iter().enumerate() {
                    for (pairs, weights) in pairs.iter_mut().zip(decoded_step(decoded, first + i)) {
                        pairs.add_products(weights, activations);
                    }
                }
            }
        }
        sums.iter_mut().zip(pairs).for_each(|(sums, pairs)| sums.add(pairs));
    }
    totals.add(sums.map(|sums| sums.rows()), worth);
}
