//! How long a run takes by the number of tokens in it: `cargo run --release -p upg-cuda --example batches`.
//!
//! Phi-4's shapes with random weights; up to 64 sequences with a token each, as when many are answered at once, and
//! prompts of one sequence. Every run's logits are fetched.

use std::time::Instant;

use upg_cuda::CudaMachine;
use upg_pdvm::{
    Logits, Machine, MachineError, MachineOptions, Segment, Synthetic,
    synthetic::{phi4, ten_to_one},
};

const SEQUENCES: [usize; 9] = [1, 2, 3, 4, 8, 16, 24, 32, 64];
const PROMPTS: [usize; 6] = [16, 32, 64, 128, 256, 512];
const REPS: usize = 7;

fn main() -> Result<(), MachineError> {
    let weights = Synthetic::new(phi4(), ten_to_one, 0);
    let options = MachineOptions { context: 512, sequences: 64, max_batch: 512, ..Default::default() };
    let mut machine = CudaMachine::new(&weights, &options, &mut |_| ())?;
    println!("{}", machine.info().detail);
    println!("| tokens of a run | ms | tokens a second |\n|---|---|---|");
    for count in SEQUENCES {
        report(&mut machine, &format!("{count} of {count} sequences"), count, 1)?;
    }
    for tokens in PROMPTS {
        report(&mut machine, &format!("{tokens} of a prompt"), 1, tokens)?;
    }
    Ok(())
}

/// Times runs of `tokens` tokens of each of `sequences` sequences, from an empty context; prints the median.
fn report(
    machine: &mut CudaMachine,
    name: &str,
    sequences: usize,
    tokens: usize,
) -> Result<(), MachineError> {
    let vocab = machine.program().config.vocab;
    let prompt: Vec<u32> = (0..tokens).map(|i| (i * 7919 % vocab) as u32).collect();
    let mut logits = vec![0.0; sequences * vocab];
    let mut times = vec![];
    for _ in 0..REPS {
        let opened: Result<Vec<_>, _> = (0..sequences).map(|_| machine.kv_mut().open()).collect();
        let opened = opened?;
        let segment = |seq: &_| Segment { seq: *seq, tokens: &prompt, logits: Logits::Last };
        let batch: Vec<_> = opened.iter().map(segment).collect();
        let start = Instant::now();
        machine.run(&batch, &mut logits)?;
        times.push(start.elapsed().as_secs_f64());
        for seq in opened {
            machine.kv_mut().close(seq);
        }
    }
    times.sort_by(f64::total_cmp);
    let median = times[REPS / 2];
    println!("| {name} | {:.2} | {:.0} |", median * 1e3, (sequences * tokens) as f64 / median);
    Ok(())
}
