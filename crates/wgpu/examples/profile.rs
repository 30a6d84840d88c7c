//! Where the time goes on an adapter: each dispatch of a synthetic Phi-4, for one token and for a prompt.
//!
//!     cargo run --release -p upg-wgpu --example profile -- [LAYERS] [CONTEXT] [ADAPTER] [COPIES] [QUADS] [FLOAT]
//!
//! COPIES and QUADS as in `Tuning`, 0 for what suits the adapter; FLOAT 1 for products in floats, 2 in packed bytes.

use std::{error::Error, time::Instant};

use upg_pdvm::{Logits, Machine, MachineOptions, Segment, Synthetic, Weights as _, synthetic};
use upg_wgpu::{Tuning, WgpuMachine};

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1).map(|arg| arg.parse::<usize>());
    let mut next = |default| args.next().unwrap_or(Ok(default));
    let (layers, context, adapter) = (next(4)?, next(512)?.max(64), next(0)?);
    let mut config = synthetic::phi4();
    config.layers = layers;
    let weights = Synthetic::new(config, synthetic::ten_to_one, 1);
    let options = MachineOptions { context, ..Default::default() };
    let some = |value| (value > 0).then_some(value);
    let (copies, quads, float) = (some(next(0)?), some(next(0)?), some(next(0)?));
    let tuning = Tuning { copies, quads, packed: float.map(|float| float == 2), ..Tuning::default() };
    let mut machine = WgpuMachine::with(&weights, &options, adapter, tuning, &mut |_| ())?;
    println!("{}", machine.info().detail);
    let vocab = weights.config().vocab;
    let seq = machine.kv_mut().open()?;
    let prompt: Vec<u32> = (0..context - 33).map(|i| (i * 97 % vocab) as u32).collect();
    for _ in 0..2 {
        machine.kv_mut().truncate(seq, 0)?;
        let start = Instant::now();
        for tokens in prompt.chunks(options.max_batch) {
            machine.run(&[Segment { seq, tokens, logits: Logits::None }], &mut [])?;
        }
        println!("prompt: {:.1} tok/s", prompt.len() as f64 / start.elapsed().as_secs_f64());
    }
    print(&mut machine, 3)?;
    let (mut logits, tokens) = (vec![0.0; vocab], 32);
    machine.run(&[Segment { seq, tokens: &[1], logits: Logits::Last }], &mut logits)?;
    let (start, host) = (Instant::now(), machine.host_time());
    for token in 0..tokens {
        machine.run(&[Segment { seq, tokens: &[token], logits: Logits::Last }], &mut logits)?;
    }
    let each = |time: std::time::Duration| time.as_secs_f64() * 1e6 / f64::from(tokens);
    let (whole, host) = (each(start.elapsed()), each(machine.host_time() - host));
    println!("one token: {whole:.0} µs, of which {host:.0} encoding and submitting");
    print(&mut machine, 50)
}

fn print(machine: &mut WgpuMachine, turns: u32) -> Result<(), Box<dyn Error>> {
    for (label, time) in machine.profile(turns)? {
        println!("{:10.1} µs  {label}", time.as_secs_f64() * 1e6);
    }
    Ok(())
}
