//! How keys and values are kept, and what the quantised kinds mean.
//!
//! Before a quantised kind keeps a key, the key's head goes through a Hadamard transform (after RoPE), and so do the
//! queries: their products stay the same, and what a few large dimensions held is spread over all of them. Values
//! already carry such a transform in a rotated model (see [`crate::rotation`]) and are kept as they are.
//!
//! Then each head of a key or value is cut into blocks of [`BLOCK`] numbers (the last may be shorter), and a block is a
//! 16-bit scale and a code for each number:
//!
//! - q8: `scale · code`, codes from -127 to 127, `scale = max |x| / 127`;
//! - q4: `scale · (code - 7.5)`, codes from 0 to 15, `scale = max |x| / 7.5`.

use std::{fmt, str::FromStr};

use half::f16;
use upg_format::ModelConfig;

use crate::rotation;

/// Numbers of a key's or value's head that share a scale.
pub const BLOCK: usize = 32;

/// Half the range of q4's codes: code 0 is the least number, and no code is zero.
const Q4_HALF: f32 = 7.5;

/// How keys and values are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KvKind {
    /// 32-bit floats: the reference machine's kind.
    F32,
    /// 16-bit floats.
    #[default]
    F16,
    /// 8-bit integers with a scale for each 32: 8.5 bits a number.
    Q8,
    /// 4-bit integers with a scale for each 32: 4.5 bits a number.
    Q4,
}

/// A name that no kind has.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is no kind {0:?} of keeping keys and values: use one of f32, f16, q8, q4")]
pub struct UnknownKvKind(pub String);

impl KvKind {
    /// Every kind, the most exact first.
    pub const ALL: [KvKind; 4] = [KvKind::F32, KvKind::F16, KvKind::Q8, KvKind::Q4];

    /// Its name, as users write it.
    pub const fn name(self) -> &'static str {
        match self {
            KvKind::F32 => "f32",
            KvKind::F16 => "f16",
            KvKind::Q8 => "q8",
            KvKind::Q4 => "q4",
        }
    }

    /// The block of the Hadamard transform that queries and keys go through, where the kind wants one.
    pub fn hadamard(self, config: &ModelConfig) -> Option<usize> {
        match self {
            KvKind::F32 | KvKind::F16 => None,
            KvKind::Q8 | KvKind::Q4 => Some(rotation::block(config.head_dim)),
        }
    }

    /// A head as it comes out of the cache: the definition of the kind. `head` is a key (already transformed) or a value.
    pub fn keep(self, head: &mut [f32]) {
        match self {
            KvKind::F32 => {}
            KvKind::F16 => head.iter_mut().for_each(|x| *x = f16::from_f32(*x).to_f32()),
            KvKind::Q8 => head.chunks_mut(BLOCK).for_each(|block| {
                let mut codes = [0; BLOCK];
                let scale = q8(block, &mut codes).to_f32();
                block.iter_mut().zip(codes).for_each(|(x, code)| *x = scale * f32::from(code));
            }),
            KvKind::Q4 => head.chunks_mut(BLOCK).for_each(|block| {
                let mut codes = [0; BLOCK];
                let scale = q4(block, &mut codes).to_f32();
                block.iter_mut().zip(codes).for_each(|(x, code)| *x = scale * (f32::from(code) - Q4_HALF));
            }),
        }
    }
}

impl fmt::Display for KvKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for KvKind {
    type Err = UnknownKvKind;

    fn from_str(name: &str) -> Result<Self, UnknownKvKind> {
        let kind = Self::ALL.into_iter().find(|kind| kind.name() == name);
        kind.ok_or_else(|| UnknownKvKind(name.to_owned()))
    }
}

/// Quantises up to [`BLOCK`] numbers to 8 bits; returns their scale. Codes past them are left as they are.
#[inline]
pub fn q8(x: &[f32], codes: &mut [i8; BLOCK]) -> f16 {
    let (scale, inverse) = scale(x, 127.0);
    for (code, x) in codes.iter_mut().zip(x) {
        *code = round((x * inverse).clamp(-127.0, 127.0)) as i8;
    }
    scale
}

/// Quantises up to [`BLOCK`] numbers to 4 bits, a byte each; returns their scale. Codes past them are left as they are.
#[inline]
pub fn q4(x: &[f32], codes: &mut [u8; BLOCK]) -> f16 {
    let (scale, inverse) = scale(x, Q4_HALF);
    for (code, x) in codes.iter_mut().zip(x) {
        *code = round((x * inverse + Q4_HALF).clamp(0.0, 2.0 * Q4_HALF)) as u8 & 15;
    }
    scale
}

/// The scale that takes the largest of `x` to `half_range`, and its inverse: 0 where all is too small for one.
#[inline]
fn scale(x: &[f32], half_range: f32) -> (f16, f32) {
    // Not `f32::max`, which compilers make a call of.
    let largest = x.iter().fold(0.0f32, |largest, x| if x.abs() > largest { x.abs() } else { largest });
    let scale = f16::from_f32((largest / half_range).min(f16::MAX.to_f32()));
    let inverse = 1.0 / scale.to_f32();
    (scale, if inverse.is_finite() { inverse } else { 0.0 })
}

/// To the nearest integer, ties to even, of small numbers: adding 1.5·2^23 leaves it in the low bits of the sum. NaN
/// becomes some integer.
#[inline]
fn round(x: f32) -> i32 {
    const ROUND: f32 = 12_582_912.0;
    ((x + ROUND).to_bits() as i32).wrapping_sub(ROUND.to_bits() as i32)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(kind: KvKind, x: &[f32]) -> Vec<f32> {
        let mut kept = x.to_vec();
        kind.keep(&mut kept);
        kept
    }

    #[test]
    fn errors_are_half_a_step_of_the_block() {
        let x: Vec<f32> =
            (0..80).map(|i| (i as f32 * 0.7).sin() * if i < BLOCK { 30.0 } else { 0.2 }).collect();
        for (kind, half_range) in [(KvKind::Q8, 127.0), (KvKind::Q4, Q4_HALF)] {
            for (x, kept) in x.chunks(BLOCK).zip(kept(kind, &x).chunks(BLOCK)) {
                let step = x.iter().fold(0.0f32, |a, b| a.max(b.abs())) / half_range;
                for (x, kept) in x.iter().zip(kept) {
                    // The scale's own rounding moves the outermost codes by up to half_range / 2048 steps.
                    assert!(
                        (x - kept).abs() <= (0.5 + half_range / 2048.0) * step,
                        "{kind}: {x} kept as {kept}"
                    );
                }
            }
        }
    }

    #[test]
    fn nothing_and_nonsense_stay_finite() {
        for x in [0.0, 1e-30, f32::INFINITY, f32::NAN, f32::MAX] {
            for kind in [KvKind::Q8, KvKind::Q4] {
                let kept = kept(kind, &[x; 40]);
                assert!(kept.iter().all(|x| x.is_finite()), "{kind}: {x} kept as {}", kept[0]);
                assert!(x != 0.0 || kept.iter().all(|&x| x == 0.0));
            }
        }
    }

    #[test]
    fn names_are_read_back() {
        for kind in KvKind::ALL {
            assert_eq!(kind.name().parse(), Ok(kind));
        }
        let message = "q5".parse::<KvKind>().unwrap_err().to_string();
        assert!(KvKind::ALL.iter().all(|kind| message.contains(kind.name())), "{message}");
    }
}
