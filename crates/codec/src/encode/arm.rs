//! The vectors of 64-bit Arm. Each method is one instruction, which every processor of the target has.

use std::arch::aarch64::*;

use super::vector::Vector;

// SAFETY: `int32x4_t` is 16 bytes of plain data, aligned to 16; 4 divides 16.
unsafe impl Vector for int32x4_t {
    const LANES: usize = 4;

    #[inline(always)]
    unsafe fn splat(number: i32) -> Self {
        // SAFETY: the processor has NEON by the trait's contract, here and below.
        unsafe { vdupq_n_s32(number) }
    }

    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        // SAFETY: as above.
        unsafe { vaddq_s32(self, other) }
    }

    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        // SAFETY: as above.
        unsafe { vmulq_s32(self, other) }
    }

    #[inline(always)]
    unsafe fn and(self, other: Self) -> Self {
        // SAFETY: as above.
        unsafe { vandq_s32(self, other) }
    }

    #[inline(always)]
    unsafe fn min(self, other: Self) -> Self {
        // SAFETY: as above.
        unsafe { vminq_s32(self, other) }
    }
}
