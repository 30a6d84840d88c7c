use serde::{Deserialize, Serialize};

use crate::{Encoding, TensorName};

/// Where a tensor lies in a file.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorEntry {
    /// Its name.
    pub name: TensorName,
    /// `[rows, cols]`; rows are outputs.
    pub shape: [u64; 2],
    /// How its numbers are stored.
    pub encoding: Encoding,
    /// First byte, counted from the start of the file.
    pub offset: u64,
    /// Bytes, padding behind it left out.
    pub length: u64,
    /// BLAKE3 of these bytes.
    pub checksum: [u8; 32],
    /// What the compressor measured.
    pub stats: Option<TensorStats>,
}

/// What the compressor measured of one tensor.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TensorStats {
    /// Signal to error of the stored weights against the checkpoint's, in dB; stored with two decimals.
    pub snr_db: f32,
}
