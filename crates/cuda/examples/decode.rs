//! How long a token takes by its position: `cargo run --release -p upg-cuda --example decode [persistent|graph|q8]...`.
//!
//! Phi-4's shapes with random weights, one sequence; with logits fetched, and of eight tokens that the card chooses. Names of
//! executions choose which are timed; with `q8` keys and values are kept in 8 bits.

use std::time::{Duration, Instant};

use upg_cuda::{CudaMachine, Execution, Settings};
use upg_pdvm::{
    KvKind, Logits, Machine, MachineError, MachineOptions, Segment, Synthetic,
    synthetic::{phi4, ten_to_one},
};

const POSITIONS: [usize; 6] = [0, 64, 500, 1000, 4095, 16_300];
const REPS: usize = 15;

fn main() -> Result<(), MachineError> {
    let asked: Vec<String> = std::env::args().skip(1).collect();
    let weights = Synthetic::new(phi4(), ten_to_one, 0);
    let kv = if asked.iter().any(|word| word == "q8") { KvKind::Q8 } else { KvKind::F16 };
    let executions = [Execution::Persistent, Execution::Graph];
    let named = |execution: Execution| asked.iter().any(|word| word == execution.name());
    let some = executions.into_iter().any(named);
    let options = MachineOptions { context: 16_384, kv, ..Default::default() };
    for execution in executions.into_iter().filter(|execution| !some || named(*execution)) {
        let settings =
            Settings { execution: Some(execution), patience: Duration::from_secs(20), shared: usize::MAX };
        let mut machine = CudaMachine::with(&weights, &options, settings, &mut |_| ())?;
        println!(
            "{}\n| position | ms, logits fetched | ms, chosen on the card | tokens a second |\n|---|---|---|---|",
            machine.info().detail
        );
        for position in POSITIONS {
            let [one, chosen] = median(&mut machine, position)?;
            println!("| {position} | {:.3} | {:.3} | {:.1} |", one * 1e3, chosen * 1e3, 1.0 / chosen);
        }
    }
    Ok(())
}

/// The median time in seconds of a token after `position` others: its logits fetched, and of several chosen on the card.
fn median(machine: &mut CudaMachine, position: usize) -> Result<[f64; 2], MachineError> {
    let vocab = machine.program().config.vocab;
    let mut logits = vec![0.0; vocab];
    let seq = machine.kv_mut().open()?;
    let prompt: Vec<u32> = (0..position).map(|i| (i * 7919 % vocab) as u32).collect();
    for tokens in prompt.chunks(512) {
        machine.run(&[Segment { seq, tokens, logits: Logits::None }], &mut [])?;
    }
    let mut found = vec![0; machine.greedy_tokens()];
    let (mut one, mut chosen) = (vec![], vec![]);
    for _ in 0..REPS {
        let start = Instant::now();
        machine.run(&[Segment { seq, tokens: &[1], logits: Logits::Last }], &mut logits)?;
        one.push(start.elapsed().as_secs_f64());
        machine.kv_mut().truncate(seq, position)?;
        let start = Instant::now();
        machine.run_greedy(seq, 1, &mut found)?;
        chosen.push(start.elapsed().as_secs_f64() / found.len() as f64);
        machine.kv_mut().truncate(seq, position)?;
    }
    machine.kv_mut().close(seq);
    Ok([one, chosen].map(|mut times| {
        times.sort_by(f64::total_cmp);
        times[REPS / 2]
    }))
}
