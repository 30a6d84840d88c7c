//! Rounding with feedback: block LDLQ (QuIP#, Tseng et al. 2024) over T8.
//!
//! Blocks of [`GROUP`] columns are rounded from the last to the first, each after the errors of those already done
//! have been passed on to it: with `H = (1 + L) D (1 + L)ᵀ`, block `k` is rounded from
//! `w[k] + Σ_{j > k} (w[j] - ŵ[j]) L[j, k]`, and the error of the outputs becomes `η D ηᵀ`, `η` the errors of these
//! roundings alone.

use half::f16;
use rayon::prelude::*;
use upg_codec::{Bits, Encoder, GROUP, decode_row};

use super::{
    hessian::{Factor, Hessian},
    linalg::{Into, View, ViewMut, multiply},
};
use crate::round::Energy;

/// Rows of one task: what a product needs to be worth its packing.
const TASK_ROWS: usize = 64;

/// Columns between which errors are passed on block by block; from all columns behind them, by one product.
const SPAN: usize = 8 * GROUP;

/// Rounds of search and scale. The second starts from the scale that fits the first one's values.
const PASSES: usize = 2;

/// A matrix in T8.
#[derive(Clone)]
pub(crate) struct Rounded {
    pub(crate) scales: Vec<f16>,
    pub(crate) codes: Vec<u8>,
    /// Of the outputs: `w H wᵀ` and `e H eᵀ`, in the Hessian that the scales were fitted to.
    pub(crate) energy: Energy,
}

/// Rounds `x`, rows of the Hessian's width. Without a `factor` nothing is passed on; scales are fitted to the
/// Hessian's metric either way. A row whose scale does not fit an `f16` gets one that is not finite.
///
/// Uses the current rayon pool; the result does not depend on it.
pub(crate) fn round(
    bits: Bits,
    x: &[f32],
    hessian: &Hessian,
    factor: Option<&Factor>,
    cols: usize,
) -> Rounded {
    let (rows, row_bytes) = (x.len() / cols, cols / GROUP * bits.group_bytes());
    let (mut scales, mut codes) = (vec![f16::ZERO; rows], vec![0; rows * row_bytes]);
    let mut energies = vec![Energy::default(); rows.div_ceil(TASK_ROWS)];
    x.par_chunks(TASK_ROWS * cols)
        .zip(scales.par_chunks_mut(TASK_ROWS))
        .zip(codes.par_chunks_mut(TASK_ROWS * row_bytes))
        .zip(energies.par_iter_mut())
        .for_each(|(((x, scales), codes), energy)| {
            *energy = Task { bits, cols, x, hessian, factor }.run(scales, codes);
        });
    // In the order of the rows: the sum must not depend on the threads.
    let energy = energies.into_iter().fold(Energy::default(), |mut sum, e| {
        sum += e;
        sum
    });
    Rounded { scales, codes, energy }
}

/// The numbers that rows in T8 stand for.
pub(crate) fn values(bits: Bits, scales: &[f16], codes: &[u8], cols: usize) -> Vec<f32> {
    let row_bytes = codes.len() / scales.len();
    let mut out = vec![0.0; scales.len() * cols];
    let rows = out.par_chunks_mut(cols).zip(codes.par_chunks(row_bytes)).zip(scales);
    rows.for_each_init(
        || vec![0_i8; cols],
        |values, ((out, codes), scale)| {
            decode_row(bits, codes, values);
            out.iter_mut().zip(values).for_each(|(out, v)| *out = scale.to_f32() * f32::from(*v));
        },
    );
    out
}

/// A few rows to round on one thread.
struct Task<'a> {
    bits: Bits,
    cols: usize,
    x: &'a [f32],
    hessian: &'a Hessian,
    factor: Option<&'a Factor>,
}

