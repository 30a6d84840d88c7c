//! What the processor and its memory can do at most: what speeds are set against.

use std::{hint::black_box, time::Instant};

use upg_codec::Isa;
use upg_pdvm::MachineError;

use crate::{
    memory::{Arena, Region},
    per_isa::per_isa,
    pool::Pool,
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
    let mut pool = Pool::new(threads).map_err(|error| {
        MachineError::Device(format!("cannot start {threads} threads ({error}): ask for fewer"))
    })?;
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

per_isa! {
    /// A number that needs every byte of `bytes` (a multiple of 128 long), at less cost than loading them.
    fn digest(bytes: &[u8]) -> u64 {
        let mut lanes = [0_u64; 16];
        for chunk in bytes.chunks_exact(128) {
            for (lane, word) in lanes.iter_mut().zip(chunk.chunks_exact(8)) {
                let mut le = [0; 8];
                le.copy_from_slice(word);
                *lane ^= u64::from_le_bytes(le);
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
    fn memory_is_read_at_a_speed_of_this_world() {
        let speed = read_bandwidth(Isa::best(), 2).unwrap();
        assert!((0.01..1e5).contains(&speed), "{speed} GB/s");
    }
}
