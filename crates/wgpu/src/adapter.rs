//! Adapters: what wgpu can drive on this computer, and which of them `auto` may take.

use upg_pdvm::MachineError;
use wgpu::{Backends, DeviceType, Features};

/// The backends that the machine is written for: OpenGL has no storage buffers worth the name.
const BACKENDS: Backends = Backends::VULKAN.union(Backends::METAL).union(Backends::DX12);

/// What is said where there is no adapter.
pub const NO_ADAPTER: &str = "no graphics adapter was found: install the graphics driver, on Linux with its Vulkan part (Mesa's \
     is the package mesa-vulkan-drivers), or use --device cpu";

/// All adapters, real ones first, in an order that does not change from run to run.
pub(crate) fn all() -> Vec<wgpu::Adapter> {
    let descriptor = wgpu::InstanceDescriptor {
        backends: BACKENDS,
        ..wgpu::InstanceDescriptor::new_without_display_handle()
    };
    let instance = wgpu::Instance::new(descriptor);
    let mut adapters = pollster::block_on(instance.enumerate_adapters(BACKENDS));
    adapters.sort_by_key(|adapter| rank(adapter.get_info().device_type));
    adapters
}

fn rank(device_type: DeviceType) -> u8 {
    match device_type {
        DeviceType::DiscreteGpu => 0,
        DeviceType::IntegratedGpu => 1,
        DeviceType::VirtualGpu => 2,
        DeviceType::Other => 3,
        DeviceType::Cpu => 4,
    }
}

/// The adapter of that number, as [`crate::adapters`] lists them.
pub(crate) fn choose(index: usize) -> Result<wgpu::Adapter, MachineError> {
    let adapters = all();
    let count = adapters.len();
    adapters.into_iter().nth(index).ok_or_else(|| {
        MachineError::Unsupported(if count == 0 {
            NO_ADAPTER.into()
        } else {
            format!("there is no adapter {index}: `upg devices` lists those from 0 to {}", count - 1)
        })
    })
}

/// An adapter, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdapterDescription {
    /// Name, backend, memory and features.
    pub detail: String,
    /// Whether it is a graphics processor, not one emulated by the CPU.
    pub is_gpu: bool,
}

/// Every adapter, in the order in which [`crate::WgpuMachine::new`] counts them.
pub fn adapters() -> Vec<AdapterDescription> {
    all().iter().map(describe).collect()
}

/// Whether there is a graphics processor, one that the CPU emulates not counted.
pub fn is_available() -> bool {
    has_device_file() && adapters().first().is_some_and(|adapter| adapter.is_gpu)
}

/// Whether a graphics processor is possible at all: on Linux each has a file. Spares computers without one the loading of
/// Vulkan's drivers, which takes time, and some of which write to standard error.
fn has_device_file() -> bool {
    let files = ["/dev/dri", "/dev/nvidiactl", "/dev/dxg", "/dev/mali0", "/dev/kgsl-3d0"];
    !cfg!(target_os = "linux") || files.iter().any(|file| std::path::Path::new(file).exists())
}

pub(crate) fn describe(adapter: &wgpu::Adapter) -> AdapterDescription {
    let (info, limits, features) = (adapter.get_info(), adapter.limits(), adapter.features());
    let mib = |bytes: u64| bytes / (1 << 20);
    let memory =
        memory(adapter).map_or_else(|| "memory unknown".into(), |bytes| format!("{} MiB", mib(bytes)));
    let subgroups = if features.contains(Features::SUBGROUP) {
        match (info.subgroup_min_size, info.subgroup_max_size) {
            (least, most) if least == most => format!("subgroups of {least}"),
            (least, most) => format!("subgroups of {least} to {most}"),
        }
    } else {
        "no subgroups".into()
    };
    let kind = match info.device_type {
        DeviceType::DiscreteGpu => "discrete",
        DeviceType::IntegratedGpu => "integrated",
        DeviceType::VirtualGpu => "virtual",
        DeviceType::Cpu => "a processor's emulation",
        DeviceType::Other => "other",
    };
    AdapterDescription {
        detail: format!(
            "{}, {kind}, {}: {memory}, bindings up to {} MiB, {subgroups}",
            info.name,
            info.backend,
            mib(limits.max_storage_buffer_binding_size)
        ),
        is_gpu: info.device_type != DeviceType::Cpu,
    }
}

/// Bytes of the adapter's own memory, where the backend tells.
fn memory(adapter: &wgpu::Adapter) -> Option<u64> {
    #[cfg(not(target_vendor = "apple"))]
    {
        // SAFETY: the handles are only read from, while the adapter lives.
        let vulkan = unsafe { adapter.as_hal::<wgpu::hal::api::Vulkan>() }?;
        let instance = vulkan.shared_instance().raw_instance();
        // SAFETY: the physical device belongs to this instance.
        let memory = unsafe { instance.get_physical_device_memory_properties(vulkan.raw_physical_device()) };
        // Heaps of the device itself; on integrated ones that is the system's memory.
        let heaps = &memory.memory_heaps[..memory.memory_heap_count as usize];
        heaps.iter().filter(|heap| heap.flags.as_raw() & 1 == 1).map(|heap| heap.size).max()
    }
    #[cfg(target_vendor = "apple")]
    {
        let _ = adapter;
        None
    }
}
