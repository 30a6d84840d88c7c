use upg_format::TensorName;

use crate::Plan;

/// What a compression did.
#[derive(Clone, Debug)]
pub struct Report {
    /// How each tensor is stored.
    pub plan: Plan,
    /// Each tensor's rounding error, in the plan's order.
    pub tensors: Vec<TensorReport>,
    /// Bytes of the file.
    pub file_bytes: u64,
    /// Seconds from reading the sources to the renamed file.
    pub seconds: f64,
    /// Weights that this run rounded; fewer than all where an earlier run had begun.
    pub weights: u64,
    /// The process's peak memory in bytes, where the system tells.
    pub peak_rss: Option<u64>,
}

/// The rounding error of one tensor.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TensorReport {
    /// Its name.
    pub name: TensorName,
    /// Signal to error in dB; `None` where it was stored without error.
    pub snr_db: Option<f32>,
}

impl Report {
    /// Times that the file is smaller than all parameters in fp32.
    pub fn ratio(&self) -> f64 {
        self.plan.ratio()
    }

    /// Weights rounded a second.
    pub fn weights_per_second(&self) -> f64 {
        self.weights as f64 / self.seconds
    }
}
