//! The registry of machines: the one place that names them.

use upg_pdvm::{Machine, MachineOptions, Weights};

use crate::EngineError;

/// A device that a model can run on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// What [`make`] calls it: `cpu`, `reference`, …
    pub name: &'static str,
    /// What it is, for people: processor, instruction set, memory.
    pub detail: String,
}

/// Every device of this computer, the one that `auto` picks first.
pub fn devices() -> Vec<DeviceInfo> {
    todo!()
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
    let _ = (name, weights, options, progress);
    todo!()
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
    let _ = (name, threads);
    todo!()
}
