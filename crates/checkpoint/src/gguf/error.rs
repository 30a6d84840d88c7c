/// What is wrong with the structure of a GGUF file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the fields say what the message says")]
pub enum GgufError {
    /// The first four bytes are not `GGUF`.
    #[error("this is not a GGUF file")]
    Magic,
    /// The file was written on a big-endian machine.
    #[error("this GGUF file is big-endian; convert the model again on a little-endian machine")]
    BigEndian,
    /// Version 1, or one from the future.
    #[error("GGUF version {0} is not read, only 2 and 3; convert the model again")]
    Version(u32),
    /// The file ends in the middle of something.
    #[error("the file ends in the middle of {what} at byte {at}; download it again")]
    Truncated { what: &'static str, at: usize },
    /// A count or length that no real file has.
    #[error("{count} {what} are more than the {cap} that are accepted; this file is damaged or hostile")]
    TooMany { what: &'static str, count: u64, cap: u64 },
    /// A string that is not UTF-8.
    #[error("the string at byte {at} is not UTF-8; this file is damaged")]
    Text { at: usize },
    /// A metadata value of a type that GGUF does not have.
    #[error("{key:?} has a value of type {id}, which GGUF does not have; this file is damaged")]
    ValueType { key: String, id: u32 },
    /// An array whose items are arrays.
    #[error("{key:?} is an array of arrays, which no model needs; convert the model again")]
    Nested { key: String },
    /// A boolean that is neither 0 nor 1.
    #[error("the boolean at byte {at} is {value}; this file is damaged")]
    Bool { at: usize, value: u8 },
    /// The same key twice.
    #[error("the metadata has {0:?} twice; convert the model again")]
    DuplicateKey(String),
    /// `general.alignment` is not a power of two, or larger than any sensible one.
    #[error("general.alignment is {0}, not a power of two up to 65536; convert the model again")]
    Alignment(String),
    /// The same tensor twice.
    #[error("tensor {0:?} is there twice; convert the model again")]
    DuplicateTensor(String),
    /// No dimension, more than four, one that is 0, or a product that overflows.
    #[error("tensor {name:?} has the shape {dims:?}; this file is damaged")]
    Dimensions { name: String, dims: Vec<u64> },
    /// A tensor in a type that is not read.
    #[error("tensor {name:?} has type {found}, which is not read; known are: {known}")]
    DType { name: String, found: String, known: String },
    /// A row that is not a whole number of blocks.
    #[error(
        "tensor {name:?}: a row of {cols} numbers is not a whole number of {dtype} blocks; this file is damaged"
    )]
    Blocks { name: String, cols: usize, dtype: &'static str },
    /// A tensor that does not start where it may.
    #[error("tensor {name:?} starts at offset {offset}, not a multiple of {alignment}; this file is damaged")]
    Misaligned { name: String, offset: u64, alignment: usize },
    /// A tensor that ends after the file.
    #[error("tensor {name:?} ends after the file's {length} bytes; download it again")]
    Outside { name: String, length: usize },
    /// Two tensors share bytes.
    #[error("tensors {0:?} and {1:?} overlap; this file is damaged")]
    Overlap(String, String),
}
