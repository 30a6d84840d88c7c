use std::{
    fs::File,
    ops::{Deref, Range},
    path::{Path, PathBuf},
    sync::Arc,
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

    /// Tells the operating system that `range` has been read: a checkpoint of 30 GB that is read once must not count as
    /// 30 GB of this process's memory. The bytes stay readable.
    pub(crate) fn release(&self, range: Range<usize>) {
        #[cfg(unix)]
        {
            let advice = memmap2::UncheckedAdvice::DontNeed;
            // SAFETY: the range is inside the mapping (memmap2 checks it). The mapping is of a file, shared and
            // read-only, so there are no private changes to lose: dropped pages come back from the file.
            // Advice only: where it is refused, the pages merely stay.
            let _ = unsafe { self.map.unchecked_advise_range(advice, range.start, range.len()) };
        }
        #[cfg(not(unix))]
        let _ = range;
    }
}

/// Some bytes of a file of weights.
pub(crate) enum Bytes {
    /// Of a file that is mapped for as long as they are in use.
    Mapped(Arc<MappedFile>, Range<usize>),
    /// Kept beside a file that may be gone.
    Kept(Arc<[u8]>),
}

impl Bytes {
    /// See [`MappedFile::release`]; `part` counts from the first of these bytes.
    pub(crate) fn release(&self, part: Range<usize>) {
        if let Bytes::Mapped(file, range) = self {
            file.release(range.start + part.start..range.start + part.end);
        }
    }
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Bytes::Mapped(file, range) => &file.bytes()[range.clone()],
            Bytes::Kept(bytes) => bytes,
        }
    }
}
