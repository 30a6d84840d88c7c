//! The machine against the reference machine. Most of it needs a card: `cargo test -p upg-cuda -- --ignored`.

use std::time::Duration;

use upg_codec::Bits;
use upg_cuda::{CudaMachine, Execution, Settings};
use upg_format::{Encoding, ModelConfig, TensorKind, TensorName, UpgFile};
use upg_pdvm::{
    KvKind, Logits, Machine, MachineError, MachineOptions, ReferenceMachine, Segment, Synthetic, UpgWeights,
    Weights,
    conformance::{self, tiny_models},
    rotation::SplitMix64,
    synthetic::ten_to_one,
};

/// What 15-bit and f16 activations cost tiny models, with caches of these kinds. In q8 activations that differ a little make
/// other codes here and there: up to what the kind itself costs.
const KINDS: [(KvKind, f32); 2] = [(KvKind::F16, 5e-3), (KvKind::Q8, 2e-2)];

const PATIENCE: Duration = Duration::from_secs(20);

fn make(
    weights: &dyn Weights,
    options: &MachineOptions,
    execution: Execution,
    patience: Duration,
) -> Result<CudaMachine, MachineError> {
    let settings = Settings { execution: Some(execution), patience, shared: usize::MAX };
    CudaMachine::with(weights, options, settings, &mut |_| ())
}

/// Every code in turn, over the kinds and layers.
fn all_codes(name: TensorName) -> Encoding {
    let turn = name.layer().unwrap_or(0) * 5 + name.kind() as usize;
    Encoding::T8(if name.kind() == TensorKind::Embed { Bits::B4 } else { Bits::ALL[turn % Bits::ALL.len()] })
}

/// The suite's models with T8 matrices only, and two that only a card's kernels take another way: a Hadamard wider than
/// a warp's, and more key/value heads than blocks.
fn models() -> Vec<(&'static str, Synthetic)> {
    let mut models: Vec<_> = tiny_models()
        .into_iter()
        .enumerate()
        .map(|(i, (name, model))| (name, Synthetic::new(model.config().clone(), all_codes, i as u64)))
        .collect();
    let base = models[1].1.config().clone();
    let wide = ModelConfig { mlp: 2048, layers: 2, ..base.clone() };
    let heads = ModelConfig { heads: 160, kv_heads: 160, head_dim: 32, layers: 1, ..base };
    models.push(("a wide Hadamard", Synthetic::new(wide, all_codes, 50)));
    models.push(("more heads than blocks", Synthetic::new(heads, all_codes, 51)));
    models
}

/// Compiles the kernels of every model at once: one after the other, compiling takes minutes.
#[allow(clippy::unwrap_used)]
fn compile_all() {
    std::thread::scope(|scope| {
        for (_, weights) in models() {
            scope.spawn(move || {
                for (kv, _) in KINDS {
                    let options = MachineOptions { context: 168, kv, ..Default::default() };
                    make(&weights, &options, Execution::Graph, PATIENCE).unwrap();
                }
            });
        }
    });
}

#[test]
#[ignore = "needs an NVIDIA card"]
fn conforms_as_a_persistent_kernel_and_as_a_graph() {
    compile_all();
    for execution in [Execution::Persistent, Execution::Graph] {
        for (kv, tolerance) in KINDS {
            let report = conformance::check_models(
                &|weights, options| Ok(Box::new(make(weights, options, execution, PATIENCE)?)),
                &models(),
                kv,
                tolerance,
            );
            println!("{}, {kv}:\n{report}", execution.name());
            assert!(report.passed(), "{}, {kv}:\n{report}", execution.name());
        }
    }
}

/// Models whose widths leave little of a smaller card's shared memory, so that all kinds of blocks come up.
#[test]
#[ignore = "needs an NVIDIA card"]
fn conforms_within_the_shared_memory_of_smaller_cards() {
    let base = models()[1].1.config().clone();
    let tall = ModelConfig { layers: 1, mlp: 17_920, ..base };
    let wide = [("a wide MLP", Synthetic::new(tall, ten_to_one, 60))];
    // Of compute capability 8.9 and 12.0, 8.0, and two between.
    for limit in [99 << 10, 120 << 10, 140 << 10, 163 << 10] {
        let settings = Settings { execution: Some(Execution::Persistent), patience: PATIENCE, shared: limit };
        let report = conformance::check_models(
            &|weights, options| Ok(Box::new(CudaMachine::with(weights, options, settings, &mut |_| ())?)),
            &wide,
            KvKind::F16,
            KINDS[0].1,
        );
        println!("{limit} bytes:\n{report}");
        assert!(report.passed(), "{limit} bytes:\n{report}");
    }
}

/// Logits after each token of a sequence that is run token by token, or in one run.
#[allow(clippy::unwrap_used)]
fn logits(machine: &mut dyn Machine, tokens: &[u32], at_once: bool) -> Vec<f32> {
    let vocab = machine.program().config.vocab;
    let seq = machine.kv_mut().open().unwrap();
    let step = if at_once { tokens.len() } else { 1 };
    let mut logits = vec![0.0; tokens.len() * vocab];
    for (tokens, logits) in tokens.chunks(step).zip(logits.chunks_mut(step * vocab)) {
        machine.run(&[Segment { seq, tokens, logits: Logits::All }], logits).unwrap();
    }
    machine.kv_mut().close(seq);
    logits
}

