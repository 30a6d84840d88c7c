//! Timing a machine.

use std::time::Instant;

use anyhow::{Context as _, ensure};
use upg_engine::{Sampler, SamplingOptions};
use upg_pdvm::{Counters, Logits, Machine, Segment, SeqId, rotation::SplitMix64};

use crate::{interrupt::Interrupt, printer::Progress};

/// What to run.
#[derive(Clone, Copy)]
pub struct Tests {
    /// Tokens of the prompt.
    pub prompt: usize,
    /// Tokens to generate.
    pub generate: usize,
    /// Tokens in the context before each test.
    pub depth: usize,
    /// Times to run each.
    pub reps: usize,
}

/// Tokens a second: the median of the runs, and half the distance from the slowest to the fastest.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rate {
    pub median: f64,
    pub spread: f64,
}

impl Rate {
    fn of(mut rates: Vec<f64>) -> Option<Self> {
        rates.sort_by(f64::total_cmp);
        let (first, last) = (rates.first()?, rates.last()?);
        let middle = rates.len() / 2;
        let median =
            if rates.len() % 2 == 1 { rates[middle] } else { (rates[middle - 1] + rates[middle]) / 2.0 };
        Some(Self { median, spread: (last - first) / 2.0 })
    }
}

/// What a device was given for each token that was generated.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TokenWork {
    /// Kernels or dispatches.
    pub dispatches: f64,
    /// Microseconds of this processor's time for giving them, waiting left out.
    pub host_us: f64,
}

impl TokenWork {
    fn between(before: Counters, after: Counters, tokens: usize) -> Self {
        let tokens = tokens as f64;
        Self {
            dispatches: (after.dispatches - before.dispatches) as f64 / tokens,
            host_us: (after.host_time - before.host_time).as_secs_f64() * 1e6 / tokens,
        }
    }
}

/// Both rates, where asked for.
pub struct Measured {
    pub prefill: Option<Rate>,
    pub decode: Option<Rate>,
    /// Of decoding, where the machine counts it.
    pub token_work: Option<TokenWork>,
}

/// Runs all tests. `progress` counts the tokens.
pub fn measure(
    machine: &mut dyn Machine,
    tests: Tests,
    seed: u64,
    interrupt: &Interrupt,
    progress: &mut Progress,
) -> anyhow::Result<Measured> {
    let vocab = machine.program().config.vocab;
    let seq = machine.kv_mut().open().context("cannot open a sequence")?;
    let sampler = Sampler::new(&SamplingOptions { temperature: 0.0, ..SamplingOptions::default() }, vocab)?;
    let mut bench = Bench {
        machine,
        seq,
        sampler,
        logits: vec![0.0; vocab],
        random: SplitMix64(seed),
        interrupt,
        progress,
    };
    // Code, page tables and threads are warm before the clock runs.
    bench.read(tests.prompt.min(16))?;
    bench.forget(0)?;
    bench.write(tests.generate.min(2))?;
    bench.forget(0)?;
    bench.read(tests.depth)?;
    let prefill = bench.repeat(tests.reps, tests.depth, tests.prompt, Bench::read)?;
    let before = bench.machine.counters();
    let decode = bench.repeat(tests.reps, tests.depth, tests.generate, Bench::write)?;
    let token_work = before
        .zip(bench.machine.counters())
        .filter(|_| tests.generate > 0)
        .map(|(before, after)| TokenWork::between(before, after, tests.reps * tests.generate));
    bench.machine.kv_mut().close(seq);
    Ok(Measured { prefill, decode, token_work })
}

/// Tokens that [`measure`] runs in all.
pub fn total_tokens(tests: Tests) -> u64 {
    let Tests { prompt, generate, depth, reps } = tests;
    (prompt.min(16) + generate.min(2) + depth + reps * (prompt + generate)) as u64
}

struct Bench<'a> {
    machine: &'a mut dyn Machine,
    seq: SeqId,
    sampler: Sampler,
    logits: Vec<f32>,
    random: SplitMix64,
    interrupt: &'a Interrupt,
    progress: &'a mut Progress,
}

impl Bench<'_> {
    /// Times `reps` runs of `test` over `tokens` tokens, each from a context of `depth` tokens.
    fn repeat(
        &mut self,
        reps: usize,
        depth: usize,
        tokens: usize,
        test: fn(&mut Self, usize) -> anyhow::Result<()>,
    ) -> anyhow::Result<Option<Rate>> {
        if tokens == 0 {
            return Ok(None);
        }
        let mut rates = Vec::with_capacity(reps);
        for _ in 0..reps {
            let started = Instant::now();
            test(self, tokens)?;
            rates.push(tokens as f64 / started.elapsed().as_secs_f64());
            self.forget(depth)?;
        }
        Ok(Rate::of(rates))
    }

    /// Runs a prompt of random tokens; the last one's logits are asked for, as a chat would.
    fn read(&mut self, tokens: usize) -> anyhow::Result<()> {
        let vocab = self.logits.len() as u64;
        let prompt: Vec<u32> = (0..tokens).map(|_| (self.random.next() % vocab) as u32).collect();
        let mut left = tokens;
        for chunk in prompt.chunks(self.machine.options().max_batch) {
            left -= chunk.len();
            self.run(chunk, if left == 0 { Logits::Last } else { Logits::None })?;
        }
        Ok(())
    }

    /// Generates: each token is the likeliest after the one before it.
    fn write(&mut self, tokens: usize) -> anyhow::Result<()> {
        let mut token = (self.random.next() % self.logits.len() as u64) as u32;
        for _ in 0..tokens {
            self.run(&[token], Logits::Last)?;
            token = self.sampler.sample(&self.logits)?.token;
        }
        Ok(())
    }

    fn run(&mut self, tokens: &[u32], logits: Logits) -> anyhow::Result<()> {
        ensure!(!self.interrupt.raised(), "interrupted");
        let rows = if logits == Logits::None { 0 } else { self.logits.len() };
        self.machine.run(&[Segment { seq: self.seq, tokens, logits }], &mut self.logits[..rows])?;
        self.progress.add(tokens.len() as u64);
        Ok(())
    }

    fn forget(&mut self, depth: usize) -> anyhow::Result<()> {
        Ok(self.machine.kv_mut().truncate(self.seq, depth)?)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_median_and_half_the_range_are_reported() {
        assert_eq!(Rate::of(vec![3.0, 1.0, 2.0]), Some(Rate { median: 2.0, spread: 1.0 }));
        assert_eq!(Rate::of(vec![4.0, 1.0]), Some(Rate { median: 2.5, spread: 1.5 }));
        assert_eq!(Rate::of(vec![]), None);
    }

    #[test]
    fn work_is_counted_for_each_token() {
        let at = |dispatches, us| Counters { dispatches, host_time: Duration::from_micros(us) };
        let work = TokenWork::between(at(100, 50), at(700, 350), 3);
        assert_eq!(work, TokenWork { dispatches: 200.0, host_us: 100.0 });
    }
}
