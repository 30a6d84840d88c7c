//! The vectors of 64-bit Arm. Each method is one instruction; every processor of the architecture that Rust builds for
//! has them, so none of this is unsafe to call there.

use std::arch::aarch64::*;

use super::vector::Vector;

// SAFETY: `int32x4_t` is 16 bytes of plain data, aligned to 16; 4 divides 16.
unsafe impl Vector for int32x4_t {
    const LANES: usize = 4;

    // SAFETY, of each method: none is needed, NEON is part of the target.
    #[inline(always)]
    unsafe fn splat(number: i32) -> Self {
        vdupq_n_s32(number)
    }

    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        vaddq_s32(self, other)
    }

    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        vmulq_s32(self, other)
    }

    #[inline(always)]
    unsafe fn and(self, other: Self) -> Self {
        vandq_s32(self, other)
    }

    #[inline(always)]
    unsafe fn min(self, other: Self) -> Self {
        vminq_s32(self, other)
    }
}
