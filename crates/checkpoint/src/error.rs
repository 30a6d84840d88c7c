use std::{ops::Range, path::PathBuf, sync::Arc};

use upg_format::{ModelConfigError, TensorName};

use crate::gguf::GgufError;

/// Why a checkpoint cannot be read. Each message ends with what to do about it, where something can be done.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The operating system refused.
    #[error("{path}: {source}")]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// Neither a GGUF file nor a folder with `config.json` and safetensors.
    #[error("{path} is not a checkpoint: {why}")]
    NotACheckpoint {
        /// What was opened.
        path: PathBuf,
        /// What it is instead and what would do.
        why: String,
    },
    /// The structure of a GGUF file is wrong.
    #[error("{path}: {source}")]
    Gguf {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: GgufError,
    },
    /// The structure of a safetensors file is wrong.
    #[error("{path} is not a sound safetensors file: {source}; download it again")]
    Safetensors {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: safetensors::SafeTensorError,
    },
    /// A JSON file cannot be parsed, or lacks what it must have.
    #[error("{path}: {source}; download it again")]
    Json {
        /// The file.
        path: PathBuf,
        /// What is wrong, and where.
        source: serde_json::Error,
    },
    /// A side file is larger than any real one.
    #[error("{path} has {length} bytes, more than the {cap} that such a file may have")]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its length in bytes.
        length: u64,
        /// The most that is accepted.
        cap: u64,
    },
    /// A shard's name that would leave the folder.
    #[error(
        "{path}: the shard name {shard:?} is not a plain .safetensors file name; do not trust this checkpoint"
    )]
    ShardName {
        /// The index file.
        path: PathBuf,
        /// The name it gives.
        shard: String,
    },
    /// A field of the configuration or of the metadata is missing or makes no sense.
    #[error("{field}: {why}")]
    Field {
        /// The field's name.
        field: String,
        /// What is wrong.
        why: String,
    },
    /// A model of a family that this program does not run.
    #[error("models of architecture {found:?} are not supported; known are: {known}")]
    UnknownArchitecture {
        /// What the checkpoint says it is.
        found: String,
        /// The list of known ones.
        known: String,
    },
    /// A feature that would change the model's output if it were ignored.
    #[error("{0}")]
    Unsupported(String),
    /// The configuration contradicts itself.
    #[error(transparent)]
    Config(#[from] ModelConfigError),
    /// A tensor is missing, has the wrong shape or is stored in a type that is not read.
    #[error("tensor {name:?}: {why}")]
    Tensor {
        /// The tensor's name in the checkpoint.
        name: String,
        /// What is wrong.
        why: String,
    },
    /// The vocabulary cannot be made into a tokenizer.
    #[error("tokenizer: {0}")]
    Tokenizer(String),
    /// A shard could not be had.
    #[error("{shard}: {source}")]
    Fetch {
        /// Its name.
        shard: String,
        /// Why; it ends with what to do.
        source: Arc<dyn std::error::Error + Send + Sync>,
    },
    /// A shard that is not the one whose header was read.
    #[error("{0} is not what its header promised; start again")]
    Changed(String),
    /// Asked to stop.
    #[error("stopped before all was read; start again to go on")]
    Cancelled,
    /// The caller asked for rows that the tensor does not have, or brought a buffer of the wrong length.
    #[error("{name}: rows {rows:?} of {shape:?} into {out} numbers")]
    Rows {
        /// The tensor.
        name: TensorName,
        /// The rows asked for.
        rows: Range<usize>,
        /// The tensor's shape; `[0, 0]` where the checkpoint has no such tensor.
        shape: [usize; 2],
        /// Length of the buffer.
        out: usize,
    },
}
