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
    heads::ROWS,
    hessian::{Factor, SPAN},
    linalg::{Into, View, ViewMut, dot, multiply},
};
use crate::round::{Energy, round_rows};

/// Rows of one task: what a product needs to be worth its packing.
const TASK_ROWS: usize = 128;

/// One column in so many, the last ones, is rounded once more, before all, to fit the scale.
const FITTING: usize = 4;

/// A matrix in T8.
#[derive(Clone)]
pub(crate) struct Rounded {
    pub(crate) scales: Vec<f16>,
    pub(crate) codes: Vec<u8>,
    /// Of the outputs: `w H wᵀ` and `e H eᵀ`, in the damped Hessian that was factored.
    pub(crate) energy: Energy,
}

/// Rounds `x`, rows of `cols` numbers, each block's errors passed on as `factor` says. A row whose scale does not fit an
/// `f16` gets one that is not finite.
///
/// Uses the current rayon pool; the result does not depend on it.
pub(crate) fn round(bits: Bits, x: &[f32], factor: &Factor, cols: usize) -> Rounded {
    let (rows, row_bytes) = (x.len() / cols, cols / GROUP * bits.group_bytes());
    let (mut scales, mut codes) = (vec![f16::ZERO; rows], vec![0; rows * row_bytes]);
    let mut energies = vec![Energy::default(); rows.div_ceil(TASK_ROWS)];
    x.par_chunks(TASK_ROWS * cols)
        .zip(scales.par_chunks_mut(TASK_ROWS))
        .zip(codes.par_chunks_mut(TASK_ROWS * row_bytes))
        .zip(energies.par_iter_mut())
        .for_each(|(((x, scales), codes), energy)| {
            *energy = Task { bits, cols, x, factor, given: None }.run(scales, codes);
        });
    // In the order of the rows: the sum must not depend on the threads.
    let energy = energies.into_iter().fold(Energy::default(), |mut sum, e| {
        sum += e;
        sum
    });
    Rounded { scales, codes, energy }
}

/// The same, errors passed on between the rows of each head as well, from the last to the first: `heads` are factors of what
/// errors of their rows do together.
///
/// Rows `r` are rounded from what errors of columns ask, and `Σ_{s > r} M[s, r] e[s] (1 + L)` besides: `e` errors of the
/// rows done, `M` their head's feedback (YAQA, Tseng, Sun and De Sa 2025).
pub(crate) fn round_heads(bits: Bits, x: &[f32], factor: &Factor, heads: &[Factor], cols: usize) -> Rounded {
    let (rows, row_bytes) = (x.len() / cols, cols / GROUP * bits.group_bytes());
    let dim = rows / heads.len();
    let (mut scales, mut codes) = (vec![f16::ZERO; rows], vec![0; rows * row_bytes]);
    // Errors of the rows done, times 1 + L.
    let mut spread = vec![0.0; rows * cols];
    let mut energy = Energy::default();
    for first in (0..dim).step_by(ROWS).rev() {
        let done = first + ROWS..dim;
        let mut given = vec![0.0; heads.len() * ROWS * cols];
        let all = given.par_chunks_mut(ROWS * cols).zip(spread.par_chunks(dim * cols)).zip(heads);
        all.for_each(|((given, spread), head)| {
            let m = head.feedback().block(done.clone(), first..first + ROWS).t();
            let spread = View::rows(spread, cols).block(done.clone(), 0..cols);
            multiply(ViewMut::rows(given, cols), Into::Fresh, m, spread);
        });
        // These rows of all heads: one head's are too few for a product.
        let own: Vec<usize> =
            (0..heads.len()).flat_map(|head| head * dim + first..head * dim + first + ROWS).collect();
        let x: Vec<f32> = own.iter().flat_map(|row| &x[row * cols..][..cols]).copied().collect();
        let parts = x.par_chunks(TASK_ROWS * cols).zip(given.par_chunks(TASK_ROWS * cols));
        let parts: Vec<Part> =
            parts.map(|(x, given)| Task { bits, cols, x, factor, given: Some(given) }.part()).collect();
        for (part, own) in parts.into_iter().zip(own.chunks(TASK_ROWS)) {
            energy += part.energy;
            for (i, row) in own.iter().enumerate() {
                scales[*row] = part.scales[i];
                codes[row * row_bytes..][..row_bytes]
                    .copy_from_slice(&part.codes[i * row_bytes..][..row_bytes]);
                spread[row * cols..][..cols].copy_from_slice(&part.spread[i * cols..][..cols]);
            }
        }
    }
    Rounded { scales, codes, energy }
}

