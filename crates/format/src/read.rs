use std::{
    collections::HashMap,
    fs::{self, File},
    io::{self, Read},
    path::Path,
};

use half::f16;
use memmap2::Mmap;

use crate::{
    ALIGNMENT, Encoding, FormatError, Header, TensorEntry, TensorName,
    blob::{self, TOKENIZER},
    index::Index,
    preamble::Preamble,
};

/// Bytes hashed between two reports of progress.
const CHUNK: usize = 1 << 20;

/// An open `.upg` file: header and index in memory, the data mapped read-only and shared with every other reader.
///
/// Opening checks the header's checksum and that the index covers the file exactly; it reads no tensor.
/// [`UpgFile::verify`] checks the tensors.
///
/// A finished file must not be changed in place while it is open: readers would get the changed weights, and would
/// be killed by the operating system (SIGBUS) where it got shorter. [`UpgWriter`](crate::UpgWriter) replaces files
/// by renaming, which is safe.
#[derive(Debug)]
pub struct UpgFile {
    index: Index,
    /// Positions in `index.tensors`.
    positions: HashMap<TensorName, usize>,
    map: Mmap,
}

/// A tensor's numbers, in place.
#[derive(Clone, Copy, Debug)]
pub enum TensorData<'a> {
    /// Weight `(r, c)` is `scales[r]` times the value of its code.
    T8 {
        /// One scale a row.
        scales: &'a [f16],
        /// `rows · bits.row_bytes(cols)` bytes, row after row.
        codes: &'a [u8],
    },
    /// `rows · cols` numbers, row after row.
    F16(&'a [f16]),
    /// `rows · cols` numbers, row after row.
    F32(&'a [f32]),
}

impl UpgFile {
    /// Opens a file.
    ///
    /// # Errors
    /// Anything but a well-formed file of this version is refused; see [`FormatError`].
    pub fn open(path: &Path) -> Result<Self, FormatError> {
        let io_error = |source| FormatError::io("read", path, source);
        // Asked before opening: opening a pipe would wait for its writer.
        if !fs::metadata(path).map_err(io_error)?.is_file() {
            return Err(FormatError::NotAFile(path.to_owned()));
        }
        let mut file = File::open(path).map_err(io_error)?;
        let actual = file.metadata().map_err(io_error)?.len();
        let index = read_index(&mut file, actual, path)?;
        let map = map(&file).map_err(|source| FormatError::io("map", path, source))?;
        if map.len() as u64 != actual {
            return Err(FormatError::Truncated { stated: actual, actual: map.len() as u64 });
        }
        let positions = index.tensors.iter().enumerate().map(|(i, entry)| (entry.name, i)).collect();
        let file = Self { index, positions, map };
        file.check_padding()?;
        Ok(file)
    }

    /// Configuration, text settings and provenance.
    pub fn header(&self) -> &Header {
        &self.index.header
    }

    /// The index, in the order of the file.
    pub fn tensors(&self) -> &[TensorEntry] {
        &self.index.tensors
    }

    /// One tensor; `None` where the model has none of this name.
    pub fn tensor(&self, name: TensorName) -> Option<(&TensorEntry, TensorData<'_>)> {
        let entry = self.entry(name)?;
        let bytes = self.bytes(entry.offset, entry.length);
        // The casts cannot fail: a mapping starts at a page, every entry and T8's codes at a multiple of 64 in it,
        // and lengths were checked against shapes.
        let data = match entry.encoding {
            Encoding::T8(_) => {
                let (scales, codes) = bytes.split_at(scales_bytes(entry));
                TensorData::T8 { scales: bytemuck::cast_slice(&scales[..2 * entry.shape[0] as usize]), codes }
            }
            Encoding::F16 => TensorData::F16(bytemuck::cast_slice(bytes)),
            Encoding::F32 => TensorData::F32(bytemuck::cast_slice(bytes)),
        };
        Some((entry, data))
    }

    /// The tokenizer, inflated: the text of a Hugging Face `tokenizer.json`. Its checksum is checked.
    ///
    /// # Errors
    /// [`FormatError::Checksum`] or [`FormatError::Inflate`].
    pub fn tokenizer_json(&self) -> Result<Vec<u8>, FormatError> {
        self.verify_tokenizer(&mut |_| ())?;
        let entry = &self.index.tokenizer;
        blob::inflate(self.bytes(entry.offset, entry.length), entry.raw_length)
    }

    /// Checks every tensor and the tokenizer against their checksums. `progress` gets the bytes done since its last
    /// call; they add up to [`UpgFile::data_len`].
    ///
    /// # Errors
    /// [`FormatError::Checksum`] names the first entry that is damaged.
    pub fn verify(&self, progress: &mut dyn FnMut(u64)) -> Result<(), FormatError> {
        self.verify_tokenizer(progress)?;
        self.index.tensors.iter().try_for_each(|entry| self.verify_entry(entry, progress))
    }

    /// Checks one tensor against its checksum; `progress` as in [`UpgFile::verify`].
    ///
    /// # Errors
    /// [`FormatError::Checksum`], or [`FormatError::UnexpectedTensor`] where the model has none of this name.
    pub fn verify_tensor(&self, name: TensorName, progress: &mut dyn FnMut(u64)) -> Result<(), FormatError> {
        let entry = self.entry(name).ok_or(FormatError::UnexpectedTensor(name))?;
        self.verify_entry(entry, progress)
    }

    /// Bytes of all entries, padding left out: what [`UpgFile::verify`] reads.
    pub fn data_len(&self) -> u64 {
        self.index.entries().map(|(_, _, length)| length).sum()
    }

    /// Bytes of the file.
    pub fn file_len(&self) -> u64 {
        self.map.len() as u64
    }

    /// Tells the operating system that a tensor will not be read again soon, so that a machine that keeps a copy in
    /// its own layout does not hold the weights twice. The tensor stays readable.
    pub fn release(&self, name: TensorName) {
        #[cfg(unix)]
        if let Some(entry) = self.entry(name) {
            let (offset, length) = (entry.offset as usize, entry.length as usize);
            // SAFETY: the range is inside the mapping. The mapping is of a file, shared and read-only, so there are
            // no private changes to lose: dropped pages come back from the file with the same bytes.
            // Advice only: where it is refused, the pages merely stay.
            let _ = unsafe {
                self.map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, offset, length)
            };
        }
        #[cfg(not(unix))]
        let _ = name;
    }

    fn entry(&self, name: TensorName) -> Option<&TensorEntry> {
        self.index.tensors.get(*self.positions.get(&name)?)
    }

    /// Bytes of an entry; [`Index::parse`] checked that it lies inside the file.
    fn bytes(&self, offset: u64, length: u64) -> &[u8] {
        &self.map[offset as usize..(offset + length) as usize]
    }

    fn verify_entry(&self, entry: &TensorEntry, progress: &mut dyn FnMut(u64)) -> Result<(), FormatError> {
        let bytes = self.bytes(entry.offset, entry.length);
        check_hash(bytes, &entry.checksum, progress, || format!("tensor {}", entry.name))
    }

    fn verify_tokenizer(&self, progress: &mut dyn FnMut(u64)) -> Result<(), FormatError> {
        let entry = &self.index.tokenizer;
        check_hash(self.bytes(entry.offset, entry.length), &entry.checksum, progress, || TOKENIZER.to_owned())
    }

    /// Checks that every byte that no entry counts as its own is zero.
    fn check_padding(&self) -> Result<(), FormatError> {
        for (entry, offset, length) in self.index.entries() {
            let end = offset + length;
            // Within the file: `Index::parse` checked the aligned end.
            let padding = self.bytes(end, end.next_multiple_of(ALIGNMENT) - end);
            if padding.iter().any(|byte| *byte != 0) {
                return Err(FormatError::Padding { entry });
            }
        }
        let t8 = self.index.tensors.iter().filter(|entry| matches!(entry.encoding, Encoding::T8(_)));
        for entry in t8 {
            let scales = self.bytes(entry.offset, scales_bytes(entry) as u64);
            if scales[2 * entry.shape[0] as usize..].iter().any(|byte| *byte != 0) {
                return Err(FormatError::Padding { entry: format!("the scales of tensor {}", entry.name) });
            }
        }
        Ok(())
    }
}

