use std::{
    collections::HashMap,
    fs::{self, File},
    io::{self, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use crate::{
    Encoding, FormatError, Header, TensorEntry, TensorName, TensorStats,
    encoding::scales_length,
    journal::{Journal, Record, with_suffix},
    layout::Layout,
};

/// Bytes read at once to be hashed.
const CHUNK: usize = 1 << 20;

/// A part of a tensor's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Section {
    /// The row scales of a T8 tensor, `f16`.
    Scales,
    /// The codes of a T8 tensor.
    Codes,
    /// All of an F16 or F32 tensor.
    Plain,
}

/// Writes a `.upg` file through `OUT.part`, tensor by tensor, in any order.
///
/// Dropping the writer leaves `OUT.part` and `OUT.part.journal`, from which [`UpgWriter::create_or_resume`] goes on
/// without redoing finished tensors; the finished file is the same, byte for byte. Nothing is buffered: a kill at
/// any moment leaves what a drop leaves.
#[derive(Debug)]
pub struct UpgWriter {
    out: PathBuf,
    part: PathBuf,
    file: File,
    /// Holds the lock.
    journal: Journal,
    layout: Layout,
    /// Positions in the layout's tensors.
    positions: HashMap<TensorName, usize>,
    /// Of each tensor of the layout.
    states: Vec<State>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// So many bytes were written in this run.
    Open(u64),
    /// Complete, in the journal, its checksum in the layout.
    Done,
}

impl UpgWriter {
    /// Starts `out` (replacing it at the end where it exists), or goes on with it where `out.part` was started with the same header, tokenizer and plan.
    /// `tensors` holds each of [`TensorName::of_upg`] once, in any order.
    ///
    /// # Errors
    /// [`FormatError::Busy`] where another process is writing it; a header or plan that no file can have; I/O.
    pub fn create_or_resume(
        out: &Path,
        header: &Header,
        tokenizer_json: &[u8],
        tensors: &[(TensorName, Encoding)],
    ) -> Result<Self, FormatError> {
        let layout = Layout::new(header, tokenizer_json, tensors)?;
        // Asked now: renaming would fail only when all is done.
        if fs::metadata(out).is_ok_and(|metadata| !metadata.is_file()) {
            return Err(FormatError::NotAFile(out.to_owned()));
        }
        let part = with_suffix(out, ".part");
        let journal = Journal::open(&part)?;
        let file = File::options().read(true).write(true).create(true).truncate(false).open(&part);
        let file = file.map_err(|source| FormatError::io("write", &part, source))?;
        let positions = layout.index.tensors.iter().enumerate().map(|(i, entry)| (entry.name, i)).collect();
        let states = vec![State::Open(0); layout.index.tensors.len()];
        let mut writer = Self { out: out.to_owned(), part, file, journal, layout, positions, states };
        writer.resume_or_restart()?;
        Ok(writer)
    }

    /// Bytes of the finished file, exactly. It is [`UpgWriter::overhead`] plus the tensors'
    /// [`Encoding::stored_length`].
    ///
    /// # Errors
    /// A header or plan that no file can have.
    pub fn file_size(
        header: &Header,
        tokenizer_json: &[u8],
        tensors: &[(TensorName, Encoding)],
    ) -> Result<u64, FormatError> {
        Ok(Layout::new(header, tokenizer_json, tensors)?.file_length)
    }

    /// Bytes of the finished file besides its tensors. Does not depend on the encodings.
    ///
    /// # Errors
    /// A header that no file can have.
    pub fn overhead(header: &Header, tokenizer_json: &[u8]) -> Result<u64, FormatError> {
        header.validate()?;
        let names = TensorName::of_upg(&header.config).into_iter();
        let plan: Vec<_> = names.map(|name| (name, Encoding::F32)).collect();
        Ok(Layout::new(header, tokenizer_json, &plan)?.overhead())
    }

    /// Whether a tensor is finished, by this run or an interrupted one.
    pub fn is_done(&self, name: TensorName) -> bool {
        self.positions.get(&name).is_some_and(|i| self.states[*i] == State::Done)
    }

    /// Writes bytes of a tensor, `offset` bytes into a section. Each byte of a tensor is written once.
    ///
    /// # Errors
    /// [`FormatError::OutOfSection`] for bytes outside the section or of a finished tensor; or I/O.
    pub fn write(
        &mut self,
        name: TensorName,
        section: Section,
        offset: u64,
        bytes: &[u8],
    ) -> Result<(), FormatError> {
        let length = bytes.len() as u64;
        let outside = FormatError::OutOfSection { name, section, offset, length };
        let Some(&position) = self.positions.get(&name) else {
            return Err(FormatError::UnexpectedTensor(name));
        };
        let State::Open(written) = self.states[position] else { return Err(outside) };
        let Some((start, size)) = section.range(&self.layout.index.tensors[position]) else {
            return Err(outside);
        };
        if offset.checked_add(length).is_none_or(|end| end > size) {
            return Err(outside);
        }
        self.write_at(start + offset, bytes)?;
        self.states[position] = State::Open(written + length);
        Ok(())
    }

    /// The bytes of a section of a finished tensor, by this run or an interrupted one: what a later tensor is made from.
    ///
    /// # Errors
    /// [`FormatError::Incomplete`] for a tensor that is not finished, [`FormatError::OutOfSection`] for one that has no
    /// such section; or I/O.
    pub fn read(&self, name: TensorName, section: Section) -> Result<Vec<u8>, FormatError> {
        let &position = self.positions.get(&name).ok_or(FormatError::UnexpectedTensor(name))?;
        let entry = &self.layout.index.tensors[position];
        if let State::Open(written) = self.states[position] {
            return Err(FormatError::Incomplete { name, written, expected: Section::sizes(entry) });
        }
        let outside = FormatError::OutOfSection { name, section, offset: 0, length: 0 };
        let (start, size) = section.range(entry).ok_or(outside)?;
        let mut bytes = vec![0; size as usize];
        let mut file = &self.file;
        let read = file.seek(SeekFrom::Start(start)).and_then(|_| file.read_exact(&mut bytes));
        read.map_err(|source| FormatError::io("read", &self.part, source))?;
        Ok(bytes)
    }

    /// Declares a tensor complete: its bytes are hashed and entered in the journal.
    ///
    /// # Errors
    /// [`FormatError::Incomplete`] where bytes are missing, or I/O.
    pub fn finish_tensor(&mut self, name: TensorName, stats: Option<TensorStats>) -> Result<(), FormatError> {
        let &position = self.positions.get(&name).ok_or(FormatError::UnexpectedTensor(name))?;
        let entry = &self.layout.index.tensors[position];
        let expected = Section::sizes(entry);
        match self.states[position] {
            State::Done => return Ok(()),
            State::Open(written) if written != expected => {
                return Err(FormatError::Incomplete { name, written, expected });
            }
            State::Open(_) => {}
        }
        let checksum = self.hash(entry.offset, entry.length)?;
        let record = Record { name: name.to_string(), checksum, stats };
        self.journal.append(&record)?;
        self.accept(position, &record);
        Ok(())
    }

    /// Writes the index, syncs, and gives the file its name. Returns its length.
    ///
    /// # Errors
    /// [`FormatError::Incomplete`] names a tensor that is not finished; or I/O.
    pub fn finish(mut self) -> Result<u64, FormatError> {
        for (entry, state) in self.layout.index.tensors.iter().zip(&self.states) {
            if let State::Open(written) = *state {
                let (name, expected) = (entry.name, Section::sizes(entry));
                return Err(FormatError::Incomplete { name, written, expected });
            }
        }
        let tokenizer = std::mem::take(&mut self.layout.tokenizer);
        self.write_at(self.layout.index.tokenizer.offset, &tokenizer)?;
        self.write_at(0, &self.layout.head()?)?;
        self.file.sync_all().map_err(|source| FormatError::io("write", &self.part, source))?;
        fs::rename(&self.part, &self.out).map_err(|source| FormatError::io("write", &self.out, source))?;
        sync_folder(&self.out).map_err(|source| FormatError::io("write", &self.out, source))?;
        self.journal.remove()?;
        Ok(self.layout.file_length)
    }

    /// Gives up: removes what was written.
    ///
    /// # Errors
    /// I/O.
    pub fn discard(self) -> Result<(), FormatError> {
        fs::remove_file(&self.part).map_err(|source| FormatError::io("remove", &self.part, source))?;
        self.journal.remove()
    }

    fn resume_or_restart(&mut self) -> Result<(), FormatError> {
        let identity = self.layout.identity()?;
        let io_error = |source| FormatError::io("write", &self.part, source);
        let is_whole = self.file.metadata().map_err(io_error)?.len() == self.layout.file_length;
        let records = if is_whole { self.journal.resume(identity)? } else { None };
        let Some(records) = records else {
            // In this order, so that no kill leaves a journal that speaks of other bytes. Shrinking first makes
            // every byte zero, which is what padding must be.
            self.journal.restart(identity)?;
            self.file.set_len(0).map_err(io_error)?;
            return self.file.set_len(self.layout.file_length).map_err(io_error);
        };
        for record in records {
            let position = record.name.parse().ok().and_then(|name: TensorName| self.positions.get(&name));
            let Some(&position) = position else { continue };
            let entry = &self.layout.index.tensors[position];
            if self.hash(entry.offset, entry.length)? == record.checksum {
                self.accept(position, &record);
            }
        }
        Ok(())
    }

    fn accept(&mut self, position: usize, record: &Record) {
        let entry = &mut self.layout.index.tensors[position];
        (entry.checksum, entry.stats) = (record.checksum, record.stats.and_then(TensorStats::rounded));
        self.states[position] = State::Done;
    }

    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<(), FormatError> {
        let written = self.file.seek(SeekFrom::Start(offset)).and_then(|_| self.file.write_all(bytes));
        written.map_err(|source| FormatError::io("write", &self.part, source))
    }

    fn hash(&self, offset: u64, length: u64) -> Result<[u8; 32], FormatError> {
        hash_range(&self.file, offset, length).map_err(|source| FormatError::io("read", &self.part, source))
    }
}

impl Section {
    /// Where a section lies in the file, and its bytes; `None` where the tensor has no such section.
    fn range(self, entry: &TensorEntry) -> Option<(u64, u64)> {
        let [rows, _] = entry.shape;
        match (self, entry.encoding) {
            (Section::Scales, Encoding::T8(_)) => Some((entry.offset, 2 * rows)),
            (Section::Codes, Encoding::T8(_)) => {
                let scales = scales_length(rows)?;
                Some((entry.offset + scales, entry.length - scales))
            }
            (Section::Plain, Encoding::F16 | Encoding::F32) => Some((entry.offset, entry.length)),
            _ => None,
        }
    }

    /// Bytes of all sections of a tensor: its length without padding.
    fn sizes(entry: &TensorEntry) -> u64 {
        [Section::Scales, Section::Codes, Section::Plain]
            .into_iter()
            .filter_map(|section| Some(section.range(entry)?.1))
            .sum()
    }
}

fn hash_range(mut file: &File, offset: u64, length: u64) -> io::Result<[u8; 32]> {
    file.seek(SeekFrom::Start(offset))?;
    let mut hasher = blake3::Hasher::new();
    let mut chunk = vec![0; CHUNK.min(length as usize)];
    let mut rest = length;
    while rest > 0 {
        let chunk = &mut chunk[..CHUNK.min(rest as usize)];
        file.read_exact(chunk)?;
        hasher.update(chunk);
        rest -= chunk.len() as u64;
    }
    Ok(*hasher.finalize().as_bytes())
}

/// Makes a renaming in the folder of `path` survive a power cut.
fn sync_folder(path: &Path) -> io::Result<()> {
    #[cfg(unix)]
    {
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
    }
    #[cfg(not(unix))]
    {
        // Other systems cannot open a folder, and order renames themselves.
        let _ = path;
        Ok(())
    }
}
