//! Who may use the machine's sequences.

use std::{sync::Arc, time::Duration};

use parking_lot::{Condvar, Mutex};
use pyo3::prelude::*;
use upg_engine::Session;

use crate::error::BusyError;

/// How often a waiting caller looks for Ctrl-C.
const TICK: Duration = Duration::from_millis(50);

/// What a sequence is wanted for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Use {
    /// A call that ends by itself: others wait for it.
    Call,
    /// A stream, which ends when its reader likes: nobody waits for it.
    Stream,
}

/// The machine's sequences: those in use are counted, those that are not keep what they have in the cache.
pub struct Seats {
    total: usize,
    taken: Mutex<Taken>,
    freed: Condvar,
}

#[derive(Default)]
struct Taken {
    calls: usize,
    streams: usize,
    /// Open sessions that nobody uses.
    idle: Vec<Session>,
}

/// The right to one sequence, given back when dropped.
pub struct Seat {
    seats: Arc<Seats>,
    wanted: Use,
    /// The sequence, once it is open; it is kept for the next user.
    pub session: Option<Session>,
}

impl Seats {
    pub fn new(total: usize) -> Arc<Self> {
        Arc::new(Self { total, taken: Mutex::default(), freed: Condvar::new() })
    }

    /// Takes a sequence, best one whose cache begins as `prompt` does. Waits while calls use all of them.
    ///
    /// # Errors
    /// `BusyError` where streams hold all of them: their readers may be this very thread. Ctrl-C.
    pub fn take(self: &Arc<Self>, py: Python<'_>, wanted: Use, prompt: &[u32]) -> PyResult<Seat> {
        loop {
            let seat = py.detach(|| {
                let mut taken = self.taken.lock();
                if taken.calls + taken.streams == self.total && taken.calls > 0 {
                    self.freed.wait_for(&mut taken, TICK);
                }
                self.try_take(&mut taken, wanted, prompt)
            })?;
            match seat {
                Some(seat) => return Ok(seat),
                None => py.check_signals()?,
            }
        }
    }

    /// `None`: a call will soon free one.
    fn try_take(self: &Arc<Self>, taken: &mut Taken, wanted: Use, prompt: &[u32]) -> PyResult<Option<Seat>> {
        if taken.calls + taken.streams == self.total {
            if taken.calls > 0 {
                return Ok(None);
            }
            return Err(BusyError::new_err(format!(
                "open streams use all {} sequences: read them to their end or close them, or load the model with \
                 more sequences",
                self.total
            )));
        }
        let session = taken.choose(prompt, self.total);
        *taken.count(wanted) += 1;
        Ok(Some(Seat { seats: Arc::clone(self), wanted, session }))
    }

    /// Sessions that nobody uses, to be closed by the caller: their sequences are needed otherwise.
    pub fn drain(&self) -> Vec<Session> {
        std::mem::take(&mut self.taken.lock().idle)
    }
}

impl Taken {
    fn count(&mut self, wanted: Use) -> &mut usize {
        match wanted {
            Use::Call => &mut self.calls,
            Use::Stream => &mut self.streams,
        }
    }

    /// The idle session that saves most of the prompt; none where there is room for one more and none saves anything.
    fn choose(&mut self, prompt: &[u32], total: usize) -> Option<Session> {
        let saved =
            |session: &Session| session.tokens().iter().zip(prompt).take_while(|(a, b)| a == b).count();
        let (best, saved) = self
            .idle
            .iter()
            .map(saved)
            .enumerate()
            .max_by_key(|&(i, saved)| (saved, std::cmp::Reverse(i)))?;
        let room = self.calls + self.streams + self.idle.len() < total;
        // Of equal ones the first has been idle longest.
        if saved == 0 && room { None } else { Some(self.idle.remove(best)) }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut taken = self.seats.taken.lock();
        *taken.count(self.wanted) -= 1;
        taken.idle.extend(self.session.take());
        drop(taken);
        self.seats.freed.notify_one();
    }
}
