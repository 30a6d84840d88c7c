//! Alternates between encoding data with the present tables and fitting the tables to the codes by least squares,
//! from many starts; then anneals the best of them by exchanging entries, and last settles each `i8`.

use upg_codec::{Bits, Encoder, GROUP, Isa, Table, state};

use crate::gaussian::Gaussian;

/// Random starts for each code.
const STARTS: usize = 200;
/// Starts that are annealed.
const FINALISTS: usize = 6;
/// Exchanges tried on each finalist.
const EXCHANGES: usize = 600;

/// Tables of real numbers, in units of one standard deviation.
#[derive(Clone, Debug)]
struct Real {
    low: [f64; 16],
    high: [f64; 16],
}

pub fn train(bits: Bits) -> Table {
    let mut random = Gaussian::new(bits.get() as u64);
    let small = random.groups(512);
    let medium = random.groups(2048);
    let large = random.groups(16384);

    let mut trial = Trial::new(bits, &small);
    let mut starts: Vec<(f64, Real)> = (0..STARTS)
        .map(|_| {
            let mut tables = Real::random(&mut random);
            let snr = trial.settle(&mut tables, 12);
            (snr, tables)
        })
        .collect();
    starts.sort_by(|a, b| b.0.total_cmp(&a.0));
    starts.truncate(FINALISTS);

    let mut trial = Trial::new(bits, &medium);
    let annealed = starts.into_iter().map(|(_, tables)| anneal(&mut trial, tables, &mut random));
    let Some((_, mut best)) = annealed.max_by(|a, b| a.0.total_cmp(&b.0)) else { unreachable!("finalists") };

    let mut trial = Trial::new(bits, &large);
    trial.settle(&mut best, 30);
    polish(&mut trial, best.rounded())
}

/// Exchanges two entries of a table at a time, at a falling temperature.
fn anneal(trial: &mut Trial, tables: Real, random: &mut Gaussian) -> (f64, Real) {
    let mut present = (f64::NEG_INFINITY, tables);
    present.0 = trial.settle(&mut present.1, 10);
    let mut best = present.clone();
    for step in 0..EXCHANGES {
        let mut tables = present.1.clone();
        let (a, b) = (random.below(16), random.below(16));
        let side = if random.below(2) == 0 { &mut tables.low } else { &mut tables.high };
        side.swap(a, b);
        if random.below(4) == 0 {
            side[a] += 0.2 * random.normal();
        }
        let snr = trial.settle(&mut tables, 3);
        let temperature = 0.03 * (1.0 - step as f64 / EXCHANGES as f64);
        if snr > present.0 + temperature * random.uniform().ln() {
            present = (snr, tables);
            if present.0 > best.0 {
                best = present.clone();
            }
        }
    }
    eprintln!("  annealed to {:.3} dB", best.0);
    best
}

/// Moves one entry, or sigma, by one step as long as that helps.
fn polish(trial: &mut Trial, table: Table) -> Table {
    let mut best = (trial.snr(&table), table);
    loop {
        let before = best.0;
        for entry in 0..33 {
            for step in [-2i8, -1, 1, 2] {
                let mut table = best.1;
                match entry {
                    0..16 => table.low[entry] += step,
                    16..32 => table.high[entry - 16] += step,
                    _ => table.sigma += 0.125 * f32::from(step),
                }
                if spans(&table) <= 127 {
                    let snr = trial.snr(&table);
                    if snr > best.0 {
                        best = (snr, table);
                    }
                }
            }
        }
        eprintln!("  polished to {:.4} dB", best.0);
        if best.0 - before < 0.001 {
            return best.1;
        }
    }
}

/// The largest magnitude of a value.
fn spans(table: &Table) -> i32 {
    let extremes = |side: &[i8; 16]| {
        let side = side.map(i32::from);
        (side.iter().copied().fold(0, i32::min), side.iter().copied().fold(0, i32::max))
    };
    let (low, high) = (extremes(&table.low), extremes(&table.high));
    (low.1 + high.1).max(-low.0 - high.0)
}

impl Real {
    /// Random permutations of evenly spread entries, the finer side of random fineness.
    fn random(random: &mut Gaussian) -> Self {
        let fine = 16f64.powf(-random.uniform());
        let (a, b) = (3.0 / (1.0 + fine), 3.0 * fine / (1.0 + fine));
        let (low, high) = if random.below(2) == 0 { (a, b) } else { (b, a) };
        Self { low: spread(low, random), high: spread(high, random) }
    }

