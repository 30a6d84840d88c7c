//! The kinds of [`KvKind`](upg_pdvm::KvKind) as attention reads them: how numbers are kept, and how vectors of them
//! become f32. What the quantised kinds mean is defined by [`upg_pdvm::kv_kind`].

use half::f16;
pub(crate) use upg_pdvm::kv_kind::BLOCK;
use upg_pdvm::{
    PAGE_TOKENS,
    kv_kind::{q4, q8},
};

use crate::kv::WIDE;

/// What every code of q4 is offset by, as f32: see [`upg_pdvm::kv_kind`].
const Q4_OFFSET: f32 = 7.5;

/// A kind of cache.
pub(crate) trait Kind: 'static {
    /// What the cache consists of.
    type Code: Copy + Send + Sync + 'static;

    /// Numbers in a code.
    const PER_CODE: usize;

    /// Whether blocks have scales.
    const SCALED: bool;

    /// A block of a key: its codes, dimension after dimension, and its scale.
    fn encode_key(x: &[f32]) -> ([Self::Code; BLOCK], f16);

    /// A block of a value: its codes, and its scale.
    fn encode_value(x: &[f32]) -> ([Self::Code; BLOCK], f16);

    /// Dimensions `2 * pair` and the next of the keys of tokens `WIDE * block..`, not yet scaled.
    fn keys(codes: &[Self::Code], pair: usize, block: usize) -> [[f32; WIDE]; 2];

    /// The `i`th [`WIDE`] numbers of the values, not yet scaled.
    fn values(codes: &[Self::Code], i: usize) -> [f32; WIDE];
}

/// `WIDE` codes of a slice.
#[inline(always)]
fn wide<T>(codes: &[T], start: usize) -> &[T; WIDE] {
    let (chunks, _) = codes.as_chunks::<WIDE>();
    &chunks[start / WIDE]
}

/// The rows of a pair of dimensions where each dimension has its own.
///
/// (Neither here nor below `map`: it is not inlined into code for an instruction set, and would run as plain code.)
#[inline(always)]
fn rows<T>(codes: &[T], pair: usize, block: usize) -> [&[T; WIDE]; 2] {
    let row = 2 * pair * PAGE_TOKENS + block * WIDE;
    [wide(codes, row), wide(codes, row + PAGE_TOKENS)]
}

/// 8-bit integers as f32.
#[inline(always)]
fn floats(x: &[i8; WIDE]) -> [f32; WIDE] {
    let mut wide = [0.0; WIDE];
    for (wide, x) in wide.iter_mut().zip(x) {
        *wide = f32::from(*x);
    }
    wide
}

/// Applies `narrow` to a block; what lies past its end is zero.
fn each<T: Copy + Default>(x: &[f32], narrow: impl Fn(f32) -> T) -> [T; BLOCK] {
    let mut codes = [T::default(); BLOCK];
    codes.iter_mut().zip(x).for_each(|(code, x)| *code = narrow(*x));
    codes
}

impl Kind for f32 {
    type Code = f32;
    const PER_CODE: usize = 1;
    const SCALED: bool = false;

    fn encode_key(x: &[f32]) -> ([f32; BLOCK], f16) {
        (each(x, |x| x), f16::ONE)
    }

    fn encode_value(x: &[f32]) -> ([f32; BLOCK], f16) {
        Self::encode_key(x)
    }

    #[inline(always)]
    fn keys(codes: &[f32], pair: usize, block: usize) -> [[f32; WIDE]; 2] {
        let [a, b] = rows(codes, pair, block);
        [*a, *b]
    }

    #[inline(always)]
    fn values(codes: &[f32], i: usize) -> [f32; WIDE] {
        *wide(codes, i * WIDE)
    }
}

impl Kind for f16 {
    type Code = f16;
    const PER_CODE: usize = 1;
    const SCALED: bool = false;

    fn encode_key(x: &[f32]) -> ([f16; BLOCK], f16) {
        // The largest f16 stands for all that is larger: attention may be wrong then, but not NaN.
        (each(x, |x| f16::from_f32(x.clamp(-65504.0, 65504.0))), f16::ONE)
    }

    fn encode_value(x: &[f32]) -> ([f16; BLOCK], f16) {
        Self::encode_key(x)
    }

    #[inline(always)]
    fn keys(codes: &[f16], pair: usize, block: usize) -> [[f32; WIDE]; 2] {
        let [a, b] = rows(codes, pair, block);
        [widen(a), widen(b)]
    }