/// The same without feedback.
pub(crate) fn round_nearest(bits: Bits, x: &[f32], cols: usize) -> Rounded {
    let (rows, row_bytes) = (x.len() / cols, cols / GROUP * bits.group_bytes());
    let (mut scales, mut codes) = (vec![f16::ZERO; rows], vec![0; rows * row_bytes]);
    // Of a row that is too large the scale tells.
    let energy = round_rows(bits, x, cols, &mut scales, &mut codes).unwrap_or_default();
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

/// Some rows of a matrix in T8.
struct Part {
    scales: Vec<f16>,
    codes: Vec<u8>,
    /// Their errors times `1 + L`.
    spread: Vec<f32>,
    energy: Energy,
}

/// A few rows to round on one thread.
struct Task<'a> {
    bits: Bits,
    cols: usize,
    x: &'a [f32],
    factor: &'a Factor,
    /// What errors of other rows ask of these, in the coordinates of [`Factor::spread`].
    given: Option<&'a [f32]>,
}

impl Task<'_> {
    /// Rounds the rows; their energy is without what errors of other rows asked.
    fn part(&self) -> Part {
        let (rows, row_bytes) = (self.x.len() / self.cols, self.cols / GROUP * self.bits.group_bytes());
        let (mut scales, mut codes) = (vec![f16::ZERO; rows], vec![0; rows * row_bytes]);
        self.run(&mut scales, &mut codes);
        let found = values(self.bits, &scales, &codes, self.cols);
        let errors: Vec<f32> = self.x.iter().zip(found).map(|(x, found)| x - found).collect();
        let (truth, spread) = (self.factor.apply(self.x), self.factor.spread(&errors));
        let mut left = spread.clone();
        self.factor.weigh(&mut left, 0..self.cols);
        let energy = Energy { signal: dot(&truth, &truth), noise: dot(&left, &left) };
        Part { scales, codes, spread, energy }
    }

    fn run(&self, scales: &mut [f16], codes: &mut [u8]) -> Energy {
        let cols = self.cols;
        let mut truth = self.factor.spread(self.x);
        if let Some(given) = self.given {
            truth.iter_mut().zip(given).for_each(|(truth, given)| *truth += given);
        }
        self.factor.weigh(&mut truth, 0..cols);
        for (scale, row) in scales.iter_mut().zip(self.x.chunks_exact(cols)) {
            *scale = first_scale(self.bits, row);
        }
        let mut encoder = Encoder::new(self.bits);
        let mut energy = Energy::default();
        // The columns at the end are a problem of their own, as large as the share of them squared.
        for start in [cols - (cols / FITTING).next_multiple_of(GROUP), 0] {
            let left = self.search(&mut encoder, scales, codes, start);
            energy = Energy::default();
            for ((scale, left), truth) in
                scales.iter_mut().zip(left.chunks_exact(cols)).zip(truth.chunks_exact(cols))
            {
                energy += refit(scale, &left[start..], &truth[start..]);
            }
        }
        let row_bytes = codes.len() / scales.len();
        for (r, row) in self.x.chunks_exact(cols).enumerate() {
            if row.iter().all(|x| *x == 0.0) {
                scales[r] = f16::ZERO;
                codes[r * row_bytes..][..row_bytes].fill(0);
            } else if !first_scale(self.bits, row).is_finite() {
                scales[r] = f16::INFINITY;
            }
        }
        energy
    }

    /// One round of search from the last column back to `start`. Fills `codes`; returns the outputs' errors, in the
    /// coordinates of [`Factor::apply`].
    fn search(&self, encoder: &mut Encoder, scales: &[f16], codes: &mut [u8], start: usize) -> Vec<f32> {
        let (rows, cols) = (scales.len(), self.cols);
        let (group_bytes, row_bytes) = (self.bits.group_bytes(), codes.len() / rows);
        // Errors w - ŵ of the columns done so far, and those of the blocks' roundings alone.
        let (mut errors, mut own) = (vec![0.0; rows * cols], vec![0.0; rows * cols]);
        let mut units = vec![0.0; rows * GROUP];
        let mut packed = vec![0; rows * group_bytes];
        let mut values = [0_i8; GROUP];
        for begin in (start / SPAN * SPAN..cols).step_by(SPAN).rev() {
            let span = start.max(begin)..cols.min(begin + SPAN);
            let width = span.len();
            // What the errors of columns already rounded ask of these.
            let mut asked = vec![0.0; rows * width];
            if let Some(given) = self.given {
                let given = given.chunks_exact(cols).flat_map(|given| &given[span.clone()]);
                asked.iter_mut().zip(given).for_each(|(asked, given)| *asked = *given);
            }
            let done = View::rows(&errors, cols).columns(span.end..cols);
            let l = self.factor.feedback().block(span.end..cols, span.clone());
            multiply(ViewMut::rows(&mut asked, width), Into::Plus, done, l);
            for first in span.clone().step_by(GROUP).rev() {
                for (r, units) in units.chunks_exact_mut(GROUP).enumerate() {
                    let inverse = 1.0 / scales[r].to_f32();
                    let x = &self.x[r * cols + first..][..GROUP];
                    let asked = &asked[r * width + first - span.start..][..GROUP];
                    units.iter_mut().zip(x.iter().zip(asked)).for_each(|(u, (x, a))| *u = (x + a) * inverse);
                }
                encoder.encode(&units, None, &mut packed, None);
                for (r, packed) in packed.chunks_exact(group_bytes).enumerate() {
                    codes[r * row_bytes + first / GROUP * group_bytes..][..group_bytes]
                        .copy_from_slice(packed);
                    decode_row(self.bits, packed, &mut values);
                    let (at, scale) = (r * cols + first, scales[r].to_f32());
                    for (i, v) in values.iter().enumerate() {
                        errors[at + i] = self.x[at + i] - scale * f32::from(*v);
                        own[at + i] = errors[at + i] + asked[r * width + first - span.start + i];
                    }
                }
                let done = View::rows(&errors, cols).columns(first..first + GROUP);
                let l = self.factor.feedback().block(first..first + GROUP, span.start..first);
                let before = ViewMut::strided(&mut asked, [rows, first - span.start], width);
                multiply(before, Into::Plus, done, l);
            }
        }
        self.factor.weigh(&mut own, start..cols);
        own
    }
}

