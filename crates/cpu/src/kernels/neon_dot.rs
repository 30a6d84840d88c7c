//! The lane-planar kernels in NEON with the dot products of Armv8.2: `sdot` adds a half's 16 products with the activations of
//! the four groups to four 32-bit sums, one a row.

use std::arch::{aarch64::*, asm};

use super::{
    neon::*,
    planar::{RowSums, Tables, VECTOR, each_weight},
};
use crate::quantize::{CHUNK, Quantized};

/// `sum[row] += Σ weights[4 · row + j] · activations[4 · lane + j]`: the intrinsic is not in stable Rust.
macro_rules! dot {
    ($sum:expr, $weights:expr, $activations:expr, $lane:expr) => {
        asm!(
            "sdot {sum:v}.4s, {weights:v}.16b, {activations:v}.4b[{lane}]",
            sum = inout(vreg) $sum,
            weights = in(vreg) $weights,
            activations = in(vreg) $activations,
            lane = const $lane,
            options(pure, nomem, nostack, preserves_flags),
        )
    };
}

pub(super) use dot;

/// Sums of the products of eight rows (`chunks` tiles, one after the other) with one token's activations.
///
/// A step adds at most 4 · 127 · 32 to a sum: those of rows of up to 2^18 columns stay below 2^31.
///
/// # Safety
/// `tiles` points to `chunks` tiles of `K` bits a weight, and `token` has as many chunks.
#[target_feature(enable = "neon,dotprod")]
pub(super) unsafe fn gemv<const K: usize>(
    mut tiles: *const u8,
    chunks: usize,
    token: &Quantized,
    tables: &Tables,
) -> RowSums {
    let tables = Registers::new(tables);
    let mut planes = [token.high.as_ptr(), token.low.as_ptr()];
    let mut sums = [[vdupq_n_s32(0); 2]; 2];
    for _ in 0..chunks {
        prefetch::<K>(tiles);
        // SAFETY: the caller's tiles and activations, a chunk at a time; the processor has `sdot`.
        unsafe {
            macro_rules! step {
                ($i:literal) => {
                    // Four steps' activations in a load.
                    let activations = planes.map(|plane| vld1q_s8(plane.add($i / 4 * HALF)));
                    for half in 0..2 {
                        let weights = weights::<K>(tiles.add(half * HALF), $i, &tables);
                        dot!(sums[0][half], weights, activations[0], $i % 4);
                        dot!(sums[1][half], weights, activations[1], $i % 4);
                    }
                };
            }
            each_weight!(step);
            tiles = tiles.add(VECTOR * 4 * K);
            planes = planes.map(|plane| plane.add(CHUNK));
        }
    }
    join(sums)
}

/// Adds the products of two decoded tiles, side by side, with a plane of `T` tokens' activations to the tokens' totals.
///
/// # Safety
/// `decoded` points to `steps` steps (a multiple of four) of two vectors, `activations` to `steps` dwords each.
#[target_feature(enable = "neon,dotprod")]
pub(super) unsafe fn tokens<const T: usize>(
    decoded: *const u8,
    steps: usize,
    activations: [*const i8; T],
    worth: i32,
    totals: &mut [PairTotals; T],
) {
    let mut sums = [[vdupq_n_s32(0); 4]; T];
    for first in (0..steps).step_by(4) {
        // SAFETY: the caller's decoded weights and activations, four steps at a time; the processor has `sdot`.
        unsafe {
            let activations = activations.map(|activations| vld1q_s8(activations.add(4 * first)));
            macro_rules! step {
                ($lane:literal) => {
                    let weights = decoded_step(decoded, first + $lane);
                    for (sums, activations) in sums.iter_mut().zip(activations) {
                        for (sum, weights) in sums.iter_mut().zip(weights) {
                            dot!(*sum, weights, activations, $lane);
                        }
                    }
                };
            }
            step!(0);
            step!(1);
            step!(2);
            step!(3);
        }
    }
    for (totals, sums) in totals.iter_mut().zip(sums) {
        totals.add(sums, worth);
    }
}
