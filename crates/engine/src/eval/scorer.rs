use std::ops::Range;

use upg_pdvm::{Logits, Machine, MachineError, Segment, SeqId};

use crate::EngineError;

/// Something that gives logits for chunks of a text.
pub trait Scorer {
    /// Entries of the vocabulary: the length of a row.
    fn vocab(&self) -> usize;

    /// Starts a chunk.
    ///
    /// # Errors
    /// The source's.
    fn begin(&mut self) -> Result<(), EngineError>;

    /// Logits after each of the tokens `chunk[range]`, `[range.len(), vocab]`. Within a chunk ranges ascend and touch;
    /// the first one may leave out tokens before it, which still are part of the text.
    ///
    /// # Errors
    /// The source's.
    fn rows(&mut self, chunk: &[u32], range: Range<usize>, out: &mut [f32]) -> Result<(), EngineError>;
}

/// A machine as a source of logits. It takes one of its sequences and gives it back when dropped.
pub struct MachineScorer<'a> {
    machine: &'a mut dyn Machine,
    seq: SeqId,
    /// Tokens of the chunk that the machine has run.
    done: usize,
}

impl<'a> MachineScorer<'a> {
    /// # Errors
    /// When all sequences are in use.
    pub fn new(machine: &'a mut dyn Machine) -> Result<Self, EngineError> {
        let seq = machine.kv_mut().open().map_err(MachineError::from)?;
        Ok(Self { machine, seq, done: 0 })
    }
}

impl Scorer for MachineScorer<'_> {
    fn vocab(&self) -> usize {
        self.machine.program().config.vocab
    }

    fn begin(&mut self) -> Result<(), EngineError> {
        self.done = 0;
        Ok(self.machine.kv_mut().truncate(self.seq, 0).map_err(MachineError::from)?)
    }

    fn rows(&mut self, chunk: &[u32], range: Range<usize>, out: &mut [f32]) -> Result<(), EngineError> {
        let max_batch = self.machine.options().max_batch;
        let vocab = self.vocab();
        let mut out = out;
        self.machine.kv_mut().expect(self.seq, chunk.len()).map_err(MachineError::from)?;
        while self.done < range.end {
            let scored = self.done >= range.start;
            let end = (self.done + max_batch).min(if scored { range.end } else { range.start });
            let tokens = &chunk[self.done..end];
            let (logits, rows) = if scored { (Logits::All, tokens.len()) } else { (Logits::None, 0) };
            let (now, later) = std::mem::take(&mut out).split_at_mut(rows * vocab);
            self.machine.run(&[Segment { seq: self.seq, tokens, logits }], now)?;
            out = later;
            self.done = end;
        }
        Ok(())
    }
}

impl Drop for MachineScorer<'_> {
    fn drop(&mut self) {
        self.machine.kv_mut().close(self.seq);
    }
}
