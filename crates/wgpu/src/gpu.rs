//! A device and its queue: buffers, pipelines and bind groups, with every failure an error.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, mpsc},
    time::Duration,
};

use upg_pdvm::MachineError;
use wgpu::{BufferUsages, ErrorFilter, Features};

use crate::{
    adapter, coop,
    shaders::Shader,
    target::{Subgroups, Target, Tuning},
    trace::CLOCK,
};

/// How long the host waits for the device: longer than any submission takes, on any device.
const PATIENCE: Duration = Duration::from_secs(300);
/// Bytes of weights that are on their way to the device at once.
const UPLOAD: usize = 32 << 20;
/// Workgroup memory that the shaders count on, in bytes: that of every adapter but phones'.
const WORKGROUP_BYTES: u32 = 32 << 10;

/// A device.
pub(crate) struct Gpu {
    pub device: wgpu::Device,
    pub queue: wgpu::Queue,
    pub limits: wgpu::Limits,
    pub target: Target,
    checks: wgpu::ShaderRuntimeChecks,
    /// Whether the processor emulates it.
    pub emulated: bool,
    /// The adapter, for people.
    pub detail: String,
    /// Why the device was lost or failed, once it is.
    lost: Arc<Mutex<Option<String>>>,
    pipelines: Mutex<HashMap<Shader, Pipeline>>,
}

/// A compiled shader.
#[derive(Clone)]
pub(crate) struct Pipeline {
    pub pipeline: wgpu::ComputePipeline,
    layout: wgpu::BindGroupLayout,
}

