use std::path::Path;

use half::f16;

use crate::{FormatError, Header, TensorEntry, TensorName};

/// An open `.upg` file: header and index in memory, the data mapped read-only and shared with every other reader.
///
/// Opening checks the header's checksum and that the index covers the file exactly; it reads no tensor.
/// [`UpgFile::verify`] checks the tensors.
#[derive(Debug)]
pub struct UpgFile {
    header: Header,
    tensors: Vec<TensorEntry>,
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
    pub fn open(_path: &Path) -> Result<Self, FormatError> {
        todo!()
    }

    /// Configuration, text settings and provenance.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The index, in the order of the file.
    pub fn tensors(&self) -> &[TensorEntry] {
        &self.tensors
    }

    /// One tensor; `None` where the model has none of this name.
    pub fn tensor(&self, _name: TensorName) -> Option<(&TensorEntry, TensorData<'_>)> {
        todo!()
    }

    /// The tokenizer, inflated: the text of a Hugging Face `tokenizer.json`. Its checksum is checked.
    ///
    /// # Errors
    /// [`FormatError::Checksum`] or [`FormatError::Inflate`].
    pub fn tokenizer_json(&self) -> Result<Vec<u8>, FormatError> {
        todo!()
    }

    /// Checks every tensor and the tokenizer against their checksums. `progress` gets the bytes done since its last
    /// call; they add up to [`UpgFile::data_len`].
    ///
    /// # Errors
    /// [`FormatError::Checksum`] names the first entry that is damaged.
    pub fn verify(&self, _progress: &mut dyn FnMut(u64)) -> Result<(), FormatError> {
        todo!()
    }

    /// Bytes of all entries, padding left out: what [`UpgFile::verify`] reads.
    pub fn data_len(&self) -> u64 {
        todo!()
    }

    /// Bytes of the file.
    pub fn file_len(&self) -> u64 {
        todo!()
    }
}
