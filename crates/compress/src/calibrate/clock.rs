//! What calibration spends its time on.

use std::{
    cell::Cell,
    time::{Duration, Instant},
};

/// A part of calibration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Reading and folding weights, and storing codes.
    Weights,
    /// Taking the text through layers.
    Forward,
    /// Second moments of inputs.
    Moments,
    /// Trying dampings on samples.
    Choice,
    /// Factors of second moments.
    Factors,
    /// Rounding with feedback.
    Rounding,
}

impl Phase {
    const ALL: [(Phase, &'static str); 6] = [
        (Phase::Weights, "weights"),
        (Phase::Forward, "forward"),
        (Phase::Moments, "moments"),
        (Phase::Choice, "choice"),
        (Phase::Factors, "factors"),
        (Phase::Rounding, "rounding"),
    ];
}

/// Time spent, phase by phase.
#[derive(Debug, Default)]
pub(crate) struct Clock([Cell<Duration>; Phase::ALL.len()]);

impl Clock {
    /// Runs `f`, on account of `phase`.
    pub(crate) fn time<T>(&self, phase: Phase, f: impl FnOnce() -> T) -> T {
        let start = Instant::now();
        let result = f();
        let spent = &self.0[phase as usize];
        spent.set(spent.get() + start.elapsed());
        result
    }

    /// All of it, in seconds.
    pub(crate) fn describe(&self) -> String {
        let seconds = |(phase, name): (Phase, &str)| {
            format!("{name} {:.1} s", self.0[phase as usize].get().as_secs_f64())
        };
        Phase::ALL.map(seconds).join(", ")
    }
}
