//! How fast the processor multiplies at all: what a product with many tokens is set against.

use std::hint::black_box;

use upg_codec::Isa;

/// Sums that do not depend on each other: enough to keep the multipliers busy.
const SUMS: usize = 12;

/// Multiplies `rounds` times as the kernels do for many tokens, in registers; returns the multiply-adds done.
pub(crate) fn multiply(isa: Isa, rounds: usize) -> u64 {
    let lanes = match isa {
        // SAFETY: an `Isa` is chosen only where the processor has it.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => unsafe { avx2(rounds) },
        // SAFETY: likewise.
        #[cfg(target_arch = "x86_64")]
        Isa::AvxVnni => unsafe { vnni(rounds) },
        // SAFETY: likewise.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => unsafe { avx512(rounds) },
        // SAFETY: likewise.
        #[cfg(target_arch = "aarch64")]
        Isa::Neon => unsafe { neon(rounds) },
        // SAFETY: likewise.
        #[cfg(target_arch = "aarch64")]
        Isa::NeonDot => unsafe { neon_dot(rounds) },
        _ => scalar(rounds),
    };
    (rounds * SUMS * lanes) as u64
}

fn scalar(rounds: usize) -> usize {
    let (weight, activation) = black_box((-3i8, 5i8));
    let mut sums = [0i32; SUMS];
    for _ in 0..rounds {
        for sum in &mut sums {
            // The sum takes part, or the compiler would multiply once for all rounds.
            *sum += i32::from(weight ^ *sum as i8) * i32::from(activation);
        }
    }
    black_box(sums);
    1
}

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn avx2(rounds: usize) -> usize {
    let (weights, mut activations) =
        black_box(([_mm256_set1_epi16(3), _mm256_set1_epi16(-2)], _mm256_set1_epi16(5)));
    let mut sums = [[_mm256_setzero_si256(); 2]; SUMS / 2];
    for _ in 0..rounds {
        for sums in &mut sums {
            // SAFETY: no instruction; the compiler just has to believe that these are other activations.
            unsafe {
                std::arch::asm!("/* {0} */", inout(ymm_reg) activations, options(nomem, nostack, preserves_flags))
            };
            for (sum, weights) in sums.iter_mut().zip(weights) {
                *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(weights, activations));
            }
        }
    }
    black_box(sums);
    16
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,avxvnni")]
fn vnni(rounds: usize) -> usize {
    let (weights, activations) = black_box((_mm256_set1_epi8(3), _mm256_set1_epi8(5)));
    let mut sums = [_mm256_setzero_si256(); SUMS];
    for _ in 0..rounds {
        for sum in &mut sums {
            *sum = _mm256_dpbusd_avx_epi32(*sum, weights, activations);
        }
    }
    black_box(sums);
    32
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512vnni")]
fn avx512(rounds: usize) -> usize {
    let (weights, activations) = black_box((_mm512_set1_epi8(3), _mm512_set1_epi8(5)));
    let mut sums = [_mm512_setzero_si512(); SUMS];
    for _ in 0..rounds {
        for sum in &mut sums {
            *sum = _mm512_dpbusd_epi32(*sum, weights, activations);
        }
    }
    black_box(sums);
    64
}

#[cfg(target_arch = "aarch64")]
#[target_feature(enable = "neon")]
fn neon(rounds: usize) -> usize {
    use std::arch::{aarch64::*, asm};

    use super::neon_plain::{Halves, Pairs};

    /// Steps that are summed in 16 bits.
    const STEPS: usize = 8;

    let (weights, mut activations) = black_box((vdupq_n_s8(3), [vdupq_n_s8(5); STEPS]));
    // Two registers each.
    let mut sums = [Halves::zero(); SUMS / 2];
    for _ in 0..rounds {
        for sums in &mut sums {
            let mut pairs = Pairs::zero();
            for activations in &mut activations {
                // SAFETY: no instruction; the compiler just has to believe that these are other activations.
                unsafe {
                    asm!("/* {0:v} */", inout(vreg) * activations, options(nomem, nostack, preserves_flags));
                }
                pairs.add_products(weights, *activations);
            }
            sums.add(pairs);
        }
    }
    black_box(sums.map(|sums| sums.rows()));
    STEPS * 16 / 2
}

#[cfg(target_arch = "aarch64")]
#[target_feature(enable = "neon,dotprod")]
fn neon_dot(rounds: usize) -> usize {
    use std::arch::{aarch64::*, asm};

    let (weights, activations) = black_box((vdupq_n_s8(3), vdupq_n_s8(5)));
    let mut sums = [vdupq_n_s32(0); SUMS];
    for _ in 0..rounds {
        for sum in &mut sums {
            // SAFETY: the function is called only where the processor has `sdot`.
            unsafe { super::neon_dot::dot!(*sum, weights, activations, 0) };
        }
    }
    black_box(sums);
    16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_isa_counts_its_lanes() {
        for isa in Isa::available() {
            assert!(multiply(isa, 10).is_multiple_of(10 * SUMS as u64) && multiply(isa, 10) > 0);
        }
    }
}
