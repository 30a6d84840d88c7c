use std::time::Duration;

use upg_format::ModelConfig;

use crate::{KvError, KvKind, KvPages, Program, SeqId, WeightsError};

/// Which rows of logits a segment wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Logits {
    /// None: a prompt's chunk that others follow.
    None,
    /// Those after its last token.
    Last,
    /// Those after each of its tokens.
    All,
}

/// Consecutive tokens that continue one sequence.
#[derive(Clone, Copy, Debug)]
pub struct Segment<'a> {
    /// The sequence that they continue.
    pub seq: SeqId,
    /// The tokens.
    pub tokens: &'a [u32],
    /// The logits asked for.
    pub logits: Logits,
}

impl Segment<'_> {
    /// Rows of logits that it asks for.
    pub fn logits_rows(&self) -> usize {
        match self.logits {
            Logits::None => 0,
            Logits::Last => 1.min(self.tokens.len()),
            Logits::All => self.tokens.len(),
        }
    }
}

/// What one run computes: segments of different sequences, at most [`MachineOptions::max_batch`] tokens in all.
pub type Batch<'a> = [Segment<'a>];

/// One token of a batch, in the order of the segments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchRow {
    /// Its sequence.
    pub seq: SeqId,
    /// The token.
    pub token: u32,
    /// Its position in the sequence.
    pub position: usize,
    /// The sequence's length that chooses its RoPE frequencies (see [`KvPages::reach`]).
    pub rope_length: usize,
    /// Whether its logits are asked for.
    pub logits: bool,
}

impl BatchRow {
    /// What every machine's run begins with: checks a batch and the room for its logits, takes the KV pages that it
    /// needs and lists its tokens in `rows` (cleared first; does not allocate where `rows` has room). It ends with
    /// [`KvPages::advance_all`].
    ///
    /// # Errors
    /// An empty or too large batch, a sequence named twice, a token past the vocabulary, a full context, and `logits`
    /// that are not as many as the batch asks for.
    pub fn admit(
        batch: &Batch<'_>,
        vocab: usize,
        max_batch: usize,
        logits: &[f32],
        kv: &mut KvPages,
        rows: &mut Vec<BatchRow>,
    ) -> Result<(), MachineError> {
        let asked = batch.iter().map(Segment::logits_rows).sum::<usize>();
        let (found, expected) = (logits.len(), asked.saturating_mul(vocab));
        if found != expected {
            return Err(MachineError::LogitsLength { found, expected });
        }
        rows.clear();
        let total = batch.iter().map(|s| s.tokens.len()).sum();
        if total > max_batch || batch.iter().any(|s| s.tokens.is_empty()) || batch.is_empty() {
            return Err(MachineError::BatchSize { tokens: total, max: max_batch });
        }
        // Everything is checked before the first page is taken: a refused batch leaves the books as they were.
        for (i, segment) in batch.iter().enumerate() {
            if batch[..i].iter().any(|s| s.seq == segment.seq) {
                return Err(MachineError::SequenceTwice(segment.seq));
            }
            if let Some(&token) = segment.tokens.iter().find(|&&t| t as usize >= vocab) {
                return Err(MachineError::Token { token, vocab });
            }
            kv.check(segment.seq, segment.tokens.len())?;
        }
        for segment in batch {
            kv.reserve(segment.seq, segment.tokens.len())?;
            let start = kv.len(segment.seq)?;
            let last = segment.tokens.len() - 1;
            let rope_length = kv.reach(segment.seq)?.max(start + segment.tokens.len());
            rows.extend(segment.tokens.iter().enumerate().map(|(i, &token)| BatchRow {
                seq: segment.seq,
                token,
                position: start + i,
                rope_length,
                logits: match segment.logits {
                    Logits::None => false,
                    Logits::Last => i == last,
                    Logits::All => true,
                },
            }));
        }
        Ok(())
    }

