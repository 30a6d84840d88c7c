use std::time::Duration;

use crate::{EngineError, SamplingOptions};

/// The most stop texts, and the most bytes of one.
const MAX_STOPS: usize = 64;
const MAX_STOP_BYTES: usize = 4096;

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

impl GenerationOptions {
    /// Checks every option.
    ///
    /// # Errors
    /// The first option that makes no sense.
    pub fn validate(&self) -> Result<(), EngineError> {
        self.sampling.validate()?;
        if self.stop.len() > MAX_STOPS {
            let value = format!("{} texts", self.stop.len());
            return Err(EngineError::Option { option: "stop", value, remedy: "give at most 64" });
        }
        if let Some(stop) = self.stop.iter().find(|stop| stop.is_empty() || stop.len() > MAX_STOP_BYTES) {
            let value = format!("a text of {} bytes", stop.len());
            return Err(EngineError::Option {
                option: "stop",
                value,
                remedy: "give texts of 1 to 4096 bytes",
            });
        }
        Ok(())
    }
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

/// A piece of an answer: text that is complete and the tokens that were consumed for it. The stop token is in no piece;
/// the tokens of a stop text are, for its beginning may have been text.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Piece {
    /// The text; never ends inside a character. Only the last piece may have none.
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
    /// Spent on the tokens after the first; the caller's own time between pieces is not counted.
    pub decode: Duration,
    /// Bytes of weights that a token reads.
    pub weight_bytes: u64,
}

impl Stats {
    /// Counts a step: `generated` tokens so far, the last in `time`.
    pub(super) fn count(&mut self, generated: usize, time: Duration) {
        self.generated_tokens = generated;
        if generated <= 1 {
            self.first_token = self.prefill + time;
        } else {
            self.decode += time;
        }
    }

    /// Prompt tokens a second, those in the cache not counted.
    pub fn prefill_rate(&self) -> f64 {
        rate(self.prompt_tokens - self.cached_tokens, self.prefill)
    }

    /// Tokens a second after the first.
    pub fn decode_rate(&self) -> f64 {
        rate(self.generated_tokens.saturating_sub(1), self.decode)
    }

    /// Weights read while decoding, in GB (10⁹ bytes) a second.
    pub fn decode_gb_per_second(&self) -> f64 {
        self.decode_rate() * self.weight_bytes as f64 / 1e9
    }
}

/// 0 where nothing was done.
fn rate(tokens: usize, time: Duration) -> f64 {
    if tokens == 0 { 0.0 } else { tokens as f64 / time.as_secs_f64().max(1e-9) }
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
    /// The seed that repeats it.
    pub seed: u64,
    /// What it took.
    pub stats: Stats,
}
