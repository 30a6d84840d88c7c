//! ggml's first formats: blocks of 32 weights with one scale, and one offset in the `_1` types.
//!
//! Low nibbles hold the first half of a block, high nibbles the second.

use super::f16_at;

/// `d: f16, nibbles: [u8; 16]`; d · (q - 8).
pub(super) fn q4_0(block: &[u8; 18], y: &mut [f32; 32]) {
    let d = f16_at(block, 0);
    for (j, q) in block[2..].iter().enumerate() {
        y[j] = f32::from((q & 15) as i8 - 8) * d;
        y[j + 16] = f32::from((q >> 4) as i8 - 8) * d;
    }
}

/// `d: f16, m: f16, nibbles: [u8; 16]`; d · q + m.
pub(super) fn q4_1(block: &[u8; 20], y: &mut [f32; 32]) {
    let (d, m) = (f16_at(block, 0), f16_at(block, 2));
    for (j, q) in block[4..].iter().enumerate() {
        y[j] = f32::from(q & 15) * d + m;
        y[j + 16] = f32::from(q >> 4) * d + m;
    }
}

/// `d: f16, fifth_bits: u32, nibbles: [u8; 16]`; d · (q - 16).
pub(super) fn q5_0(block: &[u8; 22], y: &mut [f32; 32]) {
    let d = f16_at(block, 0);
    let fifth = fifth_bits(block, 2);
    for (j, q) in block[6..].iter().enumerate() {
        y[j] = f32::from((q & 15 | fifth(j)) as i8 - 16) * d;
        y[j + 16] = f32::from((q >> 4 | fifth(j + 16)) as i8 - 16) * d;
    }
}

/// `d: f16, m: f16, fifth_bits: u32, nibbles: [u8; 16]`; d · q + m.
pub(super) fn q5_1(block: &[u8; 24], y: &mut [f32; 32]) {
    let (d, m) = (f16_at(block, 0), f16_at(block, 2));
    let fifth = fifth_bits(block, 4);
    for (j, q) in block[8..].iter().enumerate() {
        y[j] = f32::from(q & 15 | fifth(j)) * d + m;
        y[j + 16] = f32::from(q >> 4 | fifth(j + 16)) * d + m;
    }
}

/// The fifth bit of weight j, in its place, from the u32 at byte `at`.
fn fifth_bits(block: &[u8], at: usize) -> impl Fn(usize) -> u8 {
    let bits = u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]]);
    move |j| ((bits >> j & 1) as u8) << 4
}

/// `d: f16, q: [i8; 32]`; d · q.
pub(super) fn q8_0(block: &[u8; 34], y: &mut [f32; 32]) {
    let d = f16_at(block, 0);
    for (y, q) in y.iter_mut().zip(&block[2..]) {
        *y = f32::from(*q as i8) * d;
    }
}