    /// What a machine's own [`Machine::run_greedy`] begins with: checks the token, takes the KV pages that `count` tokens
    /// need and returns the first one's row. It ends with [`KvPages::advance`].
    ///
    /// # Errors
    /// A token past the vocabulary, a closed sequence, a full context.
    pub fn admit_greedy(
        seq: SeqId,
        token: u32,
        count: usize,
        vocab: usize,
        kv: &mut KvPages,
    ) -> Result<Self, MachineError> {
        if token as usize >= vocab {
            return Err(MachineError::Token { token, vocab });
        }
        kv.check(seq, count)?;
        kv.reserve(seq, count)?;
        let position = kv.len(seq)?;
        let rope_length = kv.reach(seq)?.max(position + 1);
        Ok(Self { seq, token, position, rope_length, logits: true })
    }

    /// The row `count` tokens further on, whose token the device chooses.
    pub fn ahead(self, count: usize) -> Self {
        let position = self.position + count;
        Self { position, rope_length: self.rope_length.max(position + 1), ..self }
    }
}

/// The token with the largest logit, the lowest one of several; `None` where a logit is NaN or infinity, or all are
/// negative infinity.
pub fn likeliest(logits: &[f32]) -> Option<u32> {
    let (mut best, mut most) = (None, f32::NEG_INFINITY);
    for (token, &logit) in (0..).zip(logits) {
        if logit.is_nan() || logit == f32::INFINITY {
            return None;
        }
        if logit > most {
            (best, most) = (Some(token), logit);
        }
    }
    best
}

/// What a machine is asked to be. All sizes are fixed at load time.
#[derive(Clone, Debug)]
pub struct MachineOptions {
    /// Tokens a sequence may have.
    pub context: usize,
    /// Sequences open at once.
    pub sequences: usize,
    /// How keys and values are kept.
    pub kv: KvKind,
    /// Tokens in one run.
    pub max_batch: usize,
    /// Threads of a CPU machine; `None`: one a core.
    pub threads: Option<usize>,
}

impl MachineOptions {
    /// Checks the sizes against the model's; every machine begins with it.
    ///
    /// # Errors
    /// [`MachineError::Unsupported`] names the option and its bounds.
    pub fn validate(&self, config: &ModelConfig) -> Result<(), MachineError> {
        for (name, value, cap) in [
            ("context", self.context, config.context),
            ("sequences", self.sequences, 1 << 16),
            ("max_batch", self.max_batch, 1 << 20),
            ("threads", self.threads.unwrap_or(1), 1 << 12),
        ] {
            if value == 0 || value > cap {
                return Err(MachineError::Unsupported(format!(
                    "{name} is {value}: for this model it must be 1 to {cap}"
                )));
            }
        }
        Ok(())
    }
}

impl Default for MachineOptions {
    fn default() -> Self {
        Self { context: 4096, sequences: 1, kv: KvKind::default(), max_batch: 512, threads: None }
    }
}

/// What a machine says of itself.
#[derive(Clone, Debug)]
pub struct MachineInfo {
    /// The machine's kind: `reference`, `cpu`, …
    pub name: &'static str,
    /// How it runs, for people: instruction set, threads, huge pages, adapter, …
    pub detail: String,
    /// Bytes of weights that decoding one token reads, in the machine's own layout.
    pub weight_bytes: u64,
    /// Bytes that one token adds to the KV cache.
    pub kv_bytes_per_token: u64,
}

/// What a machine that gives its work to a device has counted since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Kernels or dispatches that the device was given.
    pub dispatches: u64,
    /// What giving them took of this processor's time: encoding and submitting, not waiting.
    pub host_time: Duration,
}