impl Gpu {
    /// Opens the adapter of that number.
    ///
    /// # Errors
    /// No such adapter, one without what the shaders need, or the driver's.
    pub(crate) fn open(index: usize, tuning: Tuning) -> Result<Self, MachineError> {
        let adapter = adapter::choose(index)?;
        let (info, limits) = (adapter.get_info(), adapter.limits());
        let detail = adapter::describe(&adapter).detail;
        check_limits(&limits, &info.name)?;
        let offered = adapter.features();
        let subgroups = match offered.contains(Features::SUBGROUP) && tuning.subgroups != Some(false) {
            true => Subgroups::of(&info),
            false => Subgroups::None,
        };
        let matrices = tuning.matrices != Some(false) && has_matrices(&adapter, subgroups);
        let mut required_features = Features::empty();
        required_features.set(CLOCK, offered.contains(CLOCK));
        required_features.set(Features::SUBGROUP, subgroups != Subgroups::None);
        required_features.set(MATRICES, matrices);
        // SAFETY: wgpu's cooperative matrices are new, and some uses of them may be undefined without a word. Ours stay
        // inside their buffers (see `Gpu::pipeline`), and the conformance suite runs them where they are offered.
        let experimental = unsafe { wgpu::ExperimentalFeatures::enabled() };
        let descriptor = wgpu::DeviceDescriptor {
            label: Some("upg"),
            required_features,
            required_limits: limits.clone(),
            experimental_features: if matrices {
                experimental
            } else {
                wgpu::ExperimentalFeatures::disabled()
            },
            memory_hints: wgpu::MemoryHints::Performance,
            ..Default::default()
        };
        let (device, queue) = pollster::block_on(adapter.request_device(&descriptor)).map_err(|error| {
            MachineError::Device(format!(
                "{} cannot be opened ({error}): update its driver, or use --device cpu",
                info.name
            ))
        })?;
        let lost = Arc::new(Mutex::new(None));
        let note = Arc::clone(&lost);
        device.set_device_lost_callback(move |reason, message| {
            *note.lock().unwrap_or_else(PoisonError::into_inner) = Some(format!("{reason:?}: {message}"));
        });
        let note = Arc::clone(&lost);
        // Out of memory in the middle of a run, a refused submission: the next look at the device gives it.
        device.on_uncaptured_error(Arc::new(move |error: wgpu::Error| {
            note.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error.to_string());
        }));
        let emulated = info.device_type == wgpu::DeviceType::Cpu;
        let target = Target::new(&info, &limits, tuning, subgroups, matrices);
        let checks = match tuning.checked {
            true => wgpu::ShaderRuntimeChecks::checked(),
            false => wgpu::ShaderRuntimeChecks::unchecked(),
        };
        Ok(Self {
            device,
            queue,
            limits,
            target,
            checks,
            emulated,
            detail,
            lost,
            pipelines: Mutex::default(),
        })
    }

    /// The most bytes of one binding.
    pub(crate) fn binding_bytes(&self) -> u64 {
        self.limits.max_storage_buffer_binding_size.min(self.limits.max_buffer_size)
    }

    /// Runs `make`, and gives what the driver has against it.
    fn caught<T>(&self, what: &str, make: impl FnOnce() -> T) -> Result<T, MachineError> {
        let memory = self.device.push_error_scope(ErrorFilter::OutOfMemory);
        let internal = self.device.push_error_scope(ErrorFilter::Internal);
        let validation = self.device.push_error_scope(ErrorFilter::Validation);
        let made = make();
        let validation = pollster::block_on(validation.pop());
        let internal = pollster::block_on(internal.pop());
        let memory = pollster::block_on(memory.pop());
        if memory.is_some() {
            return Err(MachineError::Device(format!(
                "the device's memory does not suffice for {what}: lower --context, compress to fewer bits, close other \
                 programs, or use --device cpu"
            )));
        }
        match validation.or(internal) {
            Some(error) => Err(MachineError::Device(format!(
                "the graphics driver refuses {what} ({error}): update the driver, or use --device cpu"
            ))),
            None => Ok(made),
        }
    }

    /// A buffer of `bytes`, zeroed.
    pub(crate) fn buffer(
        &self,
        label: &str,
        bytes: u64,
        usage: BufferUsages,
    ) -> Result<wgpu::Buffer, MachineError> {
        let limit = if usage.contains(BufferUsages::STORAGE) {
            self.binding_bytes()
        } else {
            self.limits.max_buffer_size
        };
        if bytes > limit {
            return Err(MachineError::Unsupported(format!(
                "{label} needs a buffer of {bytes} bytes, more than this adapter's {limit} \
                 (max_storage_buffer_binding_size): lower --context, or use --device cpu"
            )));
        }
        // Whole vectors, and never empty.
        let size = bytes.max(16).next_multiple_of(16);
        self.caught(label, || {
            self.device.create_buffer(&wgpu::BufferDescriptor {
                label: Some(label),
                size,
                usage,
                mapped_at_creation: false,
            })
        })
    }

    /// A buffer that shaders read and write.
    pub(crate) fn storage(&self, label: &str, bytes: u64) -> Result<wgpu::Buffer, MachineError> {
        self.buffer(label, bytes, BufferUsages::STORAGE | BufferUsages::COPY_DST | BufferUsages::COPY_SRC)
    }

    /// A buffer that holds `data`. Waits for the device, so that only a little is on its way at a time.
    pub(crate) fn upload<T: bytemuck::NoUninit>(
        &self,
        label: &str,
        data: &[T],
    ) -> Result<wgpu::Buffer, MachineError> {
        let bytes: &[u8] = bytemuck::cast_slice(data);
        let buffer = self.storage(label, bytes.len() as u64)?;
        for (chunk, at) in bytes.chunks(UPLOAD).zip((0..).step_by(UPLOAD)) {
            self.caught(label, || self.queue.write_buffer(&buffer, at, chunk))?;
            if bytes.len() >= UPLOAD {
                self.queue.submit([]);
                self.wait()?;
            }
        }
        Ok(buffer)
    }

    /// Waits until all that was submitted is done.
    pub(crate) fn wait(&self) -> Result<(), MachineError> {
        let polled =
            self.device.poll(wgpu::PollType::Wait { submission_index: None, timeout: Some(PATIENCE) });
        self.alive()?;
        polled.map(|_| ()).map_err(|error| {
            MachineError::Device(format!(
                "the device did not answer ({error}): try again, or use --device cpu"
            ))
        })
    }

    /// # Errors
    /// The device was lost or has failed.
    pub(crate) fn alive(&self) -> Result<(), MachineError> {
        match &*self.lost.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(why) => Err(MachineError::Device(format!(
                "the graphics device failed ({why}): load the model again, or use --device cpu"
            ))),
            None => Ok(()),
        }
    }

    /// Reads mapped bytes of `staging` to `out`; waits for the device.
    pub(crate) fn read<T: bytemuck::AnyBitPattern>(
        &self,
        staging: &wgpu::Buffer,
        out: &mut [T],
    ) -> Result<(), MachineError> {
        let slice = staging.slice(..size_of_val(out) as u64);
        let (sender, mapped) = mpsc::channel();
        // Fails where this function has given up.
        slice.map_async(wgpu::MapMode::Read, move |result| drop(sender.send(result)));
        self.wait()?;
        let unreadable = |error: &dyn std::fmt::Display| {
            MachineError::Device(format!(
                "the device's results cannot be read ({error}): try again, or use --device cpu"
            ))
        };
        mapped.try_recv().map_err(|e| unreadable(&e))?.map_err(|e| unreadable(&e))?;
        let view = slice.get_mapped_range().map_err(|e| unreadable(&e))?;
        out.copy_from_slice(bytemuck::cast_slice(&view));
        drop(view);
        staging.unmap();
        Ok(())
    }

    /// Compiles a shader, or takes it from those compiled before.
    pub(crate) fn pipeline(&self, shader: &Shader) -> Result<Pipeline, MachineError> {
        if let Some(pipeline) = self.pipelines.lock().unwrap_or_else(PoisonError::into_inner).get(shader) {
            return Ok(pipeline.clone());
        }
        let label = Some(shader.label.as_str());
        let pipeline = self.caught(&format!("the shader {}", shader.label), || {
            let source = wgpu::ShaderSource::Wgsl(shader.source.as_str().into());
            let descriptor = wgpu::ShaderModuleDescriptor { label, source };
            // SAFETY: every index is a constant of the model's shape, a workgroup's or thread's number held below it, or
            // from the step buffer, which the host fills with tokens below the vocabulary (`BatchRow::admit`), pages of
            // its own books and positions in them; every loop ends. The conformance suite also runs with all checks.
            let module = unsafe { self.device.create_shader_module_trusted(descriptor, self.checks) };
            let entries: Vec<_> =
                shader.writes.iter().zip(0..).map(|(writes, n)| entry(*writes, n)).collect();
            let layout = self
                .device
                .create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor { label, entries: &entries });
            let pipeline_layout = self.device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
                label,
                bind_group_layouts: &[Some(&layout)],
                immediate_size: 0,
            });
            let pipeline = self.device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
                label,
                layout: Some(&pipeline_layout),
                module: &module,
                entry_point: Some("main"),
                // Every shader writes its workgroup memory before it reads it.
                compilation_options: wgpu::PipelineCompilationOptions {
                    zero_initialize_workgroup_memory: false,
                    ..Default::default()
                },
                cache: None,
            });
            Pipeline { pipeline, layout }
        })?;
        self.pipelines
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(shader.clone(), pipeline.clone());
        Ok(pipeline)
    }

    /// Binds buffers to a shader, in order.
    pub(crate) fn bind(
        &self,
        pipeline: &Pipeline,
        buffers: &[&wgpu::Buffer],
    ) -> Result<wgpu::BindGroup, MachineError> {
        let entries: Vec<_> = buffers
            .iter()
            .zip(0..)
            .map(|(buffer, binding)| wgpu::BindGroupEntry { binding, resource: buffer.as_entire_binding() })
            .collect();
        self.caught("buffers of a shader", || {
            self.device.create_bind_group(&wgpu::BindGroupDescriptor {
                label: None,
                layout: &pipeline.layout,
                entries: &entries,
            })
        })
    }
}

