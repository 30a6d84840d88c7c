use std::sync::{
    Condvar, Mutex, PoisonError,
    atomic::{AtomicUsize, Ordering::SeqCst},
};

/// Polls before a waiting thread lets others run: some microseconds, the length of the serial parts of a token.
const SPINS: usize = 4000;

/// Times a waiting thread lets others run before it sleeps: within a token nobody should have to be woken.
const YIELDS: usize = 200;

/// A counter to wait for: spins, then yields, then sleeps, so that it is fast while a token is computed, and neither
/// wastes a core between tokens nor holds one that another program needs.
pub(super) struct Gate {
    value: AtomicUsize,
    sleepers: AtomicUsize,
    lock: Mutex<()>,
    bell: Condvar,
}

impl Gate {
    pub(super) fn new(value: usize) -> Self {
        Self {
            value: AtomicUsize::new(value),
            sleepers: AtomicUsize::new(0),
            lock: Mutex::new(()),
            bell: Condvar::new(),
        }
    }

    /// Sets the value while nobody waits.
    pub(super) fn set(&self, value: usize) {
        self.value.store(value, SeqCst);
    }

    /// Adds to the value.
    pub(super) fn add(&self, n: usize) {
        self.value.fetch_add(n, SeqCst);
        self.wake();
    }

    /// Subtracts from the value.
    pub(super) fn sub(&self, n: usize) {
        self.value.fetch_sub(n, SeqCst);
        self.wake();
    }

    /// Waits until the value is `ready`; returns it.
    pub(super) fn wait(&self, ready: impl Fn(usize) -> bool) -> usize {
        for poll in 0..SPINS + YIELDS {
            let value = self.value.load(SeqCst);
            if ready(value) {
                return value;
            }
            if poll < SPINS { std::hint::spin_loop() } else { std::thread::yield_now() }
        }
        self.sleep(ready)
    }

    #[cold]
    fn sleep(&self, ready: impl Fn(usize) -> bool) -> usize {
        let mut guard = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        // Before the value is looked at again: whoever changes it later sees a sleeper (all accesses are SeqCst) and
        // has to wait for the lock until this thread listens to the bell.
        self.sleepers.fetch_add(1, SeqCst);
        let value = loop {
            let value = self.value.load(SeqCst);
            if ready(value) {
                break value;
            }
            guard = self.bell.wait(guard).unwrap_or_else(PoisonError::into_inner);
        };
        self.sleepers.fetch_sub(1, SeqCst);
        value
    }

    fn wake(&self) {
        if self.sleepers.load(SeqCst) > 0 {
            drop(self.lock.lock().unwrap_or_else(PoisonError::into_inner));
            self.bell.notify_all();
        }
    }
}
