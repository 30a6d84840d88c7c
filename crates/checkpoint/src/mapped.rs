use std::{
    fs::File,
    path::{Path, PathBuf},
};

use memmap2::Mmap;

use crate::CheckpointError;

/// A file in the address space, read-only.
pub(crate) struct MappedFile {
    path: PathBuf,
    map: Mmap,
}

impl MappedFile {
    pub(crate) fn open(path: &Path) -> Result<Self, CheckpointError> {
        let io = |source| CheckpointError::Io { path: path.to_owned(), source };
        // Asked before opening: to open a named pipe would wait for a writer.
        if !std::fs::metadata(path).map_err(io)?.is_file() {
            let why = "it is neither a file nor a folder".to_owned();
            return Err(CheckpointError::NotACheckpoint { path: path.to_owned(), why });
        }
        let file = File::open(path).map_err(io)?;
        // SAFETY: the map is private and read-only. What remains is another process that shortens or rewrites the
        // file while it is mapped; every program that maps a model shares that limit. The bytes are read as numbers
        // that may be anything, so changed ones are wrong, not undefined.
        let map = unsafe { Mmap::map(&file) }.map_err(io)?;
        Ok(Self { path: path.to_owned(), map })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.map
    }
}
