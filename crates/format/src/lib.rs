//! The `.upg` container: one file with weights, configuration, tokenizer and provenance. See `docs/format.md`.

mod model;
mod names;

pub use model::{Architecture, ModelConfig, ModelConfigError, RopeConfig, RopeScaling, RotationConfig};
pub use names::{TensorKind, TensorName, TensorNameError};
