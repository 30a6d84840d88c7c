//! The wgpu machine: the program as WGSL, for Metal, Vulkan and DX12.
//!
//! - `shaders/*.wgsl` are the instructions; `shaders.rs` and `attention.rs` write a model's shapes and decoders into them;
//! - `target` says which shaders suit an adapter; `gemv`, `gemm`, `coop` and `tile` which rows a workgroup takes and what becomes of
//!   them;
//! - `code` writes the decoders of T8 out, a text for each number of bits;
//! - `layout` and `load` bring weights to the device, in quads of rows, split where a binding is too small;
//! - `plan` turns the program into dispatches (`dispatch`), five or six a layer, and `tune` measures how many workgroups
//!   suit the device;
//! - `trace` tells where the time goes.

mod adapter;
mod attention;
mod code;
mod coop;
mod dispatch;
mod gemm;
mod gemv;
mod gpu;
mod layout;
#[cfg(test)]
mod likeliest_tests;
mod limits;
mod load;
mod machine;
mod memory;
#[cfg(test)]
mod metal_tests;
mod plan;
mod shaders;
mod step;
mod target;
mod tile;
mod trace;
mod tune;

pub use adapter::{AdapterDescription, NO_ADAPTER, adapters, is_available};
pub use limits::read_bandwidth;
pub use machine::WgpuMachine;
pub use target::Tuning;
pub use trace::Traced;