impl Task<'_> {
    fn run(&self, scales: &mut [f16], codes: &mut [u8]) -> Energy {
        let cols = self.cols;
        let weighted = self.hessian.times(self.x); // x H
        let signal: Vec<f64> =
            self.x.chunks_exact(cols).zip(weighted.chunks_exact(cols)).map(|(x, h)| dot(x, h)).collect();
        let mut trial: Vec<f16> = self.x.chunks_exact(cols).map(|row| first_scale(self.bits, row)).collect();
        let mut noise = vec![f64::INFINITY; scales.len()];
        let mut encoder = Encoder::new(self.bits);
        let mut found = vec![0; codes.len()];
        let row_bytes = codes.len() / scales.len();
        for _ in 0..PASSES {
            let v = self.search(&mut encoder, &trial, &mut found);
            let vh = self.hessian.times(&v);
            for r in 0..scales.len() {
                let row = r * cols..(r + 1) * cols;
                let cross = dot(&v[row.clone()], &weighted[row.clone()]);
                let power = dot(&v[row.clone()], &vh[row]);
                let fitted = if power > 0.0 { f16::from_f64(cross / power) } else { trial[r] };
                let s = fitted.to_f64();
                let left = signal[r] - 2.0 * s * cross + s * s * power;
                // The first pass is kept whatever it gave: a scale that is not finite must be seen.
                if left < noise[r] || noise[r] == f64::INFINITY {
                    (scales[r], noise[r]) = (fitted, left);
                    codes[r * row_bytes..][..row_bytes].copy_from_slice(&found[r * row_bytes..][..row_bytes]);
                }
                trial[r] = fitted;
            }
        }
        for (r, row) in self.x.chunks_exact(cols).enumerate() {
            if row.iter().all(|x| *x == 0.0) {
                (scales[r], noise[r]) = (f16::ZERO, 0.0);
                codes[r * row_bytes..][..row_bytes].fill(0);
            } else if !first_scale(self.bits, row).is_finite() {
                scales[r] = f16::INFINITY;
            }
        }
        Energy { signal: signal.iter().sum(), noise: noise.iter().map(|n| n.max(0.0)).sum() }
    }

    /// One round of search. Fills `codes`; returns their values, in units of the scale.
    fn search(&self, encoder: &mut Encoder, scales: &[f16], codes: &mut [u8]) -> Vec<f32> {
        let (rows, cols) = (scales.len(), self.cols);
        let (group_bytes, row_bytes) = (self.bits.group_bytes(), codes.len() / rows);
        // Errors w - ŵ of the columns done so far, and the values.
        let (mut errors, mut found) = (vec![0.0; rows * cols], vec![0.0; rows * cols]);
        let mut units = vec![0.0; rows * GROUP];
        let mut packed = vec![0; rows * group_bytes];
        let mut values = [0_i8; GROUP];
        for start in (0..cols).step_by(SPAN).rev() {
            let span = start..cols.min(start + SPAN);
            let width = span.len();
            // What the errors of columns already rounded ask of these.
            let mut asked = vec![0.0; rows * width];
            if let Some(factor) = self.factor {
                let done = View::rows(&errors, cols).columns(span.end..cols);
                let l = factor.feedback().block(span.end..cols, span.clone());
                multiply(ViewMut::rows(&mut asked, width), Into::Fresh, done, l);
            }
            for first in span.clone().step_by(GROUP).rev() {
                for (r, units) in units.chunks_exact_mut(GROUP).enumerate() {
                    let inverse = 1.0 / scales[r].to_f32();
                    let x = &self.x[r * cols + first..][..GROUP];
                    let asked = &asked[r * width + first - start..][..GROUP];
                    units.iter_mut().zip(x.iter().zip(asked)).for_each(|(u, (x, a))| *u = (x + a) * inverse);
                }
                encoder.encode(&units, None, &mut packed, None);
                for (r, packed) in packed.chunks_exact(group_bytes).enumerate() {
                    codes[r * row_bytes + first / GROUP * group_bytes..][..group_bytes]
                        .copy_from_slice(packed);
                    decode_row(self.bits, packed, &mut values);
                    let at = r * cols + first;
                    for (i, v) in values.iter().enumerate() {
                        found[at + i] = f32::from(*v);
                        errors[at + i] = self.x[at + i] - scales[r].to_f32() * f32::from(*v);
                    }
                }
                if let (Some(factor), true) = (self.factor, first > start) {
                    let own = View::rows(&errors, cols).columns(first..first + GROUP);
                    let l = factor.feedback().block(first..first + GROUP, start..first);
                    let before = ViewMut::strided(&mut asked, [rows, first - start], width);
                    multiply(before, Into::Plus, own, l);
                }
            }
        }
        found
    }
}

