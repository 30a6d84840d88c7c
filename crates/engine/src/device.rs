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
