//! T8: a trellis code for weights whose decoder is two 16-entry byte look-ups.
//!
//! A *group* is [`GROUP`] = 32 consecutive weights of one row. At `K` bits a weight a group is `K` little-endian
//! `u32` words read as a ring of `32·K` bits. The *state* of weight `i` is the eight bits that start at ring bit
//! `K·i` (bit `j` of the state is ring bit `(K·i + j) mod 32·K`), and its value is
//! `low[state & 15] + high[state >> 4]`: two tables of 16 `i8`, one pair per `K`, whose sum fits `-127..=127`.
//! A weight is its value times the row's scale. Neighbouring states share `8 - K` bits, which is what makes this a
//! trellis code: the encoder ([`Encoder`]) finds the best ring by a 256-state Viterbi search.
//!
//! The tables were trained by `cargo run --release -p upg-codec --example train` on Gaussian data.

mod bits;
mod decode;
mod encode;
mod isa;
mod table;
mod tables;

pub use bits::{Bits, BitsError};
pub use decode::{decode_group, decode_row, state};
pub use encode::Encoder;
pub use isa::{Isa, IsaError};
pub use table::Table;

/// Weights in a group: the span of one ring.
pub const GROUP: usize = 32;
