//! One suite that every machine must pass: tiny synthetic models, run in every way that a batch can be cut, compared
//! with the reference machine.
//!
//! ```no_run
//! # use upg_pdvm::{conformance, ReferenceMachine};
//! let report = conformance::check(&|weights, options| Ok(Box::new(ReferenceMachine::new(weights, options)?)), 1e-4);
//! println!("{report}");
//! assert!(report.passed(), "{report}");
//! ```

use std::fmt;

use crate::{Machine, MachineError, MachineOptions, Synthetic, Weights};

/// Makes the machine under test.
pub type Make<'a> = dyn Fn(&dyn Weights, &MachineOptions) -> Result<Box<dyn Machine>, MachineError> + 'a;

/// What became of one check of one model.
#[derive(Clone, Debug)]
pub struct Case {
    /// The model's name.
    pub model: &'static str,
    /// The check's name.
    pub check: &'static str,
    /// The worst relative error of a row of logits, `‖a − b‖ / ‖b‖` with `b` the reference machine's; or what went wrong.
    pub outcome: Result<f32, String>,
}

/// The outcome of every check of every model. Prints as a table.
#[derive(Clone, Debug)]
pub struct Report {
    /// The cases, in the order they ran.
    pub cases: Vec<Case>,
    /// The largest relative error that passes.
    pub tolerance: f32,
}

impl Report {
    /// Whether every check ran, within the tolerance.
    pub fn passed(&self) -> bool {
        todo!()
    }

    /// The worst relative error of all cases that ran.
    pub fn worst(&self) -> f32 {
        todo!()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, _f: &mut fmt::Formatter<'_>) -> fmt::Result {
        todo!()
    }
}

/// Runs the suite. A row of logits may differ from the reference machine's by `tolerance` of its length.
pub fn check(_make: &Make<'_>, _tolerance: f32) -> Report {
    todo!()
}

/// The suite's models.
pub fn tiny_models() -> Vec<(&'static str, Synthetic)> {
    todo!()
}
