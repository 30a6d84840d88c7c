use std::sync::atomic::AtomicBool;

use upg_pdvm::MachineOptions;

use super::*;
use crate::fixtures::{ScriptedMachine, VOCAB};

const OPTIONS: EvalOptions = EvalOptions { ctx: 200, chunks: None, bos: None };

/// Logits that depend on the last two tokens and on nothing that is not in the chunk.
fn row(seen: &[u32], scale: f32, out: &mut [f32]) {
    let [a, b] = [1, 2].map(|back| seen.len().checked_sub(back).map_or(7, |i| seen[i]));
    for (i, logit) in out.iter_mut().enumerate() {
        *logit = scale * ((i as u32 * 31 + a * 17 + b * 5) % 101) as f32 / 20.0;
    }
}

fn machine(scale: f32, max_batch: usize) -> ScriptedMachine {
    let options = MachineOptions { context: 256, max_batch, ..MachineOptions::default() };
    ScriptedMachine::new(options, Box::new(move |seen, out| row(seen, scale, out)))
}

fn text() -> Vec<u32> {
    (0..500u32).map(|i| (i * i + i / 3) % VOCAB as u32).collect()
}

fn log_softmax(row: &[f32]) -> Vec<f64> {
    let sum: f64 = row.iter().map(|&l| f64::from(l).exp()).sum();
    row.iter().map(|&l| f64::from(l) - sum.ln()).collect()
}

/// For every scored token: the log-probabilities of a model and of another, and the token.
fn scored(scales: [f32; 2], bos: Option<u32>) -> Vec<([Vec<f64>; 2], usize)> {
    let mut all = Vec::new();
    for chunk in text().chunks_exact(200) {
        let mut chunk = chunk.to_vec();
        if let Some(bos) = bos {
            chunk[0] = bos;
        }
        for i in 100..199 {
            let p = scales.map(|scale| {
                let mut out = vec![0.0; VOCAB];
                row(&chunk[..=i], scale, &mut out);
                log_softmax(&out)
            });
            all.push((p, chunk[i + 1] as usize));
        }
    }
    all
}

fn measure(machine: &mut ScriptedMachine, options: &EvalOptions) -> Result<Perplexity, EngineError> {
    perplexity(machine, &text(), options, &AtomicBool::new(false), &mut |_, _, _| ())
}

#[test]
fn perplexity_is_that_of_the_second_halves() {
    let expected = scored([1.0, 1.0], None);
    let nll: f64 = expected.iter().map(|(p, t)| -p[0][*t]).sum::<f64>() / expected.len() as f64;
    for max_batch in [1, 7, 64, 512] {
        let mut machine = machine(1.0, max_batch);
        let found = measure(&mut machine, &OPTIONS).unwrap();
        assert!((found.nll.value - nll).abs() < 1e-9, "{found:?}");
        assert!((found.perplexity.value - nll.exp()).abs() < 1e-6);
        assert_eq!((found.chunks, found.ctx, found.scored), (2, 200, 2 * 99));
        assert!(machine.runs.iter().all(|&n| n <= max_batch.min(100)), "{:?}", machine.runs);
        assert_eq!(machine.kv().used(), 0, "the sequence is given back");
    }
}

#[test]
fn bos_replaces_the_first_token_of_a_chunk() {
    let options = EvalOptions { ctx: 4, chunks: Some(1), bos: Some(9) };
    let mut machine = machine(1.0, 2);
    let found = measure(&mut machine, &options).unwrap();
    let chunk = [9, text()[1], text()[2], text()[3]];
    let mut out = vec![0.0; VOCAB];
    row(&chunk[..3], 1.0, &mut out);
    assert!((found.nll.value + log_softmax(&out)[chunk[3] as usize]).abs() < 1e-9);
    assert_eq!(found.scored, 1);
}

