//! A model on a device.

use std::{
    path::Path,
    sync::{Arc, atomic::AtomicBool},
};

use upg_format::{Header, ModelConfig, TextConfig};
use upg_pdvm::{KvKind, Machine, MachineOptions, UpgWeights, Weights};

use crate::{
    Answer, ChatTemplate, Completion, EngineError, Generation, GenerationOptions, Language, Piece, Session,
    TemplateInput, Tokenizer, device, eval,
    generation::{Batched, check_prompt, generate_batch},
};

/// The context that a model gets unless told otherwise, where it allows as much.
const USUAL_CONTEXT: usize = 4096;

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

impl EngineOptions {
    /// The machine's options for a model.
    ///
    /// # Errors
    /// A context that the model cannot have, an unknown device.
    pub fn machine_options(&self, config: &ModelConfig) -> Result<MachineOptions, EngineError> {
        let context = self.context.unwrap_or(config.context.min(USUAL_CONTEXT));
        if context == 0 || context > config.context {
            return Err(EngineError::Context { asked: context, model: config.context });
        }
        for (option, value) in [("sequences", self.sequences), ("max_batch", self.max_batch)] {
            if value == 0 || value > 1 << 16 {
                let value = value.to_string();
                return Err(EngineError::Option { option, value, remedy: "give a number from 1 to 65536" });
            }
        }
        let kv = match self.kv {
            Some(kv) => kv,
            None => device::usual_kv(&self.device)?,
        };
        let (sequences, max_batch, threads) = (self.sequences, self.max_batch, self.threads);
        Ok(MachineOptions { context, sequences, kv, max_batch, threads })
    }
}

/// A model on a device, with its tokenizer and chat template.
pub struct Engine {
    machine: Box<dyn Machine>,
    language: Arc<Language>,
    header: Option<Header>,
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
        let weights = UpgWeights::open(path)?;
        let tokenizer_json = weights.file().tokenizer_json()?;
        let header = weights.file().header();
        let engine = Self::from_weights(&weights, &header.text, &tokenizer_json, options, progress)?;
        Ok(Self { header: Some(header.clone()), ..engine })
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
        // What is quick to refuse comes before the weights.
        let machine_options = options.machine_options(weights.config())?;
        let language = Arc::new(Language::new(text, tokenizer_json, weights.config().vocab)?);
        let machine = device::make(&options.device, weights, &machine_options, progress)?;
        Ok(Self { machine, language, header: None })
    }

    /// The header of the file, where the engine was loaded from a `.upg`.
    pub fn header(&self) -> Option<&Header> {
        self.header.as_ref()
    }

    /// The model's configuration.
    pub fn config(&self) -> &ModelConfig {
        &self.machine.program().config
    }

    /// The machine.
    pub fn machine(&self) -> &dyn Machine {
        self.machine.as_ref()
    }

    /// The machine, to run by hand (benchmarks, evaluation). Sequences of open sessions are theirs.
    pub fn machine_mut(&mut self) -> &mut dyn Machine {
        self.machine.as_mut()
    }

    /// The text side, for threads that encode and decode while the engine computes.
    pub fn language(&self) -> &Arc<Language> {
        &self.language
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        self.language.tokenizer()
    }

    /// The chat template, if the model has one.
    pub fn template(&self) -> Option<&ChatTemplate> {
        self.language.template()
    }

    /// Special tokens and the like.
    pub fn text(&self) -> &TextConfig {
        self.language.text()
    }

    /// [`Language::prompt`].
    ///
    /// # Errors
    /// The tokenizer's.
    pub fn prompt(&self, text: &str) -> Result<Vec<u32>, EngineError> {
        self.language.prompt(text)
    }

    /// [`Language::chat`].
    ///
    /// # Errors
    /// [`EngineError::NoTemplate`], the template's and the tokenizer's.
    pub fn chat(&self, input: &TemplateInput<'_>) -> Result<Vec<u32>, EngineError> {
        self.language.chat(input)
    }

    /// Opens a session.
    ///
    /// # Errors
    /// When all sequences are in use.
    pub fn open(&mut self) -> Result<Session, EngineError> {
        Session::open(self.machine.as_mut())
    }

    /// Closes a session; its place in the cache is free again.
    pub fn close(&mut self, session: Session) {
        session.close(self.machine.as_mut());
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
        let model = self.language.model();
        Generation::start(self.machine.as_mut(), session, model, prompt, options, cancel, progress)
    }

    /// [`Engine::generate`] for answers that take turns: runs the prompt; [`Engine::advance`] gives the pieces.
    ///
    /// # Errors
    /// As [`Engine::generate`]'s.
    pub fn start(
        &mut self,
        session: &mut Session,
        prompt: &[u32],
        options: &GenerationOptions,
        cancel: &AtomicBool,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Answer, EngineError> {
        let model = self.language.model();
        Answer::start(self.machine.as_mut(), session, model, prompt, options, cancel, progress)
    }

    /// One more token of an answer that was started with `session`; returns what there is to show, often nothing. After
    /// [`Answer::finish`] has a reason, one more call gives the last piece, if there is one.
    ///
    /// # Errors
    /// Those of the machine and the sampler; the answer cannot go on then.
    pub fn advance(
        &mut self,
        session: &mut Session,
        answer: &mut Answer,
        cancel: &AtomicBool,
    ) -> Result<Option<Piece>, EngineError> {
        answer.advance(self.machine.as_mut(), session, self.language.model(), cancel)
    }

    /// Logits after each of `tokens`, `[tokens.len(), vocab]`, to `out`, which has just that length. The tokens stand at
    /// the start of a sequence of their own.
    ///
    /// # Errors
    /// No tokens or too many, no free sequence, the machine's errors, [`EngineError::Cancelled`].
    pub fn logits(
        &mut self,
        tokens: &[u32],
        out: &mut [f32],
        cancel: &AtomicBool,
    ) -> Result<(), EngineError> {
        check_prompt(self.machine.as_ref(), tokens)?;
        eval::logits(self.machine.as_mut(), tokens, out, cancel)
    }

    /// Natural log-probability of each of `tokens` but the first, given those before it.
    ///
    /// # Errors
    /// As [`Engine::logits`]'s.
    pub fn log_probabilities(
        &mut self,
        tokens: &[u32],
        cancel: &AtomicBool,
    ) -> Result<Vec<f32>, EngineError> {
        check_prompt(self.machine.as_ref(), tokens)?;
        eval::log_probabilities(self.machine.as_mut(), tokens, cancel)
    }

    /// Continues several prompts in lock-step, as many at once as the machine has free sequences. `on_piece` gets the
    /// prompt's index and each piece. The answers come back in the order of the prompts. A seed given is the first
    /// prompt's; the others get the numbers that follow it.
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
        let model = self.language.model();
        generate_batch(self.machine.as_mut(), &Batched { model, prompts, options, cancel }, on_piece)
    }
}
