//! What the processor and its memory can do at most: what speeds are set against.

use std::{hint::black_box, time::Instant};

use half::f16;
use upg_codec::{Bits, Isa};
use upg_pdvm::{MachineError, Tensor, rotation::SplitMix64};

use crate::{
    activations::Activations,
    kernels::{KernelScratch, peak},
    layout::Layout,
    matrix::{Input, Matrix},
    memory::Arena,
    per_isa::per_isa,
    pool::Pool,
};

/// Bytes that are read over and over: more than caches hold.
const BUFFER: usize = 512 << 20;
/// The least of them for a thread, since the cache grows with the cores.
const LEAST_PART: usize = 64 << 20;
/// Bytes that a thread reads between two looks at the clock.
const BLOCK: usize = 1 << 20;

/// The fastest that `threads` threads read memory (in huge pages, where the system grants them) and do nothing else,
/// in GB (10⁹ bytes) a second.
///
/// # Errors
/// Where the system has no room for the buffer, or refuses a thread.
pub fn read_bandwidth(isa: Isa, threads: usize) -> Result<f64, MachineError> {
    let mut pool = start(threads)?;
    let part = (BUFFER / threads / BLOCK * BLOCK).max(LEAST_PART);
    let mut buffer = Arena::default().take(threads * part)?;
    touch(&mut pool, buffer.chunks_exact_mut(part));
    // Some processors read faster when the program asks ahead, as the kernels do, others when it leaves that to them.
    let blocks = [false, true].map(|ahead| {
        let readers = buffer.chunks_exact(part).map(|part| part.chunks_exact(BLOCK).cycle());
        fastest_window(&mut pool, readers, &|blocks| {
            if let Some(block) = blocks.next() {
                black_box(digest(isa, block, ahead));
            }
        })
    });
    let blocks = blocks[0].max(blocks[1]);
    Ok(blocks * BLOCK as f64 / 1e9)
}

/// Writes to every part, each by the thread that reads it, so that it lies in memory near that one. A page that was
/// never written would be the system's one page of zeroes, which the cache holds.
fn touch<'a>(pool: &mut Pool, parts: impl Iterator<Item = &'a mut [u8]>) {
    let mut parts: Vec<_> = parts.map(|part| (part, false)).collect();
    let threads = pool.threads();
    pool.items(&mut parts, threads, &|(part, touched), _| {
        part.fill(1);
        *touched = true;
    });
    // A thread that came too late to touch its own.
    parts.iter_mut().filter(|(_, touched)| !touched).for_each(|(part, _)| part.fill(1));
}

/// Columns of the matrix of [`kernel_rate`].
const COLS: usize = 5120;
/// Its rows: at 3 bits it fits a core's second-level cache.
const ROWS: usize = 64;

/// The fastest that `threads` threads decode T8 weights of 3 bits that are in their caches and multiply them by one
/// vector, in 10⁹ weights a second.
///
/// # Errors
/// Where the system has no room for the weights, or refuses a thread.
pub fn kernel_rate(isa: Isa, threads: usize) -> Result<f64, MachineError> {
    let layout = Layout::of(isa);
    let mut random = SplitMix64(1);
    let codes: Vec<u8> = (0..ROWS * COLS / 8 * 3).map(|_| random.next() as u8).collect();
    let scales = vec![f16::ONE; ROWS];
    let tensor =
        Tensor::T8 { bits: Bits::B3, rows: ROWS, cols: COLS, scales: scales.into(), codes: codes.into() };
    let matrix = Matrix::load(&tensor, layout, &Arena::default())?;
    let x: Vec<f32> = (0..COLS).map(|i| (i as f32).sin()).collect();
    let mut activations = Activations::new(isa, COLS, 1);
    let input = Input { x: &x, integers: activations.set([&x[..]].into_iter()) };
    let mine = (0..threads).map(|_| (vec![0.0; ROWS], KernelScratch::new(COLS, 1)));
    let products = fastest_window(&mut start(threads)?, mine, &|(y, scratch)| {
        matrix.multiply(isa, 0..ROWS, input, black_box(y), scratch);
    });
    Ok(products * (ROWS * COLS) as f64 / 1e9)
}

/// Rounds of multiplications between two looks at the clock.
const ROUNDS: usize = 20_000;

/// The fastest that `threads` threads multiply as products with many tokens do, in registers, in 10⁹ multiply-adds a
/// second.
///
/// # Errors
/// Where the system refuses a thread.
pub fn multiply_peak(isa: Isa, threads: usize) -> Result<f64, MachineError> {
    let done = peak::multiply(isa, ROUNDS) as f64;
    let runs = fastest_window(&mut start(threads)?, (0..threads).map(|_| ()), &|()| {
        black_box(peak::multiply(isa, ROUNDS));
    });
    Ok(runs * done / 1e9)
}

/// Seconds that threads are watched.
const WATCHED: f64 = 0.3;