#[test]
fn divergence_is_the_textbooks() {
    let expected = scored([0.7, 1.0], None);
    let kl = |(p, _): &([Vec<f64>; 2], usize)| -> f64 {
        p[1].iter().zip(&p[0]).map(|(reference, model)| reference.exp() * (reference - model)).sum()
    };
    let mut all: Vec<f64> = expected.iter().map(kl).collect();
    let mean = all.iter().sum::<f64>() / all.len() as f64;
    all.sort_unstable_by(f64::total_cmp);

    let (mut model, mut reference) = (machine(0.7, 64), machine(1.0, 32));
    let mut last = (0, 0, 0.0);
    let mut progress = |done, all, kl| last = (done, all, kl);
    let found =
        compare(&mut model, &mut reference, &text(), &OPTIONS, &AtomicBool::new(false), &mut progress)
            .unwrap();
    assert!((found.kl.value - mean).abs() < 1e-9, "{} {mean}", found.kl.value);
    assert!((found.kl_max - all[all.len() - 1]).abs() < 1e-9);
    assert!(
        found.kl_median <= found.kl_p99 && found.kl_p99 <= found.kl_p999 && found.kl_p999 <= found.kl_max
    );
    assert_eq!(found.top1, Estimate { value: 1.0, error: 0.0 }, "scaling keeps the order");
    assert!((found.ratio - found.model.perplexity.value / found.reference.perplexity.value).abs() < 1e-9);
    assert_eq!((last.0, last.1), (2, 2));
    assert!((last.2 - mean).abs() < 1e-9);
}

#[test]
fn a_model_does_not_diverge_from_itself() {
    let (mut model, mut reference) = (machine(1.0, 64), machine(1.0, 64));
    let none = AtomicBool::new(false);
    let found = compare(&mut model, &mut reference, &text(), &OPTIONS, &none, &mut |_, _, _| ()).unwrap();
    assert_eq!((found.kl.value, found.ratio, found.top1.value), (0.0, 1.0, 1.0));
}

#[test]
fn what_cannot_be_measured_is_refused() {
    let mut machine = machine(1.0, 64);
    let run = |machine: &mut ScriptedMachine, ctx, chunks| {
        measure(machine, &EvalOptions { ctx, chunks, bos: None })
    };
    assert!(matches!(run(&mut machine, 501, None), Err(EngineError::ShortText { tokens: 500, chunk: 501 })));
    assert!(matches!(run(&mut machine, 3, None), Err(EngineError::Option { option: "ctx", .. })));
    assert!(matches!(run(&mut machine, 100, Some(0)), Err(EngineError::Option { option: "chunks", .. })));
    // Longer than the machine's context.
    assert!(matches!(run(&mut machine, 300, None), Err(EngineError::Machine(_))));
    let stop = AtomicBool::new(true);
    let cancelled = perplexity(&mut machine, &text(), &OPTIONS, &stop, &mut |_, _, _| ());
    assert!(matches!(cancelled, Err(EngineError::Cancelled)));
    assert_eq!(machine.kv().used(), 0);
}

#[test]
fn every_token_has_its_logits_and_its_log_probability() {
    let tokens = &text()[..150];
    let mut expected = vec![0.0; 150 * VOCAB];
    for (i, out) in expected.chunks_exact_mut(VOCAB).enumerate() {
        row(&tokens[..=i], 1.0, out);
    }
    let go = AtomicBool::new(false);
    for max_batch in [1, 7, 64, 512] {
        let mut found = vec![0.0; 150 * VOCAB];
        let mut machine = machine(1.0, max_batch);
        logits(&mut machine, tokens, &mut found, &go).unwrap();
        assert_eq!(found, expected);
        let scores = log_probabilities(&mut machine, tokens, &go).unwrap();
        assert_eq!(scores.len(), 149);
        for (i, score) in scores.iter().enumerate() {
            let exact = log_softmax(&expected[i * VOCAB..][..VOCAB])[tokens[i + 1] as usize];
            assert!((f64::from(*score) - exact).abs() < 1e-5, "token {i}: {score}, not {exact}");
        }
    }
}

#[test]
fn rows_end_when_cancelled_and_refuse_unknown_tokens() {
    let mut machine = machine(1.0, 64);
    let go = AtomicBool::new(false);
    let unknown = log_probabilities(&mut machine, &[1, VOCAB as u32], &go).unwrap_err().to_string();
    assert_eq!(unknown, format!("token {VOCAB} is not in the vocabulary of {VOCAB}"));
    let stop = AtomicBool::new(true);
    let cancelled = logits(&mut machine, &[1, 2], &mut vec![0.0; 2 * VOCAB], &stop);
    assert!(matches!(cancelled, Err(EngineError::Cancelled)));
}
