//! The `.upg` container: one file with weights, configuration, tokenizer and provenance. See `docs/format.md`.

#[cfg(target_endian = "big")]
compile_error!("a .upg file is little-endian and is used in place: big-endian machines are not supported");

mod blob;
mod encoding;
mod error;
mod header;
mod index;
mod journal;
mod layout;
mod model;
mod names;
mod preamble;
mod read;
mod write;

pub use encoding::{ALIGNMENT, Encoding, EncodingError};
pub use error::FormatError;
pub use header::{Header, Provenance, SourceFile, TextConfig};
pub use index::{TensorEntry, TensorStats};
pub use model::{Architecture, ModelConfig, ModelConfigError, RopeConfig, RopeScaling, RotationConfig};
pub use names::{TensorKind, TensorName, TensorNameError};
pub use read::{TensorData, UpgFile};
pub use write::{Section, UpgWriter};
