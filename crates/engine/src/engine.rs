//! A model on a device.

use std::{path::Path, sync::atomic::AtomicBool};

use upg_format::{Header, ModelConfig, TextConfig};
use upg_pdvm::{KvKind, Machine, Weights};

use crate::{
    ChatTemplate, Completion, EngineError, Generation, GenerationOptions, Piece, Session, TemplateInput,
    Tokenizer,
};

/// How a model is loaded.
#[derive(Clone, Debug)]
pub struct EngineOptions {
    /// `auto` or a name of [`crate::devices`].
    pub device: String,
    /// Threads of a CPU machine; `None`: one a core.
    pub threads: Option<usize>,
    /// Tokens a sequence may have; `None`: 4096, or the model's context where that is less.
    pub context: Option<usize>,
    /// How keys and values are kept; `None`: the device's usual kind.
    pub kv: Option<KvKind>,
    /// Sequences open at once.
    pub sequences: usize,
    /// Tokens in one run of the machine.
    pub max_batch: usize,
}

impl Default for EngineOptions {
    fn default() -> Self {
        Self { device: "auto".into(), threads: None, context: None, kv: None, sequences: 1, max_batch: 512 }
    }
}

/// A model on a device, with its tokenizer and chat template.
pub struct Engine {
    machine: Box<dyn Machine>,
    tokenizer: Tokenizer,
    template: Option<ChatTemplate>,
    text: TextConfig,
}

impl Engine {
    /// Loads a `.upg` file. `progress` gets the fraction done, 0 to 1.
    ///
    /// # Errors
    /// See [`EngineError`].
    pub fn load(
        path: &Path,
        options: &EngineOptions,
        progress: &mut dyn FnMut(f32),
    ) -> Result<Self, EngineError> {
        let _ = (path, options, progress);
        todo!()
    }

    /// Loads any weights: a folded checkpoint, synthetic ones, an opened `.upg`.
    ///
    /// # Errors
    /// See [`EngineError`].
    pub fn from_weights(
        weights: &dyn Weights,
        text: &TextConfig,
        tokenizer_json: &[u8],
        options: &EngineOptions,
        progress: &mut dyn FnMut(f32),
    ) -> Result<Self, EngineError> {
        let _ = (weights, text, tokenizer_json, options, progress);
        todo!()
    }

    /// The header of the file, where the engine was loaded from a `.upg`.
    pub fn header(&self) -> Option<&Header> {
        todo!()
    }

    /// The model's configuration.
    pub fn config(&self) -> &ModelConfig {
        &self.machine.program().config
    }

    /// The machine.
    pub fn machine(&self) -> &dyn Machine {
        self.machine.as_ref()
    }

    /// The machine, to run by hand (benchmarks, evaluation).
    pub fn machine_mut(&mut self) -> &mut dyn Machine {
        self.machine.as_mut()
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// The chat template, if the model has one.
    pub fn template(&self) -> Option<&ChatTemplate> {
        self.template.as_ref()
    }

    /// Special tokens and the like.
    pub fn text(&self) -> &TextConfig {
        &self.text
    }

    /// The tokens of a plain prompt, after the model's bos where it wants one.
    ///
    /// # Errors
    /// The tokenizer's.
    pub fn prompt(&self, text: &str) -> Result<Vec<u32>, EngineError> {
        let _ = text;
        todo!()
    }

    /// The tokens of a conversation.
    ///
    /// # Errors
    /// [`EngineError::NoTemplate`], the template's and the tokenizer's.
    pub fn chat(&self, input: &TemplateInput<'_>) -> Result<Vec<u32>, EngineError> {
        let _ = input;
        todo!()
    }

    /// Opens a session.
    ///
    /// # Errors
    /// When all sequences are in use.
    pub fn open(&mut self) -> Result<Session, EngineError> {
        todo!()
    }

    /// Closes a session; its place in the cache is free again.
    pub fn close(&mut self, session: Session) {
        let _ = session;
        todo!()
    }

    /// Continues `prompt` (all of the conversation so far: what the session still has of it is not computed again).
    /// Runs the prompt before it returns; `progress` gets the prompt tokens done and their number. Setting `cancel`
    /// ends prefill and generation alike.
    ///
    /// # Errors
    /// [`EngineError::PromptTooLong`], [`EngineError::EmptyPrompt`], wrong options, the machine's errors.
    pub fn generate<'a>(
        &'a mut self,
        session: &'a mut Session,
        prompt: &[u32],
        options: &GenerationOptions,
        cancel: &'a AtomicBool,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Generation<'a>, EngineError> {
        let _ = (session, prompt, options, cancel, progress);
        todo!()
    }

    /// Continues several prompts in lock-step, as many at once as the machine has free sequences. `on_piece` gets the
    /// prompt's index and each piece. The answers come back in the order of the prompts.
    ///
    /// # Errors
    /// As [`Engine::generate`]'s.
    pub fn generate_batch(
        &mut self,
        prompts: &[Vec<u32>],
        options: &GenerationOptions,
        cancel: &AtomicBool,
        on_piece: &mut dyn FnMut(usize, &Piece),
    ) -> Result<Vec<Completion>, EngineError> {
        let _ = (prompts, options, cancel, on_piece);
        todo!()
    }
}
