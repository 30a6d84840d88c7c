use std::{fs::File, path::Path};

use upg_format::SourceFile;

use crate::CompressError;

/// Identifies a file of a checkpoint by its name, length and contents. Reads it once.
pub(crate) fn identify(path: &Path) -> Result<SourceFile, CompressError> {
    let failed = |source| CompressError::Source { path: path.to_owned(), source };
    let size = path.metadata().map_err(failed)?.len();
    let mut hasher = blake3::Hasher::new();
    // Not mapped: pages of a mapping would count as this process's memory.
    hasher.update_reader(File::open(path).map_err(failed)?).map_err(failed)?;
    let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
    Ok(SourceFile { name, size, blake3: Some(hasher.finalize().to_hex().to_string()) })
}