    /// To `i8`, with the largest sum at 127.
    fn rounded(&self) -> Table {
        let ends = |side: &[f64; 16]| {
            (
                side.iter().copied().fold(f64::INFINITY, f64::min),
                side.iter().copied().fold(f64::NEG_INFINITY, f64::max),
            )
        };
        let (low, high) = (ends(&self.low), ends(&self.high));
        // Any constant may pass from one side to the other: centre both.
        let middle = (high.0 + high.1) / 2.0;
        let largest = (low.1 + middle + high.1 - middle).max(-(low.0 + high.0));
        let sigma = 126.49 / largest;
        // The sum of two rounded numbers can be one more than the rounded sum.
        let (mut table, mut sigma) = (Table { low: [0; 16], high: [0; 16], sigma: 0.0 }, sigma);
        loop {
            table.low = self.low.map(|v| ((v + middle) * sigma).round() as i8);
            table.high = self.high.map(|v| ((v - middle) * sigma).round() as i8);
            table.sigma = sigma as f32;
            if spans(&table) <= 127 {
                return table;
            }
            sigma *= 0.999;
        }
    }
}

fn spread(reach: f64, random: &mut Gaussian) -> [f64; 16] {
    let mut entries = std::array::from_fn(|n| (n as f64 - 7.5) / 7.5 * reach);
    for n in (1..16).rev() {
        entries.swap(n, random.below(n + 1));
    }
    entries
}

/// Data to try tables on.
pub struct Trial<'a> {
    bits: Bits,
    data: &'a [f32],
    scaled: Vec<f32>,
    codes: Vec<u8>,
}

impl<'a> Trial<'a> {
    pub fn new(bits: Bits, data: &'a [f32]) -> Self {
        Self {
            bits,
            data,
            scaled: vec![0.0; data.len()],
            codes: vec![0; data.len() / GROUP * bits.group_bytes()],
        }
    }

    /// Signal to error in decibels, with the values scaled to fit best (as every row's scale is).
    pub fn snr(&mut self, table: &Table) -> f64 {
        let sums = self.sums(table);
        let (mut value_data, mut value_value) = (0.0, 0.0);
        for (state, (count, sum)) in sums.states.iter().enumerate() {
            let value = f64::from(table.value(state as u8));
            value_data += value * sum;
            value_value += value * value * count;
        }
        // min over c of |x - c v|² = |x|² - (v·x)²/|v|².
        10.0 * (sums.signal / (sums.signal - value_data * value_data / value_value)).log10()
    }

    /// Fits the tables to the data, `rounds` times; the signal to error before the last fit.
    fn settle(&mut self, tables: &mut Real, rounds: usize) -> f64 {
        let mut snr = f64::NEG_INFINITY;
        for _ in 0..rounds {
            let table = tables.rounded();
            let sums = self.sums(&table);
            let sigma = f64::from(table.sigma);
            let mut residual = sums.signal;
            for (state, (count, sum)) in sums.states.iter().enumerate() {
                let value = f64::from(table.value(state as u8)) / sigma;
                residual += count * value * value - 2.0 * value * sum;
            }
            snr = 10.0 * (sums.signal / residual).log10();
            fit(tables, &sums);
        }
        snr
    }

    fn sums(&mut self, table: &Table) -> Sums {
        for (scaled, x) in self.scaled.iter_mut().zip(self.data) {
            *scaled = x * table.sigma;
        }
        Encoder::with_table(self.bits, Isa::best(), table).encode(&self.scaled, None, &mut self.codes, None);
        let mut sums = Sums { signal: 0.0, states: [(0.0, 0.0); 256] };
        let groups = self.data.chunks_exact(GROUP).zip(self.codes.chunks_exact(self.bits.group_bytes()));
        for (data, code) in groups {
            for (i, x) in data.iter().enumerate() {
                let (count, sum) = &mut sums.states[usize::from(state(self.bits, code, i))];
                *count += 1.0;
                *sum += f64::from(*x);
                sums.signal += f64::from(*x).powi(2);
            }
        }
        sums
    }
}

/// What least squares need to know of an encoding.
struct Sums {
    /// `Σ x²`.
    signal: f64,
    /// By state: how many numbers it stands for, and their sum.
    states: [(f64, f64); 256],
}

/// Least squares for the 32 entries given the states, by alternating exact fits of the two sides.
fn fit(tables: &mut Real, sums: &Sums) {
    for _ in 0..8 {
        for n in 0..16 {
            let (mut count, mut sum) = (1e-9, 0.0);
            for m in 0..16 {
                let (c, s) = sums.states[m << 4 | n];
                count += c;
                sum += s - c * tables.high[m];
            }
            if count > 0.5 {
                tables.low[n] = sum / count;
            }
        }
        for m in 0..16 {
            let (mut count, mut sum) = (1e-9, 0.0);
            for n in 0..16 {
                let (c, s) = sums.states[m << 4 | n];
                count += c;
                sum += s - c * tables.low[n];
            }
            if count > 0.5 {
                tables.high[m] = sum / count;
            }
        }
    }
}
