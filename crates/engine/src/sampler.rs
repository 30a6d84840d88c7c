//! From logits to a token.

/// How tokens are chosen. Applied in this order: penalties, temperature, top-k, top-p, min-p.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingOptions {
    /// Divides the logits; 0 takes the likeliest token. 0 to 100.
    pub temperature: f32,
    /// Keeps the `k` likeliest tokens; 0 keeps all.
    pub top_k: usize,
    /// Keeps the likeliest tokens that together reach this probability (Holtzman et al. 2019); above 0, up to 1.
    pub top_p: f32,
    /// Keeps tokens at least this probable relative to the likeliest (Nguyen et al. 2024); 0 to 1.
    pub min_p: f32,
    /// Divides (multiplies, if negative) the logits of tokens in the window (Keskar et al. 2019); 1 for none.
    pub repetition_penalty: f32,
    /// Subtracted from the logits of tokens in the window; -2 to 2.
    pub presence_penalty: f32,
    /// Subtracted from the logits of tokens in the window once per occurrence; -2 to 2.
    pub frequency_penalty: f32,
    /// Tokens that the penalties look back on, the prompt's included.
    pub penalty_window: usize,
    /// Seed of the random numbers; `None`: a fresh one, which [`Sampler::seed`] tells.
    pub seed: Option<u64>,
    /// Log-probabilities wanted: `Some(n)`: the chosen token's and the `n` likeliest ones'.
    pub logprobs: Option<usize>,
}

impl Default for SamplingOptions {
    fn default() -> Self {
        Self {
            temperature: 0.7,
            top_k: 0,
            top_p: 0.95,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            penalty_window: 64,
            seed: None,
            logprobs: None,
        }
    }
}

/// Why nothing can be sampled.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum SamplingError {
    /// An option is out of its range.
    #[error("{option} is {value} but must be {range}")]
    Range {
        /// The option.
        option: &'static str,
        /// Its value.
        value: f64,
        /// What it may be.
        range: &'static str,
    },
    /// The logits have a value that is no number.
    #[error(
        "the logit of token {token} is {value}: the model or its file is damaged; run `upg inspect --verify`"
    )]
    Logit {
        /// The token.
        token: u32,
        /// Its logit.
        value: f32,
    },
    /// The row of logits has another length than the vocabulary.
    #[error("{found} logits for a vocabulary of {vocab}: give one row")]
    Length {
        /// Logits given.
        found: usize,
        /// Entries of the vocabulary.
        vocab: usize,
    },
}

/// A chosen token.
#[derive(Clone, Debug, PartialEq)]
pub struct Choice {
    /// The token.
    pub token: u32,
    /// Its natural log-probability under the model (before penalties, temperature and masks), if asked for.
    pub logprob: Option<f32>,
}

/// Chooses tokens.
pub struct Sampler;

impl Sampler {
    /// A sampler for a vocabulary of `vocab` entries.
    ///
    /// # Errors
    /// [`SamplingError::Range`].
    pub fn new(options: &SamplingOptions, vocab: usize) -> Result<Self, SamplingError> {
        let _ = (options, vocab);
        todo!()
    }

    /// The seed in use: the same options, seed and logits give the same tokens.
    pub fn seed(&self) -> u64 {
        todo!()
    }

    /// Tells the penalties of a token that is now part of the sequence.
    pub fn accept(&mut self, token: u32) {
        let _ = token;
        todo!()
    }

    /// Chooses a token; `logits` is one row, `[vocab]`.
    ///
    /// # Errors
    /// [`SamplingError::Logit`] and [`SamplingError::Length`].
    pub fn sample(&mut self, logits: &[f32]) -> Result<Choice, SamplingError> {
        let _ = logits;
        todo!()
    }

    /// The likeliest tokens and their log-probabilities under the model at the last [`Sampler::sample`], best first.
    pub fn top(&self) -> &[(u32, f32)] {
        todo!()
    }
}
