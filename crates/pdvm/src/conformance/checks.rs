//! The checks. Each opens sequences of the machine under test, runs them in its own way and compares every row of
//! logits with what the reference machine gives for the same tokens in one run of their own.

use super::Make;
use crate::{
    Batch, KvError, KvKind, Logits, Machine, MachineError, MachineOptions, ReferenceMachine, Segment, SeqId,
    Weights, likeliest, lower, rotation::SplitMix64,
};

/// Tokens of a sequence: more than a page, and no whole number of pages.
pub(super) const CONTEXT: usize = 168;

/// A check's name and what runs it: the worst relative error, or what went wrong.
type Check = (&'static str, fn(&mut Pair) -> Result<f32, String>);

pub(super) const CHECKS: [Check; 9] = [
    ("whole prompt", whole_prompt),
    ("token by token", token_by_token),
    ("uneven chunks", uneven_chunks),
    ("several sequences", several_sequences),
    ("truncate and continue", truncate_and_continue),
    ("same bits again", same_bits),
    ("greedy", greedy),
    ("errors change nothing", errors_change_nothing),
    ("info and program", info_and_program),
];

/// The machine under test beside the reference machine, with the same weights.
pub(super) struct Pair {
    machine: Box<dyn Machine>,
    reference: ReferenceMachine,
    /// As many tokens as the context holds.
    prompt: Vec<u32>,
    /// The reference machine's logits after each of them.
    prompt_logits: Vec<f32>,
    vocab: usize,
}

impl Pair {
    pub(super) fn new(make: &Make<'_>, weights: &dyn Weights, kv: KvKind) -> Result<Self, String> {
        let vocab = weights.config().vocab;
        let options =
            MachineOptions { context: CONTEXT, sequences: 3, kv, max_batch: CONTEXT, threads: None };
        let mut random = SplitMix64(3);
        let mut pair = Self {
            machine: make(weights, &options).map_err(text)?,
            reference: ReferenceMachine::new(weights, &options).map_err(text)?,
            prompt: (0..CONTEXT).map(|_| (random.next() % vocab as u64) as u32).collect(),
            prompt_logits: Vec::new(),
            vocab,
        };
        pair.prompt_logits = pair.expected(&pair.prompt.clone(), CONTEXT)?;
        Ok(pair)
    }

    /// Whether a check left no page in use.
    pub(super) fn all_closed(&self) -> Result<(), String> {
        match self.machine.kv().used() {
            0 => Ok(()),
            used => Err(format!("{used} pages are in use after every sequence was closed")),
        }
    }

    /// The reference machine's logits after each of `tokens`, a sequence that was to reach `reach` tokens.
    fn expected(&mut self, tokens: &[u32], reach: usize) -> Result<Vec<f32>, String> {
        let kv = self.reference.kv_mut();
        let seq = kv.open().map_err(text)?;
        kv.expect(seq, reach).map_err(text)?;
        let rows = run(&mut self.reference, self.vocab, &[Segment { seq, tokens, logits: Logits::All }]);
        self.reference.kv_mut().close(seq);
        rows
    }

    /// Opens a sequence of the machine under test that is to reach `reach` tokens.
    fn open(&mut self, reach: usize) -> Result<SeqId, String> {
        let kv = self.machine.kv_mut();
        let seq = kv.open().map_err(text)?;
        kv.expect(seq, reach).map_err(text)?;
        Ok(seq)
    }

    fn run(&mut self, batch: &Batch<'_>) -> Result<Vec<f32>, String> {
        run(&mut *self.machine, self.vocab, batch)
    }

    fn run_one(&mut self, seq: SeqId, tokens: &[u32], logits: Logits) -> Result<Vec<f32>, String> {
        self.run(&[Segment { seq, tokens, logits }])
    }

    fn close(&mut self, sequences: &[SeqId]) {
        for seq in sequences {
            self.machine.kv_mut().close(*seq);
        }
    }

    /// The worst relative error of rows of logits; infinite where one is not finite.
    fn worst(&self, found: &[f32], expected: &[f32]) -> Result<f32, String> {
        if found.len() != expected.len() {
            return Err(format!("{} logits instead of {}", found.len(), expected.len()));
        }
        let rows = found.chunks_exact(self.vocab).zip(expected.chunks_exact(self.vocab));
        Ok(rows.map(|(found, expected)| relative_error(found, expected)).fold(0.0, f32::max))
    }
}

fn text(error: impl ToString) -> String {
    error.to_string()
}

fn run(machine: &mut dyn Machine, vocab: usize, batch: &Batch<'_>) -> Result<Vec<f32>, String> {
    let mut logits = vec![f32::NAN; vocab * batch.iter().map(Segment::logits_rows).sum::<usize>()];
    machine.run(batch, &mut logits).map_err(text)?;
    Ok(logits)
}

/// `‖found − expected‖ / ‖expected‖`.
fn relative_error(found: &[f32], expected: &[f32]) -> f32 {
    let square = |x: f64| x * x;
    let error: f64 = found.iter().zip(expected).map(|(a, b)| square(f64::from(*a) - f64::from(*b))).sum();
    let length: f64 = expected.iter().map(|b| square(f64::from(*b))).sum();
    let relative = (error / length).sqrt() as f32;
    // NaN would win no comparison.
    if relative.is_finite() { relative } else { f32::INFINITY }
}

/// Tokens that the machine chooses itself are those that its logits choose, and leave the same behind.
fn greedy(pair: &mut Pair) -> Result<f32, String> {
    let prompt = pair.prompt[..9].to_vec();
    let (first, rest) = prompt.split_at(8);
    let [one, other] = [pair.open(0)?, pair.open(0)?];
    for seq in [one, other] {
        pair.run_one(seq, first, Logits::None)?;
    }
    let mut found = [0; 21];
    pair.machine.run_greedy(one, rest[0], &mut found).map_err(text)?;
    let mut tokens = prompt.clone();
    for &token in &found {
        let last = tokens[tokens.len() - 1];
        let logits = pair.run_one(other, &[last], Logits::Last)?;
        if likeliest(&logits) != Some(token) {
            return Err(format!("token {token} at {} is not the likeliest", tokens.len()));
        }
        tokens.push(token);
    }
    // More than the context holds, and a token that there is not: refused, and nothing changed.
    let before = pair.machine.kv().len(one).map_err(text)?;
    let full = pair.machine.run_greedy(one, 1, &mut [0; CONTEXT]);
    let none = pair.machine.run_greedy(one, pair.vocab as u32, &mut [0; 2]);
    if before + 1 != tokens.len()
        || pair.machine.kv().len(one) != Ok(before)
        || !matches!(full, Err(MachineError::Kv(_)))
        || !matches!(none, Err(MachineError::Token { .. }))
    {
        return Err(format!("{before} tokens in the cache, {full:?}, {none:?}"));
    }
    let logits = pair.run_one(one, &tokens[before..], Logits::Last)?;
    let expected = pair.expected(&tokens, 0)?;
    let error = pair.worst(&logits, &expected[before * pair.vocab..])?;
    pair.close(&[one, other]);
    Ok(error)
}

/// A prompt that fills the context, in one run.
fn whole_prompt(pair: &mut Pair) -> Result<f32, String> {
    let prompt = pair.prompt.clone();
    let seq = pair.open(0)?;
    let found = pair.run_one(seq, &prompt, Logits::All)?;
    pair.close(&[seq]);
    pair.worst(&found, &pair.prompt_logits)
}

fn token_by_token(pair: &mut Pair) -> Result<f32, String> {
    let prompt = pair.prompt.clone();
    let seq = pair.open(prompt.len())?;
    let mut found = Vec::new();
    for token in prompt.chunks(1) {
        found.extend(pair.run_one(seq, token, Logits::Last)?);
    }
    pair.close(&[seq]);
    pair.worst(&found, &pair.prompt_logits)
}

/// Chunks of every kind, some without logits, across the page boundary.
fn uneven_chunks(pair: &mut Pair) -> Result<f32, String> {
    let (prompt, vocab) = (pair.prompt.clone(), pair.vocab);
    let seq = pair.open(prompt.len())?;
    let (mut found, mut expected, mut end) = (Vec::new(), Vec::new(), 0);
    let chunks = [
        (1, Logits::Last),
        (7, Logits::None),
        (64, Logits::All),
        (3, Logits::None),
        (33, Logits::Last),
        (19, Logits::None),
        (2, Logits::All),
        (39, Logits::All),
    ];
    for (length, logits) in chunks {
        end += length;
        let segment = Segment { seq, tokens: &prompt[end - length..end], logits };
        found.extend(pair.run(&[segment])?);
        expected.extend(&pair.prompt_logits[(end - segment.logits_rows()) * vocab..end * vocab]);
    }
    pair.close(&[seq]);
    pair.worst(&found, &expected)
}

/// Three sequences, prompts and single tokens mixed in one batch, each as if it were alone.
fn several_sequences(pair: &mut Pair) -> Result<f32, String> {
    let (prompt, vocab) = (pair.prompt.clone(), pair.vocab);
    // Token ranges of each sequence's segments, in the order of three runs; an empty range: not in that run.
    let starts = [0, 5, 60];
    let lengths = [[31, 1, 1], [1, 90, 1], [0, 70, 1]];
    let (mut found, mut expected) = (Vec::new(), Vec::new());
    let mut alone = Vec::new();
    for (start, lengths) in starts.into_iter().zip(lengths) {
        let total: usize = lengths.iter().sum();
        alone.push(pair.expected(&prompt[start..start + total], total)?);
    }
    let sequences = [
        pair.open(lengths[0].iter().sum())?,
        pair.open(lengths[1].iter().sum())?,
        pair.open(lengths[2].iter().sum())?,
    ];
    let wants = [Logits::All, Logits::Last, Logits::None];
    let mut done = [0; 3];
    for turn in 0..3 {
        let mut batch = Vec::new();
        for s in [2, 0, 1] {
            let length = lengths[s][turn];
            if length > 0 {
                let from = starts[s] + done[s];
                let logits = if turn == 2 { Logits::Last } else { wants[(s + turn) % 3] };
                let segment = Segment { seq: sequences[s], tokens: &prompt[from..from + length], logits };
                done[s] += length;
                expected.extend(&alone[s][(done[s] - segment.logits_rows()) * vocab..done[s] * vocab]);
                batch.push(segment);
            }
        }
        found.extend(pair.run(&batch)?);
    }
    pair.close(&sequences);
    pair.worst(&found, &expected)
}

/// Back over a page boundary, then on with other tokens.
fn truncate_and_continue(pair: &mut Pair) -> Result<f32, String> {
    let (prompt, vocab) = (pair.prompt.clone(), pair.vocab);
    let (kept, other) = (100, &prompt[10..60]);
    let seq = pair.open(0)?;
    pair.run_one(seq, &prompt, Logits::None)?;
    pair.machine.kv_mut().truncate(seq, kept).map_err(text)?;
    let found = pair.run_one(seq, other, Logits::All)?;
    pair.close(&[seq]);
    let tokens = [&prompt[..kept], other].concat();
    let expected = pair.expected(&tokens, prompt.len())?;
    pair.worst(&found, &expected[kept * vocab..])
}

/// The same run twice: no sum may depend on the order in which threads finish.
fn same_bits(pair: &mut Pair) -> Result<f32, String> {
    let prompt = pair.prompt.clone();
    let mut runs = Vec::new();
    for _ in 0..2 {
        let seq = pair.open(0)?;
        let logits = pair.run_one(seq, &prompt, Logits::All)?;
        runs.push(logits.into_iter().map(f32::to_bits).collect::<Vec<_>>());
        pair.close(&[seq]);
    }
    if runs[0] == runs[1] { Ok(0.0) } else { Err("two runs of one prompt gave different bits".into()) }
}

/// A batch that must be refused: what is wrong with it, its segments, and whether an error names just that.
type Refusal<'a> = (&'static str, Vec<Segment<'a>>, fn(&MachineError) -> bool);

/// Every wrong batch; `held` has 20 tokens, `empty` none. Where two segments stand, only the second is wrong.
fn refusals<'a>(
    tokens: &'a [u32],
    bad: &'a [u32],
    held: SeqId,
    empty: SeqId,
    closed: SeqId,
) -> Vec<Refusal<'a>> {
    let one = |seq, tokens| Segment { seq, tokens, logits: Logits::Last };
    let fine = one(empty, &tokens[..1]);
    let wrong_size = |e: &MachineError| matches!(e, MachineError::BatchSize { .. });
    vec![
        ("an empty batch", vec![], wrong_size),
        ("an empty segment", vec![fine, one(held, &[])], wrong_size),
        ("a batch too large", vec![fine, one(held, &tokens[..CONTEXT])], wrong_size),
        ("a token past the vocabulary", vec![fine, one(held, bad)], |e| {
            matches!(e, MachineError::Token { .. })
        }),
        ("a sequence named twice", vec![one(held, &tokens[..2]), one(held, &tokens[..2])], |e| {
            matches!(e, MachineError::SequenceTwice(_))
        }),
        ("a closed sequence", vec![fine, one(closed, &tokens[..1])], |e| {
            matches!(e, MachineError::Kv(KvError::Closed(_)))
        }),
        ("a full context", vec![fine, one(held, &tokens[..CONTEXT - 19])], |e| {
            matches!(e, MachineError::Kv(KvError::ContextFull { .. }))
        }),
    ]
}

