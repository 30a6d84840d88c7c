//! Generation: from a prompt to an answer, piece by piece.

mod batch;
mod options;
mod session;
mod track;

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Instant,
};

use upg_pdvm::{Logits, Machine, Segment};

pub(crate) use batch::{Batched, generate_batch};
pub use options::{Completion, FinishReason, GenerationOptions, Piece, Stats, Step};
pub use session::Session;
use track::Track;

use crate::{EngineError, Tokenizer};

/// What all generations with one model share.
#[derive(Clone, Copy)]
pub(crate) struct Model<'a> {
    pub(crate) tokenizer: &'a Tokenizer,
    /// Tokens that end an answer.
    pub(crate) stop_tokens: &'a [u32],
}

/// An answer under way: an iterator over its pieces.
///
/// Each call of `next` runs the machine until there is text to show. The last token generated is not in the session's
/// cache: nothing has been asked to follow it yet.
pub struct Generation<'a> {
    machine: &'a mut dyn Machine,
    session: &'a mut Session,
    model: Model<'a>,
    cancel: &'a AtomicBool,
    track: Track,
    /// The token to run next; `None` where the logits are already there.
    pending: Option<u32>,
    logits: Vec<f32>,
    stats: Stats,
    failed: bool,
}

impl<'a> Generation<'a> {
    /// Runs the prompt.
    pub(crate) fn start(
        machine: &'a mut dyn Machine,
        session: &'a mut Session,
        model: Model<'a>,
        prompt: &[u32],
        options: &GenerationOptions,
        cancel: &'a AtomicBool,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Self, EngineError> {
        let begin = Instant::now();
        let vocab = machine.program().config.vocab;
        let mut track = Track::new(model, prompt, options, vocab)?;
        let mut logits = vec![0.0; vocab];
        let cached_tokens = session.rewind(machine, prompt)?;
        if !session.prefill(machine, prompt, Some(&mut logits), cancel, progress)? {
            track.end(model, FinishReason::Cancelled)?;
        }
        let stats = Stats {
            prompt_tokens: prompt.len(),
            cached_tokens,
            prefill: begin.elapsed(),
            weight_bytes: machine.info().weight_bytes,
            ..Stats::default()
        };
        Ok(Self { machine, session, model, cancel, track, pending: None, logits, stats, failed: false })
    }

    /// Why the answer ended; `None` while it goes on. The last piece may still be to come.
    pub fn finish(&self) -> Option<FinishReason> {
        self.track.finish()
    }

    /// What it took so far.
    pub fn stats(&self) -> Stats {
        self.stats
    }

    /// The seed in use.
    pub fn seed(&self) -> u64 {
        self.track.seed()
    }

    /// Runs to the end.
    ///
    /// # Errors
    /// Those of the machine and the sampler.
    pub fn complete(mut self) -> Result<Completion, EngineError> {
        let mut whole = Piece::default();
        for piece in &mut self {
            let piece = piece?;
            whole.text.push_str(&piece.text);
            whole.tokens.extend(piece.tokens);
        }
        // The iterator only ends when there is a reason.
        let finish = self.finish().unwrap_or(FinishReason::Cancelled);
        Ok(Completion {
            text: whole.text,
            tokens: whole.tokens,
            finish,
            seed: self.seed(),
            stats: self.stats,
        })
    }

    /// One more token.
    fn step(&mut self) -> Result<(), EngineError> {
        if self.cancel.load(Ordering::Relaxed) {
            return self.track.end(self.model, FinishReason::Cancelled);
        }
        let begin = Instant::now();
        if let Some(token) = self.pending.take() {
            if !self.session.make_ready(self.machine, self.cancel)? {
                return self.track.end(self.model, FinishReason::Cancelled);
            }
            let tokens = [token];
            let segment = Segment { seq: self.session.seq(), tokens: &tokens, logits: Logits::Last };
            self.machine.run(&[segment], &mut self.logits)?;
            self.session.push(token);
        }
        let room = self.session.tokens().len() < self.machine.options().context;
        self.pending = self.track.advance(self.model, &self.logits, room)?;
        self.stats.count(self.track.generated(), begin.elapsed());
        Ok(())
    }
}

impl Iterator for Generation<'_> {
    type Item = Result<Piece, EngineError>;

    fn next(&mut self) -> Option<Self::Item> {
        while !self.failed {
            if let Some(piece) = self.track.take_piece() {
                return Some(Ok(piece));
            }
            if self.track.finish().is_some() {
                return None;
            }
            if let Err(error) = self.step() {
                self.failed = true;
                return Some(Err(error));
            }
        }
        None
    }
}

#[cfg(test)]
mod tests;
