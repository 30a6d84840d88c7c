use std::sync::atomic::{AtomicBool, Ordering};

use upg_pdvm::{Logits, Machine, MachineError, Segment, SeqId};

use crate::EngineError;

/// A conversation's place in the KV cache: the tokens that it holds are not computed again when the next prompt
/// starts with them.
#[derive(Debug)]
pub struct Session {
    seq: SeqId,
    tokens: Vec<u32>,
}

impl Session {
    /// An empty sequence of the machine.
    pub(crate) fn open(machine: &mut dyn Machine) -> Result<Self, EngineError> {
        let seq = machine.kv_mut().open().map_err(MachineError::from)?;
        Ok(Self::of(seq))
    }

    /// A sequence just opened.
    pub(super) fn of(seq: SeqId) -> Self {
        Self { seq, tokens: Vec::new() }
    }

    pub(crate) fn close(self, machine: &mut dyn Machine) {
        machine.kv_mut().close(self.seq);
    }

    /// The tokens in the cache.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    pub(super) fn seq(&self) -> SeqId {
        self.seq
    }

    /// Notes a token that the machine has run.
    pub(super) fn push(&mut self, token: u32) {
        self.tokens.push(token);
    }

    /// Forgets what the prompt does not start with, and its last token, whose logits are needed; all of it if the prompt's
    /// length asks for other RoPE frequencies. Returns the number of tokens kept.
    pub(super) fn rewind(&mut self, machine: &mut dyn Machine, prompt: &[u32]) -> Result<usize, EngineError> {
        check_prompt(machine, prompt)?;
        let same = self.tokens.iter().zip(prompt).take_while(|(a, b)| a == b).count().min(prompt.len() - 1);
        let same = if machine.rope_switches(self.seq, prompt.len())? { 0 } else { same };
        machine.kv_mut().truncate(self.seq, same).map_err(MachineError::from)?;
        self.tokens.truncate(same);
        Ok(same)
    }

    /// Makes sure that the keys in the cache serve one token more: computes all of them anew where that token takes the
    /// sequence past LongRoPE's original context (see `upg_pdvm::rope`). `false`: it was cancelled on the way.
    pub(super) fn make_ready(
        &mut self,
        machine: &mut dyn Machine,
        cancel: &AtomicBool,
    ) -> Result<bool, EngineError> {
        let length = self.tokens.len() + 1;
        if !machine.rope_switches(self.seq, length)? {
            return Ok(true);
        }
        let tokens = std::mem::take(&mut self.tokens);
        let kv = machine.kv_mut();
        kv.truncate(self.seq, 0).and_then(|()| kv.expect(self.seq, length)).map_err(MachineError::from)?;
        self.prefill(machine, &tokens, None, cancel, &mut |_, _| ())
    }

    /// Runs the rest of the prompt in runs of the machine's batch size; `logits`, if wanted, gets the last token's.
    /// `false`: it was cancelled between two runs.
    pub(super) fn prefill(
        &mut self,
        machine: &mut dyn Machine,
        prompt: &[u32],
        mut logits: Option<&mut [f32]>,
        cancel: &AtomicBool,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<bool, EngineError> {
        let max_batch = machine.options().max_batch;
        machine.kv_mut().expect(self.seq, prompt.len()).map_err(MachineError::from)?;
        while self.tokens.len() < prompt.len() {
            if cancel.load(Ordering::Relaxed) {
                return Ok(false);
            }
            let start = self.tokens.len();
            let end = prompt.len().min(start + max_batch);
            let tokens = &prompt[start..end];
            match logits.as_deref_mut().filter(|_| end == prompt.len()) {
                Some(row) => machine.run(&[Segment { seq: self.seq, tokens, logits: Logits::Last }], row)?,
                None => machine.run(&[Segment { seq: self.seq, tokens, logits: Logits::None }], &mut [])?,
            }
            self.tokens.extend_from_slice(tokens);
            progress(end, prompt.len());
        }
        Ok(true)
    }
}

/// Whether the machine's context holds the prompt. Nothing is ever cut without a word.
pub(crate) fn check_prompt(machine: &dyn Machine, prompt: &[u32]) -> Result<(), EngineError> {
    let context = machine.options().context;
    if prompt.is_empty() {
        return Err(EngineError::EmptyPrompt);
    }
    if prompt.len() > context {
        let model = machine.program().config.context;
        return Err(EngineError::PromptTooLong { prompt: prompt.len(), context, model });
    }
    Ok(())
}
