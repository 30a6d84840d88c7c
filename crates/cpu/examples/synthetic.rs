//! Decode and prefill speed of a model of Phi-4's shapes with random weights and few layers.
//!
//! `cargo run --release -p upg-cpu --example synthetic [layers] [threads] [prompt tokens]`

use std::time::Instant;

use upg_codec::Isa;
use upg_cpu::{CpuMachine, limits};
use upg_format::ModelConfig;
use upg_pdvm::{
    Logits, Machine, MachineOptions, Segment, Synthetic,
    synthetic::{phi4, ten_to_one},
};

/// Tokens decoded for a timing.
const TOKENS: usize = 16;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let argument = |i, default| std::env::args().nth(i).map_or(Ok(default), |a| a.parse::<usize>());
    let (layers, threads, prompt) = (argument(1, 4)?, argument(2, 2)?, argument(3, 64)?);
    let config = ModelConfig { layers, ..phi4() };
    let weights = Synthetic::new(config, ten_to_one, 1);
    let options = MachineOptions { threads: Some(threads), max_batch: prompt.max(1), ..Default::default() };
    let isa = Isa::from_env()?;
    println!(
        "limits: {:.1} GB/s read, {:.1} G weights/s in cache, {:.0} G multiply-adds/s",
        limits::read_bandwidth(isa, threads)?,
        limits::kernel_rate(isa, threads)?,
        limits::multiply_peak(isa, threads)?
    );
    let start = Instant::now();
    let mut machine = CpuMachine::new(&weights, &options, isa, &mut |_| ())?;
    let info = machine.info();
    println!("{}: made in {:.1} s", info.detail, start.elapsed().as_secs_f64());
    let mut logits = vec![0.0; machine.program().config.vocab];
    let seq = machine.kv_mut().open()?;
    let bytes = info.weight_bytes as f64;
    for _ in 0..3 {
        let start = Instant::now();
        for token in 0..TOKENS as u32 {
            machine.run(&[Segment { seq, tokens: &[token], logits: Logits::Last }], &mut logits)?;
        }
        let rate = TOKENS as f64 / start.elapsed().as_secs_f64();
        println!("decode: {rate:.2} tok/s, {:.1} GB/s", rate * bytes * 1e-9);
    }
    for n in (0..).map(|i| 1 << i).take_while(|&n| n <= prompt) {
        let tokens: Vec<u32> = (0..n as u32).collect();
        machine.kv_mut().truncate(seq, 0)?;
        let start = Instant::now();
        machine.run(&[Segment { seq, tokens: &tokens, logits: Logits::Last }], &mut logits)?;
        let seconds = start.elapsed().as_secs_f64();
        println!("batch of {n}: {:.2} tok/s, {:.1} ms", n as f64 / seconds, seconds * 1e3);
    }
    Ok(())
}
