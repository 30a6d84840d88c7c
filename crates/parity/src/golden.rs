//! The golden files that other programs wrote.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};

/// The folder of the golden files, in the source tree.
pub fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("golden")
}

/// The folders in `golden/NAME`, by name.
///
/// # Errors
/// If the folder cannot be listed.
pub fn folders(name: &str) -> Result<Vec<PathBuf>> {
    let path = folder().join(name);
    let entries = path.read_dir().with_context(|| format!("cannot list {}", path.display()))?;
    let mut folders: Vec<PathBuf> = entries.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
    folders.retain(|path| path.is_dir());
    folders.sort();
    Ok(folders)
}

/// The last part of a path, as text.
pub fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// What transformers computed for one model; written by `golden/models.py`.
pub struct Logits {
    /// Prompts in one forward pass.
    pub prompts: Vec<Prompt>,
    /// Tokens fed one by one after a first few, with the logits after each.
    pub steps: Steps,
    /// Tokens of which all but the first `start` are greedy choices.
    pub greedy: Vec<u32>,
    /// Tokens that were given to the greedy generation.
    pub greedy_start: usize,
}

/// A prompt and the logits after some of its tokens.
pub struct Prompt {
    /// The tokens.
    pub tokens: Vec<u32>,
    /// Positions of tokens.
    pub rows: Vec<usize>,
    /// A row of logits after each of them, `[rows, vocab]`.
    pub logits: Vec<f32>,
}

/// A sequence that grows token by token.
pub struct Steps {
    /// The tokens.
    pub tokens: Vec<u32>,
    /// Tokens of the prompt.
    pub start: usize,
    /// The logits after the prompt and after each further token but the last, `[tokens - start, vocab]`.
    pub logits: Vec<f32>,
}

impl Logits {
    /// Reads `logits.safetensors` of a model's folder.
    ///
    /// # Errors
    /// If it is not as `golden/models.py` writes it.
    pub fn read(model: &Path) -> Result<Self> {
        let bytes = std::fs::read(model.join("logits.safetensors"))?;
        let file = SafeTensors::deserialize(&bytes)?;
        let tokens = |name: &str| -> Result<Vec<u32>> {
            Ok(integers(&file.tensor(name)?)?.into_iter().map(u32::try_from).collect::<Result<_, _>>()?)
        };
        let count = |name: &str| Ok::<_, anyhow::Error>(tokens(name)?[0] as usize);
        let prompts = ["whole", "short"].into_iter().map(|name| {
            let rows = tokens(&format!("{name}.rows"))?.into_iter().map(|row| row as usize).collect();
            let logits = floats(&file.tensor(&format!("{name}.logits"))?)?;
            Ok(Prompt { tokens: tokens(&format!("{name}.tokens"))?, rows, logits })
        });
        Ok(Self {
            prompts: prompts.collect::<Result<_>>()?,
            steps: Steps {
                tokens: tokens("steps.tokens")?,
                start: count("steps.start")?,
                logits: floats(&file.tensor("steps.logits")?)?,
            },
            greedy: tokens("greedy.tokens")?,
            greedy_start: count("greedy.start")?,
        })
    }
}

fn integers(tensor: &TensorView<'_>) -> Result<Vec<i64>> {
    ensure!(tensor.dtype() == Dtype::I64, "a tensor is {:?}, not I64", tensor.dtype());
    Ok(tensor.data().as_chunks().0.iter().map(|bytes| i64::from_le_bytes(*bytes)).collect())
}

fn floats(tensor: &TensorView<'_>) -> Result<Vec<f32>> {
    ensure!(tensor.dtype() == Dtype::F32, "a tensor is {:?}, not F32", tensor.dtype());
    Ok(tensor.data().as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect())
}
