use std::{io, path::PathBuf};

/// A file of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// On this machine.
    File(PathBuf),
    /// Elsewhere, fetched when it is needed.
    Remote {
        /// Its name, without folders.
        name: String,
        /// Its length in bytes.
        size: u64,
        /// Its SHA-256, to which it is held when it is fetched.
        sha256: [u8; 32],
    },
}

impl Source {
    /// Its length in bytes.
    ///
    /// # Errors
    /// The operating system's, where a file on this machine cannot be asked.
    pub fn size(&self) -> io::Result<u64> {
        match self {
            Source::File(path) => Ok(path.metadata()?.len()),
            Source::Remote { size, .. } => Ok(*size),
        }
    }
}
