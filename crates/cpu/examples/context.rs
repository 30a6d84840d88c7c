//! What a context costs: Phi-4's attention over the tokens before, for one kind of cache.
//!
//! One layer, of which only the heads have Phi-4's sizes: attention does not depend on the other widths.
//!
//! `cargo run --release -p upg-cpu --example context [f32, f16, q8 or q4] [threads] [tokens before]...`

use std::time::Duration;

use upg_codec::Isa;
use upg_cpu::CpuMachine;
use upg_format::ModelConfig;
use upg_pdvm::{
    KvKind, Logits, Machine, MachineOptions, Op, Segment, Synthetic,
    synthetic::{phi4, ten_to_one},
};

/// Tokens that are timed at each depth; the median counts.
const TOKENS: usize = 15;

/// Tokens in one run of those that come before.
const MAX_BATCH: usize = 512;

/// A width that costs next to nothing.
const NARROW: usize = 640;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let kv: KvKind = arguments.first().map_or("f16", String::as_str).parse()?;
    let threads = arguments.get(1).map_or(Ok(2), |threads| threads.parse())?;
    let mut depths = vec![0, 4096, 16_368];
    if let Some(given) = arguments.get(2..).filter(|given| !given.is_empty()) {
        depths = given.iter().map(|depth| depth.parse()).collect::<Result<_, _>>()?;
    }
    depths.sort_unstable();

    let whole = phi4();
    let config = ModelConfig { layers: 1, hidden: NARROW, mlp: NARROW, vocab: 32, ..whole.clone() };
    let weights = Synthetic::new(config.clone(), ten_to_one, 1);
    let options = MachineOptions {
        context: depths.last().unwrap_or(&0) + TOKENS + 1,
        threads: Some(threads),
        max_batch: MAX_BATCH,
        kv,
        ..Default::default()
    };
    let mut machine = CpuMachine::new(&weights, &options, Isa::from_env()?, &mut |_| ())?;
    let bytes = machine.info().kv_bytes_per_token;
    let all = bytes * whole.layers as u64;
    println!("{}; {kv}: {all} bytes a token in {} layers", machine.info().detail, whole.layers);
    println!("| tokens before | attention, µs a layer | ms in {} layers | GB/s |", whole.layers);
    println!("|--:|--:|--:|--:|");
    let seq = machine.kv_mut().open()?;
    let mut logits = vec![0.0; config.vocab];
    let mut held = 0;
    for depth in depths {
        let prompt: Vec<u32> = (held..depth).map(|i| (i % config.vocab) as u32).collect();
        for tokens in prompt.chunks(MAX_BATCH) {
            machine.run(&[Segment { seq, tokens, logits: Logits::None }], &mut [])?;
        }
        let mut times = Vec::new();
        for token in 0..TOKENS as u32 {
            let segment = Segment { seq, tokens: &[token], logits: Logits::Last };
            let mut attention = Duration::ZERO;
            machine.run_timed(&[segment], &mut logits, &mut |op, time| {
                if matches!(op, Op::Attend { .. }) {
                    attention += time;
                }
            })?;
            times.push(attention);
        }
        machine.kv_mut().truncate(seq, depth)?;
        held = depth;
        times.sort();
        let micros = times[TOKENS / 2].as_secs_f64() * 1e6;
        let rate = (bytes * depth as u64) as f64 / micros * 1e-3;
        println!("| {depth} | {micros:.0} | {:.2} | {rate:.1} |", micros * whole.layers as f64 * 1e-3);
    }
    Ok(())
}
