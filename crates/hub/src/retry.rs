//! Trying again, a bounded number of times.

use std::{
    thread,
    time::{Duration, Instant},
};

use crate::{HubError, Watch};

/// The most seconds waited for a hub that says how long to wait.
const LONGEST_ASKED: Duration = Duration::from_secs(120);
/// How often who waits looks whether to stop.
const GLANCE: Duration = Duration::from_millis(50);

/// How long to keep trying.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// Tries that may fail one after the other without bringing anything.
    pub tries: u32,
    /// Waited before the second try; each further wait is twice as long.
    pub first_wait: Duration,
    /// The longest wait.
    pub longest_wait: Duration,
    /// How long a host may say nothing.
    pub silence: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            tries: 6,
            first_wait: Duration::from_millis(500),
            longest_wait: Duration::from_secs(20),
            silence: Duration::from_secs(30),
        }
    }
}

/// A try that failed.
pub(crate) enum Failure {
    /// Another one may succeed, perhaps not before the time that the hub asks for.
    Passing(HubError, Option<Duration>),
    /// Another one would fail as well.
    Lasting(HubError),
}

impl From<HubError> for Failure {
    fn from(error: HubError) -> Self {
        Self::Lasting(error)
    }
}

/// Tries until it succeeds, fails for good, or too many tries bring nothing. `attempt` returns with its failure
/// whether it brought anything.
pub(crate) fn retry<T>(
    patience: &Patience,
    watch: &dyn Watch,
    mut attempt: impl FnMut() -> Result<T, (Failure, bool)>,
) -> Result<T, HubError> {
    let mut failed = 0;
    loop {
        if watch.cancelled() {
            return Err(HubError::Cancelled);
        }
        let (error, asked) = match attempt() {
            Ok(found) => return Ok(found),
            Err((Failure::Lasting(error), _)) => return Err(error),
            Err((Failure::Passing(error, asked), moved)) => {
                failed = if moved { 1 } else { failed + 1 };
                (error, asked)
            }
        };
        if failed >= patience.tries {
            return Err(error);
        }
        let doubled = patience.first_wait.saturating_mul(1 << (failed - 1).min(16));
        let wait = asked.unwrap_or(Duration::ZERO).min(LONGEST_ASKED).max(doubled.min(patience.longest_wait));
        watch.retrying(&error, wait);
        pause(wait, watch)?;
    }
}

fn pause(wait: Duration, watch: &dyn Watch) -> Result<(), HubError> {
    let end = Instant::now() + wait;
    loop {
        if watch.cancelled() {
            return Err(HubError::Cancelled);
        }
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        thread::sleep(left.min(GLANCE));
    }
}
