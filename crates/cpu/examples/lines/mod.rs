//! The tables of instructions that examples print.

use upg_pdvm::Op;

/// An instruction's line of the table.
pub fn line(op: Op) -> usize {
    match op {
        Op::Embed => 0,
        Op::NormQkvRope { .. } => 1,
        Op::Attend { .. } => 2,
        Op::OutAdd { .. } => 3,
        Op::NormGateUp { .. } => 4,
        Op::DownAdd { .. } => 5,
        Op::NormHead => 6,
    }
}
