//! The registry of machines: the one place that names them.

use upg_codec::Isa;
use upg_cpu::{CpuMachine, limits};
use upg_cuda::CudaMachine;
use upg_pdvm::{KvKind, Machine, MachineOptions, ReferenceMachine, Weights};
use upg_wgpu::WgpuMachine;

use crate::EngineError;

/// A device that a model can run on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// What [`make`] calls it: `cpu`, `wgpu:0`, …
    pub name: String,
    /// What it is, for people: processor, instruction set, memory.
    pub detail: String,
}

/// One kind of machine.
struct Device {
    name: &'static str,
    /// How it keeps keys and values unless told otherwise.
    kv: KvKind,
    detail: Detail,
    /// Whether this computer has one: what `auto` goes by.
    present: fn() -> bool,
    make: Make,
    limits: fn(usize, Option<usize>) -> Result<Option<Limits>, EngineError>,
}

/// What a kind of machine is on this computer, for people.
enum Detail {
    /// There is one.
    One(fn() -> String),
    /// There are several: `wgpu` is the first, `wgpu:N` the one of that number. Where there are none, why.
    Numbered(fn() -> Result<Vec<String>, String>),
}

/// Makes the machine on the device of that number.
type Make =
    fn(usize, &dyn Weights, &MachineOptions, &mut dyn FnMut(f32)) -> Result<Box<dyn Machine>, EngineError>;

/// Every kind of machine; `auto` takes the first that is present. A new one is an entry here.
const DEVICES: &[Device] = &[
    Device {
        name: "cuda",
        kv: KvKind::F16,
        detail: Detail::One(|| upg_cuda::describe().unwrap_or_else(|error| error)),
        present: upg_cuda::is_available,
        make: make_cuda,
        limits: |_, _| cuda_limits(),
    },
    Device {
        name: "wgpu",
        kv: KvKind::F16,
        detail: Detail::Numbered(wgpu_detail),
        // A processor's emulation of one is slower than the processor itself.
        present: upg_wgpu::is_available,
        make: make_wgpu,
        limits: |adapter, _| wgpu_limits(adapter),
    },
    Device {
        name: "cpu",
        kv: KvKind::F16,
        detail: Detail::One(cpu_detail),
        present: || true,
        make: make_cpu,
        limits: |_, threads| cpu_limits(threads),
    },
    Device {
        name: "reference",
        kv: KvKind::F32,
        detail: Detail::One(|| {
            "plain 32-bit arithmetic on one thread: slow, the definition of every instruction".into()
        }),
        present: || true,
        make: make_reference,
        limits: |_, _| Ok(None),
    },
];

/// Every device of this computer, the one that `auto` picks first.
pub fn devices() -> Vec<DeviceInfo> {
    let info = |name: String, detail: String| DeviceInfo { name, detail };
    let list = |device: &Device| match device.detail {
        Detail::One(detail) => vec![info(device.name.into(), detail())],
        Detail::Numbered(details) => match details() {
            Err(why) => vec![info(device.name.into(), why)],
            Ok(details) => {
                let numbered = details.into_iter().enumerate();
                numbered.map(|(n, detail)| info(format!("{}:{n}", device.name), detail)).collect()
            }
        },
    };
    DEVICES.iter().flat_map(list).collect()
}

/// Loads a model on the device `name`, which is `auto` or one of [`devices`]' names, their number left out or not.
/// `progress` gets the fraction
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
    let (device, number) = find(name)?;
    (device.make)(number, weights, options, progress)
}

/// What a device is called whose name may be `auto` or lack its number.
///
/// # Errors
/// [`EngineError::UnknownDevice`].
pub fn device_name(name: &str) -> Result<String, EngineError> {
    let (device, number) = find(name)?;
    Ok(match device.detail {
        Detail::One(_) => device.name.to_owned(),
        Detail::Numbered(_) => format!("{}:{number}", device.name),
    })
}

/// How a device keeps keys and values unless told otherwise.
///
/// # Errors
/// [`EngineError::UnknownDevice`].
pub fn usual_kv(name: &str) -> Result<KvKind, EngineError> {
    Ok(find(name)?.0.kv)
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
    let (device, number) = find(name)?;
    (device.limits)(number, threads)
}

/// A kind of machine, and the number of the device that is asked for.
fn find(name: &str) -> Result<(&'static Device, usize), EngineError> {
    let numbered = |device: &&Device| matches!(device.detail, Detail::Numbered(_));
    let found = match name.split_once(':') {
        None if name == "auto" => DEVICES.iter().find(|device| (device.present)()).map(|device| (device, 0)),
        None => DEVICES.iter().find(|device| device.name == name).map(|device| (device, 0)),
        Some((kind, number)) => {
            let device = DEVICES.iter().filter(numbered).find(|device| device.name == kind);
            device.zip(number.parse().ok())
        }
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
    _: usize,
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
    _: usize,
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

fn wgpu_detail() -> Result<Vec<String>, String> {
    let adapters = upg_wgpu::adapters();
    if adapters.is_empty() {
        Err(upg_wgpu::NO_ADAPTER.into())
    } else {
        Ok(adapters.into_iter().map(|a| a.detail).collect())
    }
}

fn make_wgpu(
    adapter: usize,
    weights: &dyn Weights,
    options: &MachineOptions,
    progress: &mut dyn FnMut(f32),
) -> Result<Box<dyn Machine>, EngineError> {
    Ok(Box::new(WgpuMachine::new(weights, options, adapter, progress)?))
}

fn wgpu_limits(adapter: usize) -> Result<Option<Limits>, EngineError> {
    let read_gb_s = upg_wgpu::read_bandwidth(adapter)?;
    Ok(Some(Limits { read_gb_s, kernel_gw_s: None, multiply_gmac_s: None }))
}

fn make_reference(
    _: usize,
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
        assert_eq!(
            message,
            "there is no device \"gpu9\": known devices are auto, cuda, wgpu, cpu, reference"
        );
    }

    #[test]
    fn auto_is_the_first_device_that_is_present() {
        let first = if upg_cuda::is_available() {
            "cuda"
        } else if upg_wgpu::is_available() {
            "wgpu"
        } else {
            "cpu"
        };
        assert_eq!(find("auto").unwrap().0.name, first);
        assert_eq!(usual_kv("reference").unwrap(), KvKind::F32);
    }
    #[test]
    fn devices_of_which_there_are_several_have_numbers() {
        let (device, number) = find("wgpu:3").unwrap();
        assert_eq!((device.name, number), ("wgpu", 3));
        assert!(find("cpu:0").is_err() && find("wgpu:").is_err() && find("wgpu:x").is_err());
    }
}
