//! Rounding rows of numbers to T8 codes and row scales.

use half::f16;
use rayon::prelude::*;
use upg_codec::{Bits, Encoder, GROUP, decode_row};

/// Rounds of search, scale by least squares, search again. Each costs a whole search. The second is worth 0.01 dB on
/// Gaussian rows and up to 0.14 dB on a real model's; a third was measured at less than 0.015 dB on Gaussian rows.
const PASSES: usize = 2;

/// Groups that one call of the encoder gets: enough to fill its vectors many times over.
const TASK_GROUPS: usize = 256;

/// Sums of squares of numbers and of their rounding errors.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Energy {
    /// Of the numbers.
    pub signal: f64,
    /// Of the errors.
    pub noise: f64,
}

impl Energy {
    /// Signal to error in dB; `None` where one of the two is zero.
    pub fn snr_db(self) -> Option<f32> {
        let positive = self.signal > 0.0 && self.noise > 0.0;
        positive.then(|| (10.0 * (self.signal / self.noise).log10()) as f32)
    }
}

impl std::ops::AddAssign for Energy {
    fn add_assign(&mut self, other: Self) {
        self.signal += other.signal;
        self.noise += other.noise;
    }
}

/// A row whose scale does not fit an `f16`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowTooLarge(pub usize);

/// Rounds rows of `cols` numbers to T8: to each the codes and the scale of least square error that the search finds.
/// A row of zeros gets the scale 0. Uses the current rayon pool; the result does not depend on it.
///
/// `scales` has a place for each row, `codes` [`Bits::row_bytes`] for each.
///
/// # Errors
/// Names the first row, counted from the start of `x`, that is too large.
///
/// # Panics
/// If the lengths do not belong together.
pub fn round_rows(
    bits: Bits,
    x: &[f32],
    cols: usize,
    scales: &mut [f16],
    codes: &mut [u8],
) -> Result<Energy, RowTooLarge> {
    let row_bytes = codes.len() / scales.len();
    assert_eq!(x.len(), scales.len() * cols, "rows and scales");
    assert_eq!(bits.row_bytes(cols), Some(row_bytes), "columns and codes");
    let rows = (TASK_GROUPS * GROUP / cols).max(1);
    let mut energies = vec![Energy::default(); scales.len()];
    x.par_chunks(rows * cols)
        .zip(scales.par_chunks_mut(rows))
        .zip(codes.par_chunks_mut(rows * row_bytes))
        .zip(energies.par_chunks_mut(rows))
        .for_each_init(
            || Rounder::new(bits),
            |rounder, (((x, scales), codes), energies)| rounder.round(x, cols, scales, codes, energies),
        );
    if let Some(row) = scales.iter().position(|scale| !scale.is_finite()) {
        return Err(RowTooLarge(row));
    }
    // In the order of the rows: the sum must not depend on the threads.
    Ok(energies.into_iter().fold(Energy::default(), |mut sum, row| {
        sum += row;
        sum
    }))
}

/// One thread's encoder and scratch.
struct Rounder {
    bits: Bits,
    encoder: Encoder,
    units: Vec<f32>,
    codes: Vec<u8>,
    values: Vec<i8>,
}

impl Rounder {
    fn new(bits: Bits) -> Self {
        Self { bits, encoder: Encoder::new(bits), units: Vec::new(), codes: Vec::new(), values: Vec::new() }
    }

    /// Rounds a few rows. Leaves a scale that is not finite where a row is too large.
    fn round(
        &mut self,
        x: &[f32],
        cols: usize,
        scales: &mut [f16],
        codes: &mut [u8],
        energies: &mut [Energy],
    ) {
        let row_bytes = codes.len() / scales.len();
        let mut trial: Vec<f16> = x.chunks_exact(cols).map(|row| self.first_scale(row)).collect();
        self.units.resize(x.len(), 0.0);
        self.codes.resize(codes.len(), 0);
        self.values.resize(cols, 0);
        for (row, energy) in x.chunks_exact(cols).zip(energies.iter_mut()) {
            let signal = dot(row.iter().map(|&x| (x, x)));
            *energy = Energy { signal, noise: f64::INFINITY };
        }
        for _ in 0..PASSES {
            self.search(x, cols, &trial);
            for (r, row) in x.chunks_exact(cols).enumerate() {
                let found = &self.codes[r * row_bytes..][..row_bytes];
                decode_row(self.bits, found, &mut self.values);
                let (scale, noise) = refit(row, &self.values, energies[r].signal, trial[r]);
                if noise < energies[r].noise {
                    scales[r] = scale;
                    energies[r].noise = noise;
                    codes[r * row_bytes..][..row_bytes].copy_from_slice(found);
                }
                trial[r] = scale;
            }
        }
        self.settle_extremes(x, cols, scales, codes, energies);
    }

    /// The scale that brings a Gaussian row to the deviation that the tables were trained for.
    fn first_scale(&self, row: &[f32]) -> f16 {
        let rms = (dot(row.iter().map(|&x| (x, x))) / row.len() as f64).sqrt();
        let scale = f16::from_f64(rms / f64::from(self.bits.table().sigma));
        // A scale that rounds to zero would divide by zero; the smallest one does for rows that small.
        if scale == f16::ZERO { f16::MIN_POSITIVE_SUBNORMAL } else { scale }
    }

    /// The codes of each row in units of its scale.
    fn search(&mut self, x: &[f32], cols: usize, scales: &[f16]) {
        for ((units, row), scale) in self.units.chunks_exact_mut(cols).zip(x.chunks_exact(cols)).zip(scales) {
            let inverse = 1.0 / scale.to_f32();
            for (unit, x) in units.iter_mut().zip(row) {
                *unit = x * inverse;
            }
        }
        self.encoder.encode(&self.units, None, &mut self.codes, None);
    }

    /// Rows for which there is nothing to search: all zeros, and too large for any scale.
    fn settle_extremes(
        &self,
        x: &[f32],
        cols: usize,
        scales: &mut [f16],
        codes: &mut [u8],
        energies: &mut [Energy],
    ) {
        let row_bytes = codes.len() / scales.len();
        for (r, row) in x.chunks_exact(cols).enumerate() {
            if energies[r].signal == 0.0 {
                (scales[r], energies[r].noise) = (f16::ZERO, 0.0);
                codes[r * row_bytes..][..row_bytes].fill(0);
            } else if !self.first_scale(row).is_finite() {
                scales[r] = f16::INFINITY;
            }
        }
    }
}

/// The scale of least square error for `values`, as far as an `f16` has it, and the squared error left; `scale`
/// again where all values are zero.
fn refit(row: &[f32], values: &[i8], signal: f64, scale: f16) -> (f16, f64) {
    let cross = dot(row.iter().zip(values).map(|(&x, &v)| (x, f32::from(v))));
    let power = dot(values.iter().map(|&v| (f32::from(v), f32::from(v))));
    let scale = if power > 0.0 { f16::from_f64(cross / power) } else { scale };
    let s = scale.to_f64();
    (scale, signal - 2.0 * s * cross + s * s * power)
}

/// A dot product in f64, in eight partial sums so that it vectorises, in the same order everywhere.
fn dot(pairs: impl Iterator<Item = (f32, f32)>) -> f64 {
    let mut sums = [0.0_f64; 8];
    for (i, (a, b)) in pairs.enumerate() {
        sums[i % 8] += f64::from(a) * f64::from(b);
    }
    sums.iter().sum()
}
