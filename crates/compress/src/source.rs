use std::{
    fmt::Write as _,
    fs::File,
    io::{self, Read as _},
    path::Path,
};

use sha2::{Digest as _, Sha256};
use upg_checkpoint::Source;
use upg_format::SourceFile;

use crate::CompressError;

/// Bytes read at a time.
const CHUNK: usize = 1 << 20;

/// Identifies a file of a checkpoint by its name, length and contents. One on this machine is read once.
pub(crate) fn identify(source: &Source) -> Result<SourceFile, CompressError> {
    match source {
        Source::File(path) => {
            identify_file(path).map_err(|source| CompressError::Source { path: path.to_owned(), source })
        }
        Source::Remote { name, size, sha256 } => {
            Ok(SourceFile { name: name.clone(), size: *size, blake3: None, sha256: Some(hex(sha256)) })
        }
    }
}

fn identify_file(path: &Path) -> io::Result<SourceFile> {
    let size = path.metadata()?.len();
    let mut hasher = Sha256::new();
    // Not mapped: pages of a mapping would count as this process's memory.
    let mut file = File::open(path)?;
    let mut chunk = vec![0; CHUNK];
    loop {
        match file.read(&mut chunk)? {
            0 => break,
            read => hasher.update(&chunk[..read]),
        }
    }
    let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
    Ok(SourceFile { name, size, blake3: None, sha256: Some(hex(&hasher.finalize())) })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}
