//! From logits to a token.

use std::{
    cmp::Ordering,
    collections::VecDeque,
    hash::{BuildHasher, RandomState},
};

use upg_pdvm::rotation::SplitMix64;

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
    /// Divides (multiplies, if negative) the logits of tokens in the window (Keskar et al. 2019); 1 for none, 0.01 to
    /// 100.
    pub repetition_penalty: f32,
    /// Subtracted from the logits of tokens in the window; -2 to 2.
    pub presence_penalty: f32,
    /// Subtracted from the logits of tokens in the window once per occurrence; -2 to 2.
    pub frequency_penalty: f32,
    /// Tokens that the penalties look back on, the prompt's included; up to 8,192.
    pub penalty_window: usize,
    /// Seed of the random numbers; `None`: a fresh one, which [`Sampler::seed`] tells.
    pub seed: Option<u64>,
    /// Log-probabilities wanted: `Some(n)`: the chosen token's and the `n` likeliest ones'; up to 1,000.
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

impl SamplingOptions {
    /// Always the likeliest token.
    pub fn greedy() -> Self {
        Self { temperature: 0.0, ..Self::default() }
    }

    /// Checks every range.
    ///
    /// # Errors
    /// [`SamplingError::Range`] names the first option out of its range.
    pub fn validate(&self) -> Result<(), SamplingError> {
        let within = |option, value: f32, from: f32, to: f32, range| match value >= from && value <= to {
            true => Ok(()),
            false => Err(SamplingError::Range { option, value, range }),
        };
        within("temperature", self.temperature, 0.0, 100.0, "from 0 to 100")?;
        within("top_p", self.top_p, f32::MIN_POSITIVE, 1.0, "above 0 and up to 1")?;
        within("min_p", self.min_p, 0.0, 1.0, "from 0 to 1")?;
        within("repetition_penalty", self.repetition_penalty, 0.01, 100.0, "from 0.01 to 100")?;
        within("presence_penalty", self.presence_penalty, -2.0, 2.0, "from -2 to 2")?;
        within("frequency_penalty", self.frequency_penalty, -2.0, 2.0, "from -2 to 2")?;
        within("penalty_window", self.penalty_window as f32, 0.0, 8192.0, "from 0 to 8192")?;
        within("logprobs", self.logprobs.unwrap_or(0) as f32, 0.0, 1000.0, "from 0 to 1000")
    }

    /// Whether the likeliest token is taken and nothing else is asked: then a machine can choose it.
    pub fn is_plain_greedy(&self) -> bool {
        self.temperature == 0.0 && !self.penalises() && self.logprobs.is_none()
    }

