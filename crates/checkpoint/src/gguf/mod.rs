//! GGUF files, as llama.cpp writes them.

mod config;
mod error;
mod file;
mod metadata;
mod reader;
mod text;
mod tokenizer;

use std::path::Path;

pub use error::GgufError;

use crate::{
    CheckpointError,
    files::Files,
    loaded::Loaded,
    mapped::MappedFile,
    names::{self, Dialect},
    tensors::Tensors,
};

/// The first bytes of a GGUF file.
pub(crate) const MAGIC: &[u8] = b"GGUF";

/// Reads everything but the weights of a mapped GGUF file.
pub(crate) fn load(file: MappedFile) -> Result<Loaded, CheckpointError> {
    let wrap = |path: &Path| {
        let path = path.to_owned();
        move |source| CheckpointError::Gguf { path, source }
    };
    let gguf = file::Gguf::parse(file.bytes()).map_err(wrap(file.path()))?;
    let config = gguf.config()?;
    let vocabulary = tokenizer::Vocabulary::read(&gguf, config.vocab)?;
    let text = gguf.text(&vocabulary)?;
    let tokenizer_json = vocabulary.tokenizer_json(&gguf)?;
    let (version, found) = (gguf.version, gguf.tensors);
    let tensors = Tensors::place(&config, Dialect::Gguf, Files::mapped(vec![file]), &found)?;
    let description = format!("GGUF v{version}, {}, {}", names::family(&config), tensors.main_dtype().name());
    Ok(Loaded { config, text, tokenizer_json, tensors, description })
}
