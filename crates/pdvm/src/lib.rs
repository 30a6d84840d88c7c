//! PDVM: one program, many machines.
//!
//! [`lower`] turns a model's configuration into a [`Program`]: a flat list of fused instructions ([`Op`]), the same
//! for every device. A [`Machine`] owns the weights in its own layout, the KV cache and scratch buffers, and runs the
//! program over a batch of tokens. [`ReferenceMachine`] is the executable definition of every
//! instruction; the [`conformance`] suite holds every other machine to it.

pub mod conformance;
mod kv;
pub mod kv_kind;
mod machine;
mod program;
mod reference;
pub mod rope;
pub mod rotation;
pub mod synthetic;
mod upg_weights;
mod weights;

pub use kv::{KvError, KvPages, PAGE_TOKENS, SeqId};
pub use kv_kind::KvKind;
pub use machine::{
    Batch, BatchRow, Counters, Logits, Machine, MachineError, MachineInfo, MachineOptions, Segment, likeliest,
};
pub use program::{Op, Program, lower};
pub use reference::ReferenceMachine;
pub use synthetic::Synthetic;
pub use upg_weights::UpgWeights;
pub use weights::{Tensor, Weights, WeightsError};
