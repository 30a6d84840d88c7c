//! What an answer may not depend on: what the process has answered before, how a conversation came to be, who else is
//! answered beside it, and in what pieces its prompt was run. With real weights, on the reference machine and the CPU's.

use std::{path::PathBuf, sync::atomic::AtomicBool};

use anyhow::{Context as _, Result, ensure};
use upg_checkpoint::Checkpoint;
use upg_compress::Folded;
use upg_engine::{Completion, Engine, EngineOptions, GenerationOptions, SamplingOptions, Session};
use upg_format::RotationConfig;
use upg_parity::golden;
use upg_pdvm::KvKind;

/// Rounding of f32: sums of a batch may be in another order.
const TOLERANCE: f32 = 2e-5;

/// Grouped heads and Llama 3's RoPE; LongRoPE, whose switch at 32 tokens the conversations cross; biases.
const MODELS: [&str; 4] = ["llama3", "phi-4-mini", "phi-3.5-mini", "qwen2"];
const DEVICES: [&str; 2] = ["reference", "cpu"];

/// Runs `test` with a way to make engines of each model on each device; it is given how many tokens are run at once.
fn for_each(test: impl Fn(&dyn Fn(usize) -> Result<Engine>) -> Result<()>) -> Result<()> {
    for model in MODELS {
        let folder: PathBuf = golden::folder().join("models").join(model);
        let checkpoint = upg_checkpoint::open(&folder)?;
        let weights = Folded::new(checkpoint.as_ref(), Some(RotationConfig { seed: 3 }));
        for device in DEVICES {
            let make = |max_batch| engine(&weights, checkpoint.as_ref(), device, max_batch);
            test(&make).with_context(|| format!("{model} on {device}"))?;
        }
    }
    Ok(())
}

fn engine(
    weights: &Folded<'_>,
    checkpoint: &dyn Checkpoint,
    device: &str,
    max_batch: usize,
) -> Result<Engine> {
    let options = EngineOptions {
        device: device.into(),
        threads: None,
        context: Some(192),
        kv: Some(KvKind::F32),
        max_batch,
        sequences: 3,
    };
    let tokenizer = br#"{"added_tokens": [], "model": {"type": "BPE", "vocab": {}, "merges": []}}"#;
    Ok(Engine::from_weights(weights, checkpoint.text(), tokenizer, &options, &mut |_| ())?)
}

fn options(tokens: usize) -> GenerationOptions {
    GenerationOptions {
        sampling: SamplingOptions { temperature: 0.0, logprobs: Some(128), ..Default::default() },
        max_tokens: Some(tokens),
        ignore_stop_tokens: true,
        ..Default::default()
    }
}

/// Some tokens; `seed` makes others.
fn text(seed: u32, length: u32) -> Vec<u32> {
    (0..length).map(|i| ((i + 1) * (7 + 6 * seed) + i * i) % 128).collect()
}

/// The next `tokens` tokens of a conversation, with all their log-probabilities.
fn answer(engine: &mut Engine, session: &mut Session, prompt: &[u32], tokens: usize) -> Result<Completion> {
    let cancel = AtomicBool::new(false);
    Ok(engine.generate(session, prompt, &options(tokens), &cancel, &mut |_, _| ())?.complete()?)
}

/// The same as the only thing that a new engine ever does.
fn alone(make: &dyn Fn(usize) -> Result<Engine>, prompt: &[u32], tokens: usize) -> Result<Completion> {
    let mut engine = make(192)?;
    let mut session = engine.open()?;
    answer(&mut engine, &mut session, prompt, tokens)
}

fn tokens(answer: &Completion) -> Vec<u32> {
    answer.tokens.iter().map(|step| step.token).collect()
}

/// Fails where two answers differ by more than rounding.
fn same(found: &Completion, expected: &Completion) -> Result<()> {
    ensure!(!expected.tokens.is_empty() && tokens(found) == tokens(expected), "other tokens");
    for (at, (found, expected)) in found.tokens.iter().zip(&expected.tokens).enumerate() {
        let all = |top: &[(u32, f32)]| {
            let mut all = top.to_vec();
            all.sort_by_key(|(token, _)| *token);
            all
        };
        let (found, expected) = (all(&found.top), all(&expected.top));
        ensure!(expected.len() == 128 && found.len() == 128, "not all log-probabilities are given");
        let largest = expected.iter().fold(0f32, |max, (_, x)| max.max(x.abs()));
        let error = found.iter().zip(&expected).map(|(a, b)| (a.1 - b.1).abs()).fold(0.0, f32::max) / largest;
        ensure!(error <= TOLERANCE, "token {at}: relative error {error:e}");
    }
    Ok(())
}

#[test]
fn a_second_prompt_is_answered_as_if_it_were_the_first() -> Result<()> {
    for_each(|make| {
        let (first, second) = (text(1, 70), text(2, 45));
        let expected = alone(make, &second, 6)?;
        let mut engine = make(192)?;
        // In a session of its own, whose pages another one had.
        let mut session = engine.open()?;
        answer(&mut engine, &mut session, &first, 6)?;
        engine.close(session);
        let mut session = engine.open()?;
        same(&answer(&mut engine, &mut session, &second, 6)?, &expected)?;
        engine.close(session);
        // And in the session of the first, which shares nothing with it.
        let mut session = engine.open()?;
        answer(&mut engine, &mut session, &first, 6)?;
        same(&answer(&mut engine, &mut session, &second, 6)?, &expected)?;
        engine.close(session);
        Ok(())
    })
}

#[test]
fn turns_of_a_conversation_are_answered_as_if_they_came_at_once() -> Result<()> {
    for_each(|make| {
        let mut engine = make(192)?;
        let mut session = engine.open()?;
        let mut history = text(1, 20);
        for turn in 2..6 {
            let found = answer(&mut engine, &mut session, &history, 5)?;
            same(&found, &alone(make, &history, 5)?).with_context(|| format!("turn {turn}"))?;
            history.extend(tokens(&found));
            history.extend(text(turn, 13));
        }
        // The last answer anew, and another last question: the cache goes back, across LongRoPE's switch too.
        for length in [history.len() - 13, 25] {
            let cut = &history[..length];
            same(&answer(&mut engine, &mut session, cut, 5)?, &alone(make, cut, 5)?)
                .with_context(|| format!("back to {length} tokens"))?;
        }
        engine.close(session);
        Ok(())
    })
}

#[test]
fn a_batch_is_answered_as_its_prompts_are_alone() -> Result<()> {
    for_each(|make| {
        let prompts = [text(1, 30), text(2, 3), text(3, 71)];
        let mut engine = make(192)?;
        let cancel = AtomicBool::new(false);
        let found = engine.generate_batch(&prompts, &options(6), &cancel, &mut |_, _| ())?;
        ensure!(found.len() == prompts.len(), "{} answers", found.len());
        for (found, prompt) in found.iter().zip(&prompts) {
            same(found, &alone(make, prompt, 6)?).with_context(|| format!("{} tokens", prompt.len()))?;
        }
        Ok(())
    })
}

#[test]
fn a_prompt_in_chunks_is_answered_as_in_one_run() -> Result<()> {
    for_each(|make| {
        let prompt = text(4, 97);
        let expected = alone(make, &prompt, 6)?;
        for chunk in [1, 7, 32, 64] {
            let mut engine = make(chunk)?;
            let mut session = engine.open()?;
            same(&answer(&mut engine, &mut session, &prompt, 6)?, &expected)
                .with_context(|| format!("chunks of {chunk}"))?;
        }
        Ok(())
    })
}
