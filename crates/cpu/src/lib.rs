//! The CPU machine: runs the program with T8 kernels in AVX-512, AVX2, NEON or scalar code on threads that live as long as
//! the machine.
//!
//! - `pool` shares out the work of an instruction; `memory` holds weights in huge pages.
//! - `layout` and `load` repack weights for the kernels of the chosen instruction set; `kernels` multiply.
//! - `quantize` makes activations integers, so that products are exact, `panel` puts many tokens' side by side; `math` and `attention` fix the order of
//!   every floating-point sum. So results have the same bits on every instruction set and number of threads. (Only
//!   f32 matrices, multiplied by the `gemm` crate, may differ between instruction sets.)
//! - `machine` and `ops` are the program.

mod activations;
mod attention;
mod kernels;
mod kv;
mod kv_kinds;
mod layout;
pub mod limits;
mod load;
mod machine;
mod math;
mod matrix;
mod memory;
mod ops;
mod panel;
mod per_isa;
mod pool;
mod quantize;
mod scratch;
mod self_check;

pub use machine::CpuMachine;
