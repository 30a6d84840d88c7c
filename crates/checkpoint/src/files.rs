//! The files that hold a checkpoint's weights.

use std::{ops::Range, sync::Arc};

use crate::{
    CheckpointError, Source,
    mapped::{Bytes, MappedFile},
    streamed::Streamed,
};

/// Files of weights, by index.
pub(crate) enum Files {
    /// All there, mapped.
    Mapped(Vec<Arc<MappedFile>>),
    /// There when they are needed.
    Streamed(Streamed),
}

impl Files {
    pub(crate) fn mapped(files: Vec<MappedFile>) -> Self {
        Files::Mapped(files.into_iter().map(Arc::new).collect())
    }

    /// See [`crate::Checkpoint::sources`].
    pub(crate) fn sources(&self) -> Vec<Source> {
        match self {
            Files::Mapped(files) => files.iter().map(|file| Source::File(file.path().to_owned())).collect(),
            Files::Streamed(files) => files.sources(),
        }
    }

    /// The bytes of a tensor, or some of them.
    pub(crate) fn read(&self, file: usize, bytes: &Range<usize>) -> Result<Bytes, CheckpointError> {
        match self {
            Files::Mapped(files) => Ok(Bytes::Mapped(Arc::clone(&files[file]), bytes.clone())),
            Files::Streamed(files) => files.read(file, bytes),
        }
    }

    /// Says, before anything is read, that a tensor lies there. Vectors are small and read again and again.
    pub(crate) fn will_read(&self, file: usize, bytes: Range<usize>, is_vector: bool) {
        if let Files::Streamed(files) = self {
            files.will_read(file, bytes, is_vector);
        }
    }

    /// Says that a tensor will not be read again.
    pub(crate) fn finished(&self, file: usize, bytes: &Range<usize>) {
        if let Files::Streamed(files) = self {
            files.finished(file, bytes);
        }
    }
}
