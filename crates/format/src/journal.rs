use std::{
    fs::{self, File, TryLockError},
    io::{Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::{FormatError, TensorStats, index::hex, preamble::MAX_HEADER};

/// Which tensors of an unfinished file are finished: `OUT.part.journal`, one JSON object a line, the first of which
/// says what the file is to become. Also the lock that keeps two writers apart.
///
/// Lines are only ever appended, and a torn last line counts for nothing, so it can be believed after a kill at any
/// moment; after a power cut the checksums find tensors that never reached the disk.
#[derive(Debug)]
pub(crate) struct Journal {
    path: PathBuf,
    file: File,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct First {
    upg_journal: u32,
    #[serde(with = "hex")]
    identity: [u8; 32],
}

/// A finished tensor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Record {
    pub name: String,
    #[serde(with = "hex")]
    pub checksum: [u8; 32],
    pub stats: Option<TensorStats>,
}

impl Journal {
    /// Opens the journal of `part` (an empty one where there is none) and locks it until dropped.
    pub fn open(part: &Path) -> Result<Self, FormatError> {
        let path = with_suffix(part, ".journal");
        let file = File::options().read(true).write(true).create(true).truncate(false).open(&path);
        let file = file.map_err(|source| FormatError::io("write", &path, source))?;
        match file.try_lock() {
            Ok(()) if was_removed(&file) => Err(FormatError::Busy(part.to_owned())),
            Ok(()) => Ok(Self { path, file }),
            Err(TryLockError::WouldBlock) => Err(FormatError::Busy(part.to_owned())),
            Err(TryLockError::Error(source)) => Err(FormatError::io("lock", &path, source)),
        }
    }

    /// The finished tensors of the file of this identity; `None` where the journal is another file's, or empty.
    /// The next append goes behind what was understood.
    pub fn resume(&mut self, identity: blake3::Hash) -> Result<Option<Vec<Record>>, FormatError> {
        let mut text = Vec::new();
        let read = self.file.seek(SeekFrom::Start(0));
        let read = read.and_then(|_| Read::by_ref(&mut self.file).take(MAX_HEADER).read_to_end(&mut text));
        read.map_err(|source| FormatError::io("read", &self.path, source))?;

        let mut lines = text.split_inclusive(|byte| *byte == b'\n').filter(|line| line.ends_with(b"\n"));
        let first = First { upg_journal: 1, identity: *identity.as_bytes() };
        let Some(line) = lines.next().filter(|line| parse::<First>(line) == Some(first)) else {
            return Ok(None);
        };
        let mut understood = line.len();
        let mut records = Vec::new();
        for line in lines {
            let Some(record) = parse(line) else { break };
            understood += line.len();
            records.push(record);
        }
        self.cut(understood as u64)?;
        Ok(Some(records))
    }

    /// Starts over, for the file of this identity.
    pub fn restart(&mut self, identity: blake3::Hash) -> Result<(), FormatError> {
        self.cut(0)?;
        self.append_line(&First { upg_journal: 1, identity: *identity.as_bytes() })
    }

    /// Enters a finished tensor.
    pub fn append(&mut self, record: &Record) -> Result<(), FormatError> {
        self.append_line(record)
    }

    /// Removes the journal.
    pub fn remove(self) -> Result<(), FormatError> {
        fs::remove_file(&self.path).map_err(|source| FormatError::io("remove", &self.path, source))
    }

    fn append_line(&mut self, line: &impl Serialize) -> Result<(), FormatError> {
        let mut text = serde_json::to_vec(line)?;
        text.push(b'\n');
        self.file.write_all(&text).map_err(|source| FormatError::io("write", &self.path, source))
    }

    fn cut(&mut self, length: u64) -> Result<(), FormatError> {
        let cut = self.file.set_len(length).and_then(|()| self.file.seek(SeekFrom::Start(length)));
        cut.map(drop).map_err(|source| FormatError::io("write", &self.path, source))
    }
}

/// Whether another writer finished, and removed the journal, between our opening and locking it.
fn was_removed(file: &File) -> bool {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        file.metadata().is_ok_and(|metadata| metadata.nlink() == 0)
    }
    #[cfg(not(unix))]
    {
        let _ = file;
        false
    }
}

fn parse<'a, T: Deserialize<'a>>(line: &'a [u8]) -> Option<T> {
    serde_json::from_slice(line).ok()
}

/// `path` with `suffix` behind its last component.
pub(crate) fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}
