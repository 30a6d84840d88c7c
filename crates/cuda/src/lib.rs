//! The CUDA machine: the whole program in one persistent kernel.
//!
//! The kernels (`kernels/*.cu*`) are CUDA C++, compiled by NVRTC for the card and the model when a model is first
//! loaded, and kept on disk. Driver and NVRTC are loaded at run time: building needs nothing of CUDA, and a computer
//! without NVIDIA's software gets an error that says so.
//!
//! - `kernels/t8.cuh` decodes and multiplies T8 weights: one look-up in shared memory for two weights;
//! - `kernels/stream.cuh` keeps weights on their way from memory, across instructions;
//! - `kernels/handoff.cuh` passes vectors from block to block, without barriers;
//! - `kernels/linear.cuh` quantises activations to 15 bits and runs the linears, all sums exact integers;
//! - `kernels/attend.cuh` is FlashAttention, split over the context;
//! - `kernels/decode.cu` runs one token: as one persistent kernel, or an instruction a launch for a CUDA graph;
//! - `kernels/gemm.cuh` multiplies T8 weights by many tokens on the tensor cores, `kernels/flash.cuh` is their
//!   attention, and `kernels/batch.cu` what lies between.

mod abi;
mod batch;
mod compile;
mod driver;
mod execute;
mod layout;
mod limits;
mod load;
mod machine;
mod memory;
mod nvrtc;
mod plan;

pub use execute::Execution;
pub use limits::read_bandwidth;
pub use machine::{CudaMachine, Settings};

/// The first card's name and memory, for people.
///
/// # Errors
/// Says why no card can be used, and the remedy.
pub fn describe() -> Result<String, String> {
    let describe = || {
        let device = driver::Device::open()?;
        Ok::<_, upg_pdvm::MachineError>(format!(
            "{}, {:.1} GiB free",
            device.name()?,
            device.free()? as f64 / 1073741824.0
        ))
    };
    describe().map_err(|error| error.to_string())
}

/// Whether a card can be used.
pub fn is_available() -> bool {
    driver::available().is_ok()
}
