//! How many workgroups a dispatch for one token is given: as many as the device runs at once, which no API tells.

use std::time::{Duration, Instant};

use upg_pdvm::MachineError;

use crate::{gpu::Gpu, plan::Plan};

/// Where nothing is measured.
const USUAL: usize = 132;
const FEWEST: usize = 16;
const MOST: usize = 1024;
/// Steps of the largest linear below which a measurement would tell nothing.
const STEPS: usize = 1024;

/// Sets the number of workgroups by which the largest linear runs fastest. Results do not depend on it: each row is summed by
/// the same threads in the same order.
///
/// # Errors
/// The device's.
pub(crate) fn tune(gpu: &Gpu, plan: &mut Plan) -> Result<(), MachineError> {
    plan.workgroups = USUAL;
    // An emulation has as many threads as the processor.
    if gpu.emulated || plan.largest_steps() < STEPS {
        return Ok(());
    }
    let mut best = (Duration::MAX, USUAL);
    let mut workgroups = FEWEST;
    time(gpu, plan)?;
    while workgroups <= MOST {
        plan.workgroups = workgroups;
        best = best.min((time(gpu, plan)?.min(time(gpu, plan)?), workgroups));
        workgroups = (workgroups * 17 / 16).max(workgroups + 1);
    }
    plan.workgroups = best.1;
    Ok(())
}

/// The time of the largest linears, once.
fn time(gpu: &Gpu, plan: &Plan) -> Result<Duration, MachineError> {
    let mut encoder = gpu.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
    {
        let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
        plan.record_largest(&mut pass);
    }
    let commands = encoder.finish();
    let start = Instant::now();
    gpu.queue.submit([commands]);
    gpu.wait()?;
    Ok(start.elapsed())
}
