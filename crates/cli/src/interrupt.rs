//! Ctrl-C: the first one asks, the second one ends the process.

use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicBool, Ordering},
};

use anyhow::Context as _;

use crate::exit::INTERRUPTED;

/// A process can listen for Ctrl-C once: later commands of the same process share it.
static INSTALLED: Mutex<Option<Interrupt>> = Mutex::new(None);

/// A flag that Ctrl-C (or a termination signal) raises.
#[derive(Clone)]
pub struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// Takes over Ctrl-C for the rest of the process. A second one, before [`Interrupt::clear`], ends the process.
    pub fn install() -> anyhow::Result<Self> {
        let mut installed = INSTALLED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(interrupt) = installed.as_ref() {
            interrupt.clear();
            return Ok(interrupt.clone());
        }
        let flag = Arc::new(AtomicBool::new(false));
        let handler = Arc::clone(&flag);
        ctrlc::set_handler(move || {
            if handler.swap(true, Ordering::Relaxed) {
                std::process::exit(INTERRUPTED.into());
            }
        })
        .context("cannot listen for Ctrl-C")?;
        Ok(installed.insert(Self(flag)).clone())
    }

    /// A flag that somebody else raises.
    pub fn of(flag: Arc<AtomicBool>) -> Self {
        Self(flag)
    }

    /// Whether Ctrl-C was pressed.
    pub fn raised(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Forgets the Ctrl-C: it has been acted upon.
    pub fn clear(&self) {
        self.0.store(false, Ordering::Relaxed);
    }

    /// The flag itself, for libraries that watch one.
    pub fn flag(&self) -> &Arc<AtomicBool> {
        &self.0
    }
}
