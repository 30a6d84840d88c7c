use upg_format::{Encoding, TensorName};

use crate::Plan;

/// Who is told how a compression goes. Each call is cheap and in order; all default to doing nothing.
pub trait Progress: Sync {
    /// Before the first tensor: what will be written, and about how many bytes of memory that takes.
    fn planned(&self, _plan: &Plan, _memory: u64) {}

    /// Something a person may want to read.
    fn message(&self, _text: &str) {}

    /// A fraction of measuring sensitivities is done; before [`Progress::planned`].
    fn measuring(&self, _done: f64) {}

    /// A tensor of `weights` weights is begun.
    fn started(&self, _name: TensorName, _encoding: Encoding, _weights: u64) {}

    /// How it will be rounded: the damping of the feedback (`None`: no feedback), and the error of its outputs on text held
    /// out, relative to rounding without feedback.
    fn calibrated(&self, _name: TensorName, _damping: Option<f64>, _relative: f64) {}

    /// `weights` more weights of it are done (all of them at once where an earlier run had finished it).
    fn advanced(&self, _weights: u64) {}

    /// It is in the file. `snr_db`: signal to error in dB, where numbers were rounded in this run.
    fn finished(&self, _name: TensorName, _snr_db: Option<f32>) {}
}

/// Nobody.
impl Progress for () {}
