//! The machine against the reference machine. Most of it needs a card: `cargo test -p upg-cuda -- --ignored`.

use std::time::Duration;

use upg_codec::Bits;
use upg_cuda::{CudaMachine, Execution, Settings};
use upg_format::{Encoding, ModelConfig, TensorKind, TensorName};
use upg_pdvm::{
    Logits, Machine, MachineError, MachineOptions, Segment, Synthetic, Weights,
    conformance::{self, tiny_models},
};

/// What int8 activations cost tiny models, as on the CPU.
const TOLERANCE: f32 = 7e-2;

const PATIENCE: Duration = Duration::from_secs(20);

fn make(
    weights: &dyn Weights,
    options: &MachineOptions,
    execution: Execution,
    patience: Duration,
) -> Result<CudaMachine, MachineError> {
    CudaMachine::with(weights, options, Settings { execution: Some(execution), patience }, &mut |_| ())
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

#[test]
#[ignore = "needs an NVIDIA card"]
fn conforms_as_a_persistent_kernel_and_as_a_graph() {
    for execution in [Execution::Persistent, Execution::Graph] {
        let report = conformance::check_models(
            &|weights, options| Ok(Box::new(make(weights, options, execution, PATIENCE)?)),
            &models(),
            TOLERANCE,
        );
        println!("{}:\n{report}", execution.name());
        assert!(report.passed(), "{}:\n{report}", execution.name());
    }
}

/// Logits of a prompt in one batch.
#[allow(clippy::unwrap_used)]
fn logits(execution: Execution, weights: &Synthetic) -> Vec<u32> {
    let options = MachineOptions { context: 168, ..Default::default() };
    let mut machine = make(weights, &options, execution, PATIENCE).unwrap();
    let vocab = weights.config().vocab;
    let tokens: Vec<u32> = (0..150).map(|i| (i * 7 % vocab) as u32).collect();
    let seq = machine.kv_mut().open().unwrap();
    let mut logits = vec![0.0; tokens.len() * vocab];
    machine.run(&[Segment { seq, tokens: &tokens, logits: Logits::All }], &mut logits).unwrap();
    logits.iter().map(|l| l.to_bits()).collect()
}

#[test]
#[ignore = "needs an NVIDIA card"]
fn both_executions_give_the_same_bits() {
    for (name, weights) in models() {
        assert_eq!(logits(Execution::Persistent, &weights), logits(Execution::Graph, &weights), "{name}");
    }
}

#[test]
#[ignore = "needs an NVIDIA card"]
fn a_wait_without_end_is_an_error_that_names_the_instruction() {
    let (_, weights) = &models()[0];
    // No block waits less than this: the barrier itself takes longer.
    let result = make(
        weights,
        &MachineOptions { context: 168, ..Default::default() },
        Execution::Persistent,
        Duration::ZERO,
    );
    let message = result.err().map(|error| error.to_string()).unwrap_or_default();
    assert!(message.contains("instruction 0 (embed of layer 0)"), "{message}");
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
