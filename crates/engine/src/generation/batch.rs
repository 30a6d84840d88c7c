//! Several prompts in lock-step: one run of the machine gives each of them a token.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Instant,
};

use upg_pdvm::{KvError, Logits, Machine, MachineError, Segment};

use super::{
    Completion, FinishReason, GenerationOptions, Model, Piece, Session, Stats, Track, session::check_prompt,
};
use crate::EngineError;

/// What a batch is generated with.
pub(crate) struct Batched<'a> {
    pub(crate) model: Model<'a>,
    pub(crate) prompts: &'a [Vec<u32>],
    pub(crate) options: &'a GenerationOptions,
    pub(crate) cancel: &'a AtomicBool,
}

/// An answer under way.
struct Slot {
    /// The prompt's index.
    index: usize,
    session: Session,
    track: Track,
    /// The token to run next.
    pending: u32,
    whole: Piece,
    stats: Stats,
}

impl Slot {
    /// Hands what there is to show to the caller and keeps it.
    fn show(&mut self, on_piece: &mut dyn FnMut(usize, &Piece)) {
        if let Some(piece) = self.track.take_piece() {
            on_piece(self.index, &piece);
            self.whole.text.push_str(&piece.text);
            self.whole.tokens.extend(piece.tokens);
        }
    }

    fn complete(self, finish: FinishReason) -> (Session, Completion) {
        let Self { session, track, whole, stats, .. } = self;
        let completion =
            Completion { text: whole.text, tokens: whole.tokens, finish, seed: track.seed(), stats };
        (session, completion)
    }
}

/// Answers all prompts, as many at once as there are free sequences. A seed given is the first prompt's; the next ones
/// get the numbers that follow, so that equal prompts get different answers.
pub(crate) fn generate_batch(
    machine: &mut dyn Machine,
    work: &Batched<'_>,
    on_piece: &mut dyn FnMut(usize, &Piece),
) -> Result<Vec<Completion>, EngineError> {
    // All prompts are checked before the first is run.
    work.options.validate()?;
    for prompt in work.prompts {
        check_prompt(machine, prompt)?;
    }
    let mut batch = Batch {
        done: work.prompts.iter().map(|_| None).collect(),
        slots: Vec::new(),
        logits: Vec::new(),
        vocab: machine.program().config.vocab,
    };
    let result = batch.run(machine, work, on_piece);
    for slot in batch.slots.drain(..) {
        slot.session.close(machine);
    }
    result?;
    // A run that did not fail has answered every prompt.
    Ok(batch.done.into_iter().flatten().collect())
}

struct Batch {
    done: Vec<Option<Completion>>,
    slots: Vec<Slot>,
    logits: Vec<f32>,
    vocab: usize,
}

impl Batch {
    fn run(
        &mut self,
        machine: &mut dyn Machine,
        work: &Batched<'_>,
        on_piece: &mut dyn FnMut(usize, &Piece),
    ) -> Result<(), EngineError> {
        let mut waiting = 0..work.prompts.len();
        loop {
            while self.slots.len() < machine.options().max_batch && !waiting.is_empty() {
                let session = match machine.kv_mut().open() {
                    Ok(seq) => Session::of(seq),
                    Err(KvError::TooManySequences(_)) if !self.slots.is_empty() => break,
                    Err(error) => return Err(MachineError::from(error).into()),
                };
                let Some(index) = waiting.next() else { break };
                self.admit(machine, work, session, index, on_piece)?;
            }
            if self.slots.is_empty() {
                return Ok(());
            }
            self.step(machine, work, on_piece)?;
        }
    }

    /// Runs a prompt and chooses its first token.
    fn admit(
        &mut self,
        machine: &mut dyn Machine,
        work: &Batched<'_>,
        mut session: Session,
        index: usize,
        on_piece: &mut dyn FnMut(usize, &Piece),
    ) -> Result<(), EngineError> {
        let begin = Instant::now();
        let prompt = &work.prompts[index];
        let mut options = work.options.clone();
        options.sampling.seed = options.sampling.seed.map(|seed| seed.wrapping_add(index as u64));
        self.logits.resize(self.vocab.max(self.logits.len()), 0.0);
        let logits = &mut self.logits[..self.vocab];
        let started = Track::new(work.model, prompt, &options, self.vocab).and_then(|mut track| {
            if !session.prefill(machine, prompt, Some(logits), work.cancel, &mut |_, _| ())? {
                track.end(work.model, FinishReason::Cancelled)?;
            }
            Ok(track)
        });
        let track = match started {
            Ok(track) => track,
            Err(error) => {
                session.close(machine);
                return Err(error);
            }
        };
        let stats = Stats {
            prompt_tokens: prompt.len(),
            prefill: begin.elapsed(),
            weight_bytes: machine.info().weight_bytes,
            ..Stats::default()
        };
        self.slots.push(Slot { index, session, track, pending: 0, whole: Piece::default(), stats });
        self.advance(machine, work, self.slots.len() - 1, 0, Instant::now(), on_piece)
    }

    /// One token for every answer.
    fn step(
        &mut self,
        machine: &mut dyn Machine,
        work: &Batched<'_>,
        on_piece: &mut dyn FnMut(usize, &Piece),
    ) -> Result<(), EngineError> {
        let begin = Instant::now();
        let mut ready = !work.cancel.load(Ordering::Relaxed);
        for slot in &mut self.slots {
            ready = ready && slot.session.make_ready(machine, work.cancel)?;
        }
        if !ready {
            for slot in &mut self.slots {
                slot.track.end(work.model, FinishReason::Cancelled)?;
            }
        } else {
            self.logits.resize(self.slots.len() * self.vocab, 0.0);
            let segment = |slot: &'_ Slot| (slot.session.seq(), [slot.pending]);
            let tokens: Vec<_> = self.slots.iter().map(segment).collect();
            let segments: Vec<_> = tokens
                .iter()
                .map(|(seq, tokens)| Segment { seq: *seq, tokens, logits: Logits::Last })
                .collect();
            machine.run(&segments, &mut self.logits)?;
            for slot in &mut self.slots {
                slot.session.push(slot.pending);
            }
        }
        // Backwards: an answer that has ended is replaced by the last one, which has been dealt with.
        for i in (0..self.slots.len()).rev() {
            self.advance(machine, work, i, i, begin, on_piece)?;
        }
        Ok(())
    }

    /// Lets answer `i` take its token from row `row` of the logits; closes it if that ends it.
    fn advance(
        &mut self,
        machine: &mut dyn Machine,
        work: &Batched<'_>,
        i: usize,
        row: usize,
        begin: Instant,
        on_piece: &mut dyn FnMut(usize, &Piece),
    ) -> Result<(), EngineError> {
        let slot = &mut self.slots[i];
        if slot.track.finish().is_none() {
            let room = slot.session.tokens().len() < machine.options().context;
            let logits = &self.logits[row * self.vocab..][..self.vocab];
            if let Some(token) = slot.track.advance(work.model, logits, room)? {
                slot.pending = token;
            }
            slot.stats.count(slot.track.generated(), begin.elapsed());
        }
        slot.show(on_piece);
        if let Some(finish) = slot.track.finish() {
            let index = slot.index;
            let (session, completion) = self.slots.swap_remove(i).complete(finish);
            session.close(machine);
            self.done[index] = Some(completion);
        }
        Ok(())
    }
}
