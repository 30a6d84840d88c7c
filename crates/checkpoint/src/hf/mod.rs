//! Folders as transformers saves them: `config.json`, safetensors, tokenizer.

mod config;
mod shards;
mod side_files;
mod text;

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{Arc, atomic::AtomicBool},
};

use self::config::RawConfig;
use crate::{
    CheckpointError, Shard, ShardStore,
    files::Files,
    loaded::Loaded,
    names::{self, Dialect},
    streamed::Streamed,
    tensors::{Found, Tensors},
};

pub use shards::{INDEX_FILE, SINGLE_FILE, shard_names};

/// The small files of a folder that are read where they are there.
pub const SIDE_FILES: [&str; 6] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
];

/// Reads everything but the weights of a folder.
pub(crate) fn load(folder: &Path) -> Result<Loaded, CheckpointError> {
    let raw = RawConfig::read(folder)?;
    let (files, found) = shards::find(folder)?;
    assemble(folder, &raw, Files::mapped(files), found)
}

/// The same where the shards come when they are needed; see [`crate::open_streamed`].
pub(crate) fn load_streamed(
    folder: &Path,
    shards: Vec<Shard>,
    store: Box<dyn ShardStore>,
    cancel: Arc<AtomicBool>,
) -> Result<Loaded, CheckpointError> {
    let raw = RawConfig::read(folder)?;
    let found = shards::promised(folder, &shards)?;
    assemble(folder, &raw, Files::Streamed(Streamed::new(shards, store, cancel)), found)
}

fn assemble(
    folder: &Path,
    raw: &RawConfig,
    files: Files,
    found: BTreeMap<String, Found>,
) -> Result<Loaded, CheckpointError> {
    let config = raw.model_config(found.contains_key("lm_head.weight"))?;
    let (text, tokenizer_json) = text::read(folder, raw, config.vocab)?;
    let tensors = Tensors::place(&config, Dialect::HuggingFace, files, &found)?;
    let description = format!("safetensors, {}, {}", names::family(&config), tensors.main_dtype().name());
    Ok(Loaded { config, text, tokenizer_json, tensors, description })
}
