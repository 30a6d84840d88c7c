//! One suite that every machine must pass: tiny synthetic models with every feature that a configuration can ask
//! for, run in every way that a batch can be cut, compared with the reference machine.
//!
//! ```no_run
//! # use upg_pdvm::{conformance, ReferenceMachine};
//! let report =
//!     conformance::check(&|weights, options| Ok(Box::new(ReferenceMachine::new(weights, options)?)), 1e-4);
//! println!("{report}");
//! assert!(report.passed(), "{report}");
//! ```

mod checks;
mod models;

use std::fmt;

pub use models::tiny_models;

use self::checks::{CHECKS, Pair};
use crate::{KvKind, Machine, MachineError, MachineOptions, Synthetic, Weights};

/// Makes the machine under test.
pub type Make<'a> = dyn Fn(&dyn Weights, &MachineOptions) -> Result<Box<dyn Machine>, MachineError> + 'a;

/// What became of one check of one model.
#[derive(Clone, Debug)]
pub struct Case {
    /// The model's name.
    pub model: &'static str,
    /// The check's name.
    pub check: &'static str,
    /// The worst relative error of a row of logits, `‖a − b‖ / ‖b‖` with `b` the reference machine's; or what went
    /// wrong.
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
        !self.cases.is_empty() && self.cases.iter().all(|case| case.passed(self.tolerance))
    }

    /// The worst relative error of all cases that ran to their end.
    pub fn worst(&self) -> f32 {
        self.cases.iter().filter_map(|case| case.outcome.as_ref().ok()).copied().fold(0.0, f32::max)
    }
}

impl Case {
    fn passed(&self, tolerance: f32) -> bool {
        self.outcome.as_ref().is_ok_and(|error| *error <= tolerance)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for case in &self.cases {
            let mark = if case.passed(self.tolerance) { "ok  " } else { "FAIL" };
            write!(f, "{mark} {:<30} {:<22} ", case.model, case.check)?;
            match &case.outcome {
                Ok(error) => writeln!(f, "{error:.1e}")?,
                Err(message) => writeln!(f, "{message}")?,
            }
        }
        let failed = self.cases.iter().filter(|case| !case.passed(self.tolerance)).count();
        let (worst, tolerance, total) = (self.worst(), self.tolerance, self.cases.len());
        write!(f, "worst relative error {worst:.1e}, tolerance {tolerance:.1e}; {failed} of {total} failed")
    }
}

/// Runs the suite with keys and values in f16. A row of logits may differ from the reference machine's by `tolerance`
/// times its length.
pub fn check(make: &Make<'_>, tolerance: f32) -> Report {
    check_kv(make, KvKind::F16, tolerance)
}

/// Runs the suite with keys and values of another kind, on both machines: for a machine that supports it.
pub fn check_kv(make: &Make<'_>, kv: KvKind, tolerance: f32) -> Report {
    check_models(make, &tiny_models(), kv, tolerance)
}

/// Runs the suite on these models: for a machine that does not support all of [`tiny_models`], or should be held to more.
pub fn check_models(
    make: &Make<'_>,
    models: &[(&'static str, Synthetic)],
    kv: KvKind,
    tolerance: f32,
) -> Report {
    let mut cases = Vec::new();
    for (model, weights) in models {
        match Pair::new(make, weights, kv) {
            Ok(mut pair) => cases.extend(CHECKS.into_iter().map(|(check, run)| {
                let outcome = run(&mut pair).and_then(|error| pair.all_closed().map(|()| error));
                Case { model, check, outcome }
            })),
            Err(message) => cases.push(Case { model, check: "loading", outcome: Err(message) }),
        }
    }
    Report { cases, tolerance }
}
