//! Generation: from a prompt to an answer, piece by piece.

mod batch;
mod options;
mod session;
mod track;

use std::{
    collections::VecDeque,
    sync::atomic::{AtomicBool, Ordering},
    time::Instant,
};

use upg_pdvm::{Logits, Machine, Segment};

pub(crate) use batch::{Batched, generate_batch};
pub use options::{Completion, FinishReason, GenerationOptions, Piece, Stats, Step};
pub use session::Session;
pub(crate) use session::check_prompt;
use track::Track;

use crate::{EngineError, Tokenizer, sampler::Choice};

/// What all generations with one model share.
#[derive(Clone, Copy)]
pub(crate) struct Model<'a> {
    pub(crate) tokenizer: &'a Tokenizer,
    /// Tokens that end an answer.
    pub(crate) stop_tokens: &'a [u32],
}

/// An answer under way, apart from the machine and the session, so that answers of several sessions can take turns on one
/// machine ([`crate::Engine::advance`]). It goes on with the session that it was started with.
pub struct Answer {
    track: Track,
    /// The token to run next; `None` where the logits are already there.
    pending: Option<u32>,
    /// Tokens after the pending one that the machine has chosen already; all but the last have been run.
    ahead: VecDeque<u32>,
    logits: Vec<f32>,
    stats: Stats,
}

impl Answer {
    /// Runs the prompt.
    pub(crate) fn start(
        machine: &mut dyn Machine,
        session: &mut Session,
        model: Model<'_>,
        prompt: &[u32],
        options: &GenerationOptions,
        cancel: &AtomicBool,
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
        Ok(Self { track, pending: None, ahead: VecDeque::new(), logits, stats })
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

    /// One more token, unless the answer has ended; returns what there is to show.
    pub(crate) fn advance(
        &mut self,
        machine: &mut dyn Machine,
        session: &mut Session,
        model: Model<'_>,
        cancel: &AtomicBool,
    ) -> Result<Option<Piece>, EngineError> {
        if self.track.finish().is_none() {
            self.step(machine, session, model, cancel)?;
        }
        Ok(self.track.take_piece())
    }

    /// Runs a token, and those that the machine itself chooses to follow it.
    fn run(&mut self, machine: &mut dyn Machine, session: &Session, token: u32) -> Result<(), EngineError> {
        let (seq, length) = (session.seq(), session.tokens().len());
        let room = machine.options().context - length;
        let count = machine.greedy_tokens().min(self.track.greedy_left()).min(room);
        if count > 1 && !machine.rope_switches(seq, length + count)? {
            let mut found = vec![0; count];
            machine.run_greedy(seq, token, &mut found)?;
            self.ahead.extend(found);
        } else {
            machine.run(&[Segment { seq, tokens: &[token], logits: Logits::Last }], &mut self.logits)?;
        }
        Ok(())
    }

    /// One more token.
    fn step(
        &mut self,
        machine: &mut dyn Machine,
        session: &mut Session,
        model: Model<'_>,
        cancel: &AtomicBool,
    ) -> Result<(), EngineError> {
        if cancel.load(Ordering::Relaxed) {
            return self.track.end(model, FinishReason::Cancelled);
        }
        let begin = Instant::now();
        if let Some(token) = self.pending.take() {
            if self.ahead.is_empty() {
                if !session.make_ready(machine, cancel)? {
                    return self.track.end(model, FinishReason::Cancelled);
                }
                self.run(machine, session, token)?;
            }
            session.push(token);
        }
        let room = session.tokens().len() < machine.options().context;
        self.pending = match self.ahead.pop_front() {
            Some(token) => self.track.take(model, Choice { token, logprob: None }, room)?,
            None => self.track.advance(model, &self.logits, room)?,
        };
        self.stats.count(self.track.generated(), begin.elapsed());
        Ok(())
    }
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
    answer: Answer,
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
        let answer = Answer::start(machine, session, model, prompt, options, cancel, progress)?;
        Ok(Self { machine, session, model, cancel, answer, failed: false })
    }

    /// Why the answer ended; `None` while it goes on. The last piece may still be to come.
    pub fn finish(&self) -> Option<FinishReason> {
        self.answer.finish()
    }

    /// What it took so far.
    pub fn stats(&self) -> Stats {
        self.answer.stats()
    }

    /// The seed in use.
    pub fn seed(&self) -> u64 {
        self.answer.seed()
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
            stats: self.stats(),
        })
    }
}

impl Iterator for Generation<'_> {
    type Item = Result<Piece, EngineError>;

    fn next(&mut self) -> Option<Self::Item> {
        while !self.failed {
            let ended = self.finish().is_some();
            match self.answer.advance(self.machine, self.session, self.model, self.cancel) {
                Ok(None) if ended => return None,
                Ok(None) => (),
                Ok(Some(piece)) => return Some(Ok(piece)),
                Err(error) => {
                    self.failed = true;
                    return Some(Err(error));
                }
            }
        }
        None
    }
}

#[cfg(test)]
mod tests;
