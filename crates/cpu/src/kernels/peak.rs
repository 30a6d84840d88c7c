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