/// The scale that brings a Gaussian row to the deviation that the tables were trained for; never zero.
fn first_scale(bits: Bits, row: &[f32]) -> f16 {
    let scale = f16::from_f64((dot(row, row) / row.len() as f64).sqrt() / f64::from(bits.table().sigma));
    if scale == f16::ZERO { f16::MIN_POSITIVE_SUBNORMAL } else { scale }
}

/// A dot product in f64, in eight partial sums so that it vectorises.
pub(crate) fn dot(a: &[f32], b: &[f32]) -> f64 {
    let mut sums = [0.0_f64; 8];
    for (i, (a, b)) in a.iter().zip(b).enumerate() {
        sums[i % 8] += f64::from(*a) * f64::from(*b);
    }
    sums.iter().sum()
}

#[cfg(test)]
mod tests {
    use upg_pdvm::rotation::SplitMix64;

    use super::*;

    fn gaussian(len: usize, seed: u64) -> Vec<f32> {
        let mut random = SplitMix64(seed);
        let mut uniform = move || (random.next() >> 40) as f32 / (1 << 24) as f32;
        (0..len).map(|_| (0..12).map(|_| uniform()).sum::<f32>() - 6.0).collect()
    }

    /// Inputs that repeat every 48 columns, but for a little noise: errors can be passed on to other blocks.
    fn correlated(cols: usize) -> Hessian {
        let mut x = gaussian(2000 * cols, 1);
        for x in x.chunks_exact_mut(cols) {
            (48..cols).for_each(|i| x[i] = x[i % 48] + 0.3 * x[i]);
        }
        let mut hessian = Hessian::new(cols);
        hessian.add(&x);
        hessian.mirror();
        hessian
    }

    fn error(w: &[f32], rounded: &Rounded, hessian: &Hessian, bits: Bits) -> f64 {
        let found = values(bits, &rounded.scales, &rounded.codes, hessian.width());
        let error: Vec<f32> = w.iter().zip(found).map(|(w, f)| w - f).collect();
        dot(&error, &hessian.times(&error))
    }

    #[test]
    fn feedback_halves_the_outputs_error_of_correlated_inputs() {
        let (cols, bits) = (352, Bits::B3);
        let (w, hessian) = (gaussian(70 * cols, 2), correlated(cols));
        let factor = hessian.factor(0.01).unwrap();
        let plain = round(bits, &w, &hessian, None, cols);
        let fed = round(bits, &w, &hessian, Some(&factor), cols);
        let [plain_error, fed_error] = [&plain, &fed].map(|rounded| error(&w, rounded, &hessian, bits));
        assert!(fed_error < 0.5 * plain_error, "{fed_error} of {plain_error}");
        assert!((fed.energy.noise / fed_error - 1.0).abs() < 0.01, "{:?} is not {fed_error}", fed.energy);
    }

    #[test]
    fn rows_of_zeros_and_rows_too_large() {
        let (cols, bits) = (64, Bits::B4);
        let hessian = correlated(cols);
        let factor = hessian.factor(0.1).unwrap();
        let mut w = gaussian(3 * cols, 3);
        w[..cols].fill(0.0);
        w[cols..2 * cols].fill(1e9);
        let rounded = round(bits, &w, &hessian, Some(&factor), cols);
        assert_eq!(rounded.scales[0], f16::ZERO);
        assert!(!rounded.scales[1].is_finite());
        assert!(rounded.scales[2].is_finite() && rounded.scales[2] > f16::ZERO);
    }
}
