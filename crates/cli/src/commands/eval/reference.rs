//! The model that another one is compared with: run, or its logits taken from a cache.

use std::{
    fs::File,
    ops::Range,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, ensure};
use upg_checkpoint::Source as CheckpointFile;
use upg_engine::{
    Engine, EngineError, Tokenizer, device_name,
    eval::{EvalOptions, MachineScorer, Scorer},
};

use super::cache::{Kind, Reader, Writer};
use crate::{
    args::DeviceArgs,
    printer::Printer,
    source::{Source, load},
};

/// What a reference is.
pub struct Subject<'a> {
    /// A checkpoint, or a `.upg` file.
    pub path: &'a Path,
    pub device: DeviceArgs,
    /// Where its logits are kept, if anywhere.
    pub cache: Option<&'a Path>,
}

/// The text that it is run on.
pub struct Text<'a> {
    pub text: &'a str,
    /// In the tokens of the model that is compared with it.
    pub tokens: &'a [u32],
    pub options: EvalOptions,
}

/// A reference, ready to be compared with.
pub enum Reference {
    /// It runs, and its logits go to the cache, where there is one.
    Runs(Box<Engine>, Option<Writer>),
    /// Its logits are there.
    Kept { reader: Reader, vocab: usize, device: String },
}

impl Reference {
    /// Loads it, unless the cache has its logits.
    pub fn open(subject: &Subject<'_>, text: &Text<'_>, printer: &Printer) -> anyhow::Result<Self> {
        let device = device_name(&subject.device.device)?;
        let kind = match subject.cache {
            None => None,
            Some(folder) => Some((folder, kind(subject, text, &device)?)),
        };
        if let Some((folder, kind)) = &kind
            && let Some(reader) = Reader::open(folder, kind)?
        {
            printer.note(format_args!("the reference's logits are in {}", reader.path().display()));
            let device = device.split(':').next().unwrap_or_default().to_owned();
            return Ok(Self::Kept { reader, vocab: kind.vocab, device });
        }
        let engine = load(subject.path, &subject.device, Some(text.options.ctx), printer)?;
        same_tokens(engine.tokenizer(), text)?;
        let writer = kind.map(|(folder, kind)| Writer::create(folder, &kind)).transpose()?;
        Ok(Self::Runs(Box::new(engine), writer))
    }

    /// The device that its logits are of.
    pub fn device(&self) -> String {
        match self {
            Self::Runs(engine, _) => engine.machine().info().name.to_owned(),
            Self::Kept { device, .. } => device.clone(),
        }
    }

    /// It as a source of logits.
    pub fn scorer(&mut self) -> anyhow::Result<ReferenceScorer<'_>> {
        Ok(match self {
            Self::Runs(engine, writer) => {
                ReferenceScorer::Runs(MachineScorer::new(engine.machine_mut())?, writer.as_mut())
            }
            Self::Kept { reader, vocab, .. } => ReferenceScorer::Kept(reader, *vocab),
        })
    }

    /// All rows were asked for: the cache is finished, or found to be whole.
    pub fn finish(self) -> anyhow::Result<()> {
        match self {
            Self::Runs(_, writer) => writer.map_or(Ok(()), Writer::finish),
            Self::Kept { reader, .. } => reader.finish(),
        }
    }
}

/// A reference as a source of logits.
pub enum ReferenceScorer<'a> {
    Runs(MachineScorer<'a>, Option<&'a mut Writer>),
    Kept(&'a mut Reader, usize),
}

impl Scorer for ReferenceScorer<'_> {
    fn vocab(&self) -> usize {
        match self {
            Self::Runs(scorer, _) => scorer.vocab(),
            Self::Kept(_, vocab) => *vocab,
        }
    }

    fn begin(&mut self) -> Result<(), EngineError> {
        match self {
            Self::Runs(scorer, _) => scorer.begin(),
            Self::Kept(..) => Ok(()),
        }
    }

    fn rows(&mut self, chunk: &[u32], range: Range<usize>, out: &mut [f32]) -> Result<(), EngineError> {
        let kept = match self {
            Self::Runs(scorer, writer) => {
                scorer.rows(chunk, range, out)?;
                writer.as_mut().map_or(Ok(()), |writer| writer.rows(out))
            }
            Self::Kept(reader, _) => reader.read(out),
        };
        kept.map_err(|error| EngineError::Logits(format!("{error:#}")))
    }
}

/// Divergence means something only where both models read the same tokens.
fn same_tokens(tokenizer: &Tokenizer, text: &Text<'_>) -> anyhow::Result<()> {
    let theirs = tokenizer.encode(text.text, false).context("cannot encode the text")?;
    ensure!(
        theirs == text.tokens,
        "the two models cut the text into different tokens, so they cannot be compared: give --against the checkpoint \
         that MODEL was made from"
    );
    Ok(())
}

/// What the reference's logits are of: its files, what it runs on, the text and how it is cut. Loads no weights.
fn kind(subject: &Subject<'_>, text: &Text<'_>, device: &str) -> anyhow::Result<Kind> {
    let (config, files, tokenizer) = match Source::open(subject.path)? {
        Source::Upg(file) => {
            (file.header().config.clone(), vec![subject.path.to_owned()], file.tokenizer_json()?)
        }
        Source::Checkpoint(checkpoint) => {
            let local = |source| match source {
                CheckpointFile::File(path) => Ok(path),
                CheckpointFile::Remote { name, .. } => {
                    anyhow::bail!("{name} is not on this machine: pull it first")
                }
            };
            let files = checkpoint.sources().into_iter().map(local).collect::<anyhow::Result<_>>()?;
            (checkpoint.config().clone(), files, checkpoint.tokenizer_json().to_vec())
        }
    };
    same_tokens(&Tokenizer::new(&tokenizer, config.vocab, &[])?, text)?;
    let EvalOptions { ctx, bos, .. } = text.options;
    let rows = text.options.scored(text.tokens.len());
    let settings = format!(
        "{} {config:?} {device} {:?} {ctx} {bos:?} {rows}",
        env!("CARGO_PKG_VERSION"),
        subject.device.kv
    );
    let mut hasher = blake3::Hasher::new_derive_key("upg eval, logits of a reference");
    hasher.update(settings.as_bytes());
    text.tokens.iter().take(text.options.whole_chunks(text.tokens.len()) * ctx).for_each(|token| {
        hasher.update(&token.to_le_bytes());
    });
    for path in files {
        hash_file(&mut hasher, &path)?;
    }
    Ok(Kind { key: *hasher.finalize().as_bytes(), vocab: config.vocab, rows })
}

/// By its contents: a file may move, and another one may come in its place.
fn hash_file(hasher: &mut blake3::Hasher, path: &PathBuf) -> anyhow::Result<()> {
    let hash = || {
        let mut own = blake3::Hasher::new();
        own.update_reader(File::open(path)?)?;
        Ok::<_, std::io::Error>(own.finalize())
    };
    let hash =
        hash().with_context(|| format!("cannot read {}: check that it is still there", path.display()))?;
    hasher.update(hash.as_bytes());
    Ok(())
}
