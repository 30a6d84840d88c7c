//! Logits against transformers'.

use std::{fmt, path::Path, sync::atomic::AtomicBool};

use anyhow::{Result, anyhow, ensure};
use upg_codec::Isa;
use upg_compress::Folded;
use upg_cpu::CpuMachine;
use upg_engine::{Completion, Engine, EngineOptions, GenerationOptions, SamplingOptions};
use upg_format::RotationConfig;
use upg_pdvm::{KvKind, Logits, Machine, MachineOptions, ReferenceMachine, Segment};

use crate::golden::{self, Prompt};

/// The longest sequence of the golden files, with room to spare.
const CONTEXT: usize = 192;
/// Tokens of a prompt that is run in pieces: no divisor of anything.
const CHUNK: usize = 37;

/// How far one model's logits are from transformers'.
pub struct Outcome {
    /// The model, a folder in `golden/models`, and `gguf` where it is the GGUF file in it.
    pub model: String,
    /// The worst error on the reference machine, whether the weights are rotated or not, whole prompts and chunks.
    pub reference: f32,
    /// The same for sequences that grow in a session of the engine.
    pub session: f32,
    /// Greedy choices, of those that transformers made, up to the first that differs.
    pub greedy: (usize, usize),
    /// The worst error of the CPU machine, whose arithmetic is in integers.
    pub cpu: f32,
}

impl Outcome {
    /// The largest relative error on the reference machine.
    pub const TOLERANCE: f32 = 1e-4;
    /// The CPU machine's, for uncompressed weights.
    pub const CPU_TOLERANCE: f32 = 1e-3;

    /// Whether all is within the tolerances and every greedy choice the same.
    pub fn passed(&self) -> bool {
        self.reference.max(self.session) <= Self::TOLERANCE
            && self.cpu <= Self::CPU_TOLERANCE
            && self.greedy.0 == self.greedy.1
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { model, reference, session, greedy: (same, all), cpu } = self;
        write!(f, "{model:<20} {reference:>9.1e} {session:>9.1e} {cpu:>9.1e} {same:>7}/{all}")
    }
}

/// Compares one model: its folder, and its GGUF file where there is one.
///
/// # Errors
/// Whatever keeps the model from being loaded and run.
pub fn compare(model: &Path) -> Result<Vec<Outcome>> {
    let golden = golden::Logits::read(model)?;
    let name = golden::name(model);
    let gguf = model.join("model.gguf");
    let forms = [Some((name.clone(), model)), gguf.exists().then(|| (format!("{name} gguf"), &*gguf))];
    forms.into_iter().flatten().map(|(name, path)| compare_form(name, path, &golden)).collect()
}

fn compare_form(model: String, path: &Path, golden: &golden::Logits) -> Result<Outcome> {
    let checkpoint = upg_checkpoint::open(path)?;
    let mut outcome = Outcome {
        model,
        reference: 0.0,
        session: 0.0,
        greedy: (usize::MAX, golden.greedy.len() - golden.greedy_start),
        cpu: 0.0,
    };
    let options =
        MachineOptions { context: CONTEXT, kv: KvKind::F32, max_batch: CONTEXT, ..Default::default() };
    for rotation in [None, Some(RotationConfig { seed: 3 })] {
        let weights = Folded::new(checkpoint.as_ref(), rotation);
        let mut reference = ReferenceMachine::new(&weights, &options)?;
        let mut cpu = CpuMachine::new(&weights, &options, Isa::best(), &mut |_| ())?;
        for prompt in &golden.prompts {
            for chunk in [prompt.tokens.len(), CHUNK] {
                outcome.reference = outcome.reference.max(prompt_error(&mut reference, prompt, chunk)?);
            }
            outcome.cpu = outcome.cpu.max(prompt_error(&mut cpu, prompt, prompt.tokens.len())?);
        }
        let mut engine = engine(&weights, checkpoint.as_ref())?;
        outcome.session = outcome.session.max(steps_error(&mut engine, &golden.steps)?);
        outcome.greedy.0 = outcome.greedy.0.min(greedy_agreement(&mut engine, golden)?);
    }
    Ok(outcome)
}

fn engine(weights: &Folded<'_>, checkpoint: &dyn upg_checkpoint::Checkpoint) -> Result<Engine> {
    let options = EngineOptions {
        device: "reference".into(),
        context: Some(CONTEXT),
        kv: Some(KvKind::F32),
        max_batch: 16,
        sequences: 2,
        ..Default::default()
    };
    // Greedy choices and logits are wanted, whatever text they stand for.
    let tokenizer = br#"{"added_tokens": [], "model": {"type": "BPE", "vocab": {}, "merges": []}}"#;
    Ok(Engine::from_weights(weights, checkpoint.text(), tokenizer, &options, &mut |_| ())?)
}

