//! What an adapter can do at the very most, measured on it.

use std::time::Instant;

use upg_pdvm::MachineError;

use crate::{gpu::Gpu, shaders::Shader, target::Tuning};

/// Bytes of the buffer that is read, where the adapter binds so many: far more than any cache holds.
const BYTES: u64 = 2 << 30;
/// Workgroups and threads of each.
const GRID: u64 = 4096;
const THREADS: u64 = 256;

/// Reads an adapter's memory and does nothing else: GB (10⁹ bytes) a second, the best of several reads.
///
/// # Errors
/// Without such an adapter, or enough memory on it.
pub fn read_bandwidth(adapter: usize) -> Result<f64, MachineError> {
    let gpu = Gpu::open(adapter, Tuning::default())?;
    let threads = GRID * THREADS;
    let turns = (BYTES.min(gpu.binding_bytes()) / 16 / threads / 4) * 4;
    let bytes = turns * threads * 16;
    let source = format!(
        "@group(0) @binding(0) var<storage, read> data: array<vec4<u32>>;
@group(0) @binding(1) var<storage, read_write> result: array<u32>;
@compute @workgroup_size({THREADS})
fn main(@builtin(global_invocation_id) id: vec3<u32>) {{
    var sum = vec4<u32>();
    for (var i = 0u; i < {turns}u; i += 4u) {{
        let at = i * {threads}u + id.x;
        sum += data[at] + data[at + {threads}u] + data[at + {}u] + data[at + {}u];
    }}
    // Written by nobody, but the compiler cannot know.
    if all(sum == vec4<u32>(0x12345678u)) {{
        result[0] = 1u;
    }}
}}",
        2 * threads,
        3 * threads
    );
    let pipeline =
        gpu.pipeline(&Shader { label: "read memory".into(), source, writes: vec![false, true] })?;
    let (data, result) = (gpu.storage("a buffer to read", bytes)?, gpu.storage("a result", 4)?);
    let bindings = gpu.bind(&pipeline, &[&data, &result])?;
    let mut best = f64::INFINITY;
    for _ in 0..7 {
        let mut encoder = gpu.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        {
            let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
            pass.set_pipeline(&pipeline.pipeline);
            pass.set_bind_group(0, &bindings, &[]);
            pass.dispatch_workgroups(GRID as u32, 1, 1);
        }
        let commands = encoder.finish();
        let start = Instant::now();
        gpu.queue.submit([commands]);
        gpu.wait()?;
        best = best.min(start.elapsed().as_secs_f64());
    }
    Ok(bytes as f64 / best / 1e9)
}
