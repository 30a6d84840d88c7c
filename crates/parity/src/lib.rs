//! What other programs compute, held against ours: logits and chat templates against transformers', tokens against
//! tiktoken's.
//!
//! The golden files in `golden/` were written by the scripts beside them; tests need neither Python nor a network.

pub mod golden;
pub mod logits;
pub mod phi4;
pub mod templates;
pub mod tokens;
