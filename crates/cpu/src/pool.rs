//! Threads that live as long as the machine and share out the work of one instruction after the other.
//!
//! Work is handed out item by item through an atomic counter, so a thread that is slowed down (by another program on
//! its core) takes less and none waits long. Results never depend on who does what. Everything `unsafe` about
//! sharing an output among threads is here.

mod bell;
mod grid;
mod round;

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    ptr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering::SeqCst},
    },
    thread::JoinHandle,
};

pub(crate) use self::grid::Grid;
use self::round::Rounds;

/// What the threads do, called with the thread's number.
type Job<'a> = dyn Fn(usize) + Sync + 'a;

/// The threads; the caller's own is number 0.
pub(crate) struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
}

struct Shared {
    rounds: Rounds,
    /// The job of the round, while it is open or a worker is in it.
    job: AtomicPtr<&'static Job<'static>>,
    stop: AtomicBool,
    panicked: AtomicBool,
}

impl Pool {
    /// Starts `threads - 1` workers, each pinned to a core where there is one for every thread.
    ///
    /// # Errors
    /// Where the system refuses a thread.
    pub(crate) fn new(threads: usize) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            rounds: Rounds::default(),
            job: AtomicPtr::new(ptr::null_mut()),
            stop: AtomicBool::new(false),
            panicked: AtomicBool::new(false),
        });
        let cores = core_affinity::get_core_ids().unwrap_or_default();
        let mut pool = Self { shared, workers: Vec::with_capacity(threads.saturating_sub(1)) };
        for thread in 1..threads {
            let shared = Arc::clone(&pool.shared);
            let core = cores.get(thread).copied().filter(|_| threads == cores.len());
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

    /// Calls `job` on this thread, and on each worker that comes before this thread is done; returns when all are.
    /// A job is to do all there is to do, however many threads take part: a worker that the system runs late is not
    /// waited for.
    fn share(&mut self, job: &Job<'_>) {
        if self.workers.is_empty() {
            return job(0);
        }
        // SAFETY: only the lifetime changes. Workers use the job while they are in the round, and `Round` waits until
        // they have left it (also where `job(0)` panics) before this function, which borrows the job, returns.
        let mut job_forever = unsafe { std::mem::transmute::<&Job<'_>, &'static Job<'static>>(job) };
        self.shared.job.store(&raw mut job_forever, SeqCst);
        let round = self.shared.rounds.open();
        job(0);
        drop(round);
        assert!(!self.shared.panicked.load(SeqCst), "a worker thread panicked");
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
        self.share(&|thread| {
            // SAFETY: threads have different numbers, so each takes an element of its own.
            let scratch = unsafe { scratch.get(thread) };
            loop {
                let item = next.fetch_add(1, SeqCst);
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
        self.shared.stop.store(true, SeqCst);
        drop(self.shared.rounds.open());
        for worker in self.workers.drain(..) {
            // A worker catches the panics of its jobs: there is nothing to learn from its end.
            let _ = worker.join();
        }
    }
}

impl Shared {
    fn work(&self, thread: usize) {
        let mut seen = 0;
        loop {
            seen = self.rounds.wait(seen);
            if self.stop.load(SeqCst) {
                return;
            }
            let Some(_entered) = self.rounds.enter(seen) else { continue };
            // SAFETY: `Pool::share` stored the job before it opened the round, and keeps it until this thread leaves.
            let job = unsafe { *self.job.load(SeqCst) };
            if catch_unwind(AssertUnwindSafe(|| job(thread))).is_err() {
                self.panicked.store(true, SeqCst);
            }
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
                    counts[item].fetch_add(1, SeqCst);
                });
                assert!(counts.iter().all(|c| c.load(SeqCst) == 1));
            }
            assert_eq!(scratch.iter().sum::<usize>(), 1008);
        }
    }

    #[test]
    fn many_rounds_with_pauses_lose_no_item() {
        let mut pool = Pool::new(3).unwrap();
        let count = AtomicUsize::new(0);
        for round in 0..2000 {
            pool.items(&mut [(); 3], 4, &|(), _| {
                count.fetch_add(1, SeqCst);
            });
            if round % 500 == 0 {
                // Long enough for the workers to go to sleep.
                std::thread::sleep(std::time::Duration::from_millis(5));
            }
        }
        assert_eq!(count.into_inner(), 8000);
    }

    /// Every thread gets work where there is enough of it: an item waits until another thread has one too.
    #[test]
    fn workers_take_part() {
        let mut pool = Pool::new(2).unwrap();
        let together = std::sync::Barrier::new(2);
        pool.items(&mut [(); 2], 2, &|(), _| {
            together.wait();
        });
    }

    #[test]
    fn a_worker_s_panic_reaches_the_caller() {
        let mut pool = Pool::new(2).unwrap();
        let together = std::sync::Barrier::new(2);
        let caught = catch_unwind(AssertUnwindSafe(|| {
            pool.items(&mut [0, 1], 2, &|thread, _| {
                together.wait();
                assert_eq!(*thread, 0);
            });
        }));
        assert!(caught.is_err());
    }
}
