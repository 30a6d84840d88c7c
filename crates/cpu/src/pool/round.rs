use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

use super::bell::Bell;

/// Bit of the state: workers may enter the round.
const OPEN: u64 = 1 << 15;

/// Bits of the state below it: workers in the round.
const INSIDE: u64 = OPEN - 1;

/// One round in the bits above.
const ROUND: u64 = OPEN << 1;

/// Rounds of work, one after the other. Workers enter while a round is open; the caller closes it when it finds
/// nothing left to do, and waits only for those that entered. So a round is never longer than the caller alone would
/// take, even where the system gives a worker no time at all.
#[derive(Default)]
pub(super) struct Rounds {
    /// The round's number, whether it is open, and how many workers are inside.
    state: AtomicU64,
    opened: Bell,
    left: Bell,
}

impl Rounds {
    /// Opens the next round; dropping the result closes it and waits until all have left.
    pub(super) fn open(&self) -> Round<'_> {
        self.state.fetch_add(ROUND | OPEN, SeqCst);
        self.opened.ring();
        Round(self)
    }

    /// Waits for a round other than `seen`; returns its number.
    pub(super) fn wait(&self, seen: u64) -> u64 {
        self.opened.wait(|| Some(self.state.load(SeqCst) / ROUND).filter(|round| *round != seen))
    }

    /// Enters a round, if it is still open; dropping the result leaves it.
    pub(super) fn enter(&self, round: u64) -> Option<Entered<'_>> {
        let may = |state: u64| (state / ROUND == round && state & OPEN != 0).then_some(state + 1);
        self.state.fetch_update(SeqCst, SeqCst, may).ok().map(|_| Entered(self))
    }
}

/// A round that is open.
pub(super) struct Round<'a>(&'a Rounds);

impl Drop for Round<'_> {
    fn drop(&mut self) {
        self.0.state.fetch_and(!OPEN, SeqCst);
        self.0.left.wait(|| (self.0.state.load(SeqCst) & INSIDE == 0).then_some(()));
    }
}

/// A worker's stay in a round.
pub(super) struct Entered<'a>(&'a Rounds);

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        self.0.state.fetch_sub(1, SeqCst);
        self.0.left.ring();
    }
}
