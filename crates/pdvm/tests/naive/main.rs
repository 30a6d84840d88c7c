//! What the program means: the reference machine, given folded weights, computes what the textbook formulas do with
//! the original ones. Both sides share only the configuration and the signs of the rotation.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod fold;
mod forward;

use upg_format::{Architecture, ModelConfig, RopeConfig, RopeScaling, RotationConfig};
use upg_pdvm::{KvKind, Logits, Machine, MachineOptions, ReferenceMachine, Segment};

use crate::{fold::Folded, forward::Original};

const TOKENS: usize = 150;

/// Every width has another Hadamard block: 32 (hidden), 16 (head), 64 (mlp).
fn config() -> ModelConfig {
    ModelConfig {
        architecture: Architecture::Llama,
        hidden: 96,
        layers: 2,
        heads: 4,
        kv_heads: 2,
        head_dim: 48,
        mlp: 192,
        vocab: 61,
        context: TOKENS,
        norm_eps: 1e-3,
        rope: RopeConfig { dim: 48, theta: 1000.0, scaling: RopeScaling::None },
        sliding_window: None,
        tied_embeddings: false,
        qkv_bias: false,
        rotation: None,
    }
}

#[track_caller]
fn assert_same(config: ModelConfig) {
    config.validate().unwrap();
    let original = Original::random(&config, 17);
    let tokens: Vec<u32> = (0..TOKENS as u32).map(|i| i * i % config.vocab as u32).collect();
    let expected = original.forward(&tokens);

    let options =
        MachineOptions { context: TOKENS, max_batch: TOKENS, kv: KvKind::F32, ..MachineOptions::default() };
    let mut machine = ReferenceMachine::new(&Folded::new(&original), &options).unwrap();
    let seq = machine.kv_mut().open().unwrap();
    let mut found = vec![0.0; TOKENS * config.vocab];
    machine.run(&[Segment { seq, tokens: &tokens, logits: Logits::All }], &mut found).unwrap();

    for (position, (found, expected)) in found.chunks_exact(config.vocab).zip(&expected).enumerate() {
        let square = |x: f64| x * x;
        let error: f64 = found.iter().zip(expected).map(|(a, b)| square(f64::from(*a) - b)).sum();
        let length: f64 = expected.iter().copied().map(square).sum();
        let relative = (error / length).sqrt();
        assert!(relative < 5e-6, "position {position}: relative error {relative:e}");
    }
}

fn both_rotations(config: ModelConfig) {
    assert_same(ModelConfig { rotation: None, ..config.clone() });
    assert_same(ModelConfig { rotation: Some(RotationConfig { seed: 99 }), ..config });
}

#[test]
fn grouped_query_heads_and_an_untied_head() {
    both_rotations(config());
}

#[test]
fn a_tied_head() {
    both_rotations(ModelConfig { tied_embeddings: true, ..config() });
}

#[test]
fn biases_and_one_key_per_query_head() {
    both_rotations(ModelConfig { qkv_bias: true, kv_heads: 4, ..config() });
}

#[test]
fn a_sliding_window_and_a_partial_rotary_head() {
    let rope = RopeConfig { dim: 20, ..config().rope };
    both_rotations(ModelConfig { sliding_window: Some(9), rope, ..config() });
}