    fn penalises(&self) -> bool {
        self.repetition_penalty != 1.0 || self.presence_penalty != 0.0 || self.frequency_penalty != 0.0
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
        value: f32,
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
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Choice {
    /// The token.
    pub token: u32,
    /// Its natural log-probability under the model (before penalties, temperature and masks), if asked for.
    pub logprob: Option<f32>,
}

/// A token that may still be chosen. `score` is its logit first and its probability, relative to the likeliest
/// token's, later.
#[derive(Clone, Copy, Debug)]
struct Candidate {
    token: u32,
    score: f32,
}

impl Candidate {
    /// Best first; ties go to the lower token, so that no result depends on the order of the candidates.
    fn order(&self, other: &Self) -> Ordering {
        other.score.total_cmp(&self.score).then(self.token.cmp(&other.token))
    }
}

/// Chooses tokens. Its buffers are taken at the first call; later calls do not allocate.
#[derive(Clone, Debug)]
pub struct Sampler {
    options: SamplingOptions,
    vocab: usize,
    seed: u64,
    random: SplitMix64,
    window: Window,
    candidates: Vec<Candidate>,
    top: Vec<(u32, f32)>,
}

impl Sampler {
    /// A sampler for a vocabulary of `vocab` entries.
    ///
    /// # Errors
    /// [`SamplingError::Range`].
    pub fn new(options: &SamplingOptions, vocab: usize) -> Result<Self, SamplingError> {
        options.validate()?;
        // A hasher's random keys are the standard library's only source of entropy.
        let seed = options.seed.unwrap_or_else(|| RandomState::new().hash_one(0));
        let window = Window::new(if options.penalises() { options.penalty_window } else { 0 });
        let (candidates, top) = (Vec::new(), Vec::new());
        Ok(Self { options: options.clone(), vocab, seed, random: SplitMix64(seed), window, candidates, top })
    }

    /// The seed in use: the same options, seed and logits give the same tokens.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// Tells the penalties of a token that is now part of the sequence.
    pub fn accept(&mut self, token: u32) {
        self.window.push(token);
    }

    /// Chooses a token; `logits` is one row, `[vocab]`. Logits of negative infinity are never chosen.
    ///
    /// # Errors
    /// [`SamplingError::Logit`] and [`SamplingError::Length`].
    pub fn sample(&mut self, logits: &[f32]) -> Result<Choice, SamplingError> {
        if logits.len() != self.vocab {
            return Err(SamplingError::Length { found: logits.len(), vocab: self.vocab });
        }
        let best = likeliest(logits)?;
        let log_sum = self.options.logprobs.map(|n| self.list_top(logits, n, logits[best as usize]));
        let token = if self.options.temperature == 0.0 && self.window.is_empty() {
            best
        } else {
            self.list_candidates(logits);
            self.penalise();
            if self.options.temperature == 0.0 { best_of(&self.candidates) } else { self.draw() }
        };
        let logprob = log_sum.map(|sum| (f64::from(logits[token as usize]) - sum) as f32);
        Ok(Choice { token, logprob })
    }

    /// The likeliest tokens and their log-probabilities under the model at the last [`Sampler::sample`], best first.
    pub fn top(&self) -> &[(u32, f32)] {
        &self.top
    }

    /// Fills `top` and returns `log Σ exp(logit)`.
    fn list_top(&mut self, logits: &[f32], n: usize, max: f32) -> f64 {
        let sum: f64 = logits.iter().map(|&l| f64::from(l - max).exp()).sum();
        let log_sum = f64::from(max) + sum.ln();
        self.top.clear();
        if n > 0 {
            self.list_candidates(logits);
            keep_best(&mut self.candidates, n);
            let logprob = |c: &Candidate| (c.token, (f64::from(c.score) - log_sum) as f32);
            self.top.extend(self.candidates.iter().map(logprob));
        }
        log_sum
    }

    fn list_candidates(&mut self, logits: &[f32]) {
        self.candidates.clear();
        let candidate = |(token, &score): (usize, &f32)| Candidate { token: token as u32, score };
        self.candidates.extend(logits.iter().enumerate().map(candidate));
    }

    /// Candidates stand in the order of tokens here.
    fn penalise(&mut self) {
        let options = &self.options;
        for &(token, count) in &self.window.counts {
            let Some(candidate) = self.candidates.get_mut(token as usize) else { continue };
            let score = &mut candidate.score;
            *score = if *score > 0.0 {
                *score / options.repetition_penalty
            } else {
                *score * options.repetition_penalty
            };
            *score -= options.presence_penalty + options.frequency_penalty * count as f32;
        }
    }

    fn draw(&mut self) -> u32 {
        let max = self.candidates.iter().map(|c| c.score).fold(f32::NEG_INFINITY, f32::max);
        let k = self.options.top_k;
        if k > 0 && k < self.candidates.len() {
            keep_best(&mut self.candidates, k);
        }
        for candidate in &mut self.candidates {
            candidate.score = ((candidate.score - max) / self.options.temperature).exp();
        }
        if self.options.top_p < 1.0 {
            keep_nucleus(&mut self.candidates, self.options.top_p.into());
        }
        if self.options.min_p > 0.0 {
            self.candidates.retain(|c| c.score >= self.options.min_p);
        }
        // 53 random bits: every multiple of 2^-53 in [0, 1).
        let uniform = (self.random.next() >> 11) as f64 * (1.0 / (1u64 << 53) as f64);
        pick(&self.candidates, uniform)
    }
}

/// The token with the largest logit, the lowest one of several.
fn likeliest(logits: &[f32]) -> Result<u32, SamplingError> {
    // Block by block: a vocabulary has a hundred thousand entries, and lanes side by side vectorise.
    const BLOCK: usize = 1024;
    let (mut best, mut max) = (0, f32::NEG_INFINITY);
    for (i, block) in logits.chunks(BLOCK).enumerate() {
        let most = block_max(block)
            .map_err(|at| SamplingError::Logit { token: (i * BLOCK + at) as u32, value: block[at] })?;
        if most > max {
            (best, max) = (i, most);
        }
    }
    let block = logits[best * BLOCK..].iter().position(|l| *l == max && max > f32::NEG_INFINITY);
    block.map(|at| (best * BLOCK + at) as u32).ok_or(SamplingError::Logit { token: 0, value: max })
}

/// The largest of some logits; the place of the first that is NaN or infinite.
fn block_max(logits: &[f32]) -> Result<f32, usize> {
    const LANES: usize = 16;
    let (mut most, mut finite) = ([f32::NEG_INFINITY; LANES], [true; LANES]);
    let (lanes, rest) = logits.as_chunks::<LANES>();
    for values in lanes {
        for ((most, finite), value) in most.iter_mut().zip(&mut finite).zip(values) {
            *most = if *value > *most { *value } else { *most };
            *finite &= *value < f32::INFINITY;
        }
    }
    let bad = |value: &f32| value.is_nan() || *value == f32::INFINITY;
    if finite.contains(&false) || rest.iter().any(bad) {
        return Err(logits.iter().position(bad).unwrap_or(0));
    }
    Ok(most.iter().chain(rest).copied().fold(f32::NEG_INFINITY, f32::max))
}

/// The best candidate's token.
fn best_of(candidates: &[Candidate]) -> u32 {
    candidates.iter().min_by(|a, b| a.order(b)).map_or(0, |c| c.token)
}

/// Keeps the best `n`, sorted.
fn keep_best(candidates: &mut Vec<Candidate>, n: usize) {
    if n < candidates.len() {
        candidates.select_nth_unstable_by(n, Candidate::order);
        candidates.truncate(n);
    }
    candidates.sort_unstable_by(Candidate::order);
}

/// Keeps the fewest best candidates whose scores reach the share `p` of all, sorted. Sorts no more of a large
/// vocabulary than it must: a nucleus is small nearly always.
fn keep_nucleus(candidates: &mut Vec<Candidate>, p: f64) {
    let goal = p * candidates.iter().map(|c| f64::from(c.score)).sum::<f64>();
    let mut sorted = 0;
    let mut reached = 0.0;
    while sorted < candidates.len() {
        let end = candidates.len().min(8 * sorted.max(16));
        let rest = &mut candidates[sorted..];
        if end - sorted < rest.len() {
            rest.select_nth_unstable_by(end - sorted, Candidate::order);
        }
        candidates[sorted..end].sort_unstable_by(Candidate::order);
        for i in sorted..end {
            reached += f64::from(candidates[i].score);
            if reached >= goal {
                candidates.truncate(i + 1);
                return;
            }
        }
        sorted = end;
    }
}

/// The candidate at the share `uniform`, in [0, 1), of the sum of all scores.
fn pick(candidates: &[Candidate], uniform: f64) -> u32 {
    let total: f64 = candidates.iter().map(|c| f64::from(c.score)).sum();
    let mut left = uniform * total;
    let mut last = 0;
    for candidate in candidates.iter().filter(|c| c.score > 0.0) {
        last = candidate.token;
        left -= f64::from(candidate.score);
        if left < 0.0 {
            break;
        }
    }
    // Where rounding leaves a rest at the end, the last possible token takes it.
    last
}

/// The last tokens of the sequence and how often each occurs among them.
#[derive(Clone, Debug)]
struct Window {
    size: usize,
    tokens: VecDeque<u32>,
    counts: Vec<(u32, u32)>,
}

impl Window {
    fn new(size: usize) -> Self {
        Self { size, tokens: VecDeque::with_capacity(size), counts: Vec::with_capacity(size) }
    }

    fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    fn push(&mut self, token: u32) {
        if self.size == 0 {
            return;
        }
        if self.tokens.len() == self.size
            && let Some(oldest) = self.tokens.pop_front()
            && let Some(i) = self.position(oldest)
        {
            self.counts[i].1 -= 1;
            if self.counts[i].1 == 0 {
                self.counts.swap_remove(i);
            }
        }
        self.tokens.push_back(token);
        match self.position(token) {
            Some(i) => self.counts[i].1 += 1,
            None => self.counts.push((token, 1)),
        }
    }

    fn position(&self, token: u32) -> Option<usize> {
        self.counts.iter().position(|&(t, _)| t == token)
    }
}

#[cfg(test)]
#[path = "sampler_tests.rs"]
mod tests;
