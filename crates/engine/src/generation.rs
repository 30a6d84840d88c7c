//! Sessions and generation.

use std::{sync::atomic::AtomicBool, time::Duration};

use crate::{EngineError, SamplingOptions};

/// What is generated and when it ends.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GenerationOptions {
    /// How tokens are chosen.
    pub sampling: SamplingOptions,
    /// The most tokens to generate; `None`: until the context is full.
    pub max_tokens: Option<usize>,
    /// Texts that end the answer; they are not part of it.
    pub stop: Vec<String>,
    /// Goes on past the model's stop tokens (benchmarks).
    pub ignore_stop_tokens: bool,
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// A stop token or a stop text.
    Stop,
    /// `max_tokens` reached, or the context is full.
    Length,
    /// The cancellation flag was set.
    Cancelled,
}

/// One generated token.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// The token.
    pub token: u32,
    /// Its log-probability under the model, if asked for.
    pub logprob: Option<f32>,
    /// The likeliest tokens and their log-probabilities, best first, if asked for.
    pub top: Vec<(u32, f32)>,
}

/// A piece of an answer: text that is complete and the tokens that were consumed for it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Piece {
    /// The text; never ends inside a character.
    pub text: String,
    /// The tokens since the last piece.
    pub tokens: Vec<Step>,
}

/// What a generation took.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Stats {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Those of them that were still in the cache.
    pub cached_tokens: usize,
    /// Tokens generated, a stop token included.
    pub generated_tokens: usize,
    /// From the start to the prompt's logits.
    pub prefill: Duration,
    /// From the start to the first token.
    pub first_token: Duration,
    /// Spent on the tokens after the first.
    pub decode: Duration,
    /// Bytes of weights that a token reads.
    pub weight_bytes: u64,
}

impl Stats {
    /// Prompt tokens a second, those in the cache not counted.
    pub fn prefill_rate(&self) -> f64 {
        todo!()
    }

    /// Tokens a second after the first.
    pub fn decode_rate(&self) -> f64 {
        todo!()
    }

    /// Weights read while decoding, in GB (10⁹ bytes) a second.
    pub fn decode_gb_per_second(&self) -> f64 {
        todo!()
    }
}

/// A whole answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Completion {
    /// The text.
    pub text: String,
    /// The tokens.
    pub tokens: Vec<Step>,
    /// Why it ended.
    pub finish: FinishReason,
    /// What it took.
    pub stats: Stats,
}

/// A conversation's place in the KV cache: the tokens that it holds are not computed again when the next prompt
/// starts with them.
pub struct Session;

impl Session {
    /// The tokens in the cache.
    pub fn tokens(&self) -> &[u32] {
        todo!()
    }
}

/// An answer under way: an iterator over its pieces.
pub struct Generation<'a>(std::marker::PhantomData<&'a AtomicBool>);

impl Generation<'_> {
    /// Why the answer ended; `None` while it goes on.
    pub fn finish(&self) -> Option<FinishReason> {
        todo!()
    }

    /// What it took so far.
    pub fn stats(&self) -> Stats {
        todo!()
    }

    /// The seed in use.
    pub fn seed(&self) -> u64 {
        todo!()
    }

    /// Runs to the end.
    ///
    /// # Errors
    /// Those of the machine and the sampler.
    pub fn complete(self) -> Result<Completion, EngineError> {
        todo!()
    }
}

impl Iterator for Generation<'_> {
    type Item = Result<Piece, EngineError>;

    fn next(&mut self) -> Option<Self::Item> {
        todo!()
    }
}
