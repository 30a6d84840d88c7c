use upg_codec::Bits;
use upg_format::{
    Architecture, Encoding, ModelConfig, RopeConfig, RopeScaling, RotationConfig, TensorKind, TensorName,
};

use super::checks::CONTEXT;
use crate::{
    Synthetic,
    synthetic::{Plan, ten_to_one},
};

/// The suite's models: a name that says what is special, and weights.
///
/// Widths are chosen for their edges: Hadamard blocks of 32 (96, 224, 544), more columns than a 256-block but no whole
/// number of them (320, 544), an odd number of vocabulary rows, a head that is wider than the residual stream's share.
pub fn tiny_models() -> Vec<(&'static str, Synthetic)> {
    let models: [(_, ModelConfig, Plan); 8] = [
        ("phi-4's shape, 10:1", phi4_like(), ten_to_one),
        ("4:1 heads, mixed bits", base(), mixed_bits),
        ("1:1 heads, tied, blocks of 32", small_blocks(), mixed_bits),
        ("tied, not rotated", tied_plain(), mixed_bits),
        ("biases, linear RoPE", biased(), mixed_bits),
        ("window, Llama 3 RoPE", windowed(), ten_to_one),
        ("partial rotary, LongRoPE", longrope(), mixed_bits),
        ("f32, biases, window, tied", uncompressed(), |_| Encoding::F32),
    ];
    models
        .into_iter()
        .zip(1..)
        .map(|((name, config, plan), seed)| (name, Synthetic::new(config, plan, seed)))
        .collect()
}

/// Every code, and f32, somewhere: neighbours among q, k and v or gate and up differ.
fn mixed_bits(name: TensorName) -> Encoding {
    let turn = name.layer().unwrap_or(0) * 3 + name.kind() as usize;
    match name.kind() {
        TensorKind::Embed => Encoding::T8(Bits::B4),
        _ if turn % 7 == 6 => Encoding::F32,
        _ => Encoding::T8(Bits::ALL[turn % 7]),
    }
}

fn base() -> ModelConfig {
    ModelConfig {
        architecture: Architecture::Llama,
        hidden: 128,
        layers: 3,
        heads: 4,
        kv_heads: 1,
        head_dim: 32,
        mlp: 256,
        vocab: 131,
        context: CONTEXT,
        norm_eps: 1e-5,
        rope: RopeConfig { dim: 32, theta: 10_000.0, scaling: RopeScaling::None },
        sliding_window: None,
        tied_embeddings: false,
        qkv_bias: false,
        rotation: Some(RotationConfig { seed: 11 }),
    }
}

fn phi4_like() -> ModelConfig {
    ModelConfig {
        architecture: Architecture::Phi3,
        hidden: 320,
        layers: 2,
        heads: 4,
        kv_heads: 1,
        head_dim: 128,
        mlp: 544,
        rope: RopeConfig { dim: 128, theta: 250_000.0, scaling: RopeScaling::None },
        ..base()
    }
}

fn small_blocks() -> ModelConfig {
    ModelConfig {
        hidden: 96,
        heads: 2,
        kv_heads: 2,
        head_dim: 96,
        mlp: 224,
        rope: RopeConfig { dim: 96, ..base().rope },
        tied_embeddings: true,
        ..base()
    }
}

fn tied_plain() -> ModelConfig {
    ModelConfig {
        hidden: 64,
        heads: 2,
        kv_heads: 1,
        head_dim: 64,
        rope: RopeConfig { dim: 64, ..base().rope },
        tied_embeddings: true,
        rotation: None,
        ..base()
    }
}

fn biased() -> ModelConfig {
    ModelConfig {
        architecture: Architecture::Qwen2,
        kv_heads: 2,
        rope: RopeConfig { scaling: RopeScaling::Linear { factor: 4.0 }, ..base().rope },
        qkv_bias: true,
        ..base()
    }
}

fn windowed() -> ModelConfig {
    let scaling = RopeScaling::Llama3 {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_context: 64,
    };
    ModelConfig {
        architecture: Architecture::Mistral,
        rope: RopeConfig { scaling, ..base().rope },
        sliding_window: Some(24),
        ..base()
    }
}

/// The prompts of the suite are some shorter, some longer than the switch.
fn longrope() -> ModelConfig {
    let scaling = RopeScaling::LongRope {
        short_factor: (0..24).map(|i| 1.0 + i as f32 / 24.0).collect(),
        long_factor: (0..24).map(|i| 2.0 + i as f32).collect(),
        original_context: 96,
        attention_factor: 1.19,
    };
    ModelConfig {
        architecture: Architecture::Phi3,
        heads: 3,
        kv_heads: 3,
        head_dim: 64,
        rope: RopeConfig { dim: 48, theta: 10_000.0, scaling },
        ..base()
    }
}

fn uncompressed() -> ModelConfig {
    ModelConfig { sliding_window: Some(130), tied_embeddings: true, ..biased() }
}
