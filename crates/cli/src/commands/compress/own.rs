//! Text that a model writes itself, to be calibrated on: nothing needs to be fetched, and it is of the kind that the model
//! will read most, its own.

use std::{
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    sync::atomic::Ordering,
    time::Instant,
};

use anyhow::Context as _;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use upg_checkpoint::{Checkpoint, Source};
use upg_codec::Bits;
use upg_compress::{CompressError, Folded, Options, Plan, Target, compress, plan::parameters};
use upg_engine::{Engine, EngineOptions, Sampler, SamplingOptions};
use upg_format::{Encoding, ModelConfig, TensorName};
use upg_pdvm::{Logits, MachineError, Segment, SeqId};

use crate::{exit::Interrupted, interrupt::Interrupt, printer::Printer};

/// How the texts begin, one a line: prose, facts, code and data, so that what is measured is not of one kind.
const OPENINGS: &str = include_str!("own/openings.txt");

/// Bytes that the keys and values of the texts written at once may take.
const MAX_KV: usize = 1 << 29;

/// Texts written at once.
const MAX_SEQUENCES: usize = 32;

/// Tokens of an opening: those of all texts are one batch.
const OPENING: usize = 16;

/// What the name of the text of an unfinished run ends in.
const TEXT: &str = ".part.text";

/// What is written for whom.
pub struct Writing<'a> {
    pub checkpoint: &'a dyn Checkpoint,
    /// The file to be compressed to; the draft and the text stand beside it.
    pub out: &'a Path,
    pub tokens: usize,
    /// Tokens of a text.
    pub ctx: usize,
    /// Bytes that the draft may take.
    pub memory: u64,
    pub threads: Option<usize>,
    pub printer: &'a Printer,
    pub interrupt: &'a Interrupt,
}

/// The text of an unfinished run, `OUT.part.text`.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Kept {
    identity: String,
    tokens: Vec<u32>,
}

impl Writing<'_> {
    /// The text: that of the run that this one goes on with, or a new one. The same checkpoint and memory give the same
    /// text, on any number of threads.
    pub fn text(&self) -> anyhow::Result<Vec<u32>> {
        let identity = self.identity()?;
        let path = beside(self.out, TEXT);
        let kept = fs::read(&path).ok().and_then(|text| serde_json::from_slice::<Kept>(&text).ok());
        if let Some(kept) = kept.filter(|kept| kept.identity == identity) {
            return Ok(kept.tokens);
        }
        let draft = beside(self.out, ".part.draft");
        let start = Instant::now();
        let tokens = self.draft(&draft).and_then(|()| {
            let drafted = start.elapsed();
            let tokens = self.written(&draft)?;
            let written = start.elapsed() - drafted;
            self.printer.detail(format_args!(
                "the draft took {:.1} s, its text {:.1} s",
                drafted.as_secs_f64(),
                written.as_secs_f64()
            ));
            Ok(tokens)
        });
        // It is of no use to anybody, written or not.
        let removed = fs::remove_file(&draft);
        let tokens = tokens?;
        removed.with_context(|| format!("cannot remove {}: remove it", draft.display()))?;
        let kept = Kept { identity, tokens };
        fs::write(&path, serde_json::to_vec(&kept)?)
            .with_context(|| format!("cannot write {}: check the folder's room", path.display()))?;
        Ok(kept.tokens)
    }

    /// What the text depends on.
    fn identity(&self) -> anyhow::Result<String> {
        let bits = draft_bits(self.checkpoint.config(), self.memory);
        let mut identity =
            format!("{} {} {} {}", env!("CARGO_PKG_VERSION"), self.tokens, self.ctx, bits.get());
        for source in self.checkpoint.sources() {
            identity += &match &source {
                Source::Remote { name, sha256, .. } => format!(" {name} {sha256:?}"),
                Source::File(path) => {
                    let metadata =
                        path.metadata().with_context(|| format!("cannot read {}", path.display()))?;
                    format!(" {} {} {:?}", path.display(), metadata.len(), metadata.modified().ok())
                }
            };
        }
        Ok(identity)
    }

    /// Writes the draft.
    fn draft(&self, path: &Path) -> anyhow::Result<()> {
        self.printer
            .note("the model writes text to be calibrated on (--calibrate none: without; FILE: give some)");
        let options = Options::default();
        let folded = Folded::new(self.checkpoint, options.rotation);
        let bits = draft_bits(folded.config(), self.memory);
        let plan = Plan::new(folded.config(), 0, |name: TensorName| match name.kind().is_vector() {
            true => Encoding::F32,
            false => Encoding::T8(bits),
        })?;
        let options = Options { plan: Some(plan.to_json()), ..options };
        match compress(self.checkpoint, path, Target::Ratio(1.0), &options, &(), self.interrupt.flag()) {
            Err(CompressError::Cancelled) => Err(self.interrupted()),
            result => result.map(drop).context("cannot write a draft of the model"),
        }
    }

    fn interrupted(&self) -> anyhow::Error {
        Interrupted(CompressError::Cancelled.to_string()).into()
    }

    /// Lets the draft write.
    fn written(&self, draft: &Path) -> anyhow::Result<Vec<u32>> {
        let sequences = self.tokens.div_ceil(self.ctx);
        let at_once = at_once(self.checkpoint.config(), self.ctx).min(sequences);
        let options = EngineOptions {
            device: "cpu".into(),
            threads: self.threads,
            context: Some(self.ctx),
            sequences: at_once,
            ..EngineOptions::default()
        };
        let mut engine = Engine::load(draft, &options, &mut |_| {})?;
        let mut progress = self.printer.progress("Writing text", (sequences * self.ctx) as u64);
        let mut texts: Vec<Text> =
            (0..sequences).map(|i| Text::new(&engine, i, self.ctx)).collect::<Result<_, _>>()?;
        let mut done = 0;
        for texts in texts.chunks_mut(at_once) {
            for text in texts.iter_mut() {
                text.seq = engine.machine_mut().kv_mut().open().map_err(MachineError::from)?;
            }
            while texts.iter().any(|text| text.tokens.len() < self.ctx) {
                if self.interrupt.flag().load(Ordering::Relaxed) {
                    return Err(self.interrupted());
                }
                step(&mut engine, texts, self.ctx)?;
                progress.set((done + texts.iter().map(|text| text.tokens.len()).sum::<usize>()) as u64);
            }
            done += texts.len() * self.ctx;
            texts.iter().for_each(|text| engine.machine_mut().kv_mut().close(text.seq));
        }
        Ok(texts.into_iter().flat_map(|text| text.tokens).collect())
    }
}

