//! Checkpoints made of random numbers, and the one real one.
#![allow(dead_code)] // each test binary uses its own part

use std::{collections::BTreeMap, ops::Range};

use upg_checkpoint::{Checkpoint, CheckpointError, Source};
use upg_format::{Architecture, ModelConfig, RopeConfig, RopeScaling, TensorKind, TensorName, TextConfig};
use upg_pdvm::rotation::SplitMix64;

/// A model of a few thousand weights with grouped heads, a partial rotary embedding and widths that are no powers
/// of two.
pub fn tiny(tied_embeddings: bool, qkv_bias: bool) -> ModelConfig {
    ModelConfig {
        architecture: if qkv_bias { Architecture::Qwen2 } else { Architecture::Llama },
        hidden: 96,
        layers: 2,
        heads: 6,
        kv_heads: 2,
        head_dim: 16,
        mlp: 160,
        vocab: 90,
        context: 64,
        norm_eps: 1e-5,
        rope: RopeConfig { dim: 12, theta: 10_000.0, scaling: RopeScaling::None },
        sliding_window: None,
        tied_embeddings,
        qkv_bias,
        rotation: None,
    }
}

/// A checkpoint in memory.
pub struct Generated {
    config: ModelConfig,
    text: TextConfig,
    tensors: BTreeMap<TensorName, Vec<f32>>,
}

impl Generated {
    /// Weights of plausible size: matrices keep the length of what they multiply, gains lie around 1.
    pub fn new(config: ModelConfig, seed: u64) -> Self {
        let mut random = SplitMix64(seed);
        let mut gaussian = move || {
            let uniform = (0..12).map(|_| (random.next() >> 40) as f32 / (1 << 24) as f32);
            uniform.sum::<f32>() - 6.0
        };
        let mut make = |name: TensorName| {
            let [rows, cols] = name.shape(&config);
            let mut number = || match name.kind() {
                TensorKind::AttnNorm | TensorKind::MlpNorm | TensorKind::FinalNorm => 1.0 + 0.3 * gaussian(),
                kind if kind.is_vector() => 0.2 * gaussian(),
                TensorKind::Embed => gaussian(),
                _ => gaussian() / (cols as f32).sqrt(),
            };
            (name, (0..rows * cols).map(|_| number()).collect())
        };
        let tensors = TensorName::of_checkpoint(&config).into_iter().map(&mut make).collect();
        Self { config, text: TextConfig::default(), tensors }
    }

    pub fn set(&mut self, name: TensorName, row: usize, numbers: &[f32]) {
        let cols = name.shape(&self.config)[1];
        self.tensors.get_mut(&name).unwrap()[row * cols..][..numbers.len()].copy_from_slice(numbers);
    }
}

impl Checkpoint for Generated {
    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn text(&self) -> &TextConfig {
        &self.text
    }

    fn tokenizer_json(&self) -> &[u8] {
        b"{\"version\": \"1.0\"}"
    }

    fn sources(&self) -> Vec<Source> {
        Vec::new()
    }

    fn read_rows(
        &self,
        name: TensorName,
        rows: Range<usize>,
        out: &mut [f32],
    ) -> Result<(), CheckpointError> {
        let cols = name.shape(&self.config)[1];
        out.copy_from_slice(&self.tensors[&name][rows.start * cols..rows.end * cols]);
        Ok(())
    }

    fn describe(&self) -> String {
        "generated".into()
    }
}

/// The fixture.
pub fn smollm2() -> Box<dyn Checkpoint> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/SmolLM2-135M-Instruct.Q4_1.gguf");
    upg_checkpoint::open(path.as_ref()).expect("the SmolLM2 checkpoint is missing: run `make fixtures`")
}
