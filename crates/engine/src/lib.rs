//! What every front end uses: tokenizer, chat template, sampler, sequences, generation and evaluation.
//!
//! ```text
//! messages ─ ChatTemplate ─ Tokenizer ─► prompt ─ Session ─► Machine ─ Sampler ─► tokens ─ TextStream ─► Piece
//! ```
//!
//! An [`Engine`] owns a model on a device; a [`Session`] is a conversation's place in its KV cache; a
//! [`Generation`] is an iterator over an answer's [`Piece`]s. Front ends never name a machine: [`devices`] lists
//! them, [`EngineOptions::device`] picks one.

pub mod device;
mod engine;
mod error;
pub mod eval;
#[cfg(test)]
mod fixtures;
mod generation;
mod language;
mod sampler;
mod stop;
mod template;
mod tokenizer;

pub use device::{DeviceInfo, Limits, device_name, devices};
pub use engine::{Engine, EngineOptions};
pub use error::EngineError;
pub use generation::{
    Answer, Completion, FinishReason, Generation, GenerationOptions, Piece, Session, Stats, Step,
};
pub use language::Language;
pub use sampler::{Choice, Sampler, SamplingError, SamplingOptions};
pub use template::{ChatTemplate, Message, TemplateError, TemplateInput};
pub use tokenizer::{TextStream, Tokenizer, TokenizerError};