/// Removes the text beside a file that is finished.
pub fn remove_text(out: &Path) {
    // One that stays is a few kilobytes too many; the next run replaces it.
    let _ = fs::remove_file(beside(out, TEXT));
}

fn beside(out: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(out);
    name.push(suffix);
    name.into()
}

/// The code of the draft that writes: at 4 bits it is near enough to the checkpoint, and read eight times faster. What does
/// not fit is written by one of 3 bits (with fewer a model writes no language).
fn draft_bits(config: &ModelConfig, memory: u64) -> Bits {
    let bytes = parameters(config).div_ceil(8).saturating_mul(Bits::B4.get() as u64);
    if bytes.saturating_add(MAX_KV as u64) <= memory { Bits::B4 } else { Bits::B3 }
}

/// Texts whose keys and values fit, at least one.
fn at_once(config: &ModelConfig, ctx: usize) -> usize {
    // In f16, as the CPU usually keeps them.
    let each = ctx * config.layers * 2 * config.kv_width() * 2;
    (MAX_KV / each).clamp(1, MAX_SEQUENCES)
}

/// A text under way.
struct Text {
    tokens: Vec<u32>,
    /// How many of them the machine has run.
    run: usize,
    sampler: Sampler,
    seq: SeqId,
}

impl Text {
    fn new(engine: &Engine, index: usize, ctx: usize) -> anyhow::Result<Self> {
        let opening = OPENINGS.lines().nth(index % OPENINGS.lines().count()).unwrap_or_default();
        let mut tokens = engine.prompt(opening)?;
        tokens.truncate(OPENING.min(ctx / 2));
        if tokens.is_empty() {
            tokens.push(index as u32 % engine.config().vocab as u32);
        }
        // From all of the distribution: without unlikely tokens a text soon repeats itself.
        let sampling = SamplingOptions {
            temperature: 1.0,
            top_p: 1.0,
            min_p: 0.0,
            seed: Some(index as u64),
            ..SamplingOptions::default()
        };
        let sampler = Sampler::new(&sampling, engine.config().vocab)?;
        Ok(Self { tokens, run: 0, sampler, seq: SeqId(0) })
    }
}

/// Gives every unfinished text a token.
fn step(engine: &mut Engine, texts: &mut [Text], ctx: usize) -> anyhow::Result<()> {
    let vocab = engine.config().vocab;
    let under_way: Vec<&mut Text> = texts.iter_mut().filter(|text| text.tokens.len() < ctx).collect();
    let segment = |text: &&mut Text| (text.seq, text.tokens[text.run..].to_vec());
    let pending: Vec<(SeqId, Vec<u32>)> = under_way.iter().map(segment).collect();
    let batch: Vec<Segment<'_>> =
        pending.iter().map(|(seq, tokens)| Segment { seq: *seq, tokens, logits: Logits::Last }).collect();
    let mut logits = vec![0.0; batch.len() * vocab];
    engine.machine_mut().run(&batch, &mut logits)?;
    under_way.into_par_iter().zip(logits.par_chunks_exact(vocab)).try_for_each(|(text, logits)| {
        text.run = text.tokens.len();
        // A text that ends goes on with another one: that is how models are trained.
        text.tokens.push(text.sampler.sample(logits)?.token);
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use upg_pdvm::synthetic::{phi4, preset};

    use super::*;

    #[test]
    fn a_draft_fits_where_it_can() {
        let small = preset("smollm2-135m").unwrap();
        assert_eq!(draft_bits(&small, 6 << 30), Bits::B4);
        assert_eq!(draft_bits(&phi4(), 8 << 30), Bits::B4);
        assert_eq!(draft_bits(&phi4(), 6 << 30), Bits::B3);
        assert_eq!((at_once(&small, 512), at_once(&phi4(), 512)), (32, 5));
    }
}