    #[inline(always)]
    fn values(codes: &[f16], i: usize) -> [f32; WIDE] {
        widen(wide(codes, i * WIDE))
    }
}

/// f16 to f32, for all but infinities and NaN, which the cache does not hold: the exponent and mantissa are shifted into
/// place below the sign, and a multiplication corrects the exponent's bias, exactly, for subnormals too.
#[inline(always)]
pub(crate) fn widen(x: &[f16; WIDE]) -> [f32; WIDE] {
    const BIAS: f32 = f32::from_bits((127 + 112) << 23);
    let mut wide = [0.0; WIDE];
    for (wide, x) in wide.iter_mut().zip(x) {
        // Extending the sign leaves copies of it between sign and exponent.
        let bits = (i32::from(x.to_bits() as i16) << 13) as u32 & 0x8fff_e000;
        *wide = f32::from_bits(bits) * BIAS;
    }
    wide
}

/// 8 bits.
pub(crate) struct Q8;

impl Kind for Q8 {
    type Code = i8;
    const PER_CODE: usize = 1;
    const SCALED: bool = true;

    fn encode_key(x: &[f32]) -> ([i8; BLOCK], f16) {
        let mut codes = [0; BLOCK];
        let scale = q8(x, &mut codes);
        (codes, scale)
    }

    fn encode_value(x: &[f32]) -> ([i8; BLOCK], f16) {
        Self::encode_key(x)
    }

    #[inline(always)]
    fn keys(codes: &[i8], pair: usize, block: usize) -> [[f32; WIDE]; 2] {
        let [a, b] = rows(codes, pair, block);
        [floats(a), floats(b)]
    }

    #[inline(always)]
    fn values(codes: &[i8], i: usize) -> [f32; WIDE] {
        floats(wide(codes, i * WIDE))
    }
}

/// 4 bits, two numbers in a byte.
pub(crate) struct Q4;

impl Kind for Q4 {
    type Code = u8;
    const PER_CODE: usize = 2;
    const SCALED: bool = true;

    fn encode_key(x: &[f32]) -> ([u8; BLOCK], f16) {
        let (mut codes, mut bytes) = ([0; BLOCK], [0; BLOCK]);
        let scale = q4(x, &mut codes);
        for (byte, [low, high]) in bytes.iter_mut().zip(codes.as_chunks().0) {
            *byte = low | high << 4;
        }
        (bytes, scale)
    }

    fn encode_value(x: &[f32]) -> ([u8; BLOCK], f16) {
        const HALF: usize = WIDE / 2;
        let (mut codes, mut bytes) = ([0; BLOCK], [0; BLOCK]);
        let scale = q4(x, &mut codes);
        for (bytes, codes) in bytes.chunks_exact_mut(HALF).zip(codes.as_chunks::<WIDE>().0) {
            for (i, byte) in bytes.iter_mut().enumerate() {
                *byte = codes[i] | codes[i + HALF] << 4;
            }
        }
        (bytes, scale)
    }

    #[inline(always)]
    fn keys(codes: &[u8], pair: usize, block: usize) -> [[f32; WIDE]; 2] {
        let bytes = wide(codes, pair * PAGE_TOKENS + block * WIDE);
        let (mut low, mut high) = ([0.0; WIDE], [0.0; WIDE]);
        for ((byte, low), high) in bytes.iter().zip(&mut low).zip(&mut high) {
            *low = f32::from(byte & 15) - Q4_OFFSET;
            *high = f32::from(byte >> 4) - Q4_OFFSET;
        }
        [low, high]
    }

    #[inline(always)]
    fn values(codes: &[u8], i: usize) -> [f32; WIDE] {
        let (bytes, _) = codes.as_chunks::<{ WIDE / 2 }>();
        let mut wide = [0.0; WIDE];
        let (low, high) = wide.split_at_mut(WIDE / 2);
        for ((byte, low), high) in bytes[i].iter().zip(low).zip(high) {
            *low = f32::from(byte & 15) - Q4_OFFSET;
            *high = f32::from(byte >> 4) - Q4_OFFSET;
        }
        wide
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn widening_is_exact_for_every_finite_f16() {
        for bits in 0..=u16::MAX {
            let x = f16::from_bits(bits);
            if x.is_finite() {
                assert_eq!(widen(&[x; WIDE])[WIDE - 1].to_bits(), x.to_f32().to_bits(), "{bits:#x}");
            }
        }
    }
}
