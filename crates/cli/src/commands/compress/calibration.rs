//! The text that rounding is calibrated on.

use std::{
    num::NonZero,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, ensure};
use clap::{Args, ValueHint};
use upg_checkpoint::Checkpoint;
use upg_compress::calibrate::Calibration;
use upg_engine::Tokenizer;

use super::own::Writing;
use crate::{interrupt::Interrupt, printer::Printer, source::read_capped, units::parse_size};

/// The largest text, in bytes.
const MAX_TEXT: u64 = 256 << 20;

/// Tokens of a sequence, where the model's context allows.
const SEQUENCE: usize = 512;

/// Characters that are tokenized for each token wanted: few tokens have more.
const CHARACTERS: usize = 8;

/// Memory of the draft that writes text, where nothing else is asked for: it does not depend on the machine, so that neither
/// does the text.
const DRAFT_MEMORY: u64 = 6 << 30;

/// What stands for no text.
const NONE: &str = "none";

/// What to round by.
#[derive(Args)]
pub struct CalibrationArgs {
    /// Round by how the model runs on these texts; none: to the nearest code, quickly [default: text that the model writes
    /// itself; from the hub: none]
    #[arg(long, value_name = "FILE", num_args = 1.., value_hint = ValueHint::FilePath)]
    calibrate: Vec<PathBuf>,
    /// Tokens of calibration text, shared out over its files
    #[arg(long, value_name = "N", default_value = "16384")]
    tokens: NonZero<usize>,
    /// Memory that calibration may take, such as 6GiB: less of its text is used where it needs more, which depends on the
    /// number of threads [default: any; 6GiB for the draft that writes text]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    memory: Option<u64>,
}

/// Whom a text is for.
pub struct Subject<'a> {
    pub checkpoint: &'a dyn Checkpoint,
    /// Whether its files are here: reading them several times costs nothing.
    pub local: bool,
    pub out: &'a Path,
    pub threads: Option<usize>,
    pub printer: &'a Printer,
    pub interrupt: &'a Interrupt,
}

impl CalibrationArgs {
    /// Bytes that calibration may take.
    pub fn memory(&self) -> Option<u64> {
        self.memory
    }

    /// The text in the checkpoint's tokens; `None` where none is asked for.
    pub fn read(&self, subject: &Subject<'_>) -> anyhow::Result<Option<Calibration>> {
        let ctx = SEQUENCE.min(subject.checkpoint.config().context);
        let none = self.calibrate.iter().any(|path| path.as_os_str() == NONE);
        ensure!(
            !none || self.calibrate.len() == 1,
            "--calibrate has none beside files: give one or the other"
        );
        let (tokens, source) = match self.calibrate.as_slice() {
            _ if none => return Ok(None),
            [] if !subject.local => {
                subject.printer.note(
                    "not calibrated: that reads the checkpoint several times; for a closer file, pull it first (upg pull)",
                );
                return Ok(None);
            }
            [] => (self.own(subject, ctx)?, "written by the model".to_owned()),
            files => self.files(files, subject.checkpoint)?,
        };
        Ok(Some(Calibration { tokens, ctx, source }))
    }

    fn own(&self, subject: &Subject<'_>, ctx: usize) -> anyhow::Result<Vec<u32>> {
        // Less is no calibration.
        let tokens = self.tokens.get().max(Calibration::MIN_SEQUENCES * ctx);
        let Subject { checkpoint, out, threads, printer, interrupt, .. } = *subject;
        let memory = self.memory.unwrap_or(DRAFT_MEMORY);
        Writing { checkpoint, out, tokens, ctx, memory, threads, printer, interrupt }.text()
    }

    fn files(&self, files: &[PathBuf], checkpoint: &dyn Checkpoint) -> anyhow::Result<(Vec<u32>, String)> {
        let tokenizer = Tokenizer::new(checkpoint.tokenizer_json(), checkpoint.config().vocab, &[])?;
        let share = self.tokens.get().div_ceil(files.len());
        let (mut tokens, mut names) = (Vec::new(), Vec::new());
        for path in files {
            let text = read_capped(path, MAX_TEXT)?;
            let text: String = text.chars().take(share.saturating_mul(CHARACTERS)).collect();
            let encoded = tokenizer.encode(&text, false);
            let encoded = encoded.with_context(|| format!("cannot encode {}", path.display()))?;
            tokens.extend(encoded.into_iter().take(share));
            names.push(path.file_name().unwrap_or_default().to_string_lossy().into_owned());
        }
        Ok((tokens, names.join(", ")))
    }
}
