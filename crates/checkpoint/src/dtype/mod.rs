//! The number formats of checkpoints and their conversion to f32.
//!
//! The quantised formats are ggml's. A row is a whole number of blocks; a block is a few scales and packed integers.
//! Every conversion does the same f32 operations in the same order as ggml's, so the results are the same bits.

mod k_quants;
mod legacy;

use half::{bf16, f16};

/// How the numbers of a tensor are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs, reason = "ggml's own names")]
pub(crate) enum DType {
    F32,
    F16,
    Bf16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2K,
    Q3K,
    Q4K,
    Q5K,
    Q6K,
}

use DType::*;

/// One row a type: itself, ggml's number and name, weights a block, bytes a block.
const TYPES: [(DType, u32, &str, usize, usize); 13] = [
    (F32, 0, "F32", 1, 4),
    (F16, 1, "F16", 1, 2),
    (Bf16, 30, "BF16", 1, 2),
    (Q4_0, 2, "Q4_0", 32, 18),
    (Q4_1, 3, "Q4_1", 32, 20),
    (Q5_0, 6, "Q5_0", 32, 22),
    (Q5_1, 7, "Q5_1", 32, 24),
    (Q8_0, 8, "Q8_0", 32, 34),
    (Q2K, 10, "Q2_K", 256, 84),
    (Q3K, 11, "Q3_K", 256, 110),
    (Q4K, 12, "Q4_K", 256, 144),
    (Q5K, 13, "Q5_K", 256, 176),
    (Q6K, 14, "Q6_K", 256, 210),
];

/// ggml's types that are not read, so that an error can name them.
const OTHERS: [(u32, &str); 21] = [
    (9, "Q8_1"),
    (15, "Q8_K"),
    (16, "IQ2_XXS"),
    (17, "IQ2_XS"),
    (18, "IQ3_XXS"),
    (19, "IQ1_S"),
    (20, "IQ4_NL"),
    (21, "IQ3_S"),
    (22, "IQ2_S"),
    (23, "IQ4_XS"),
    (24, "I8"),
    (25, "I16"),
    (26, "I32"),
    (27, "I64"),
    (28, "F64"),
    (29, "IQ1_M"),
    (34, "TQ1_0"),
    (35, "TQ2_0"),
    (39, "MXFP4"),
    (40, "NVFP4"),
    (41, "Q1_0"),
];

impl DType {
    /// The type of ggml's number `id`, or the name of what it is instead.
    pub(crate) fn from_ggml(id: u32) -> Result<Self, String> {
        TYPES.iter().find(|row| row.1 == id).map(|row| row.0).ok_or_else(|| {
            let name = OTHERS.iter().find(|other| other.0 == id).map(|other| other.1);
            name.map_or_else(|| format!("number {id}"), str::to_owned)
        })
    }

    /// The names of all types, for errors.
    pub(crate) fn known() -> String {
        TYPES.map(|row| row.2).join(", ")
    }

    fn row(self) -> &'static (DType, u32, &'static str, usize, usize) {
        // `TYPES` is in the order of the variants; a test holds it to that.
        &TYPES[self as usize]
    }

    /// ggml's name.
    pub(crate) fn name(self) -> &'static str {
        self.row().2
    }

    /// Weights a block.
    pub(crate) fn block_len(self) -> usize {
        self.row().3
    }

    /// Bytes that `len` numbers take; `None` where `len` is not a whole number of blocks, or on overflow.
    pub(crate) fn bytes(self, len: usize) -> Option<usize> {
        let (_, _, _, block_len, block_bytes) = *self.row();
        if len.is_multiple_of(block_len) { (len / block_len).checked_mul(block_bytes) } else { None }
    }

    /// Converts whole blocks.
    ///
    /// # Panics
    /// When `bytes` is not what `out.len()` numbers take.
    pub(crate) fn to_f32(self, bytes: &[u8], out: &mut [f32]) {
        assert_eq!(self.bytes(out.len()), Some(bytes.len()), "{} numbers of type {}", out.len(), self.name());
        match self {
            F32 => blocks(bytes, out, |b, [y]| *y = f32::from_le_bytes(*b)),
            F16 => blocks(bytes, out, |b, [y]| *y = f16::from_le_bytes(*b).to_f32()),
            Bf16 => blocks(bytes, out, |b, [y]| *y = bf16::from_le_bytes(*b).to_f32()),
            Q4_0 => blocks(bytes, out, legacy::q4_0),
            Q4_1 => blocks(bytes, out, legacy::q4_1),
            Q5_0 => blocks(bytes, out, legacy::q5_0),
            Q5_1 => blocks(bytes, out, legacy::q5_1),
            Q8_0 => blocks(bytes, out, legacy::q8_0),
            Q2K => blocks(bytes, out, k_quants::q2_k),
            Q3K => blocks(bytes, out, k_quants::q3_k),
            Q4K => blocks(bytes, out, k_quants::q4_k),
            Q5K => blocks(bytes, out, k_quants::q5_k),
            Q6K => blocks(bytes, out, k_quants::q6_k),
        }
    }
}

/// Runs `convert` over blocks of `B` bytes and `N` numbers.
fn blocks<const B: usize, const N: usize>(
    bytes: &[u8],
    out: &mut [f32],
    convert: impl Fn(&[u8; B], &mut [f32; N]),
) {
    let (bytes, out) = (bytes.as_chunks::<B>().0, out.as_chunks_mut::<N>().0);
    bytes.iter().zip(out).for_each(|(block, y)| convert(block, y));
}

/// The f16 at byte `at` of a block.
fn f16_at(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_in_the_order_of_the_variants() {
        for (i, row) in TYPES.iter().enumerate() {
            assert_eq!(row.0 as usize, i);
            assert_eq!(DType::from_ggml(row.1), Ok(row.0));
        }
    }

    #[test]
    fn other_types_are_refused_by_name() {
        assert_eq!(DType::from_ggml(23), Err("IQ4_XS".into()));
        assert_eq!(DType::from_ggml(4), Err("number 4".into()));
    }

    #[test]
    fn a_row_is_whole_blocks() {
        assert_eq!(Q4K.bytes(512), Some(288));
        assert_eq!(Q4K.bytes(257), None);
        assert_eq!(F32.bytes(usize::MAX), None);
    }

    /// Random blocks of every type against the `gguf` package's results, bit for bit; `tests/golden/dequantize.py`
    /// makes the files.
    #[test]
    fn blocks_convert_as_ggml_does() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/dequantize");
        for (dtype, _, name, ..) in TYPES {
            let bytes = std::fs::read(folder.join(format!("{name}.bin"))).unwrap();
            let expected = std::fs::read(folder.join(format!("{name}.f32"))).unwrap();
            let expected: Vec<f32> =
                expected.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
            assert!(expected.len() >= 1024, "{name}");
            let mut found = vec![0.0; expected.len()];
            dtype.to_f32(&bytes, &mut found);
            for (i, (found, expected)) in found.iter().zip(&expected).enumerate() {
                assert_eq!(found.to_bits(), expected.to_bits(), "{name}[{i}]: {found} != {expected}");
            }
        }
    }
}
