//! Timing a machine.

use std::time::Instant;

use anyhow::{Context as _, ensure};
use upg_engine::{Sampler, SamplingOptions};
use upg_pdvm::{Counters, Logits, Machine, Segment, SeqId, rotation::SplitMix64};

use crate::{interrupt::Interrupt, printer::Progress};

/// What to run: every prompt and every generation at every depth.
pub struct Tests {
    /// Tokens of the prompts.
    pub prompts: Vec<usize>,
    /// Tokens to generate.
    pub generations: Vec<usize>,
    /// Tokens in the context before each test.
    pub depths: Vec<usize>,
    /// Times to run each.
    pub reps: usize,
}

impl Tests {
    /// In ascending order of depths, so that a context only grows.
    fn list(&self) -> Vec<Test> {
        let mut depths = self.depths.clone();
        depths.sort_unstable();
        let tests = depths.iter().flat_map(|&depth| {
            let prompts = self.prompts.iter().map(move |&tokens| Test { kind: Kind::Prompt, tokens, depth });
            let generations =
                self.generations.iter().map(move |&tokens| Test { kind: Kind::Generation, tokens, depth });
            prompts.chain(generations)
        });
        tests.filter(|test| test.tokens > 0).collect()
    }

    /// Tokens of the longest context.
    pub fn context(&self) -> usize {
        self.list().iter().map(|test| test.depth.saturating_add(test.tokens)).max().unwrap_or(0)
    }

    /// Whether there is anything to run.
    pub fn is_empty(&self) -> bool {
        self.list().is_empty()
    }

    /// Tokens that warm up the machine: of a prompt, and generated.
    fn warm_up(&self) -> [usize; 2] {
        let most = |tokens: &[usize]| tokens.iter().copied().max().unwrap_or(0);
        [most(&self.prompts).min(16), most(&self.generations).min(2)]
    }

    /// Tokens that [`measure`] runs in all.
    pub fn total_tokens(&self) -> u64 {
        let tests = self.list();
        let deepest = tests.iter().map(|test| test.depth).max().unwrap_or(0);
        let timed: usize = tests.iter().map(|test| self.reps * test.tokens).sum();
        (self.warm_up().iter().sum::<usize>() + deepest + timed) as u64
    }
}

/// What a test runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Prompt,
    Generation,
}

/// One line of the result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Test {
    pub kind: Kind,
    pub tokens: usize,
    /// Tokens in the context before it.
    pub depth: usize,
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

/// The tests' rates.
pub struct Measured {
    pub rates: Vec<(Test, Rate)>,
    /// Of the last generation, where the machine counts it.
    pub token_work: Option<TokenWork>,
}

/// Runs all tests. `progress` counts the tokens.
pub fn measure(
    machine: &mut dyn Machine,
    tests: &Tests,
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
    let [prompt, generation] = tests.warm_up();
    bench.read(prompt)?;
    bench.forget(0)?;
    bench.write(generation)?;
    bench.forget(0)?;
    let mut measured = Measured { rates: Vec::new(), token_work: None };
    let mut held = 0;
    for test in tests.list() {
        bench.read(test.depth - held)?;
        held = test.depth;
        let before = bench.machine.counters();
        let rate = bench.repeat(tests.reps, test)?;
        measured.rates.push((test, rate));
        if test.kind == Kind::Generation {
            measured.token_work = before
                .zip(bench.machine.counters())
                .map(|(before, after)| TokenWork::between(before, after, tests.reps * test.tokens));
        }
    }
    bench.machine.kv_mut().close(seq);
    Ok(measured)
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
    /// Times `reps` runs of a test.
    fn repeat(&mut self, reps: usize, test: Test) -> anyhow::Result<Rate> {
        let mut rates = Vec::with_capacity(reps);
        for _ in 0..reps {
            let started = Instant::now();
            match test.kind {
                Kind::Prompt => self.read(test.tokens)?,
                Kind::Generation => self.write(test.tokens)?,
            }
            rates.push(test.tokens as f64 / started.elapsed().as_secs_f64());
            self.forget(test.depth)?;
        }
        Rate::of(rates).context("a test was not run once")
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

    /// Generates: each token is the likeliest after the one before it, chosen by the machine where that saves time.
    fn write(&mut self, tokens: usize) -> anyhow::Result<()> {
        let mut token = (self.random.next() % self.logits.len() as u64) as u32;
        let mut found = vec![0; self.machine.greedy_tokens().min(tokens)];
        let mut left = tokens;
        while left > 0 {
            if found.len() > 1 {
                ensure!(!self.interrupt.raised(), "interrupted");
                let count = found.len().min(left);
                self.machine.run_greedy(self.seq, token, &mut found[..count])?;
                self.progress.add(count as u64);
                (token, left) = (found[count - 1], left - count);
            } else {
                self.run(&[token], Logits::Last)?;
                (token, left) = (self.sampler.sample(&self.logits)?.token, left - 1);
            }
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
    fn every_test_is_run_at_every_depth() {
        let tests = Tests { prompts: vec![8, 0], generations: vec![2], depths: vec![64, 0], reps: 3 };
        let at = |kind, tokens, depth| Test { kind, tokens, depth };
        let expected = [
            at(Kind::Prompt, 8, 0),
            at(Kind::Generation, 2, 0),
            at(Kind::Prompt, 8, 64),
            at(Kind::Generation, 2, 64),
        ];
        assert_eq!(tests.list(), expected);
        assert_eq!((tests.context(), tests.total_tokens()), (72, 8 + 2 + 64 + 3 * 20));
    }

    #[test]
    fn work_is_counted_for_each_token() {
        let at = |dispatches, us| Counters { dispatches, host_time: Duration::from_micros(us) };
        let work = TokenWork::between(at(100, 50), at(700, 350), 3);
        assert_eq!(work, TokenWork { dispatches: 200.0, host_us: 100.0 });
    }
}
