//! How many workgroups a dispatch for one token is given: as many as the device runs at once, which no API tells.

use std::time::{Duration, Instant};

use upg_pdvm::MachineError;

use crate::{gpu::Gpu, plan::Plan};

/// Where nothing is measured.
const USUAL: usize = 132;
const FEWEST: usize = 16;
const MOST: usize = 1024;
/// Workgroups of the largest linear below which a measurement would tell nothing.
const STEPS: usize = 1024;
/// How long the device works before it is measured: idle ones run slowly at first.
const WARM_UP: Duration = Duration::from_millis(300);
/// Times that each number is tried, all of them in turn.
const PASSES: usize = 3;

/// Sets the number of workgroups by which the linears run fastest. Results do not depend on it: each row is summed by the same
/// threads in the same order.
///
/// # Errors
/// The device's.
pub(crate) fn tune(gpu: &Gpu, plan: &mut Plan) -> Result<(), MachineError> {
    plan.workgroups = USUAL;
    // An emulation has as many threads as the processor.
    if gpu.emulated || plan.largest_steps() < STEPS {
        return Ok(());
    }
    let start = Instant::now();
    while start.elapsed() < WARM_UP {
        time(gpu, plan)?;
    }
    let coarse = std::iter::successors(Some(FEWEST), |n| Some(n * 17 / 16)).take_while(|n| *n <= MOST);
    let near = best(gpu, plan, &coarse.collect::<Vec<_>>())?;
    let fine: Vec<usize> = (near - near / 16..=near + near / 16).collect();
    plan.workgroups = best(gpu, plan, &fine)?;
    Ok(())
}

/// The best of these numbers of workgroups.
fn best(gpu: &Gpu, plan: &mut Plan, candidates: &[usize]) -> Result<usize, MachineError> {
    let mut times = vec![Duration::MAX; candidates.len()];
    for _ in 0..PASSES {
        for (workgroups, best) in candidates.iter().zip(&mut times) {
            plan.workgroups = *workgroups;
            *best = time(gpu, plan)?.min(*best);
        }
    }
    let fastest = times.iter().zip(candidates).min();
    Ok(fastest.map_or(USUAL, |(_, workgroups)| *workgroups))
}

/// The time of the linears of a few layers, once.
fn time(gpu: &Gpu, plan: &Plan) -> Result<Duration, MachineError> {
    let mut encoder = gpu.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
    {
        let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
        plan.record_linears(&mut pass);
    }
    let commands = encoder.finish();
    let start = Instant::now();
    gpu.queue.submit([commands]);
    gpu.wait()?;
    Ok(start.elapsed())
}
