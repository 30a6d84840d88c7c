//! What MODEL names: a `.upg` file or an uncompressed checkpoint.

use std::{fmt, fs::File, io::Read as _, path::Path, time::Instant};

use anyhow::{Context as _, ensure};
use upg_checkpoint::Checkpoint;
use upg_compress::Folded;
use upg_engine::{Engine, EngineOptions};
use upg_format::UpgFile;

use crate::{args::DeviceArgs, printer::Printer, units::seconds};

/// Steps of a progress bar over a fraction.
const PERMILLE: u64 = 1000;

/// There is nothing where a model should be.
#[derive(Debug)]
pub struct NoSuchModel;

impl fmt::Display for NoSuchModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("there is no such file: check the path")
    }
}

impl std::error::Error for NoSuchModel {}

/// An opened model.
pub enum Source {
    /// Compressed.
    Upg(Box<UpgFile>),
    /// A GGUF file or a Hugging Face folder.
    Checkpoint(Box<dyn Checkpoint>),
}

impl Source {
    /// Opens a model by what it is, whatever its name ends in.
    pub fn open(path: &Path) -> anyhow::Result<Self> {
        let context = || format!("cannot open the model {}", path.display());
        if is_checkpoint(path).with_context(context)? {
            Ok(Self::Checkpoint(upg_checkpoint::open(path).with_context(context)?))
        } else {
            Ok(Self::Upg(Box::new(UpgFile::open(path).with_context(context)?)))
        }
    }
}

/// A folder, or a file that begins as a GGUF file does.
fn is_checkpoint(path: &Path) -> anyhow::Result<bool> {
    if path.is_dir() {
        return Ok(true);
    }
    let mut start = [0; 4];
    let mut file = File::open(path).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => anyhow::Error::from(NoSuchModel),
        _ => error.into(),
    })?;
    // A file of under four bytes is no GGUF file; the `.upg` reader says what is wrong with it.
    Ok(file.read_exact(&mut start).is_ok() && &start == b"GGUF")
}

/// Bytes that the files of a checkpoint take together.
pub fn files_len(files: &[upg_checkpoint::Source]) -> anyhow::Result<u64> {
    let len = |file: &upg_checkpoint::Source| file.size().with_context(|| format!("cannot read {file:?}"));
    files.iter().map(len).sum()
}

/// Loads a model onto a device, with room for `context` tokens (`None`: the engine's default). An uncompressed checkpoint
/// runs through the same program, in 32-bit floats.
pub fn load(
    path: &Path,
    device: &DeviceArgs,
    context: Option<usize>,
    printer: &Printer,
) -> anyhow::Result<Engine> {
    let options = EngineOptions {
        device: device.device.clone(),
        threads: device.threads,
        context,
        kv: device.kv,
        ..EngineOptions::default()
    };
    let started = Instant::now();
    let mut progress = printer.progress("Loading", PERMILLE);
    let mut on_progress = |done: f32| progress.set((done * PERMILLE as f32) as u64);
    let engine = load_engine(path, &options, &mut on_progress)?;
    drop(progress);
    let info = engine.machine().info();
    printer.detail(format_args!(
        "{} loaded in {} on {} ({})",
        path.display(),
        seconds(started.elapsed().as_secs_f64()),
        info.name,
        info.detail
    ));
    Ok(engine)
}

/// Loads what `path` names, a `.upg` file or an uncompressed checkpoint, whatever its name ends in. `progress` gets the
/// fraction done, 0 to 1.
///
/// # Errors
/// Files that cannot be read or are damaged, and whatever the engine refuses; the context says which model.
pub fn load_engine(
    path: &Path,
    options: &EngineOptions,
    progress: &mut dyn FnMut(f32),
) -> anyhow::Result<Engine> {
    let engine = match Source::open(path)? {
        Source::Upg(_) => Engine::load(path, options, progress),
        Source::Checkpoint(checkpoint) => {
            let folded = Folded::new(checkpoint.as_ref(), None);
            let (text, tokenizer) = (checkpoint.text(), checkpoint.tokenizer_json());
            Engine::from_weights(&folded, text, tokenizer, options, progress)
        }
    };
    engine.with_context(|| format!("cannot load the model {}", path.display()))
}

/// The text of a file of at most `cap` bytes.
pub fn read_capped(path: &Path, cap: u64) -> anyhow::Result<String> {
    let mut text = String::new();
    let mut read = || File::open(path)?.take(cap + 1).read_to_string(&mut text);
    read().with_context(|| format!("cannot read {}: it must be a UTF-8 file", path.display()))?;
    ensure!(text.len() as u64 <= cap, "{} is larger than {} MiB: cut it", path.display(), cap >> 20);
    Ok(text)
}
