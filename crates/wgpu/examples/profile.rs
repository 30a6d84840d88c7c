//! Where the time goes on an adapter: the dispatches of a synthetic model, for a prompt and for one token.
//!
//!     cargo run --release -p upg-wgpu --example profile -- [MODEL] [LAYERS] [CONTEXT] [ADAPTER] [COPIES] [WORKGROUPS] [FLOAT]
//!
//! COPIES and WORKGROUPS as in `Tuning`, 0 for what suits the adapter; FLOAT 1 for products in floats, 2 in packed bytes.

use std::{
    error::Error,
    time::{Duration, Instant},
};

use upg_pdvm::{Logits, Machine, MachineOptions, Segment, Synthetic, Weights as _, synthetic};
use upg_wgpu::{Traced, Tuning, WgpuMachine};

fn main() -> Result<(), Box<dyn Error>> {
    let model = std::env::args().nth(1).unwrap_or_else(|| "phi-4".into());
    let mut args = std::env::args().skip(2).map(|arg| arg.parse::<usize>());
    let mut next = |default| args.next().unwrap_or(Ok(default));
    let (layers, context, adapter) = (next(4)?, next(512)?.max(64), next(0)?);
    let mut config = synthetic::preset(&model)?;
    config.layers = layers.min(config.layers);
    let weights = Synthetic::new(config, synthetic::ten_to_one, 1);
    let options = MachineOptions { context, ..Default::default() };
    let some = |value| (value > 0).then_some(value);
    let (copies, workgroups, float) = (some(next(0)?), some(next(0)?), some(next(0)?));
    let teams = some(next(0)?).map(|teams| teams == 1);
    let tuning =
        Tuning { copies, workgroups, teams, packed: float.map(|float| float == 2), ..Tuning::default() };
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
    print(&mut machine)?;
    let (mut logits, tokens) = (vec![0.0; vocab], 32);
    machine.run(&[Segment { seq, tokens: &[1], logits: Logits::Last }], &mut logits)?;
    let counters = |machine: &WgpuMachine| machine.counters().unwrap_or_default();
    let (start, before) = (Instant::now(), counters(&machine));
    for token in 0..tokens {
        machine.run(&[Segment { seq, tokens: &[token], logits: Logits::Last }], &mut logits)?;
    }
    let each = |time: Duration| time.as_secs_f64() * 1e6 / f64::from(tokens);
    let (whole, after) = (each(start.elapsed()), counters(&machine));
    let host = each(after.host_time - before.host_time);
    println!("one token: {whole:.0} µs, of which {host:.0} encoding and submitting");
    print(&mut machine)?;
    machine.kv_mut().truncate(seq, context - 33)?;
    let mut found = vec![0; tokens as usize];
    let (start, before) = (Instant::now(), counters(&machine));
    machine.run_greedy(seq, 1, &mut found)?;
    let (whole, after) = (each(start.elapsed()), counters(&machine));
    let host = each(after.host_time - before.host_time);
    println!("one token, chosen by the device: {whole:.0} µs, of which {host:.0} encoding and submitting");
    Ok(())
}

fn print(machine: &mut WgpuMachine) -> Result<(), Box<dyn Error>> {
    for Traced { label, count, time } in machine.trace()? {
        let all = time.as_secs_f64() * 1e6;
        println!("{all:10.0} µs = {count:4} of {:8.1} µs  {label}", all / f64::from(count));
    }
    Ok(())
}
