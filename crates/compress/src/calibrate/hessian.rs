//! Second moments of a matrix's inputs, and the factors that rounding with feedback needs.

use std::ops::{AddAssign, Range, RangeInclusive};

use rayon::prelude::*;
use upg_codec::GROUP;

use super::linalg::{Into, NotPositive, View, ViewMut, cholesky, dot, invert_lower, multiply};

/// Numbers that are added at a time: whole tokens of them.
const ADDED: usize = 8 << 20;

/// `H` is summed up in square tiles of so many rows: enough for a product to be worth its packing.
const TILE: RangeInclusive<usize> = 128..=512;

/// Rows of tiles that there are at least, where tiles may be that small: for several threads.
const TILES: usize = 16;

/// `H = Σ x xᵀ` over tokens: for rows `e` of a matrix's rounding error, `e H eᵀ` is the squared error of its outputs.
#[derive(Clone)]
pub(crate) struct Hessian {
    n: usize,
    /// `[n, n]`, both triangles once [`Hessian::mirror`] has run; the lower before.
    data: Vec<f32>,
}

impl Hessian {
    /// Of the tokens `x`, `[tokens, n]`.
    pub(crate) fn of(x: &[f32], n: usize) -> Self {
        let mut hessian = Self { n, data: vec![0.0; n * n] };
        hessian.add(x);
        hessian.mirror();
        hessian
    }

    /// Adds tokens.
    fn add(&mut self, x: &[f32]) {
        let n = self.n;
        let tile = (n / TILES).next_multiple_of(GROUP).clamp(*TILE.start(), *TILE.end());
        let added = (ADDED / n).max(1) * n;
        let mut parts = vec![0.0; x.len().min(added)];
        for x in x.chunks(added) {
            let tokens = x.len() / n;
            // Each tile's columns on their own, `[tokens, tile]`: in `x` every token of them is on a page of its own.
            let parts = &mut parts[..x.len()];
            parts.par_chunks_mut(tokens * tile).enumerate().for_each(|(i, part)| {
                let width = part.len() / tokens;
                for (x, part) in x.chunks_exact(n).zip(part.chunks_exact_mut(width)) {
                    part.copy_from_slice(&x[i * tile..][..width]);
                }
            });
            let parts: Vec<&[f32]> = parts.chunks(tokens * tile).collect();
            self.data.par_chunks_mut(tile * n).zip(&parts).enumerate().for_each(|(i, (rows, own))| {
                let count = rows.len() / n;
                for (j, other) in parts[..=i].iter().enumerate() {
                    let width = other.len() / tokens;
                    let sum = ViewMut::strided(&mut rows[j * tile..], [count, width], n);
                    multiply(sum, Into::Plus, View::rows(own, count).t(), View::rows(other, width));
                }
            });
        }
    }

    /// Copies the lower triangle to the upper. To be called after the last [`Hessian::add`].
    fn mirror(&mut self) {
        const TILE: usize = 32;
        let n = self.n;
        // Tile by tile: a column of a large matrix touches a page a number.
        for (i, j) in (0..n).step_by(TILE).flat_map(|i| (0..=i).step_by(TILE).map(move |j| (i, j))) {
            for row in i..n.min(i + TILE) {
                (j..row.min(j + TILE)).for_each(|col| self.data[col * n + row] = self.data[row * n + col]);
            }
        }
    }

    /// Rows and columns.
    pub(crate) fn width(&self) -> usize {
        self.n
    }

    /// All of it, row after row.
    #[cfg(test)]
    pub(crate) fn numbers(&self) -> &[f32] {
        &self.data
    }

    /// `e H eᵀ`, summed over a few rows `e`, on this thread.
    pub(crate) fn square(&self, e: &[f32]) -> f64 {
        let mut y = vec![0.0; e.len()];
        let (x, h) = (View::rows(e, self.n), View::rows(&self.data, self.n));
        multiply(ViewMut::rows(&mut y, self.n), Into::Fresh, x, h);
        dot(e, &y)
    }

    /// The factors of `H + damping · mean(diag H) · 1`, in the Hessian's own memory: `down`'s may be a gigabyte.
    ///
    /// # Errors
    /// The Hessian again, where it is not positive definite at this damping.
    pub(crate) fn factor(self, damping: f64) -> Result<Factor, Self> {
        self.factor_in(damping, GROUP)
    }

    /// The same, diagonal in blocks of `block` columns, a divisor of [`SPAN`] and of all columns.
    pub(crate) fn factor_in(mut self, damping: f64, block: usize) -> Result<Factor, Self> {
        let n = self.n;
        let diagonal: Vec<f32> = (0..n).map(|i| self.data[i * n + i]).collect();
        let mean = diagonal.iter().map(|x| f64::from(*x)).sum::<f64>() / n as f64;
        let extra = (damping * mean) as f32;
        (0..n).for_each(|i| self.data[i * n + i] += extra);
        match cholesky(&mut self.data, n) {
            Ok(_) => Ok(Factor::new(self.data, n, block)),
            Err(NotPositive) => {
                // Only the lower triangle was written.
                for (i, diagonal) in diagonal.into_iter().enumerate() {
                    (0..i).for_each(|j| self.data[i * n + j] = self.data[j * n + i]);
                    self.data[i * n + i] = diagonal;
                }
                Err(self)
            }
        }
    }
}

