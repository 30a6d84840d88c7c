//! Where the time of one token goes: a table of the instructions of a model of Phi-4's shapes with random weights.
//!
//! `cargo run --release -p upg-cpu --example profile [layers] [threads] [tokens before] [f32, f16, q8 or q4]`

mod lines;

use std::time::Duration;

use upg_codec::Isa;
use upg_cpu::{CpuMachine, limits};
use upg_format::ModelConfig;
use upg_pdvm::{
    KvKind, Logits, Machine, MachineOptions, Op, Segment, Synthetic,
    synthetic::{phi4, ten_to_one},
};

use lines::line;

/// Tokens that are timed; each instruction's median counts.
const TOKENS: usize = 15;

/// Tokens in one run of those that come before.
const MAX_BATCH: usize = 512;

/// The table's lines.
const NAMES: [&str; 7] = ["embed", "norm, q, k, v", "attention", "output", "gate, up", "down", "head"];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let argument = |i, default| std::env::args().nth(i).map_or(Ok(default), |a| a.parse::<usize>());
    let (layers, threads, depth) = (argument(1, 4)?, argument(2, 2)?, argument(3, 0)?);
    let kv: KvKind = std::env::args().nth(4).as_deref().unwrap_or("f16").parse()?;
    let config = ModelConfig { layers, ..phi4() };
    let weights = Synthetic::new(config.clone(), ten_to_one, 1);
    let options = MachineOptions {
        context: depth + TOKENS + 1,
        threads: Some(threads),
        max_batch: MAX_BATCH,
        kv,
        ..Default::default()
    };
    let isa = Isa::from_env()?;
    let read = limits::read_bandwidth(isa, threads)?;
    let mut machine = CpuMachine::new(&weights, &options, isa, &mut |_| ())?;
    let info = machine.info();
    println!("{}; memory read {read:.1} GB/s; {depth} tokens before, kept in {kv}", info.detail);

    let seq = machine.kv_mut().open()?;
    for tokens in vec![7; depth].chunks(MAX_BATCH) {
        machine.run(&[Segment { seq, tokens, logits: Logits::None }], &mut [])?;
    }
    let mut logits = vec![0.0; config.vocab];
    let mut times = vec![Vec::new(); NAMES.len()];
    for token in 0..=TOKENS as u32 {
        let mut sums = [Duration::ZERO; NAMES.len()];
        let segment = Segment { seq, tokens: &[token], logits: Logits::Last };
        machine.run_timed(&[segment], &mut logits, &mut |op, time| sums[line(op)] += time)?;
        // The first one warms up.
        if token > 0 {
            times.iter_mut().zip(sums).for_each(|(times, sum)| times.push(sum));
        }
    }
    let median = |times: &mut Vec<Duration>| {
        times.sort();
        times[TOKENS / 2].as_secs_f64() * 1e6
    };
    let micros: Vec<f64> = times.iter_mut().map(median).collect();
    let total: f64 = micros.iter().sum();

    let mut bytes = vec![0; NAMES.len()];
    for op in &machine.program().ops {
        let stored = |name: &upg_format::TensorName| {
            weights.encoding(*name).stored_length(name.shape(&config).map(|n| n as u64)).unwrap_or(0)
        };
        bytes[line(*op)] += match op {
            // One row of the embedding.
            Op::Embed => 0,
            Op::Attend { .. } => info.kv_bytes_per_token / layers as u64 * depth as u64,
            op => op.tensors(&config).iter().map(stored).sum::<u64>(),
        };
    }
    println!("| instruction | µs a layer | % of the token | GB/s | % of a pure read |");
    println!("|---|--:|--:|--:|--:|");
    for ((name, micros), bytes) in NAMES.iter().zip(&micros).zip(&bytes) {
        let times = if matches!(*name, "embed" | "head") { 1 } else { layers };
        let rate = *bytes as f64 / micros * 1e-3;
        println!(
            "| {name} | {:.1} | {:.1} | {rate:.1} | {:.0} |",
            micros / times as f64,
            100.0 * micros / total,
            100.0 * rate / read
        );
    }
    println!("a token: {:.2} ms, {:.2} tok/s", total * 1e-3, 1e6 / total);
    Ok(())
}
