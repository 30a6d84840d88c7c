//! The registry of machines: the one place that names them.

use upg_codec::Isa;
use upg_cpu::{CpuMachine, limits};
use upg_cuda::CudaMachine;
use upg_pdvm::{KvKind, Machine, MachineOptions, ReferenceMachine, Weights};

use crate::EngineError;

/// A device that a model can run on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// What [`make`] calls it: `cpu`, `reference`, …
    pub name: &'static str,
    /// What it is, for people: processor, instruction set, memory.
    pub detail: String,
}

/// One kind of machine.
struct Device {
    name: &'static str,
    /// How it keeps keys and values unless told otherwise.
    kv: KvKind,
    detail: fn() -> String,
    /// Whether this computer has one: what `auto` goes by.
    present: fn() -> bool,
    make: Make,
    limits: fn(Option<usize>) -> Result<Option<Limits>, EngineError>,
}

type Make = fn(&dyn Weights, &MachineOptions, &mut dyn FnMut(f32)) -> Result<Box<dyn Machine>, EngineError>;

/// Every kind of machine; `auto` takes the first that is present. A new one is a line here.
const DEVICES: &[Device] = &[
    Device {
        name: "cuda",
        kv: KvKind::F16,
        detail: || upg_cuda::describe().unwrap_or_else(|error| error),
        present: upg_cuda::is_available,
        make: make_cuda,
        limits: |_| cuda_limits(),
    },
    Device {
        name: "cpu",
        kv: KvKind::F16,
        detail: cpu_detail,
        present: || true,
        make: make_cpu,
        limits: cpu_limits,
    },
    Device {
        name: "reference",
        kv: KvKind::F32,
        detail: || "plain 32-bit arithmetic on one thread: slow, the definition of every instruction".into(),
        present: || true,
        make: make_reference,
        limits: |_| Ok(None),
    },
];

/// Every device of this computer, the one that `auto` picks first.
pub fn devices() -> Vec<DeviceInfo> {
    DEVICES.iter().map(|device| DeviceInfo { name: device.name, detail: (device.detail)() }).collect()
}

/// Loads a model on the device `name`, which is `auto` or one of [`devices`]' names. `progress` gets the fraction
/// done, 0 to 1.
///
/// # Errors
/// [`EngineError::UnknownDevice`], and whatever the machine refuses.
pub fn make(
    name: &str,
    weights: &dyn Weights,
    options: &MachineOptions,
    progress: &mut dyn FnMut(f32),
) -> Result<Box<dyn Machine>, EngineError> {
    (find(name)?.make)(weights, options, progress)
}

/// How a device keeps keys and values unless told otherwise.
///
/// # Errors
/// [`EngineError::UnknownDevice`].
pub fn usual_kv(name: &str) -> Result<KvKind, EngineError> {
    Ok(find(name)?.kv)
}

/// What a device can do at the very most, measured on it.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Limits {
    /// Reading memory and doing nothing else, in GB (10⁹ bytes) a second.
    pub read_gb_s: f64,
    /// Decoding T8 weights that are in the cache and multiplying them by one vector, in 10⁹ weights a second.
    pub kernel_gw_s: Option<f64>,
    /// Multiplying in the arithmetic of prompts, in 10⁹ multiply-adds a second.
    pub multiply_gmac_s: Option<f64>,
}

/// Measures a device's limits (takes seconds, and memory for buffers that no cache holds, which is given back); `None`
/// where the device cannot be measured.
///
/// # Errors
/// [`EngineError::UnknownDevice`], and whatever the machine refuses.
pub fn limits(name: &str, threads: Option<usize>) -> Result<Option<Limits>, EngineError> {
    (find(name)?.limits)(threads)
}

fn find(name: &str) -> Result<&'static Device, EngineError> {
    let found = match name {
        "auto" => DEVICES.iter().find(|device| (device.present)()),
        _ => DEVICES.iter().find(|device| device.name == name),
    };
    found.ok_or_else(|| {
        let known: Vec<&str> = std::iter::once("auto").chain(DEVICES.iter().map(|d| d.name)).collect();
        EngineError::UnknownDevice { name: name.to_owned(), known: known.join(", ") }
    })
}

fn cpu_detail() -> String {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    match Isa::from_env() {
        Ok(isa) => format!("{} instructions, {cores} cores", isa.name()),
        Err(error) => error.to_string(),
    }
}

fn make_cpu(
    weights: &dyn Weights,
    options: &MachineOptions,
    progress: &mut dyn FnMut(f32),
) -> Result<Box<dyn Machine>, EngineError> {
    Ok(Box::new(CpuMachine::new(weights, options, Isa::from_env()?, progress)?))
}

fn cpu_limits(threads: Option<usize>) -> Result<Option<Limits>, EngineError> {
    let threads = threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
    let isa = Isa::from_env()?;
    Ok(Some(Limits {
        read_gb_s: limits::read_bandwidth(isa, threads)?,
        kernel_gw_s: Some(limits::kernel_rate(isa, threads)?),
        multiply_gmac_s: Some(limits::multiply_peak(isa, threads)?),
    }))
}

fn make_cuda(
    weights: &dyn Weights,
    options: &MachineOptions,
    progress: &mut dyn FnMut(f32),
) -> Result<Box<dyn Machine>, EngineError> {
    Ok(Box::new(CudaMachine::new(weights, options, progress)?))
}

fn cuda_limits() -> Result<Option<Limits>, EngineError> {
    let read_gb_s = upg_cuda::read_bandwidth()?;
    Ok(Some(Limits { read_gb_s, kernel_gw_s: None, multiply_gmac_s: None }))
}

fn make_reference(
    weights: &dyn Weights,
    options: &MachineOptions,
    progress: &mut dyn FnMut(f32),
) -> Result<Box<dyn Machine>, EngineError> {
    let machine = ReferenceMachine::new(weights, options)?;
    progress(1.0);
    Ok(Box::new(machine))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_device_is_refused_with_the_known_ones() {
        let message = limits("gpu9", None).unwrap_err().to_string();
        assert_eq!(message, "there is no device \"gpu9\": known devices are auto, cuda, cpu, reference");
    }

    #[test]
    fn auto_is_the_first_device_that_is_present() {
        let first = if upg_cuda::is_available() { "cuda" } else { "cpu" };
        assert_eq!(find("auto").unwrap().name, first);
        assert_eq!(usual_kv("reference").unwrap(), KvKind::F32);
    }
}
