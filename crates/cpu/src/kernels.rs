//! Products of T8 matrices with activations of 12 bits. `scalar` is the oracle: all others give the same bits.

#[cfg(target_arch = "aarch64")]
mod arm_products;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod neon;
#[cfg(target_arch = "aarch64")]
mod neon_dot;
#[cfg(target_arch = "aarch64")]
mod neon_plain;
#[cfg(target_arch = "aarch64")]
mod neon_ring;
#[cfg(target_arch = "x86_64")]
mod panel_products;
#[cfg(target_arch = "x86_64")]
mod panel_x86;
pub(crate) mod peak;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod planar;
#[cfg(target_arch = "aarch64")]
mod planar_arm;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod planar_products;
#[cfg(target_arch = "x86_64")]
mod planar_x86;
mod scalar;
#[cfg(target_arch = "x86_64")]
mod spread_products;
#[cfg(target_arch = "x86_64")]
mod vnni;

use std::ops::Range;

use upg_codec::Isa;

use crate::{activations::Integers, layout::Layout, matrix::T8};

/// From so many tokens on, weights are decoded into memory for all of them. (For fewer, decoding in registers once more costs
/// less than turning decoded rows into lanes.)
pub(crate) const MANY: usize = 4;

/// The most rows of a matrix in one item of work.
pub(crate) const MAX_STEP: usize = 64;

/// Whether products with `tokens` tokens read panels.
pub(crate) fn takes_panels(isa: Isa, tokens: usize) -> bool {
    matches!(isa, Isa::Avx2 | Isa::AvxVnni | Isa::Avx512) && tokens >= MANY
}

/// A thread's memory for decoded weights.
pub(crate) struct KernelScratch {
    /// A row's values (scalar code).
    values: Vec<i8>,
    /// For products with several tokens.
    #[cfg(target_arch = "aarch64")]
    spans: arm_products::Buffers,
    /// For products with many tokens.
    #[cfg(target_arch = "x86_64")]
    panels: panel_products::Buffers,
}

impl KernelScratch {
    /// Room for matrices of up to `cols` columns and batches of up to `tokens` tokens.
    pub(crate) fn new(cols: usize, tokens: usize) -> Self {
        Self {
            values: Vec::with_capacity(cols),
            #[cfg(target_arch = "aarch64")]
            spans: arm_products::Buffers::new(tokens),
            #[cfg(target_arch = "x86_64")]
            panels: panel_products::Buffers::new(tokens),
        }
    }
}

/// See [`crate::matrix::Matrix::multiply`]. `y` is `[tokens, rows.len()]`.
pub(crate) fn multiply(
    isa: Isa,
    matrix: &T8,
    rows: Range<usize>,
    activations: Integers<'_>,
    y: &mut [f32],
    scratch: &mut KernelScratch,
) {
    debug_assert!(rows.start.is_multiple_of(matrix.layout.tile_rows()) && rows.end <= matrix.rows);
    let tokens = activations.tokens;
    match (isa, matrix.layout) {
        #[cfg(target_arch = "x86_64")]
        _ if takes_panels(isa, tokens.len()) => {
            let multiply = match isa {
                Isa::Avx2 => panel_products::multiply::<panel_x86::Avx2>,
                Isa::AvxVnni => panel_products::multiply::<panel_x86::Vnni>,
                _ => panel_products::multiply::<panel_x86::Avx512>,
            };
            multiply(matrix, rows, activations, y, &mut scratch.panels);
        }
        #[cfg(target_arch = "x86_64")]
        (Isa::Avx2 | Isa::AvxVnni, Layout::LanePlanar) => {
            planar_products::multiply(isa, matrix, rows, tokens, y);
        }
        #[cfg(target_arch = "x86_64")]
        (Isa::Avx512, Layout::Spread) => {
            for (token, y) in tokens.iter().zip(y.chunks_exact_mut(rows.len())) {
                spread_products::multiply(matrix, rows.clone(), token, y);
            }
        }
        #[cfg(target_arch = "aarch64")]
        (Isa::Neon | Isa::NeonDot, Layout::LanePlanar) if tokens.len() <= planar_arm::FEW => {
            planar_products::multiply(isa, matrix, rows, tokens, y);
        }
        #[cfg(target_arch = "aarch64")]
        (Isa::Neon | Isa::NeonDot, Layout::LanePlanar) => {
            arm_products::several(isa, matrix, rows, tokens, y, &mut scratch.spans);
        }
        _ => scalar::multiply(matrix, rows, tokens, y, scratch),
    }
}

/// Calls a function that is generic over the bits a weight (and, maybe, the number of tokens).
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
macro_rules! for_bits {
    ($bits:expr, $($function:ident)::+ $(::<$tokens:ident>)? ($($arg:expr),* $(,)?)) => {
        match $bits {
            upg_codec::Bits::B2 => $($function)::+::<2 $(, $tokens)?>($($arg),*),
            upg_codec::Bits::B3 => $($function)::+::<3 $(, $tokens)?>($($arg),*),
            upg_codec::Bits::B4 => $($function)::+::<4 $(, $tokens)?>($($arg),*),
            upg_codec::Bits::B5 => $($function)::+::<5 $(, $tokens)?>($($arg),*),
            upg_codec::Bits::B6 => $($function)::+::<6 $(, $tokens)?>($($arg),*),
            upg_codec::Bits::B8 => $($function)::+::<8 $(, $tokens)?>($($arg),*),
        }
    };
}

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
pub(crate) use for_bits;

/// How far ahead codes are prefetched, in bytes: the hardware does not cross pages of 4 KiB by itself.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
const PREFETCH: usize = 4096;

/// Prefetches as many bytes as a tile of `K` bits a weight has, some way ahead.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub(crate) fn prefetch<const K: usize>(tile: *const u8) {
    use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
    for line in 0..2 * K {
        // SAFETY: a prefetch may have any address.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(tile.wrapping_add(PREFETCH + 64 * line).cast()) };
    }
}

/// The output of a row: an exact integer (below 2^53, so an `f64` holds it) times two scales, in this order on every path.
#[inline(always)]
fn output(total: f64, unit: f32, scale: f32) -> f32 {
    total as f32 * (unit * scale)
}

#[cfg(test)]
mod tests;