/// Seconds of a window: long against a unit of work, short against a neighbour's turn on a shared host.
const WINDOW: f64 = 0.02;

/// How many times a second all threads together did `unit`, in the best of many windows.
///
/// Each thread has one of `mine`, and goes on by itself until the time is up. So what slows the others down (threads that
/// start late, cores that are still speeding up, the system's and a host's other programs) lowers no more than its own
/// window: the result is an upper bound of what can be had, as a limit has to be.
fn fastest_window<S: Send>(
    pool: &mut Pool,
    mine: impl Iterator<Item = S>,
    unit: &(dyn Fn(&mut S) + Sync),
) -> f64 {
    let mut threads: Vec<(S, Stamps)> = mine.map(|mine| (mine, Stamps::default())).collect();
    let (count, started) = (pool.threads(), Instant::now());
    pool.items(&mut threads, count, &|(mine, stamps), _| {
        let mut now = stamps.take(started);
        while now < WATCHED {
            unit(mine);
            now = stamps.take(started);
        }
    });
    let halves = (2.0 * WATCHED / WINDOW) as usize;
    let windows = (0..halves - 1).map(|half| {
        let [from, to] = [half, half + 2].map(|half| half as f64 * WINDOW / 2.0);
        threads.iter().map(|(_, stamps)| stamps.done(to) - stamps.done(from)).sum::<f64>() / WINDOW
    });
    windows.fold(0.0, f64::max)
}

/// The seconds at which a thread began its first unit of work and ended each.
#[derive(Default)]
struct Stamps(Vec<f64>);

impl Stamps {
    /// Notes, and returns, the seconds since `started`.
    fn take(&mut self, started: Instant) -> f64 {
        let now = started.elapsed().as_secs_f64();
        self.0.push(now);
        now
    }

    /// Units that were done at some time, with the part of the one at work.
    fn done(&self, at: f64) -> f64 {
        let next = self.0.partition_point(|&stamp| stamp <= at);
        match (next.checked_sub(1).and_then(|last| self.0.get(last)), self.0.get(next)) {
            (None, _) => 0.0,
            (Some(_), None) => (next - 1) as f64,
            (Some(last), Some(end)) => (next - 1) as f64 + (at - last) / (end - last),
        }
    }
}

fn start(threads: usize) -> Result<Pool, MachineError> {
    Pool::new(threads).map_err(|error| {
        MachineError::Device(format!("cannot start {threads} threads ({error}): ask for fewer"))
    })
}

per_isa! {
    /// A number that needs every byte of `bytes` (a multiple of 128 long), at less cost than loading them.
    fn digest(bytes: &[u8], ahead: bool) -> u64 {
        let mut lanes = [0_u64; 16];
        let (chunks, _) = bytes.as_chunks::<128>();
        for chunk in chunks {
            if ahead {
                prefetch(chunk);
            }
            let (words, _) = chunk.as_chunks::<8>();
            for (lane, word) in lanes.iter_mut().zip(words) {
                *lane ^= u64::from_ne_bytes(*word);
            }
        }
        lanes.into_iter().fold(0, |all, lane| all.rotate_left(1) ^ lane)
    }
}

/// Asks for as many bytes some way behind these.
#[inline(always)]
fn prefetch(_bytes: &[u8; 128]) {
    #[cfg(target_arch = "x86_64")]
    crate::kernels::prefetch::<1>(_bytes.as_ptr());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_digest_needs_every_byte() {
        for isa in Isa::available() {
            let mut bytes = vec![0; 512];
            for i in 0..bytes.len() {
                bytes[i] = 1;
                assert_ne!(digest(isa, &bytes, false), 0, "byte {i} on {isa:?}");
                bytes[i] = 0;
            }
        }
    }

    #[test]
    fn units_are_counted_with_their_parts() {
        let stamps = Stamps(vec![1.0, 2.0, 4.0]);
        let done = [0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 9.0].map(|at| stamps.done(at));
        assert_eq!(done, [0.0, 0.0, 0.5, 1.0, 1.5, 2.0, 2.0]);
        assert_eq!(Stamps::default().done(1.0), 0.0);
    }

    #[test]
    fn every_part_is_touched() {
        let mut buffer = [0; 30];
        touch(&mut Pool::new(3).unwrap(), buffer.chunks_exact_mut(10));
        assert_eq!(buffer, [1; 30]);
    }

    #[test]
    fn speeds_are_of_this_world() {
        let speed = read_bandwidth(Isa::best(), 2).unwrap();
        assert!((0.01..1e5).contains(&speed), "{speed} GB/s");
        for isa in Isa::available() {
            let (kernel, peak) = (kernel_rate(isa, 1).unwrap(), multiply_peak(isa, 1).unwrap());
            assert!(kernel > 0.0 && peak > kernel / 100.0, "{}: {kernel}, {peak}", isa.name());
        }
    }
}
