//! What the card can do at the very most.

use std::time::Instant;

use cudarc::driver::sys::CUdevice_attribute as Attribute;
use upg_pdvm::MachineError;

use crate::{
    compile::{self, Kernels, Target},
    driver::{Buffer, Device, Module},
};

/// Bytes of the buffer that is read: far more than any cache holds.
const BYTES: usize = 4 << 30;

/// Reads the first card's memory and does nothing else: GB (10⁹ bytes) a second, the best of several reads.
///
/// # Errors
/// Without an NVIDIA driver, card or NVRTC, or 4 GiB of free memory on the card.
pub fn read_bandwidth() -> Result<f64, MachineError> {
    let device = Device::open()?;
    let capability = device.capability()?;
    let target = Target {
        capability,
        bits_used: 1 << 3,
        heads_a_group: 1,
        head_dim: 64,
        kv_q8: false,
        warps: 8,
        kernels: Kernels::Decode { slots: 2, table_row: 256 },
    };
    let module = Module::load(&compile::kernels(&target).map_err(MachineError::Device)?)?;
    let kernel = module.kernel(c"read_all", 0)?;
    let (buffer, never) = (Buffer::zeroed(BYTES)?, Buffer::zeroed(4)?);
    let grid = device.attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)? * 8;
    let mut best = f64::INFINITY;
    for _ in 0..9 {
        let (mut from, mut vectors, mut to) = (buffer.at(), (BYTES / 16) as u64, never.at());
        let mut arguments = [(&raw mut from).cast(), (&raw mut vectors).cast(), (&raw mut to).cast()];
        let start = Instant::now();
        // SAFETY: the arguments are those of `read_all` in `kernels/decode.cu`, and the buffers outlive it.
        unsafe { kernel.launch(&device, [grid, 1, 1], 256, 0, &mut arguments) }?;
        device.synchronize()?;
        best = best.min(start.elapsed().as_secs_f64());
    }
    Ok(BYTES as f64 / best / 1e9)
}
