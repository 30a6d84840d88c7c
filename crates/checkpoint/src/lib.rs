//! Checkpoints: GGUF files and Hugging Face folders, made one description of a model with the same tensor names.
//!
//! [`open`] maps the files and reads everything but the weights; [`Checkpoint::read_rows`] converts weights to f32 a
//! few rows at a time, so that reading never needs memory for more than the rows asked for.
//!
//! Everything in a checkpoint is treated as hostile: counts are capped before anything is allocated, offsets are
//! computed with checked arithmetic, and nothing that would change the model's output is skipped in silence.

mod dtype;
mod error;
mod files;
mod gguf;
mod hf;
mod loaded;
mod mapped;
mod names;
mod source;
mod stops;
mod streamed;
mod tensors;

use std::{
    ops::Range,
    path::Path,
    sync::{Arc, atomic::AtomicBool},
};

pub use error::CheckpointError;
pub use gguf::GgufError;
pub use hf::{INDEX_FILE, SIDE_FILES, SINGLE_FILE, shard_names};
use mapped::MappedFile;
pub use source::Source;
pub use streamed::{Shard, ShardStore};
use upg_format::{ModelConfig, TensorName, TextConfig};

/// A model as it was published: configuration, text handling and weights in f32.
pub trait Checkpoint: Send + Sync {
    /// What the model is. Its `rotation` is `None`.
    fn config(&self) -> &ModelConfig;

    /// Chat template, special tokens and stop tokens.
    fn text(&self) -> &TextConfig;

    /// The vocabulary as a `tokenizer.json`.
    fn tokenizer_json(&self) -> &[u8];

    /// The files that hold the weights.
    fn sources(&self) -> Vec<Source>;

    /// Converts rows `rows` of a tensor of [`TensorName::of_checkpoint`] into `out`, row-major; vectors are one row.
    ///
    /// # Errors
    /// [`CheckpointError::Rows`] when the rows do not exist or `out` does not have `rows.len() · cols` numbers.
    fn read_rows(&self, name: TensorName, rows: Range<usize>, out: &mut [f32])
    -> Result<(), CheckpointError>;

    /// Which of the files holds a tensor. Reading tensors in this order goes through the files once.
    fn file_of(&self, _name: TensorName) -> usize {
        0
    }

    /// Told when a tensor's numbers will not be asked for again. A checkpoint that fetches its files lets go of those
    /// that are finished with; others do nothing.
    fn finished(&self, _name: TensorName) {}

    /// One line about the checkpoint, such as `GGUF v3, llama, Q4_1`.
    fn describe(&self) -> String;
}

/// Opens a GGUF file or a Hugging Face folder.
///
/// # Errors
/// See [`CheckpointError`]; everything but the numbers themselves is checked here.
pub fn open(path: &Path) -> Result<Box<dyn Checkpoint>, CheckpointError> {
    if path.is_dir() {
        return Ok(Box::new(hf::load(path)?));
    }
    let file = MappedFile::open(path)?;
    if !file.bytes().starts_with(gguf::MAGIC) {
        let why = "it does not start like a GGUF file; give a .gguf file or the folder of a model".to_owned();
        return Err(CheckpointError::NotACheckpoint { path: path.to_owned(), why });
    }
    Ok(Box::new(gguf::load(file)?))
}

/// Opens a checkpoint whose small files are in `folder` and whose shards come when they are needed.
///
/// At most two shards are in the store at a time: the one in use and the next one, which is fetched meanwhile. A shard
/// goes when [`Checkpoint::finished`] was called for all its matrices. Once `cancel` is true, reading what is not
/// there fails with [`CheckpointError::Cancelled`].
///
/// # Errors
/// As [`open`]; a shard that cannot be had, or is not what its header promised, is an error of the reading.
pub fn open_streamed(
    folder: &Path,
    shards: Vec<Shard>,
    store: Box<dyn ShardStore>,
    cancel: Arc<AtomicBool>,
) -> Result<Box<dyn Checkpoint>, CheckpointError> {
    Ok(Box::new(hf::load_streamed(folder, shards, store, cancel)?))
}
