//! Where the time of loading a file goes: what the system takes to read it from its cache and to hand out as much fresh
//! memory, and how long the file takes to be ready.
//!
//! `cargo run --release -p upg-cpu --example load FILE.upg [threads]`

use std::{
    hint::black_box,
    path::Path,
    sync::{Mutex, PoisonError},
    time::Instant,
};

use memmap2::{MmapMut, MmapOptions};
use upg_codec::Isa;
use upg_cpu::CpuMachine;
use upg_format::UpgFile;
use upg_pdvm::{Machine, MachineOptions, UpgWeights};

/// Rounds. Fresh memory of a virtual machine may have to be found by its host first: later rounds reuse what earlier ones
/// gave back.
const ROUNDS: usize = 4;
/// Bytes that a thread takes at a time: a huge page.
const BLOCK: usize = 2 << 20;
/// Bytes of an ordinary page.
const PAGE: usize = 4096;
/// Bytes of a line of a cache.
const LINE: usize = 64;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = std::env::args().nth(1).ok_or("give a .upg file")?;
    let threads = std::env::args().nth(2).map_or(Ok(2), |n| n.parse())?;
    let isa = Isa::from_env()?;
    println!("| seconds for | reading the file | fresh memory | the file is ready |\n|---|--:|--:|--:|");
    for round in 1..=ROUNDS {
        let read = read(Path::new(&path), threads)?;
        let fresh = fresh(std::fs::metadata(&path)?.len() as usize, threads)?;
        let started = Instant::now();
        let weights = UpgWeights::new(UpgFile::open(Path::new(&path))?);
        let options = MachineOptions { context: 64, threads: Some(threads), ..Default::default() };
        let machine = CpuMachine::new(&weights, &options, isa, &mut |_| ())?;
        let ready = started.elapsed().as_secs_f64();
        println!("| round {round} | {read:.2} | {fresh:.2} | {ready:.2} |");
        if round == ROUNDS {
            println!("\n{}", machine.info().detail);
        }
    }
    Ok(())
}

/// Seconds to read the mapped file.
fn read(path: &Path, threads: usize) -> std::io::Result<f64> {
    let started = Instant::now();
    let file = std::fs::File::open(path)?;
    // SAFETY: read-only, and nobody changes the file meanwhile; what is read is used for nothing.
    let map = unsafe { MmapOptions::new().map(&file)? };
    share(map.chunks(BLOCK), threads, |block| {
        black_box(block.chunks(LINE).map(|line| usize::from(line[0])).sum::<usize>());
    });
    Ok(started.elapsed().as_secs_f64())
}

/// Seconds to get `bytes` of memory in huge pages from the system, which clears them.
fn fresh(bytes: usize, threads: usize) -> std::io::Result<f64> {
    let started = Instant::now();
    let mut map = MmapMut::map_anon(bytes)?;
    #[cfg(target_os = "linux")]
    map.advise(memmap2::Advice::HugePage)?;
    share(map.chunks_mut(BLOCK), threads, |block| {
        block.chunks_mut(PAGE).for_each(|page| page[0] = 1);
    });
    black_box(&map);
    Ok(started.elapsed().as_secs_f64())
}

/// Calls `work` for every item, on whichever thread is free.
fn share<T>(items: impl Iterator<Item = T> + Send, threads: usize, work: impl Fn(T) + Sync) {
    let items = Mutex::new(items);
    let next = || items.lock().unwrap_or_else(PoisonError::into_inner).next();
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some(item) = next() {
                    work(item);
                }
            });
        }
    });
}
