//! Synthetic weights: random T8 codes in the exact shapes of a real model.

use upg_format::{Encoding, ModelConfig, TensorName};

use crate::{Tensor, Weights, WeightsError};

/// How each tensor of a synthetic model is encoded. Vectors are always f32.
pub type Plan = fn(TensorName) -> Encoding;

/// Weights made from a seed, tensor by tensor, as they are asked for.
#[derive(Clone, Debug)]
pub struct Synthetic {
    config: ModelConfig,
    plan: Plan,
    seed: u64,
}

/// A name that [`preset`] does not know.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no synthetic model is called {0:?}: use one of {names}", names = names().join(", "))]
pub struct UnknownPreset(pub String);

impl Synthetic {
    /// Weights of a model of this configuration.
    pub fn new(config: ModelConfig, plan: Plan, seed: u64) -> Self {
        Self { config, plan, seed }
    }

    /// The seed.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// How a tensor is encoded.
    pub fn encoding(&self, name: TensorName) -> Encoding {
        (self.plan)(name)
    }
}

impl Weights for Synthetic {
    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn tensor(&self, _name: TensorName) -> Result<Tensor<'_>, WeightsError> {
        todo!()
    }
}

/// The plan of a model compressed 10:1: embedding and head at 4 bits a weight, the rest at 3.
pub fn ten_to_one(_name: TensorName) -> Encoding {
    todo!()
}

/// The names that [`preset`] knows.
pub fn names() -> Vec<&'static str> {
    vec!["phi-4", "smollm2-135m"]
}

/// The configuration of that name.
///
/// # Errors
/// [`UnknownPreset`] lists the known names.
pub fn preset(_name: &str) -> Result<ModelConfig, UnknownPreset> {
    todo!()
}

/// Microsoft Phi-4, 14.66 billion weights.
pub fn phi4() -> ModelConfig {
    todo!()
}

/// SmolLM2-135M.
pub fn smollm2_135m() -> ModelConfig {
    todo!()
}