/// Why a machine cannot do what was asked. Nothing of the batch has been written to the KV cache's books then.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// The batch is empty, has an empty segment, or is too large.
    #[error("a batch of {tokens} tokens: it must have 1 to {max}, and no segment may be empty")]
    BatchSize {
        /// Tokens of the batch.
        tokens: usize,
        /// The most a run takes.
        max: usize,
    },
    /// Two segments of one batch continue the same sequence.
    #[error("sequence {} stands twice in one batch: join its segments", .0.0)]
    SequenceTwice(SeqId),
    /// A token that the vocabulary does not have.
    #[error("token {token} is not in the vocabulary of {vocab}")]
    Token {
        /// The token.
        token: u32,
        /// Entries of the vocabulary.
        vocab: usize,
    },
    /// The slice for the logits has the wrong length.
    #[error("room for {found} logits was given but the batch asks for {expected}")]
    LogitsLength {
        /// Its length.
        found: usize,
        /// Rows asked for, times the vocabulary.
        expected: usize,
    },
    /// Logits from which no token can be chosen.
    #[error("the logits are no numbers: the model or its file is damaged; run `upg inspect --verify`")]
    NoNumbers,
    /// The KV cache is full.
    #[error(transparent)]
    Kv(KvError),
    /// The weights could not be loaded.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// The model or the options ask for what the machine cannot do; says what and the remedy.
    #[error("{0}")]
    Unsupported(String),
    /// The device failed; says how and the remedy.
    #[error("{0}")]
    Device(String),
}

/// A device that runs the program.
pub trait Machine: Send {
    /// What it is and how it runs.
    fn info(&self) -> MachineInfo;

    /// What it has counted, where it gives its work to a device.
    fn counters(&self) -> Option<Counters> {
        None
    }

    /// The program it runs.
    fn program(&self) -> &Program;

    /// The options it was made with.
    fn options(&self) -> &MachineOptions;

    /// The books of its KV cache.
    fn kv(&self) -> &KvPages;

    /// The books of its KV cache: to open, close and truncate sequences.
    fn kv_mut(&mut self) -> &mut KvPages;

    /// Whether the keys that `seq` has in the cache were turned by other LongRoPE factors than those of a sequence of
    /// `length` tokens (see [`crate::rope`]). Then truncate it to nothing and run its tokens again, told first by
    /// [`KvPages::expect`] what length is coming.
    ///
    /// # Errors
    /// [`KvError::Closed`].
    fn rope_switches(&self, seq: SeqId, length: usize) -> Result<bool, MachineError> {
        let scaling = &self.program().config.rope.scaling;
        let (kept, reach) = (self.kv().len(seq)?, self.kv().reach(seq)?);
        Ok(kept > 0 && scaling.is_long(reach) != scaling.is_long(length))
    }

    /// Runs the program over a batch: appends its tokens to the sequences and writes the logits asked for, a row of
    /// `vocab` numbers each, in the order of the tokens. `logits` has just that length.
    ///
    /// # Errors
    /// See [`MachineError`]. The sequences are as before then.
    fn run(&mut self, batch: &Batch<'_>, logits: &mut [f32]) -> Result<(), MachineError>;

    /// Tokens that [`Machine::run_greedy`] is best asked for at a time; 1 where asking for several saves nothing.
    fn greedy_tokens(&self) -> usize {
        1
    }

    /// Runs `token` and then, each time, the likeliest token after the last one ([`likeliest`]) until `found` is full. The
    /// sequence then holds `token` and all that was found but the last. A machine that chooses on its device need not wait
    /// for the host between two tokens, nor copy logits.
    ///
    /// # Errors
    /// See [`MachineError`]. The sequence is as before then.
    fn run_greedy(&mut self, seq: SeqId, token: u32, found: &mut [u32]) -> Result<(), MachineError> {
        let start = self.kv().len(seq)?;
        self.kv().check(seq, found.len())?;
        let mut logits = vec![0.0; self.program().config.vocab];
        let mut last = token;
        for found in found {
            let run = self.run(&[Segment { seq, tokens: &[last], logits: Logits::Last }], &mut logits);
            match run.and_then(|()| likeliest(&logits).ok_or(MachineError::NoNumbers)) {
                Ok(token) => (*found, last) = (token, token),
                Err(error) => {
                    self.kv_mut().truncate(seq, start)?;
                    return Err(error);
                }
            }
        }
        Ok(())
    }
}
