//! Logits and log-probabilities of one text, token by token.

use std::{
    ops::Range,
    sync::atomic::{AtomicBool, Ordering},
};

use upg_pdvm::{Machine, MachineError};

use super::{LogSoftmax, MachineScorer, ROWS, Scorer as _};
use crate::EngineError;

/// Logits after each token, `[tokens.len(), vocab]`.
pub(crate) fn logits(
    machine: &mut dyn Machine,
    tokens: &[u32],
    out: &mut [f32],
    cancel: &AtomicBool,
) -> Result<(), EngineError> {
    let mut out = out;
    let mut scorer = MachineScorer::new(machine)?;
    let vocab = scorer.vocab();
    for rows in blocks(tokens.len()) {
        let (now, later) = std::mem::take(&mut out).split_at_mut(rows.len() * vocab);
        run(&mut scorer, tokens, rows, now, cancel)?;
        out = later;
    }
    Ok(())
}

/// Log-probability of each token but the first; holds the logits of a few tokens only.
pub(crate) fn log_probabilities(
    machine: &mut dyn Machine,
    tokens: &[u32],
    cancel: &AtomicBool,
) -> Result<Vec<f32>, EngineError> {
    let mut scorer = MachineScorer::new(machine)?;
    let vocab = scorer.vocab();
    let mut logits = vec![0.0; ROWS.min(tokens.len()) * vocab];
    let mut found = Vec::with_capacity(tokens.len());
    // The last token is only ever a target: no machine will check it.
    if let Some(&token) = tokens.last().filter(|&&token| token as usize >= vocab) {
        return Err(MachineError::Token { token, vocab }.into());
    }
    for rows in blocks(tokens.len() - 1) {
        let logits = &mut logits[..rows.len() * vocab];
        let targets = &tokens[rows.start + 1..];
        run(&mut scorer, tokens, rows, logits, cancel)?;
        let rows = logits.chunks_exact(vocab).zip(targets);
        found.extend(rows.map(|(row, &target)| LogSoftmax::of(row).log_p(target as usize) as f32));
    }
    Ok(found)
}

fn run(
    scorer: &mut MachineScorer<'_>,
    tokens: &[u32],
    rows: Range<usize>,
    out: &mut [f32],
    cancel: &AtomicBool,
) -> Result<(), EngineError> {
    if cancel.load(Ordering::Relaxed) {
        return Err(EngineError::Cancelled);
    }
    scorer.rows(tokens, rows, out)
}

fn blocks(n: usize) -> impl Iterator<Item = Range<usize>> {
    (0..n).step_by(ROWS).map(move |start| start..n.min(start + ROWS))
}
