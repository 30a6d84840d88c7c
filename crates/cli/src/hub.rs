//! What commands that use the hub share: the connection, and how a fetch shows itself.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, atomic::AtomicBool, atomic::Ordering},
    time::Duration,
};

use anyhow::Context as _;
use upg_hub::{Hub, HubError, Patience, RemoteFile, Settings, Watch};

use crate::{
    printer::{Notes, Progress},
    units::seconds,
};

/// The hub of this user's environment.
pub fn connect() -> anyhow::Result<Hub> {
    let hub = Settings::from_env().and_then(|settings| Hub::new(&settings, Patience::default()));
    hub.context("cannot ask the hub")
}

/// What a bar is about.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// All files together; the bar's total is theirs.
    All,
    /// One file after the other.
    Each,
}

/// Shows how files come.
pub struct Shown {
    extent: Extent,
    notes: Notes,
    cancel: Arc<AtomicBool>,
    state: Mutex<State>,
}

struct State {
    bar: Progress,
    /// Bytes of each file that are here.
    files: HashMap<String, u64>,
}

impl Shown {
    /// `bar` counts bytes.
    pub fn new(bar: Progress, extent: Extent, notes: Notes, cancel: Arc<AtomicBool>) -> Self {
        Self { extent, notes, cancel, state: Mutex::new(State { bar, files: HashMap::new() }) }
    }
}

impl Watch for Shown {
    fn at(&self, file: &RemoteFile, bytes: u64) {
        // Nothing here is left half done by a panic.
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.files.insert(file.path.clone(), bytes);
        state.bar.message(file.path.clone());
        match self.extent {
            Extent::All => {
                let all = state.files.values().sum();
                state.bar.set(all);
            }
            Extent::Each => {
                state.bar.total(file.size);
                state.bar.set(bytes);
            }
        }
    }

    fn retrying(&self, why: &HubError, wait: Duration) {
        self.notes.warn(format_args!("{why}; trying again in {}", seconds(wait.as_secs_f64())));
    }

    fn cancelled(&self) -> bool {
        self.cancel.load(Ordering::Relaxed)
    }
}
