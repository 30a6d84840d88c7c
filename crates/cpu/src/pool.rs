//! Threads that live as long as the machine and share out the work of one instruction after the other.
//!
//! Work is handed out item by item through an atomic counter, so a thread that is slowed down (by another program on
//! its core) takes less and none waits long. Results never depend on who does what. Everything `unsafe` about
//! sharing an output among threads is here.

mod gate;
mod grid;

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread::JoinHandle,
};

use self::gate::Gate;
pub(crate) use self::grid::Grid;

/// What the threads do, called with the thread's number.
type Job<'a> = dyn Fn(usize) + Sync + 'a;

/// The threads; the caller's own is number 0.
pub(crate) struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
}

struct Shared {
    job: Mutex<Option<&'static Job<'static>>>,
    /// Counts the jobs handed out; workers wait for it to change.
    round: Gate,
    /// Workers that have yet to finish the round; the caller waits for 0.
    busy: Gate,
    stop: AtomicBool,
    panicked: AtomicBool,
}

impl Pool {
    /// Starts `threads - 1` workers, each pinned to a core where there is one for every thread.
    pub(crate) fn new(threads: usize) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            job: Mutex::new(None),
            round: Gate::new(0),
            busy: Gate::new(0),
            stop: AtomicBool::new(false),
            panicked: AtomicBool::new(false),
        });
        let cores = core_affinity::get_core_ids().unwrap_or_default();
        let mut pool = Self { shared, workers: Vec::with_capacity(threads.saturating_sub(1)) };
        for thread in 1..threads {
            let shared = Arc::clone(&pool.shared);
            let core = cores.get(thread).copied();
            let worker = std::thread::Builder::new().name(format!("upg-cpu-{thread}")).spawn(move || {
                if let Some(core) = core {
                    core_affinity::set_for_current(core);
                }
                shared.work(thread);
            })?;
            pool.workers.push(worker);
        }
        Ok(pool)
    }

    /// Threads, the caller's included.
    pub(crate) fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Calls `job` once on every thread and returns when all are done.
    pub(crate) fn broadcast(&mut self, job: &Job<'_>) {
        if self.workers.is_empty() {
            return job(0);
        }
        // SAFETY: only the lifetime changes. Workers use the job between the two gates, and `Round` waits for them
        // (also where `job(0)` panics) before this function, which borrows the job, is left.
        let forever = unsafe { std::mem::transmute::<&Job<'_>, &'static Job<'static>>(job) };
        *self.shared.job.lock().unwrap_or_else(PoisonError::into_inner) = Some(forever);
        self.shared.busy.set(self.workers.len());
        let round = Round(&self.shared);
        self.shared.round.add(1);
        job(0);
        drop(round);
        assert!(!self.shared.panicked.load(Ordering::Relaxed), "a worker thread panicked");
    }

    /// Calls `work` for every item below `items`, each on one thread, which has `scratch[thread]` to itself.
    pub(crate) fn items<S: Send>(
        &mut self,
        scratch: &mut [S],
        items: usize,
        work: &(dyn Fn(&mut S, usize) + Sync),
    ) {
        assert!(scratch.len() >= self.threads(), "scratch for {} threads", self.threads());
        let scratch = grid::Shared::new(scratch);
        let next = AtomicUsize::new(0);
        self.broadcast(&|thread| {
            // SAFETY: threads have different numbers, so each takes an element of its own.
            let scratch = unsafe { scratch.get(thread) };
            loop {
                let item = next.fetch_add(1, Ordering::Relaxed);
                if item >= items {
                    return;
                }
                work(scratch, item);
            }
        });
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.shared.round.add(1);
        for worker in self.workers.drain(..) {
            // A worker catches the panics of its jobs: there is nothing to learn from its end.
            let _ = worker.join();
        }
    }
}

/// A round in progress: waits for the workers when it goes out of scope, however that comes.
struct Round<'a>(&'a Shared);

impl Drop for Round<'_> {
    fn drop(&mut self) {
        self.0.busy.wait(|busy| busy == 0);
        *self.0.job.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

impl Shared {
    fn work(&self, thread: usize) {
        let mut seen = 0;
        loop {
            seen = self.round.wait(|round| round != seen);
            if self.stop.load(Ordering::SeqCst) {
                return;
            }
            let job = *self.job.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(job) = job
                && catch_unwind(AssertUnwindSafe(|| job(thread))).is_err()
            {
                self.panicked.store(true, Ordering::Relaxed);
            }
            self.busy.sub(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_item_is_done_once() {
        for threads in [1, 2, 5] {
            let mut pool = Pool::new(threads).unwrap();
            let mut scratch = vec![0usize; threads];
            for items in [0, 1, 7, 1000] {
                let counts: Vec<AtomicUsize> = (0..items).map(|_| AtomicUsize::new(0)).collect();
                pool.items(&mut scratch, items, &|mine, item| {
                    *mine += 1;
                    counts[item].fetch_add(1, Ordering::Relaxed);
                });
                assert!(counts.iter().all(|c| c.load(Ordering::Relaxed) == 1));
            }
            assert_eq!(scratch.iter().sum::<usize>(), 1008);
        }
    }

    #[test]
    fn many_rounds_with_pauses_lose_no_wake_up() {
        let mut pool = Pool::new(3).unwrap();
        let count = AtomicUsize::new(0);
        for round in 0..2000 {
            pool.broadcast(&|_| {
                count.fetch_add(1, Ordering::Relaxed);
            });
            if round % 500 == 0 {
                // Long enough for the workers to go to sleep.
                std::thread::sleep(std::time::Duration::from_millis(5));
            }
        }
        assert_eq!(count.into_inner(), 6000);
    }

    #[test]
    fn a_worker_s_panic_reaches_the_caller() {
        let mut pool = Pool::new(2).unwrap();
        let caught = catch_unwind(AssertUnwindSafe(|| pool.broadcast(&|thread| assert_eq!(thread, 0))));
        assert!(caught.is_err());
    }
}
