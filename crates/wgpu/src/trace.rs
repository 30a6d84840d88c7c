//! Where the time goes: the last batch run again with the device's clock read after every dispatch.

use std::time::{Duration, Instant};

use upg_pdvm::MachineError;
use wgpu::{BufferUsages, Features};

use crate::{gpu::Gpu, machine::WgpuMachine};

/// What the device's clock needs of an adapter.
pub(crate) const CLOCK: Features = Features::TIMESTAMP_QUERY.union(Features::TIMESTAMP_QUERY_INSIDE_PASSES);

/// One kind of dispatch of a batch.
#[derive(Clone, Debug)]
pub struct Traced {
    /// The shader's.
    pub label: String,
    /// How many dispatches.
    pub count: u32,
    /// Of all of them, what each waits for included.
    pub time: Duration,
}

impl WgpuMachine {
    /// Runs the last batch again and gives the time of its dispatches by kind, in the order in which they first come; last
    /// the whole, as the host sees it. For measuring: the sequences' contents are worth nothing afterwards.
    ///
    /// # Errors
    /// The device's; an adapter whose clock shaders' passes cannot read.
    pub fn trace(&mut self) -> Result<Vec<Traced>, MachineError> {
        let gpu = &self.gpu;
        if !gpu.device.features().contains(CLOCK) {
            return Err(MachineError::Unsupported(
                "this adapter does not tell the time between dispatches: trace on another one".into(),
            ));
        }
        let count = self.plan.each(self.shape).count() as u32 + 1;
        let queries = gpu.device.create_query_set(&wgpu::QuerySetDescriptor {
            label: None,
            ty: wgpu::QueryType::Timestamp,
            count,
        });
        let bytes = u64::from(count) * 8;
        let resolved = gpu.buffer("a trace", bytes, BufferUsages::QUERY_RESOLVE | BufferUsages::COPY_SRC)?;
        let staging =
            gpu.buffer("a trace for the host", bytes, BufferUsages::MAP_READ | BufferUsages::COPY_DST)?;
        let mut encoder = gpu.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        {
            let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
            pass.write_timestamp(&queries, 0);
            for ((_, record), query) in self.plan.each(self.shape).zip(1..) {
                record(&mut pass);
                pass.write_timestamp(&queries, query);
            }
        }
        encoder.resolve_query_set(&queries, 0..count, &resolved, 0);
        encoder.copy_buffer_to_buffer(&resolved, 0, &staging, 0, bytes);
        let commands = encoder.finish();
        let start = Instant::now();
        gpu.queue.submit([commands]);
        gpu.wait()?;
        let whole = start.elapsed();
        let mut ticks = vec![0_u64; count as usize];
        gpu.read(&staging, &mut ticks)?;
        let mut traced = sums(gpu, self.plan.each(self.shape).map(|(label, _)| label), &ticks);
        traced.push(Traced { label: "in all, for the host".into(), count: count - 1, time: whole });
        Ok(traced)
    }
}

/// The times of each label's dispatches, added up.
fn sums<'a>(gpu: &Gpu, labels: impl Iterator<Item = &'a str>, ticks: &[u64]) -> Vec<Traced> {
    let nanoseconds = f64::from(gpu.queue.get_timestamp_period());
    let mut all = Vec::<Traced>::new();
    for (label, pair) in labels.zip(ticks.windows(2)) {
        let time = Duration::from_nanos((pair[1].saturating_sub(pair[0]) as f64 * nanoseconds) as u64);
        match all.iter_mut().find(|traced| traced.label == label) {
            Some(traced) => {
                traced.count += 1;
                traced.time += time;
            }
            None => all.push(Traced { label: label.to_owned(), count: 1, time }),
        }
    }
    all
}