#[test]
#[ignore = "needs an NVIDIA card"]
#[allow(clippy::unwrap_used)]
fn both_executions_give_the_same_bits() {
    for (name, weights) in models() {
        let vocab = weights.config().vocab;
        let tokens: Vec<u32> = (0..150).map(|i| (i * 7 % vocab) as u32).collect();
        for (kv, _) in KINDS {
            let [one, other] = [Execution::Persistent, Execution::Graph].map(|execution| {
                let options = MachineOptions { context: 168, max_batch: 1, kv, ..Default::default() };
                let mut machine = make(&weights, &options, execution, PATIENCE).unwrap();
                logits(&mut machine, &tokens, false).into_iter().map(f32::to_bits).collect::<Vec<_>>()
            });
            assert!(one == other, "{name}, {kv}");
        }
    }
}

#[test]
#[ignore = "needs an NVIDIA card"]
fn a_wait_without_end_is_an_error_that_names_the_instruction() {
    let (_, weights) = &models()[0];
    // No block waits less than this: passing a vector on takes longer.
    let result = make(
        weights,
        &MachineOptions { context: 168, ..Default::default() },
        Execution::Persistent,
        Duration::ZERO,
    );
    let message = result.err().map(|error| error.to_string()).unwrap_or_default();
    assert!(message.contains("of layer 0)"), "{message}");
}

/// A token drawn from logits, and their softmax.
fn draw(logits: &[f32], random: &mut SplitMix64) -> u32 {
    let p = softmax(logits);
    let mut left = (random.next() >> 11) as f64 / (1u64 << 53) as f64;
    let at = p.iter().position(|p| {
        left -= p;
        left <= 0.0
    });
    at.unwrap_or(p.len() - 1) as u32
}

fn softmax(logits: &[f32]) -> Vec<f64> {
    let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let exp: Vec<f64> = logits.iter().map(|l| f64::from(l - most).exp()).collect();
    let sum: f64 = exp.iter().sum();
    exp.iter().map(|e| e / sum).collect()
}

fn largest(logits: &[f32]) -> Option<usize> {
    (0..logits.len()).max_by(|a, b| logits[*a].total_cmp(&logits[*b]))
}

/// Top-1 agreement and mean KL divergence of logits from what the reference machine gives.
fn agreement(found: &[f32], expected: &[f32], vocab: usize) -> (f64, f64) {
    let (mut same, mut divergence) = (0, 0.0);
    for (found, expected) in found.chunks_exact(vocab).zip(expected.chunks_exact(vocab)) {
        same += usize::from(largest(found) == largest(expected));
        let (p, q) = (softmax(expected), softmax(found));
        divergence +=
            p.iter().zip(&q).map(|(p, q)| if *p > 0.0 { p * (p / q).ln() } else { 0.0 }).sum::<f64>();
    }
    let tokens = (expected.len() / vocab) as f64;
    (same as f64 / tokens, divergence / tokens)
}

#[test]
#[ignore = "needs an NVIDIA card, and UPG_TEST_MODEL to name a compressed model"]
fn a_real_model_agrees_with_the_reference_machine() {
    for (kv, _) in KINDS {
        agrees_with_the_reference_machine(kv);
    }
}

/// On a text that the model writes itself: token by token, for each execution, and all of it in one run.
#[allow(clippy::unwrap_used)]
fn agrees_with_the_reference_machine(kv: KvKind) {
    const TOKENS: usize = 512;
    let path = std::env::var("UPG_TEST_MODEL").expect("UPG_TEST_MODEL names a .upg file");
    let weights = UpgWeights::new(UpgFile::open(path.as_ref()).unwrap());
    let vocab = weights.config().vocab;
    let options = MachineOptions { context: TOKENS, kv, ..Default::default() };
    let mut machine = make(&weights, &options, Execution::Persistent, PATIENCE).unwrap();
    let mut random = SplitMix64(1);
    let (mut tokens, mut one) = (vec![1], vec![0.0; TOKENS * vocab]);
    let seq = machine.kv_mut().open().unwrap();
    for found in one.chunks_exact_mut(vocab) {
        machine
            .run(&[Segment { seq, tokens: &tokens[tokens.len() - 1..], logits: Logits::Last }], found)
            .unwrap();
        tokens.push(draw(found, &mut random));
    }
    machine.kv_mut().close(seq);
    tokens.pop();
    let many = logits(&mut machine, &tokens, true);
    let mut graph = make(&weights, &options, Execution::Graph, PATIENCE).unwrap();
    let again = logits(&mut graph, &tokens, false);
    assert!(one == again, "the graph gives other logits than the persistent kernel");

    let mut reference = ReferenceMachine::new(&weights, &options).unwrap();
    let expected = logits(&mut reference, &tokens, true);
    for (name, found) in [("token by token", one), ("in one run", many)] {
        let (top, kl) = agreement(&found, &expected, vocab);
        println!("{kv}, {name}: top-1 agreement {top:.4}, mean KL {kl:.2e}");
        assert!(top >= 0.99 && kl < 1e-3, "{kv}, {name}: top-1 agreement {top:.4}, mean KL {kl:.2e}");
    }
}

#[test]
fn a_computer_without_a_driver_is_told_so() {
    let (_, weights) = &models()[0];
    match CudaMachine::new(weights, &MachineOptions { context: 168, ..Default::default() }, &mut |_| ()) {
        Ok(machine) => assert!(upg_cuda::is_available(), "{:?}", machine.info()),
        Err(error) if upg_cuda::is_available() => panic!("{error}"),
        Err(error) => assert!(error.to_string().starts_with("no CUDA driver found: install"), "{error}"),
    }
}
