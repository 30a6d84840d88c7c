use std::io::{Read, Write};

use flate2::{Compression, bufread::DeflateDecoder, write::DeflateEncoder};

use crate::FormatError;

/// The one blob that a file of this version holds.
pub(crate) const TOKENIZER: &str = "tokenizer.json";

/// No honest tokenizer is longer (the largest known is about 35 MB).
const MAX_RAW: u64 = 128 << 20;

/// A blob inflates at most so many times: what is allocated stays in proportion to the file. Tokenizers reach 10.
const MAX_RATIO: u64 = 64;

/// Where a deflated blob lies in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BlobEntry {
    pub offset: u64,
    pub length: u64,
    /// Bytes after inflating.
    pub raw_length: u64,
    /// BLAKE3 of the stored bytes.
    pub checksum: [u8; 32],
}

impl BlobEntry {
    /// Checks the caps on what inflating may allocate.
    pub fn check_sizes(&self) -> Result<(), FormatError> {
        let Self { length, raw_length, .. } = *self;
        if raw_length > MAX_RAW || raw_length > length.saturating_mul(MAX_RATIO) {
            return Err(FormatError::BlobTooLarge { length, raw_length });
        }
        Ok(())
    }
}

/// Compresses a blob (raw DEFLATE, RFC 1951).
pub(crate) fn deflate(raw: &[u8]) -> Vec<u8> {
    let best = deflate_at(raw, Compression::best());
    // What compresses implausibly well is stored as it is: readers refuse such ratios.
    if best.len() as u64 * MAX_RATIO < raw.len() as u64 { deflate_at(raw, Compression::none()) } else { best }
}

fn deflate_at(raw: &[u8], level: Compression) -> Vec<u8> {
    let mut encoder = DeflateEncoder::new(Vec::new(), level);
    let written = encoder.write_all(raw).and_then(|()| encoder.finish());
    written.expect("writing to a Vec cannot fail")
}

/// Inflates a blob whose sizes were checked; anything but exactly `raw_length` bytes is an error.
pub(crate) fn inflate(stored: &[u8], raw_length: u64) -> Result<Vec<u8>, FormatError> {
    let mut raw = Vec::new();
    let mut decoder = DeflateDecoder::new(stored);
    let read = decoder.by_ref().take(raw_length.saturating_add(1)).read_to_end(&mut raw);
    let is_whole = read.is_ok_and(|n| n as u64 == raw_length) && decoder.total_in() == stored.len() as u64;
    if is_whole { Ok(raw) } else { Err(FormatError::Inflate { raw_length }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inflate_inverts_deflate() {
        for raw in [Vec::new(), b"{}".to_vec(), vec![b' '; 100_000], (0..=255).collect()] {
            let stored = deflate(&raw);
            let entry = BlobEntry {
                offset: 0,
                length: stored.len() as u64,
                raw_length: raw.len() as u64,
                checksum: [0; 32],
            };
            entry.check_sizes().unwrap();
            assert_eq!(inflate(&stored, raw.len() as u64).unwrap(), raw);
        }
    }

    #[test]
    fn inflate_refuses_any_other_length() {
        let stored = deflate(b"twelve bytes");
        let with_tail = [&stored[..], &[0]].concat();
        for (stored, raw_length) in
            [(&stored[..], 11), (&stored[..], 13), (&stored[1..], 12), (&with_tail[..], 12)]
        {
            assert!(matches!(inflate(stored, raw_length), Err(FormatError::Inflate { .. })));
        }
    }
}