/// The worst error of a prompt that is run in chunks.
fn prompt_error(machine: &mut dyn Machine, prompt: &Prompt, chunk: usize) -> Result<f32> {
    let vocab = machine.program().config.vocab;
    let seq = machine.kv_mut().open()?;
    machine.kv_mut().expect(seq, prompt.tokens.len())?;
    let mut logits = vec![0.0; prompt.tokens.len() * vocab];
    for (tokens, logits) in prompt.tokens.chunks(chunk).zip(logits.chunks_mut(chunk * vocab)) {
        machine.run(&[Segment { seq, tokens, logits: Logits::All }], logits)?;
    }
    machine.kv_mut().close(seq);
    let rows = prompt.rows.iter().flat_map(|row| logits[row * vocab..][..vocab].iter().copied());
    Ok(worst(&rows.collect::<Vec<f32>>(), &prompt.logits, vocab))
}

/// The worst error of a session whose prompt grows by one token at a time. Both sides as log-probabilities: those the
/// engine gives.
fn steps_error(engine: &mut Engine, steps: &golden::Steps) -> Result<f32> {
    let vocab = engine.config().vocab;
    let options = GenerationOptions {
        sampling: SamplingOptions { temperature: 0.0, logprobs: Some(vocab), ..Default::default() },
        max_tokens: Some(1),
        ignore_stop_tokens: true,
        ..Default::default()
    };
    let mut session = engine.open()?;
    let mut error = 0f32;
    for (length, expected) in (steps.start..).zip(steps.logits.chunks_exact(vocab)) {
        let prompt = &steps.tokens[..length];
        let cancel = AtomicBool::new(false);
        let answer = engine.generate(&mut session, prompt, &options, &cancel, &mut |_, _| ())?.complete()?;
        let step = answer.tokens.first().ok_or_else(|| anyhow!("no token after {length}"))?;
        ensure!(step.top.len() == vocab, "{} log-probabilities", step.top.len());
        let mut found = vec![0.0; vocab];
        for &(token, logprob) in &step.top {
            found[token as usize] = logprob;
        }
        error = error.max(relative_error(&found, &log_softmax(expected)));
    }
    engine.close(session);
    Ok(error)
}

/// How many tokens of a greedy answer are transformers', alone and beside another one.
fn greedy_agreement(engine: &mut Engine, golden: &golden::Logits) -> Result<usize> {
    let (prompt, expected) = golden.greedy.split_at(golden.greedy_start);
    let options = GenerationOptions {
        sampling: SamplingOptions { temperature: 0.0, ..Default::default() },
        max_tokens: Some(expected.len()),
        ignore_stop_tokens: true,
        ..Default::default()
    };
    let mut session = engine.open()?;
    let cancel = AtomicBool::new(false);
    let alone = engine.generate(&mut session, prompt, &options, &cancel, &mut |_, _| ())?.complete()?;
    engine.close(session);
    let prompts = [prompt[..3].to_vec(), prompt.to_vec()];
    let beside = engine.generate_batch(&prompts, &options, &cancel, &mut |_, _| ())?;
    let same = |answer: &Completion| {
        let found = answer.tokens.iter().map(|step| step.token);
        found.zip(expected).take_while(|(found, expected)| found == *expected).count()
    };
    Ok(same(&alone).min(same(&beside[1])))
}

fn log_softmax(logits: &[f32]) -> Vec<f32> {
    let max = logits.iter().copied().fold(f32::MIN, f32::max);
    let sum: f64 = logits.iter().map(|x| f64::from(x - max).exp()).sum();
    logits.iter().map(|x| (f64::from(x - max) - sum.ln()) as f32).collect()
}

/// The worst error of any row of `vocab` logits.
fn worst(found: &[f32], expected: &[f32], vocab: usize) -> f32 {
    if found.len() != expected.len() {
        return f32::INFINITY;
    }
    let rows = found.chunks_exact(vocab).zip(expected.chunks_exact(vocab));
    rows.map(|(found, expected)| relative_error(found, expected)).fold(0.0, f32::max)
}

/// The largest difference of two rows as a part of the largest number expected. Never less than what is not a number.
fn relative_error(found: &[f32], expected: &[f32]) -> f32 {
    if found.iter().any(|x| !x.is_finite()) {
        return f32::INFINITY;
    }
    let largest = expected.iter().fold(f32::MIN_POSITIVE, |max, x| max.max(x.abs()));
    found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max) / largest
}
