//! The vectors of x86-64. Each method is one instruction, inlined into a caller that enables the instruction set.

use std::arch::x86_64::*;

use super::vector::Vector;

// SAFETY: `__m256i` is 32 bytes of plain data, aligned to 32; 8 divides 16.
unsafe impl Vector for __m256i {
    const LANES: usize = 8;

    #[inline(always)]
    unsafe fn splat(number: i32) -> Self {
        // SAFETY: the processor has AVX2 by the trait's contract, here and below.
        unsafe { _mm256_set1_epi32(number) }
    }

    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        // SAFETY: as above.
        unsafe { _mm256_add_epi32(self, other) }
    }

    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        // SAFETY: as above.
        unsafe { _mm256_mullo_epi32(self, other) }
    }

    #[inline(always)]
    unsafe fn and(self, other: Self) -> Self {
        // SAFETY: as above.
        unsafe { _mm256_and_si256(self, other) }
    }

    #[inline(always)]
    unsafe fn min(self, other: Self) -> Self {
        // SAFETY: as above.
        unsafe { _mm256_min_epi32(self, other) }
    }
}

// SAFETY: `__m512i` is 64 bytes of plain data, aligned to 64; 16 divides 16.
unsafe impl Vector for __m512i {
    const LANES: usize = 16;

    #[inline(always)]
    unsafe fn splat(number: i32) -> Self {
        // SAFETY: the processor has AVX-512 F by the trait's contract, here and below.
        unsafe { _mm512_set1_epi32(number) }
    }

    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        // SAFETY: as above.
        unsafe { _mm512_add_epi32(self, other) }
    }

    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        // SAFETY: as above.
        unsafe { _mm512_mullo_epi32(self, other) }
    }

    #[inline(always)]
    unsafe fn and(self, other: Self) -> Self {
        // SAFETY: as above.
        unsafe { _mm512_and_si512(self, other) }
    }

    #[inline(always)]
    unsafe fn min(self, other: Self) -> Self {
        // SAFETY: as above.
        unsafe { _mm512_min_epi32(self, other) }
    }
}
