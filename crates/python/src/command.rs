use std::{
    ffi::OsString,
    sync::{Arc, atomic::AtomicBool},
};

use pyo3::prelude::*;
use upg_cli::Host;

use crate::{error::raise, watch::watched};

/// Runs a command line, the program's name first, as the `upg` command does; returns its exit code.
#[pyfunction]
pub fn main(py: Python<'_>, args: Vec<OsString>) -> u8 {
    py.detach(|| upg_cli::main(args))
}

/// Runs a command and returns what it would print. `progress` is called with what is being done and the fraction done.
#[pyfunction]
#[pyo3(signature = (args, progress = None))]
pub fn call(py: Python<'_>, args: Vec<OsString>, progress: Option<Bound<'_, PyAny>>) -> PyResult<String> {
    let cancel = Arc::new(AtomicBool::new(false));
    let mut hear = |(what, done): (&'static str, f64)| match &progress {
        Some(progress) => progress.call1((what, done)).map(drop),
        None => Ok(()),
    };
    let answer = watched(py, &cancel, &mut hear, |sender| {
        let tell = move |what, done| {
            // Nobody hears any more: the caller has gone.
            let _ = sender.send((what, done));
        };
        upg_cli::call(args, Host { cancel: Arc::clone(&cancel), progress: Arc::new(tell) })
    })?;
    answer.map_err(|error| raise(&error))
}