fn read_index(file: &mut File, actual: u64, path: &Path) -> Result<Index, FormatError> {
    let io_error = |source| FormatError::io("read", path, source);
    if actual < Preamble::LENGTH as u64 {
        return Err(FormatError::TooShort { length: actual });
    }
    let mut bytes = [0; Preamble::LENGTH];
    file.read_exact(&mut bytes).map_err(io_error)?;
    let preamble = Preamble::parse(&bytes, actual)?;
    // Read rather than mapped: what is hashed is what is parsed, whatever happens to the file meanwhile. Its length
    // was checked against the file's.
    let mut header = vec![0; preamble.header_length as usize];
    file.read_exact(&mut header).map_err(io_error)?;
    if *blake3::hash(&header).as_bytes() != preamble.checksum {
        return Err(FormatError::HeaderChecksum);
    }
    Index::parse(&header, preamble.header_end(), preamble.file_length)
}

fn map(file: &File) -> io::Result<Mmap> {
    // SAFETY: the mapping is read-only, and every bit pattern is valid for the types it is read as (u8, f16, f32).
    // What cannot be promised is that no other process changes the file: then the bytes behind a shared reference
    // change (weights go wrong; nothing that this program indexes by is read from the mapping), or reading raises
    // SIGBUS where the file got shorter. The type's documentation asks not to do that, and our own writer never does.
    unsafe { Mmap::map(file) }
}

fn check_hash(
    bytes: &[u8],
    checksum: &[u8; 32],
    progress: &mut dyn FnMut(u64),
    entry: impl FnOnce() -> String,
) -> Result<(), FormatError> {
    let mut hasher = blake3::Hasher::new();
    for chunk in bytes.chunks(CHUNK) {
        hasher.update(chunk);
        progress(chunk.len() as u64);
    }
    if hasher.finalize().as_bytes() == checksum {
        Ok(())
    } else {
        Err(FormatError::Checksum { entry: entry() })
    }
}

/// Bytes of a T8 tensor's scales and the padding behind them; no overflow, the entry's length was checked.
fn scales_bytes(entry: &TensorEntry) -> usize {
    (2 * entry.shape[0]).next_multiple_of(ALIGNMENT) as usize
}
