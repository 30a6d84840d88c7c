//! The shader that chooses a token against its definition, `upg_pdvm::likeliest`.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use upg_pdvm::{MachineOptions, Weights as _, conformance::tiny_models, likeliest};
use wgpu::BufferUsages;

use crate::{
    gpu::Gpu,
    shaders::Shaders,
    step::{Step, StepLayout},
    target::Tuning,
};

/// The token that the shader chooses; `None` where it finds that there is none.
fn chosen(gpu: &Gpu, shaders: &Shaders, step: &Step, logits: &[f32]) -> Option<u32> {
    let shader = shaders.likeliest();
    let pipeline = gpu.pipeline(&shader).unwrap();
    let usage = BufferUsages::MAP_READ | BufferUsages::COPY_DST;
    let (chosen, staging) = (gpu.storage("chosen", 8).unwrap(), gpu.buffer("staging", 8, usage).unwrap());
    let buffers = [&gpu.upload("step", step.all()).unwrap(), &gpu.upload("logits", logits).unwrap(), &chosen];
    let bindings = gpu.bind(&pipeline, &buffers).unwrap();
    let mut encoder = gpu.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
    {
        let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
        pass.set_pipeline(&pipeline.pipeline);
        pass.set_bind_group(0, &bindings, &[]);
        pass.dispatch_workgroups(1, 1, 1);
    }
    encoder.copy_buffer_to_buffer(&chosen, 0, &staging, 0, 8);
    gpu.queue.submit([encoder.finish()]);
    let mut found = [0_u32; 2];
    gpu.read(&staging, &mut found).unwrap();
    assert_eq!(found[0], found[1], "the next token and the one that is told");
    Some(found[0]).filter(|token| *token != u32::MAX)
}

#[test]
fn the_device_chooses_as_the_host_does() {
    let gpu = Gpu::open(0, Tuning::default()).unwrap();
    let (_, model) = &tiny_models()[0];
    let mut step = Step::new(StepLayout::new(model.config(), &MachineOptions::default(), 1));
    step.stage_choice(1);
    let shaders = Shaders::new(model.config(), gpu.target, &step.layout);
    let vocab = model.config().vocab;
    let with = |rest: f32, special: &[(usize, f32)]| {
        let mut logits = vec![rest; vocab];
        special.iter().for_each(|(token, logit)| logits[*token] = *logit);
        logits
    };
    let waves = |phase: f32| (0..vocab).map(|i| (i as f32 * 0.7 + phase).sin() * 9.0).collect::<Vec<_>>();
    let (lowest, nan) = (f32::NEG_INFINITY, f32::NAN);
    let cases = [
        waves(0.0),
        waves(2.5),
        with(-3.0, &[(130, -2.5), (7, -2.5)]),
        with(-1.0, &[(9, 0.0), (4, -0.0)]),
        with(lowest, &[(77, f32::MIN)]),
        with(lowest, &[]),
        with(1.0, &[(128, nan)]),
        with(1.0, &[(0, -nan)]),
        with(1.0, &[(64, f32::INFINITY)]),
        with(1.0, &[(64, lowest)]),
    ];
    for logits in cases {
        assert_eq!(chosen(&gpu, &shaders, &step, &logits), likeliest(&logits), "{logits:?}");
    }
}
