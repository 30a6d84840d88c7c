//! The text that rounding is calibrated on.

use std::{num::NonZero, path::PathBuf};

use anyhow::Context as _;
use clap::{Args, ValueHint};
use upg_checkpoint::Checkpoint;
use upg_compress::calibrate::Calibration;
use upg_engine::Tokenizer;

use crate::source::read_capped;

/// The largest text, in bytes.
const MAX_TEXT: u64 = 256 << 20;

/// Tokens of a sequence, where the model's context allows.
const SEQUENCE: usize = 512;

/// Characters that are tokenized for each token wanted: few tokens have more.
const CHARACTERS: usize = 8;

/// What to round by.
#[derive(Args)]
pub struct CalibrationArgs {
    /// Round by how the model runs on these texts: closer to the checkpoint, but much slower
    #[arg(long, value_name = "FILE", num_args = 1.., value_hint = ValueHint::FilePath)]
    calibrate: Vec<PathBuf>,
    /// Tokens of calibration text, shared out over its files
    #[arg(long, value_name = "N", default_value = "16384", requires = "calibrate")]
    tokens: NonZero<usize>,
}

impl CalibrationArgs {
    /// The text in the checkpoint's tokens; `None` where none is asked for.
    pub fn read(&self, checkpoint: &dyn Checkpoint) -> anyhow::Result<Option<Calibration>> {
        if self.calibrate.is_empty() {
            return Ok(None);
        }
        let config = checkpoint.config();
        let tokenizer = Tokenizer::new(checkpoint.tokenizer_json(), config.vocab, &[])?;
        let share = self.tokens.get().div_ceil(self.calibrate.len());
        let (mut tokens, mut names) = (Vec::new(), Vec::new());
        for path in &self.calibrate {
            let text = read_capped(path, MAX_TEXT)?;
            let text: String = text.chars().take(share.saturating_mul(CHARACTERS)).collect();
            let encoded = tokenizer.encode(&text, false);
            let encoded = encoded.with_context(|| format!("cannot encode {}", path.display()))?;
            tokens.extend(encoded.into_iter().take(share));
            names.push(path.file_name().unwrap_or_default().to_string_lossy().into_owned());
        }
        Ok(Some(Calibration { tokens, ctx: SEQUENCE.min(config.context), source: names.join(", ") }))
    }
}
