//! Long work that Python may interrupt.

use std::{
    sync::{
        atomic::{AtomicBool, Ordering},
        mpsc::{self, RecvTimeoutError, Sender},
    },
    thread,
    time::Duration,
};

use pyo3::{exceptions::PyRuntimeError, prelude::*};

/// How often Python's signals are looked at.
const TICK: Duration = Duration::from_millis(50);

/// Does `work` on a thread of its own, detached from Python, while this one looks for Ctrl-C and hands what the work sends
/// to `hear`. An exception from either sets `cancel`, waits for the work to end, and is raised.
///
/// Python delivers signals to its main thread alone, and only while that thread runs Python: so the main thread waits
/// here in short turns.
pub fn watched<E: Send, T: Send>(
    py: Python<'_>,
    cancel: &AtomicBool,
    hear: &mut dyn FnMut(E) -> PyResult<()>,
    work: impl FnOnce(Sender<E>) -> T + Send,
) -> PyResult<T> {
    thread::scope(|scope| {
        let (sender, mut events) = mpsc::channel();
        let worker = scope.spawn(move || work(sender));
        let mut outcome = Ok(());
        loop {
            let receiver = &mut events;
            let event = py.detach(move || receiver.recv_timeout(TICK));
            let step = match event {
                Ok(event) => hear(event),
                Err(RecvTimeoutError::Timeout) => py.check_signals(),
                Err(RecvTimeoutError::Disconnected) => break,
            };
            if let (Ok(()), Err(error)) = (&outcome, step) {
                cancel.store(true, Ordering::Relaxed);
                outcome = Err(error);
            }
        }
        // The work has dropped its sender: it is at its end.
        let result = py.detach(|| worker.join());
        outcome?;
        result
            .map_err(|_| PyRuntimeError::new_err("the work panicked: this is a bug in upg, please report it"))
    })
}
