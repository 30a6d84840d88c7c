//! ggml's k-quants: blocks of 256 weights whose sub-blocks have small integer scales of their own.
//!
//! Bits of one weight are never side by side with the next weight's: byte l of a run holds weights l, l + 32, l + 64, …

use super::f16_at;

/// `scales: [u8; 16], q: [u8; 64], d: f16, dmin: f16`; sub-blocks of 16, weight = d · scale · q - dmin · min.
pub(super) fn q2_k(block: &[u8; 84], y: &mut [f32; 256]) {
    let (scales, q) = (&block[..16], &block[16..80]);
    let (d, dmin) = (f16_at(block, 80), f16_at(block, 82));
    for (sub, y) in y.chunks_exact_mut(16).enumerate() {
        let scale = d * f32::from(scales[sub] & 15);
        let min = dmin * f32::from(scales[sub] >> 4);
        let (first, shift) = pair_of_bits(sub);
        for (y, q) in y.iter_mut().zip(&q[first..]) {
            *y = scale * f32::from(q >> shift & 3) - min;
        }
    }
}

/// `high: [u8; 32], q: [u8; 64], scales: [u8; 12], d: f16`; sub-blocks of 16, weight = d · (scale - 32) · (q - 4),
/// where q's third bit is in `high`.
pub(super) fn q3_k(block: &[u8; 110], y: &mut [f32; 256]) {
    let (high, q, scales) = (&block[..32], &block[32..96], &block[96..108]);
    let d = f16_at(block, 108);
    for (sub, y) in y.chunks_exact_mut(16).enumerate() {
        let low = if sub < 8 { scales[sub] & 15 } else { scales[sub - 8] >> 4 };
        let top = scales[8 + sub % 4] >> (2 * (sub / 4)) & 3;
        let scale = d * f32::from((low | top << 4) as i8 - 32);
        let (first, shift) = pair_of_bits(sub);
        let (first_high, bit) = (sub % 2 * 16, sub / 2);
        for ((y, q), high) in y.iter_mut().zip(&q[first..]).zip(&high[first_high..]) {
            let q = q >> shift & 3 | (high >> bit & 1) << 2;
            *y = scale * f32::from(q as i8 - 4);
        }
    }
}

/// Where a sub-block of 16 has its two bits a weight: first byte, and shift in each of the 16 bytes from there.
fn pair_of_bits(sub: usize) -> (usize, usize) {
    (sub / 8 * 32 + sub % 2 * 16, sub % 8 / 2 * 2)
}

/// `d: f16, dmin: f16, scales: [u8; 12], q: [u8; 128]`; sub-blocks of 32, weight = d · scale · q - dmin · min.
pub(super) fn q4_k(block: &[u8; 144], y: &mut [f32; 256]) {
    let q = &block[16..];
    for (sub, y) in y.chunks_exact_mut(32).enumerate() {
        let (scale, min) = scale_and_min(block, sub);
        for (y, q) in y.iter_mut().zip(&q[sub / 2 * 32..]) {
            *y = scale * f32::from(q >> (sub % 2 * 4) & 15) - min;
        }
    }
}

/// `d: f16, dmin: f16, scales: [u8; 12], high: [u8; 32], q: [u8; 128]`; as `Q4_K`, with q's fifth bit in `high`.
pub(super) fn q5_k(block: &[u8; 176], y: &mut [f32; 256]) {
    let (high, q) = (&block[16..48], &block[48..]);
    for (sub, y) in y.chunks_exact_mut(32).enumerate() {
        let (scale, min) = scale_and_min(block, sub);
        for ((y, q), high) in y.iter_mut().zip(&q[sub / 2 * 32..]).zip(high) {
            let q = q >> (sub % 2 * 4) & 15 | (high >> sub & 1) << 4;
            *y = scale * f32::from(q) - min;
        }
    }
}

/// Scale and minimum of one of the eight sub-blocks of `Q4_K` and `Q5_K`: six bits each, packed into 12 bytes.
fn scale_and_min(block: &[u8], sub: usize) -> (f32, f32) {
    let (d, dmin, s) = (f16_at(block, 0), f16_at(block, 2), &block[4..16]);
    let (scale, min) = if sub < 4 {
        (s[sub] & 63, s[sub + 4] & 63)
    } else {
        (s[sub + 4] & 15 | s[sub - 4] >> 6 << 4, s[sub + 4] >> 4 | s[sub] >> 6 << 4)
    };
    (d * f32::from(scale), dmin * f32::from(min))
}

/// `low: [u8; 128], high: [u8; 64], scales: [i8; 16], d: f16`; sub-blocks of 16, weight = d · scale · (q - 32).
pub(super) fn q6_k(block: &[u8; 210], y: &mut [f32; 256]) {
    let (low, high, scales) = (&block[..128], &block[128..192], &block[192..208]);
    let d = f16_at(block, 208);
    for (run, y) in y.chunks_exact_mut(32).enumerate() {
        // Runs of 32 weights: four to a half; within a half, runs 0 and 1 take low nibbles, 2 and 3 high ones.
        let (half, part) = (run / 4, run % 4);
        let low = &low[half * 64 + part % 2 * 32..];
        let high = &high[half * 32..];
        for (l, y) in y.iter_mut().enumerate() {
            let q = low[l] >> (part / 2 * 4) & 15 | (high[l] >> (part * 2) & 3) << 4;
            let scale = d * f32::from(scales[run * 2 + l / 16] as i8);
            *y = scale * f32::from(q as i8 - 32);
        }
    }
}
