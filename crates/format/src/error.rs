use std::{
    io,
    path::{Path, PathBuf},
};

use crate::{ALIGNMENT, Encoding, ModelConfigError, Section, TensorName};

/// Why a `.upg` file was refused or could not be written. Every message ends with what to do.
#[derive(Debug, thiserror::Error)]
pub enum FormatError {
    /// The operating system refused an operation on a file.
    #[error("cannot {action} {}: {source}; check that the path is right, the disk not full and access allowed", path.display())]
    Io {
        /// What was tried, as in "cannot read …".
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The operating system's reason.
        source: io::Error,
    },
    /// The path is a folder, a pipe or a device.
    #[error("{} is not a regular file; give the path of a .upg file", .0.display())]
    NotAFile(PathBuf),
    /// The file is shorter than a preamble.
    #[error("the file has {length} bytes, fewer than any .upg; fetch it again or compress anew")]
    TooShort {
        /// Its length.
        length: u64,
    },
    /// The first bytes are not a `.upg`'s.
    #[error("this is not a .upg file; make one with `upg compress CHECKPOINT -o MODEL.upg`")]
    Magic,
    /// The file was written by a later version.
    #[error("the file has format version {found}, this program knows up to {known}; update upg")]
    FutureVersion {
        /// The file's version.
        found: u32,
        /// The latest version that this program reads.
        known: u32,
    },
    /// Version 0, or bytes that must be zero and are not.
    #[error("the preamble is damaged ({0}); fetch the file again or compress anew")]
    Preamble(&'static str),
    /// The header is longer than any honest one.
    #[error(
        "the header claims {length} bytes, more than the {cap} allowed; fetch the file again or compress anew"
    )]
    HeaderTooLarge {
        /// Its stated length.
        length: u64,
        /// The most that is allowed.
        cap: u64,
    },
    /// The header's length is not a positive multiple of 64, or reaches past the file's end.
    #[error(
        "the header claims {length} bytes of a file of {file_length}; fetch the file again or compress anew"
    )]
    HeaderLength {
        /// Its stated length.
        length: u64,
        /// The file's length.
        file_length: u64,
    },
    /// The file is shorter than it says.
    #[error("the file should have {stated} bytes but has {actual}: it was cut short; fetch or copy it again")]
    Truncated {
        /// The length that the preamble states.
        stated: u64,
        /// The length it has.
        actual: u64,
    },
    /// The file is longer than it says.
    #[error(
        "the file should have {stated} bytes but has {actual}: something was appended; fetch or copy it again"
    )]
    TrailingBytes {
        /// The length that the preamble states.
        stated: u64,
        /// The length it has.
        actual: u64,
    },
    /// The header does not match its checksum.
    #[error("the header does not match its checksum; fetch the file again or compress anew")]
    HeaderChecksum,
    /// The header is not the JSON that the specification asks for.
    #[error("the header is malformed ({0}); fetch the file again or compress anew")]
    HeaderJson(#[from] serde_json::Error),
    /// The configuration makes no sense.
    #[error("{0}; fetch the file again or compress anew")]
    Config(#[from] ModelConfigError),
    /// A special token is not in the vocabulary.
    #[error(
        "the {role} is {token}, past the vocabulary of {vocab}; compress a checkpoint whose token ids are right"
    )]
    Token {
        /// What the token is for.
        role: &'static str,
        /// Its id.
        token: u32,
        /// Entries of the vocabulary.
        vocab: usize,
    },
    /// The index names a tensor that no model has.
    #[error("the index names {0:?}, which no model has; fetch the file again or compress anew")]
    UnknownTensor(String),
    /// The index (or a plan) names a tensor that this configuration does not have.
    #[error("tensor {0} does not belong to this configuration; fetch the file again or compress anew")]
    UnexpectedTensor(TensorName),
    /// The index (or a plan) names a tensor twice.
    #[error("tensor {0} is listed twice; fetch the file again or compress anew")]
    DuplicateTensor(TensorName),
    /// The index (or a plan) lacks tensors of the configuration.
    #[error(
        "{listed} tensors are listed where the configuration has {expected}; fetch the file again or compress anew"
    )]
    MissingTensors {
        /// Tensors listed.
        listed: usize,
        /// Tensors that the configuration has, or the number of its layers where even that is more.
        expected: usize,
    },
    /// A tensor has another shape than the configuration asks for.
    #[error(
        "tensor {name} is {found:?} where the configuration has {expected:?}; fetch the file again or compress anew"
    )]
    Shape {
        /// The tensor.
        name: TensorName,
        /// The shape in the index.
        found: [u64; 2],
        /// What the configuration asks for.
        expected: [u64; 2],
    },
    /// A norm's gain or a bias in T8.
    #[error("tensor {name} cannot be stored as {encoding}; use f16 or f32 for vectors")]
    Encoding {
        /// The tensor.
        name: TensorName,
        /// The encoding in the index (or the plan).
        encoding: Encoding,
    },
    /// A tensor's length does not follow from its shape and encoding.
    #[error(
        "tensor {name} has {found} bytes where its shape makes {expected}; fetch the file again or compress anew"
    )]
    TensorLength {
        /// The tensor.
        name: TensorName,
        /// The length in the index.
        found: u64,
        /// What shape and encoding make.
        expected: u64,
    },
    /// There is not exactly one tokenizer, or there is another blob.
    #[error(
        "the index must hold exactly one blob, tokenizer.json ({0}); fetch the file again or compress anew"
    )]
    Blobs(String),
    /// The tokenizer claims to inflate to more than is allowed.
    #[error(
        "tokenizer.json claims to inflate from {length} to {raw_length} bytes; fetch the file again or compress anew"
    )]
    BlobTooLarge {
        /// Its stored bytes.
        length: u64,
        /// Its stated bytes after inflating.
        raw_length: u64,
    },
    /// An entry does not start at a multiple of 64.
    #[error(
        "{entry} starts at byte {offset}, not a multiple of {ALIGNMENT}; fetch the file again or compress anew"
    )]
    Misaligned {
        /// A tensor or blob.
        entry: String,
        /// Where it starts.
        offset: u64,
    },
    /// An entry starts before the one ahead of it ends.
    #[error(
        "{entry} starts at byte {offset}, inside what ends at {end}; fetch the file again or compress anew"
    )]
    Overlap {
        /// A tensor or blob.
        entry: String,
        /// Where it starts.
        offset: u64,
        /// Where the bytes before it end.
        end: u64,
    },
    /// Bytes that belong to no entry.
    #[error(
        "bytes {end} to {offset}, before {entry}, belong to nothing; fetch the file again or compress anew"
    )]
    Hole {
        /// The tensor or blob behind the hole, or "the end of the file".
        entry: String,
        /// Where it starts.
        offset: u64,
        /// Where the bytes before the hole end.
        end: u64,
    },
    /// An entry reaches past the end of the file.
    #[error(
        "{entry} at byte {offset} reaches past the file's {file_length} bytes; fetch the file again or compress anew"
    )]
    OutOfBounds {
        /// A tensor or blob.
        entry: String,
        /// Where it starts.
        offset: u64,
        /// The file's length.
        file_length: u64,
    },
    /// Padding that is not zero: something is hidden there, or the file is damaged.
    #[error("the padding behind {entry} is not zero; fetch the file again or compress anew")]
    Padding {
        /// What the padding follows.
        entry: String,
    },
    /// A tensor or blob does not match its checksum.
    #[error("{entry} does not match its checksum: the file is damaged; fetch it again or compress anew")]
    Checksum {
        /// A tensor or blob.
        entry: String,
    },
    /// The tokenizer does not inflate to the length it states.
    #[error(
        "tokenizer.json does not inflate to the {raw_length} bytes it states; fetch the file again or compress anew"
    )]
    Inflate {
        /// Its stated length.
        raw_length: u64,
    },
    /// Another process is writing the same file.
    #[error("another upg is writing {}; wait for it or choose another output", .0.display())]
    Busy(PathBuf),
    /// Bytes written outside their section, to a finished tensor or to one that is not in the plan.
    #[error(
        "{length} bytes at {offset} do not fit the {section:?} of tensor {name}; please report this as a bug"
    )]
    OutOfSection {
        /// The tensor.
        name: TensorName,
        /// The section.
        section: Section,
        /// Offset in the section.
        offset: u64,
        /// Bytes to be written there.
        length: u64,
    },
    /// A tensor was declared finished, or the file was, before all bytes were written.
    #[error("tensor {name} has {written} of {expected} bytes; please report this as a bug")]
    Incomplete {
        /// The tensor.
        name: TensorName,
        /// Bytes written.
        written: u64,
        /// Bytes it needs.
        expected: u64,
    },
}

impl FormatError {
    pub(crate) fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io { action, path: path.to_owned(), source }
    }
}