/// What cooperative matrices need.
const MATRICES: Features = Features::EXPERIMENTAL_COOPERATIVE_MATRIX.union(Features::SHADER_F16);

/// Whether the shader for cooperative matrices can run.
fn has_matrices(adapter: &wgpu::Adapter, subgroups: Subgroups) -> bool {
    let kind = |p: &wgpu::CooperativeMatrixProperties| {
        (p.m_size, p.n_size, p.k_size) == (16, 16, 16)
            && p.ab_type == wgpu::CooperativeScalarType::F16
            && p.cr_type == wgpu::CooperativeScalarType::F32
    };
    adapter.features().contains(MATRICES)
        && subgroups == Subgroups::Fixed(coop::SUBGROUP)
        && adapter.limits().max_storage_buffers_per_shader_stage >= coop::BUFFERS
        && adapter.cooperative_matrix_properties().iter().any(kind)
}

fn entry(writes: bool, binding: u32) -> wgpu::BindGroupLayoutEntry {
    wgpu::BindGroupLayoutEntry {
        binding,
        visibility: wgpu::ShaderStages::COMPUTE,
        ty: wgpu::BindingType::Buffer {
            ty: wgpu::BufferBindingType::Storage { read_only: !writes },
            has_dynamic_offset: false,
            min_binding_size: None,
        },
        count: None,
    }
}

/// # Errors
/// Names the limit that is too low, and the remedy.
fn check_limits(limits: &wgpu::Limits, name: &str) -> Result<(), MachineError> {
    for (limit, found, needed) in [
        ("max_storage_buffers_per_shader_stage", limits.max_storage_buffers_per_shader_stage, 8),
        ("max_compute_workgroup_storage_size", limits.max_compute_workgroup_storage_size, WORKGROUP_BYTES),
        ("max_compute_invocations_per_workgroup", limits.max_compute_invocations_per_workgroup, 256),
        ("max_compute_workgroup_size_x", limits.max_compute_workgroup_size_x, 256),
        ("max_compute_workgroups_per_dimension", limits.max_compute_workgroups_per_dimension, 65_535),
    ] {
        if found < needed {
            return Err(MachineError::Unsupported(format!(
                "{name} has {limit} {found}, the wgpu machine needs {needed}: update its driver, or use --device cpu"
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_that_is_too_low_is_named_with_a_remedy() {
        let limits = wgpu::Limits { max_compute_workgroup_storage_size: 16 << 10, ..Default::default() };
        let message = check_limits(&limits, "Some GPU").unwrap_err().to_string();
        assert!(message.contains("max_compute_workgroup_storage_size 16384"), "{message}");
        assert!(message.ends_with("use --device cpu"), "{message}");
    }
}