impl AddAssign<&Hessian> for Hessian {
    /// Takes in the tokens of another.
    fn add_assign(&mut self, other: &Hessian) {
        self.data.par_iter_mut().zip(&other.data).for_each(|(own, other)| *own += other);
    }
}

/// Columns between which errors are passed on block by block; from all columns behind them, by one product.
pub(crate) const SPAN: usize = 8 * GROUP;

/// `H = (1 + L) D (1 + L)ᵀ`, `L` strictly lower and `D` diagonal in blocks of some columns (QuIP#, Tseng et al. 2024). With `D = C Cᵀ` block by block, the error of the outputs is `‖e (1 + L) C‖²`.
pub(crate) struct Factor {
    n: usize,
    /// Columns of a block.
    block: usize,
    /// `1 + L`. What is above the diagonal holds zeros as far as its span goes, and nothing of meaning behind.
    l: Vec<f32>,
    /// `C`: `[n / block, block, block]`, lower triangular each.
    c: Vec<f32>,
}

impl Factor {
    /// From a Cholesky factor: block column `k` of `1 + L` is the factor's times the inverse of its diagonal block.
    fn new(mut l: Vec<f32>, n: usize, block: usize) -> Self {
        let blocks: Vec<[Vec<f32>; 2]> =
            (0..n / block).into_par_iter().map(|k| diagonal_block(&l, n, (k * block, block))).collect();
        l.par_chunks_mut(block * n).enumerate().for_each(|(i, rows)| {
            for (k, [_, inverse]) in blocks[..i].iter().enumerate() {
                let columns = k * block..(k + 1) * block;
                let old = View::rows(rows, n).columns(columns.clone());
                let mut new = vec![0.0; block * block];
                multiply(ViewMut::rows(&mut new, block), Into::Fresh, old, View::rows(inverse, block));
                for (row, new) in rows.chunks_exact_mut(n).zip(new.chunks_exact(block)) {
                    row[columns.clone()].copy_from_slice(new);
                }
            }
            let first = i * block;
            for (r, row) in rows.chunks_exact_mut(n).enumerate() {
                row[first..n.min(first / SPAN * SPAN + SPAN)].fill(0.0);
                row[first + r] = 1.0;
            }
        });
        Self { n, block, l, c: blocks.into_iter().flat_map(|[own, _]| own).collect() }
    }

    /// What feedback leaves of the cost of errors that are alike in all columns: `tr D / tr H`.
    pub(crate) fn left(&self) -> f64 {
        let mut unit = vec![0.0; self.n * self.n];
        (0..self.n).for_each(|i| unit[i * self.n + i] = 1.0);
        let all = self.apply(&unit);
        dot(&self.c, &self.c) / dot(&all, &all)
    }

    /// `1 + L`; see there what may be used.
    pub(crate) fn feedback(&self) -> View<'_> {
        View::rows(&self.l, self.n)
    }

    /// `x (1 + L) C` for a few rows `x`, on this thread.
    pub(crate) fn apply(&self, x: &[f32]) -> Vec<f32> {
        let mut y = self.spread(x);
        self.weigh(&mut y, 0..self.n);
        y
    }

    /// `x (1 + L)` for a few rows `x`, on this thread.
    pub(crate) fn spread(&self, x: &[f32]) -> Vec<f32> {
        let n = self.n;
        let rows = x.len() / n;
        let mut y = vec![0.0; x.len()];
        for start in (0..n).step_by(SPAN) {
            let span = start..n.min(start + SPAN);
            let out = ViewMut::strided(&mut y[start..], [rows, span.len()], n);
            let l = self.feedback().block(start..n, span);
            multiply(out, Into::Fresh, View::rows(x, n).columns(start..n), l);
        }
        y
    }

    /// Multiplies some columns, whole blocks of them, by `C`, in place.
    pub(crate) fn weigh(&self, x: &mut [f32], columns: Range<usize>) {
        let (n, block) = (self.n, self.block);
        let mut new = vec![0.0; x.len() / n * block];
        for first in columns.step_by(block) {
            let c = View::rows(&self.c[first * block..][..block * block], block);
            let old = View::rows(x, n).columns(first..first + block);
            multiply(ViewMut::rows(&mut new, block), Into::Fresh, old, c);
            for (row, new) in x.chunks_exact_mut(n).zip(new.chunks_exact(block)) {
                row[first..first + block].copy_from_slice(new);
            }
        }
    }
}

/// The diagonal block of a Cholesky factor of `size` columns that starts at column `start`, and its inverse.
fn diagonal_block(l: &[f32], n: usize, (start, size): (usize, usize)) -> [Vec<f32>; 2] {
    let mut block = vec![0.0; size * size];
    for i in 0..size {
        for j in 0..=i {
            block[i * size + j] = f64::from(l[(start + i) * n + start + j]);
        }
    }
    let inverse = invert_lower(&block, size);
    [block, inverse].map(|x| x.into_iter().map(|x| x as f32).collect())
}
