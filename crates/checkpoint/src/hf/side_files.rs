//! The small files beside the weights.

use std::{fs::File, io::Read, path::Path};

use serde::de::DeserializeOwned;

use crate::CheckpointError;

/// The most bytes of a configuration or template.
pub(super) const CONFIG_CAP: u64 = 1 << 24;
/// The most bytes of `tokenizer.json`; the largest real ones have 40 MB.
pub(super) const TOKENIZER_CAP: u64 = 1 << 27;

/// Reads a file of at most `cap` bytes.
pub(super) fn read(path: &Path, cap: u64) -> Result<Vec<u8>, CheckpointError> {
    let io = |source| CheckpointError::Io { path: path.to_owned(), source };
    let metadata = std::fs::metadata(path).map_err(io)?;
    if !metadata.is_file() {
        let why = "it is not a file".to_owned();
        return Err(CheckpointError::NotACheckpoint { path: path.to_owned(), why });
    }
    let too_large = |length| CheckpointError::TooLarge { path: path.to_owned(), length, cap };
    if metadata.len() > cap {
        return Err(too_large(metadata.len()));
    }
    let mut bytes = Vec::with_capacity(metadata.len() as usize);
    // The file may have grown since it was measured.
    File::open(path).map_err(io)?.take(cap + 1).read_to_end(&mut bytes).map_err(io)?;
    if bytes.len() as u64 > cap { Err(too_large(bytes.len() as u64)) } else { Ok(bytes) }
}

/// Reads a file that need not be there.
pub(super) fn read_optional(path: &Path, cap: u64) -> Result<Option<Vec<u8>>, CheckpointError> {
    match read(path, cap) {
        Err(CheckpointError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => Ok(None),
        other => other.map(Some),
    }
}

/// Parses JSON; `serde_json` itself bounds how deep it may nest.
pub(super) fn parse<T: DeserializeOwned>(path: &Path, bytes: &[u8]) -> Result<T, CheckpointError> {
    serde_json::from_slice(bytes).map_err(|source| CheckpointError::Json { path: path.to_owned(), source })
}

/// Reads and parses a configuration that need not be there.
pub(super) fn parse_optional<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, CheckpointError> {
    read_optional(path, CONFIG_CAP)?.map(|bytes| parse(path, &bytes)).transpose()
}