/// Fits a row's scale to its outputs: `truth` are those wanted, `left` their errors at the scale that there is. Returns
/// what they are and what is left. A scale stays where it cannot be fitted.
fn refit(scale: &mut f16, left: &[f32], truth: &[f32]) -> Energy {
    let found: Vec<f32> = truth.iter().zip(left).map(|(t, l)| t - l).collect();
    let (signal, cross, power) = (dot(truth, truth), dot(truth, &found), dot(&found, &found));
    let fitted = f16::from_f64(scale.to_f64() * cross / power);
    let factor = fitted.to_f64() / scale.to_f64();
    let noise = signal - 2.0 * factor * cross + factor * factor * power;
    if fitted > f16::ZERO && noise.is_finite() {
        *scale = fitted;
        return Energy { signal, noise: noise.max(0.0) };
    }
    Energy { signal, noise: dot(left, left) }
}

/// The scale that brings a Gaussian row to the deviation that the tables were trained for; never zero.
fn first_scale(bits: Bits, row: &[f32]) -> f16 {
    let scale = f16::from_f64((dot(row, row) / row.len() as f64).sqrt() / f64::from(bits.table().sigma));
    if scale == f16::ZERO { f16::MIN_POSITIVE_SUBNORMAL } else { scale }
}

#[cfg(test)]
mod tests {
    use upg_pdvm::rotation::SplitMix64;

