use std::sync::{
    Condvar, Mutex, PoisonError,
    atomic::{AtomicUsize, Ordering::SeqCst},
};

/// Polls before a waiting thread lets others run: some tens of microseconds, more than the serial parts of a token.
const SPINS: usize = 2000;

/// Times a waiting thread lets others run before it sleeps: within a token nobody should have to be woken.
const YIELDS: usize = 200;

/// Waits for a condition on an atomic: spins, then yields, then sleeps, so that it is fast while a token is computed,
/// and neither wastes a core between tokens nor holds one that another program needs.
#[derive(Default)]
pub(super) struct Bell {
    sleepers: AtomicUsize,
    lock: Mutex<()>,
    condition: Condvar,
}

impl Bell {
    /// Waits until `ready` returns something. It has to read its atomic with [`SeqCst`].
    pub(super) fn wait<T>(&self, ready: impl Fn() -> Option<T>) -> T {
        for poll in 0..SPINS + YIELDS {
            if let Some(result) = ready() {
                return result;
            }
            if poll < SPINS { std::hint::spin_loop() } else { std::thread::yield_now() }
        }
        self.sleep(ready)
    }

    #[cold]
    fn sleep<T>(&self, ready: impl Fn() -> Option<T>) -> T {
        let mut guard = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        // Before the condition is looked at again: whoever makes it true later sees a sleeper (all accesses are
        // SeqCst) and has to wait for the lock until this thread listens.
        self.sleepers.fetch_add(1, SeqCst);
        let result = loop {
            if let Some(result) = ready() {
                break result;
            }
            guard = self.condition.wait(guard).unwrap_or_else(PoisonError::into_inner);
        };
        self.sleepers.fetch_sub(1, SeqCst);
        result
    }

    /// Wakes the sleepers; to be called after the atomic was changed, with [`SeqCst`].
    pub(super) fn ring(&self) {
        if self.sleepers.load(SeqCst) > 0 {
            drop(self.lock.lock().unwrap_or_else(PoisonError::into_inner));
            self.condition.notify_all();
        }
    }
}
