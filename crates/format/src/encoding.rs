use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use upg_codec::Bits;

/// Every entry of the data region, and the codes of a T8 tensor, start at a multiple of this many bytes.
pub const ALIGNMENT: u64 = 64;

/// How a tensor's numbers are stored. Written `t8-3`, `f16`, `f32`, …
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Encoding {
    /// One `f16` scale a row, zeros up to a multiple of [`ALIGNMENT`], then the rows' T8 codes.
    T8(Bits),
    /// IEEE half precision, row after row.
    F16,
    /// IEEE single precision, row after row.
    F32,
}

/// A string that names no encoding.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an encoding: known are t8-2, t8-3, t8-4, t8-5, t8-6, t8-8, f16 and f32")]
pub struct EncodingError(pub String);

impl Encoding {
    /// Bytes of a tensor of this shape, padding behind it left out; `None` where T8 cannot store the shape (columns
    /// that are no multiple of 32) or the size overflows.
    pub fn length(self, shape: [u64; 2]) -> Option<u64> {
        let [rows, cols] = shape;
        match self {
            Encoding::T8(bits) => {
                let row = bits.row_bytes(usize::try_from(cols).ok()?)?;
                scales_length(rows)?.checked_add(rows.checked_mul(row as u64)?)
            }
            Encoding::F16 => rows.checked_mul(cols)?.checked_mul(2),
            Encoding::F32 => rows.checked_mul(cols)?.checked_mul(4),
        }
    }

    /// Bytes that a tensor of this shape takes in a file, padding behind it included: what a bit allocation adds up.
    pub fn stored_length(self, shape: [u64; 2]) -> Option<u64> {
        align(self.length(shape)?)
    }
}

/// Bytes of a T8 tensor's scales with the padding behind them: where its codes start.
pub(crate) fn scales_length(rows: u64) -> Option<u64> {
    align(rows.checked_mul(2)?)
}

/// The next multiple of [`ALIGNMENT`].
pub(crate) fn align(length: u64) -> Option<u64> {
    length.checked_next_multiple_of(ALIGNMENT)
}

impl fmt::Display for Encoding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Encoding::T8(bits) => write!(f, "t8-{}", bits.get()),
            Encoding::F16 => f.write_str("f16"),
            Encoding::F32 => f.write_str("f32"),
        }
    }
}

impl FromStr for Encoding {
    type Err = EncodingError;

    fn from_str(name: &str) -> Result<Self, EncodingError> {
        let t8 = Bits::ALL.into_iter().map(Encoding::T8);
        let known = t8.chain([Encoding::F16, Encoding::F32]);
        known.into_iter().find(|e| e.to_string() == name).ok_or_else(|| EncodingError(name.to_owned()))
    }
}

impl TryFrom<String> for Encoding {
    type Error = EncodingError;

    fn try_from(name: String) -> Result<Self, EncodingError> {
        name.parse()
    }
}

impl From<Encoding> for String {
    fn from(encoding: Encoding) -> String {
        encoding.to_string()
    }
}
