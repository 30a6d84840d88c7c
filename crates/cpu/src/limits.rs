//! What the processor and its memory can do at most: what speeds are set against.

use std::{hint::black_box, time::Instant};

use half::f16;
use upg_codec::{Bits, Isa};
use upg_pdvm::{MachineError, Tensor, rotation::SplitMix64};

use crate::{
    kernels::{KernelScratch, peak},
    layout::Layout,
    matrix::{Input, Matrix},
    memory::{Arena, Region},
    per_isa::per_isa,
    pool::Pool,
    quantize::Quantized,
};

/// Bytes read in a pass: more than caches hold.
const BUFFER: usize = 512 << 20;
/// Bytes that a thread takes at a time.
const BLOCK: usize = 1 << 20;
/// Passes. The fastest counts: what slows the others is not the memory.
const PASSES: usize = 8;

/// The fastest that `threads` threads read memory (in huge pages, where the system grants them) and do nothing else,
/// in GB (10⁹ bytes) a second.
///
/// # Errors
/// Where the system has no room for the buffer, or refuses a thread.
pub fn read_bandwidth(isa: Isa, threads: usize) -> Result<f64, MachineError> {
    let mut pool = start(threads)?;
    let mut buffer = Arena::default().take(BUFFER)?;
    // A page that was never written is the system's one page of zeroes, which the cache holds.
    buffer.fill(1);
    let buffer = buffer.freeze();
    let fastest = (0..PASSES).map(|_| pass(isa, &mut pool, &buffer)).fold(f64::INFINITY, f64::min);
    Ok(BUFFER as f64 / fastest / 1e9)
}

/// Seconds to read the buffer once.
fn pass(isa: Isa, pool: &mut Pool, buffer: &Region) -> f64 {
    let mut sums = vec![0; pool.threads()];
    let started = Instant::now();
    pool.items(&mut sums, BUFFER / BLOCK, &|sum, block| {
        *sum ^= digest(isa, &buffer[block * BLOCK..][..BLOCK]);
    });
    let seconds = started.elapsed().as_secs_f64();
    black_box(sums);
    seconds
}

/// Columns of the matrix of [`kernel_rate`].
const COLS: usize = 5120;
/// Its rows: at 3 bits it fits a core's second-level cache.
const ROWS: usize = 64;
/// Products, or rounds of multiplications, in a timing: some milliseconds on one thread.
const PRODUCTS: usize = 64;
/// See [`PRODUCTS`].
const ROUNDS: usize = 200_000;

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
    let mut quantized = [Quantized::new(layout, COLS)];
    let x: Vec<f32> = (0..COLS).map(|i| (i as f32).sin()).collect();
    quantized[0].set(isa, &x);
    let input = Input { x: &x, quantized: &quantized };
    let seconds = fastest_share(threads, &|| {
        let (mut y, mut scratch) = (vec![0.0; ROWS], KernelScratch::new(COLS, 1));
        for _ in 0..PRODUCTS {
            matrix.multiply(isa, 0..ROWS, input, black_box(&mut y), &mut scratch);
        }
    })?;
    Ok((threads * PRODUCTS * ROWS * COLS) as f64 / seconds / 1e9)
}

/// The fastest that `threads` threads multiply as products with many tokens do, in registers, in 10⁹ multiply-adds a
/// second.
///
/// # Errors
/// Where the system refuses a thread.
pub fn multiply_peak(isa: Isa, threads: usize) -> Result<f64, MachineError> {
    let done = peak::multiply(isa, ROUNDS) as f64;
    let seconds = fastest_share(threads, &|| {
        black_box(peak::multiply(isa, ROUNDS));
    })?;
    Ok(threads as f64 * done / seconds / 1e9)
}

/// The least seconds that as many runs of `work` as there are threads took, side by side.
fn fastest_share(threads: usize, work: &(dyn Fn() + Sync)) -> Result<f64, MachineError> {
    let mut pool = start(threads)?;
    let mut times = (0..PASSES).map(|_| {
        let started = Instant::now();
        pool.items(&mut vec![(); threads], threads, &|(), _| work());
        started.elapsed().as_secs_f64()
    });
    Ok(times.by_ref().fold(f64::INFINITY, f64::min))
}

fn start(threads: usize) -> Result<Pool, MachineError> {
    Pool::new(threads).map_err(|error| {
        MachineError::Device(format!("cannot start {threads} threads ({error}): ask for fewer"))
    })
}

per_isa! {
    /// A number that needs every byte of `bytes` (a multiple of 128 long), at less cost than loading them.
    fn digest(bytes: &[u8]) -> u64 {
        let mut lanes = [0_u64; 16];
        let (chunks, _) = bytes.as_chunks::<128>();
        for chunk in chunks {
            let (words, _) = chunk.as_chunks::<8>();
            for (lane, word) in lanes.iter_mut().zip(words) {
                *lane ^= u64::from_ne_bytes(*word);
            }
        }
        lanes.into_iter().fold(0, |all, lane| all.rotate_left(1) ^ lane)
    }
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
                assert_ne!(digest(isa, &bytes), 0, "byte {i} on {isa:?}");
                bytes[i] = 0;
            }
        }
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