    use super::{
        super::{
            heads::{DAMPING, factors},
            hessian::Hessian,
        },
        *,
    };

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
        Hessian::of(&x, cols)
    }

    fn error(w: &[f32], rounded: &Rounded, hessian: &Hessian, (bits, cols): (Bits, usize)) -> f64 {
        let found = values(bits, &rounded.scales, &rounded.codes, cols);
        let error: Vec<f32> = w.iter().zip(found).map(|(w, f)| w - f).collect();
        hessian.square(&error)
    }

    #[test]
    fn feedback_halves_the_outputs_error_of_correlated_inputs() {
        let (cols, bits) = (352, Bits::B3);
        let (w, hessian) = (gaussian(70 * cols, 2), correlated(cols));
        let factor = hessian.clone().factor(1e-3).ok().unwrap();
        let plain = round_nearest(bits, &w, cols);
        let fed = round(bits, &w, &factor, cols);
        let [plain_error, fed_error] =
            [&plain, &fed].map(|rounded| error(&w, rounded, &hessian, (bits, cols)));
        assert!(fed_error < 0.5 * plain_error, "{fed_error} of {plain_error}");
        assert!((fed.energy.noise / fed_error - 1.0).abs() < 0.02, "{:?} is not {fed_error}", fed.energy);
        let signal = hessian.square(&w);
        assert!((fed.energy.signal / signal - 1.0).abs() < 0.02, "{:?} is not {signal}", fed.energy);
    }

    /// `tr(G e H eᵀ)` of one head.
    fn joint(gradients: &Hessian, error: &[f32], hessian: &Hessian) -> f64 {
        let (rows, cols) = (gradients.width(), hessian.width());
        let product = |a: &[f32], a_cols: usize, b: &[f32], b_cols: usize| {
            let mut c = vec![0.0; a.len() / a_cols * b_cols];
            multiply(
                ViewMut::rows(&mut c, b_cols),
                Into::Fresh,
                View::rows(a, a_cols),
                View::rows(b, b_cols),
            );
            c
        };
        let seen = product(error, cols, hessian.numbers(), cols);
        dot(&product(gradients.numbers(), rows, &seen, cols), error)
    }

    #[test]
    fn rows_of_a_head_make_up_for_each_other() {
        let (dim, cols, bits) = (32, 96, Bits::B3);
        let (w, hessian) = (gaussian(2 * dim * cols, 4), correlated(cols));
        // Gradients of five directions, and a little of all others.
        let directions = gaussian(5 * 2 * dim, 5);
        let mut gradients = gaussian(400 * 2 * dim, 6);
        for (g, along) in gradients.chunks_exact_mut(2 * dim).zip(gaussian(400 * 5, 7).chunks_exact(5)) {
            for (i, g) in g.iter_mut().enumerate() {
                *g = 0.2 * *g + (0..5).map(|d| along[d] * directions[d * 2 * dim + i]).sum::<f32>();
            }
        }
        let factor = hessian.clone().factor(0.1).ok().unwrap();
        let heads = factors(&gradients, 2 * dim, dim).unwrap();
        let alone = round(bits, &w, &factor, cols);
        let together = round_heads(bits, &w, &factor, &heads, cols);
        let cost = |rounded: &Rounded, damping: f64| -> f64 {
            let found = values(bits, &rounded.scales, &rounded.codes, cols);
            let error: Vec<f32> = w.iter().zip(found).map(|(w, f)| w - f).collect();
            let heads = error.chunks_exact(dim * cols).enumerate().map(|(head, error)| {
                let own = gradients.chunks_exact(2 * dim).flat_map(|g| &g[head * dim..][..dim]);
                let own = Hessian::of(&own.copied().collect::<Vec<f32>>(), dim);
                let mean =
                    own.numbers().iter().step_by(dim + 1).map(|x| f64::from(*x)).sum::<f64>() / dim as f64;
                joint(&own, error, &hessian) + damping * mean * hessian.square(error)
            });
            heads.sum()
        };
        let [plain, damped] = [0.0, DAMPING].map(|damping| [&alone, &together].map(|r| cost(r, damping)));
        let [alone, together] = plain;
        assert!(together < 0.5 * alone, "{together} of {alone}");
        // What is foretold of it is with the factors' damping; errors passed on make rows longer, and so the next errors.
        let foretold = heads.iter().map(Factor::left).sum::<f64>() / heads.len() as f64;
        let left = damped[1] / damped[0];
        assert!((0.9..1.5).contains(&(left / foretold)), "{left} left, foretold {foretold}");
    }

    #[test]
    fn rows_of_zeros_and_rows_too_large() {
        let (cols, bits) = (64, Bits::B4);
        let hessian = correlated(cols);
        let factor = hessian.factor(0.1).ok().unwrap();
        let mut w = gaussian(3 * cols, 3);
        w[..cols].fill(0.0);
        w[cols..2 * cols].fill(1e9);
        let rounded = round(bits, &w, &factor, cols);
        assert_eq!(rounded.scales[0], f16::ZERO);
        assert!(!rounded.scales[1].is_finite());
        assert!(rounded.scales[2].is_finite() && rounded.scales[2] > f16::ZERO);
    }
}
