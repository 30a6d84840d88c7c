use std::path::Path;

use crate::{Encoding, FormatError, Header, TensorName, TensorStats};

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
/// without redoing finished tensors; the finished file is the same, byte for byte.
#[derive(Debug)]
pub struct UpgWriter {}

impl UpgWriter {
    /// Starts `out`, or goes on with it where `out.part` was started with the same header, tokenizer and plan.
    /// `tensors` holds each of [`TensorName::of_upg`] once, in any order.
    ///
    /// # Errors
    /// [`FormatError::Busy`] where another process is writing it; a header or plan that no file can have; I/O.
    pub fn create_or_resume(
        _out: &Path,
        _header: &Header,
        _tokenizer_json: &[u8],
        _tensors: &[(TensorName, Encoding)],
    ) -> Result<Self, FormatError> {
        todo!()
    }

    /// Bytes of the finished file, exactly. It is [`UpgWriter::overhead`] plus the tensors'
    /// [`Encoding::stored_length`].
    ///
    /// # Errors
    /// A header or plan that no file can have.
    pub fn file_size(
        _header: &Header,
        _tokenizer_json: &[u8],
        _tensors: &[(TensorName, Encoding)],
    ) -> Result<u64, FormatError> {
        todo!()
    }

    /// Bytes of the finished file besides its tensors. Does not depend on the encodings.
    ///
    /// # Errors
    /// A header that no file can have.
    pub fn overhead(_header: &Header, _tokenizer_json: &[u8]) -> Result<u64, FormatError> {
        todo!()
    }

    /// Whether a tensor is finished, by this run or an interrupted one.
    pub fn is_done(&self, _name: TensorName) -> bool {
        todo!()
    }

    /// Writes bytes of a tensor, `offset` bytes into a section.
    ///
    /// # Errors
    /// Bytes that lie outside the section, or I/O.
    pub fn write(
        &mut self,
        _name: TensorName,
        _section: Section,
        _offset: u64,
        _bytes: &[u8],
    ) -> Result<(), FormatError> {
        todo!()
    }

    /// Declares a tensor complete: its bytes are hashed and entered in the journal.
    ///
    /// # Errors
    /// [`FormatError::Incomplete`] where bytes are missing, or I/O.
    pub fn finish_tensor(
        &mut self,
        _name: TensorName,
        _stats: Option<TensorStats>,
    ) -> Result<(), FormatError> {
        todo!()
    }

    /// Writes the index, syncs, and gives the file its name. Returns its length.
    ///
    /// # Errors
    /// [`FormatError::Incomplete`] names a tensor that is not finished; or I/O.
    pub fn finish(self) -> Result<u64, FormatError> {
        todo!()
    }

    /// Gives up: removes what was written.
    ///
    /// # Errors
    /// I/O.
    pub fn discard(self) -> Result<(), FormatError> {
        todo!()
    }
}
