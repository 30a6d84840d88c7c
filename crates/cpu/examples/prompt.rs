//! Where the time of a prompt goes: a table of the instructions of a model of Phi-4's shapes with random weights, beside
//! what the multipliers do at most.
//!
//! `cargo run --release -p upg-cpu --example prompt [layers] [threads] [tokens]`

mod lines;

use std::time::Duration;

use upg_codec::Isa;
use upg_cpu::{CpuMachine, limits};
use upg_format::ModelConfig;
use upg_pdvm::{
    Logits, Machine, MachineOptions, Op, Segment, Synthetic,
    synthetic::{phi4, ten_to_one},
};

use lines::line;

/// Prompts that are timed; each instruction's fastest counts, as another program slows the others.
const PROMPTS: usize = 3;

/// The table's lines.
const NAMES: [&str; 7] =
    ["embed", "norm, q, k, v", "attention", "output", "gate, up", "down", "head (one token)"];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let argument = |i, default| std::env::args().nth(i).map_or(Ok(default), |a| a.parse::<usize>());
    let (layers, threads, tokens) = (argument(1, 2)?, argument(2, 2)?, argument(3, 512)?);
    let config = ModelConfig { layers, ..phi4() };
    let weights = Synthetic::new(config.clone(), ten_to_one, 1);
    let options =
        MachineOptions { context: tokens, threads: Some(threads), max_batch: tokens, ..Default::default() };
    let isa = Isa::from_env()?;
    let mut machine = CpuMachine::new(&weights, &options, isa, &mut |_| ())?;
    let mut logits = vec![0.0; config.vocab];
    let mut fastest = [Duration::MAX; NAMES.len()];
    let prompt = vec![7; tokens];
    let mut peak = 0.0f64;
    for _ in 0..PROMPTS {
        let seq = machine.kv_mut().open()?;
        let segment = Segment { seq, tokens: &prompt, logits: Logits::Last };
        let mut sums = [Duration::ZERO; NAMES.len()];
        machine.run_timed(&[segment], &mut logits, &mut |op, time| sums[line(op)] += time)?;
        fastest.iter_mut().zip(sums).for_each(|(fastest, sum)| *fastest = sum.min(*fastest));
        machine.kv_mut().close(seq);
        peak = peak.max(limits::multiply_peak(isa, threads)?);
    }

    let seconds = fastest.map(|time| time.as_secs_f64());
    let total: f64 = seconds.iter().sum();
    let mut products = [0.0; NAMES.len()];
    for op in &machine.program().ops {
        let times = if matches!(op, Op::NormHead) { 1 } else { tokens };
        if !matches!(op, Op::Embed) {
            let matrices = op.tensors(&config).into_iter().filter(|name| !name.kind().is_vector());
            let weights: usize = matrices.map(|name| name.shape(&config).iter().product::<usize>()).sum();
            products[line(*op)] += (times * weights) as f64;
        }
    }
    println!("{}; multiply {peak:.0} G multiply-adds/s; {tokens} tokens", machine.info().detail);
    println!("| instruction | ms a layer | % of the prompt | G multiply-adds/s | % of the peak |");
    println!("|---|--:|--:|--:|--:|");
    for ((name, seconds), products) in NAMES.iter().zip(seconds).zip(products) {
        let times = if *name == NAMES[0] || *name == NAMES[6] { 1 } else { layers };
        let rate = products / seconds * 1e-9;
        println!(
            "| {name} | {:.1} | {:.1} | {rate:.1} | {:.1} |",
            1e3 * seconds / times as f64,
            100.0 * seconds / total,
            100.0 * rate / peak
        );
    }
    println!("a prompt: {total:.2} s, {:.2} tok/s", tokens as f64 / total);
    Ok(())
}
