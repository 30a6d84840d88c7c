//! One file a command: its options and what it does.

pub mod bench;
pub mod completions;
pub mod compress;
pub mod devices;
pub mod eval;
pub mod inspect;
pub mod pull;
pub mod run;