/// Every wrong batch is refused by its own error, and the sequence goes on as if nothing had happened.
fn errors_change_nothing(pair: &mut Pair) -> Result<f32, String> {
    let (prompt, vocab) = (pair.prompt.clone(), pair.vocab);
    let (start, next) = (20, 10);
    let [held, empty, closed] = [pair.open(0)?, pair.open(0)?, pair.open(0)?];
    pair.close(&[closed]);
    pair.run_one(held, &prompt[..start], Logits::None)?;
    let used = pair.machine.kv().used();

    for (what, batch, right) in refusals(&prompt, &[0, vocab as u32], held, empty, closed) {
        let mut logits = vec![0.0; vocab * batch.iter().map(Segment::logits_rows).sum::<usize>()];
        refuse(what, pair.machine.run(&batch, &mut logits), right)?;
    }
    let mut short = vec![0.0; vocab - 1];
    let segment = Segment { seq: held, tokens: &prompt[..1], logits: Logits::Last };
    let result = pair.machine.run(&[segment], &mut short);
    refuse("room for too few logits", result, |e| matches!(e, MachineError::LogitsLength { .. }))?;

    let kv = pair.machine.kv();
    if kv.len(held) != Ok(start) || kv.len(empty) != Ok(0) || kv.used() != used {
        return Err("a refused batch changed the KV cache's books".into());
    }
    let found = pair.run_one(held, &prompt[start..start + next], Logits::All)?;
    pair.close(&[held, empty]);
    let expected = pair.expected(&prompt[..start + next], 0)?;
    pair.worst(&found, &expected[start * vocab..])
}

fn refuse(
    what: &str,
    result: Result<(), MachineError>,
    right: fn(&MachineError) -> bool,
) -> Result<(), String> {
    match result {
        Err(error) if right(&error) => Ok(()),
        Err(error) => Err(format!("{what} was refused as: {error}")),
        Ok(()) => Err(format!("{what} was not refused")),
    }
}

fn info_and_program(pair: &mut Pair) -> Result<f32, String> {
    let (program, info) = (pair.machine.program(), pair.machine.info());
    if *program != lower(&pair.reference.program().config) {
        return Err("the program is not the model's".into());
    }
    if info.name.is_empty() || info.detail.is_empty() {
        return Err("the machine does not say what it is".into());
    }
    if info.weight_bytes == 0 || info.kv_bytes_per_token == 0 {
        return Err("the machine does not say how many bytes a token reads and adds".into());
    }
    let options = pair.machine.options();
    if options.context != CONTEXT || options.sequences != 3 || options.max_batch != CONTEXT {
        return Err("the machine was made with other options than those given".into());
    }
    Ok(0.0)
}
