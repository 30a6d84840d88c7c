//! Folders as transformers saves them: `config.json`, safetensors, tokenizer.

mod config;
mod shards;
mod side_files;
mod text;

use std::path::Path;

use crate::{
    CheckpointError,
    loaded::Loaded,
    names::{self, Dialect},
    tensors::Tensors,
};

/// Reads everything but the weights of a folder.
pub(crate) fn load(folder: &Path) -> Result<Loaded, CheckpointError> {
    let raw = config::RawConfig::read(folder)?;
    let (files, found) = shards::find(folder)?;
    let config = raw.model_config(found.contains_key("lm_head.weight"))?;
    let (text, tokenizer_json) = text::read(folder, &raw, config.vocab)?;
    let tensors = Tensors::place(&config, Dialect::HuggingFace, files, &found)?;
    let description = format!("safetensors, {}, {}", names::family(&config), tensors.main_dtype().name());
    Ok(Loaded { config, text, tokenizer_json, tensors, description })
}
