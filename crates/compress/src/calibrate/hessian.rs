//! Second moments of a matrix's inputs, and the factors that rounding with feedback needs.

use rayon::prelude::*;
use upg_codec::GROUP;

use super::linalg::{Into, NotPositive, View, ViewMut, cholesky, invert_lower, multiply};

/// Rows of `H` that one task updates.
const TASK_ROWS: usize = 128;

/// `H = Σ x xᵀ` over tokens: for rows `e` of a matrix's rounding error, `e H eᵀ` is the squared error of its outputs.
#[derive(Clone)]
pub(crate) struct Hessian {
    n: usize,
    /// `[n, n]`, both triangles once [`Hessian::mirror`] has run; the lower before.
    data: Vec<f32>,
}

impl Hessian {
    pub(crate) fn new(n: usize) -> Self {
        Self { n, data: vec![0.0; n * n] }
    }

    /// Adds tokens: `x` is `[tokens, n]`.
    pub(crate) fn add(&mut self, x: &[f32]) {
        let n = self.n;
        let x = View::rows(x, n);
        self.data.par_chunks_mut(TASK_ROWS * n).enumerate().for_each(|(task, rows)| {
            let (first, count) = (task * TASK_ROWS, rows.len() / n);
            let lower = ViewMut::strided(rows, [count, first + count], n);
            multiply(lower, Into::Plus, x.columns(first..first + count).t(), x.columns(0..first + count));
        });
    }

    /// Copies the lower triangle to the upper. To be called after the last [`Hessian::add`].
    pub(crate) fn mirror(&mut self) {
        for i in 0..self.n {
            for j in 0..i {
                self.data[j * self.n + i] = self.data[i * self.n + j];
            }
        }
    }

    /// Adds another one of the same width.
    pub(crate) fn join(&mut self, other: &Self) {
        self.data.par_iter_mut().zip(&other.data).for_each(|(a, b)| *a += b);
    }

    /// Width of the inputs.
    pub(crate) fn width(&self) -> usize {
        self.n
    }

    /// Whether it holds numbers only.
    pub(crate) fn is_finite(&self) -> bool {
        self.data.par_iter().all(|x| x.is_finite())
    }

    /// `x H` for a few rows `x`, on this thread.
    pub(crate) fn times(&self, x: &[f32]) -> Vec<f32> {
        let mut y = vec![0.0; x.len()];
        multiply(
            ViewMut::rows(&mut y, self.n),
            Into::Fresh,
            View::rows(x, self.n),
            View::rows(&self.data, self.n),
        );
        y
    }

    /// The factors of `H + damping · mean(diag H) · 1`.
    pub(crate) fn factor(&self, damping: f64) -> Result<Factor, NotPositive> {
        let n = self.n;
        let trace: f64 = (0..n).map(|i| f64::from(self.data[i * n + i])).sum();
        let mut l = self.data.clone();
        let extra = (damping * trace / n as f64) as f32;
        (0..n).for_each(|i| l[i * n + i] += extra);
        cholesky(&mut l, n)?;
        Ok(Factor::new(l, n))
    }
}

/// `H = (1 + L) D (1 + L)ᵀ`, `L` strictly lower and `D` diagonal in blocks of [`GROUP`] columns (QuIP#, Tseng et al.
/// 2024).
pub(crate) struct Factor {
    n: usize,
    /// `L`; its diagonal blocks and what is above hold nothing of meaning.
    l: Vec<f32>,
}

impl Factor {
    /// From a Cholesky factor: block column `k` of `L` is the factor's times the inverse of its diagonal block.
    fn new(mut l: Vec<f32>, n: usize) -> Self {
        let inverses: Vec<Vec<f32>> =
            (0..n / GROUP).into_par_iter().map(|k| inverse(&l, n, k * GROUP)).collect();
        l.par_chunks_mut(GROUP * n).enumerate().for_each(|(i, rows)| {
            for (k, inverse) in inverses[..i].iter().enumerate() {
                let columns = k * GROUP..(k + 1) * GROUP;
                let old = View::rows(rows, n).columns(columns.clone());
                let mut new = [0.0; GROUP * GROUP];
                multiply(ViewMut::rows(&mut new, GROUP), Into::Fresh, old, View::rows(inverse, GROUP));
                for (row, new) in rows.chunks_exact_mut(n).zip(new.chunks_exact(GROUP)) {
                    row[columns.clone()].copy_from_slice(new);
                }
            }
        });
        Self { n, l }
    }

    /// `L`.
    pub(crate) fn feedback(&self) -> View<'_> {
        View::rows(&self.l, self.n)
    }
}

/// The inverse of the diagonal block of a Cholesky factor that starts at column `start`.
fn inverse(l: &[f32], n: usize, start: usize) -> Vec<f32> {
    let mut block = vec![0.0; GROUP * GROUP];
    for i in 0..GROUP {
        for j in 0..=i {
            block[i * GROUP + j] = f64::from(l[(start + i) * n + start + j]);
        }
    }
    invert_lower(&block, GROUP).into_iter().map(|x| x as f32).collect()
}
