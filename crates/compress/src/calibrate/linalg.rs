//! Matrices as borrowed views, their product through the `gemm` crate, and a Cholesky factorisation.
//!
//! A product runs on one thread. Callers share work out in pieces whose size does not depend on the number of threads,
//! so that every sum is taken in the same order on any machine of one kind.

use std::ops::Range;

use rayon::prelude::*;

/// A matrix somewhere in a slice of numbers.
#[derive(Clone, Copy)]
pub(crate) struct View<'a> {
    data: &'a [f32],
    shape: [usize; 2],
    strides: [usize; 2],
}

impl<'a> View<'a> {
    /// All of `data`, row after row.
    pub(crate) fn rows(data: &'a [f32], cols: usize) -> Self {
        Self::strided(data, [data.len() / cols, cols], cols)
    }

    /// Rows of `shape[1]` numbers that start `stride` numbers apart.
    pub(crate) fn strided(data: &'a [f32], shape: [usize; 2], stride: usize) -> Self {
        assert!(fits(data.len(), shape, stride), "{shape:?} by {stride} in {} numbers", data.len());
        Self { data, shape, strides: [stride, 1] }
    }

    /// Part of the matrix.
    pub(crate) fn block(self, rows: Range<usize>, cols: Range<usize>) -> Self {
        assert!(rows.end <= self.shape[0] && cols.end <= self.shape[1], "a block outside its matrix");
        let shape = [rows.len(), cols.len()];
        if shape.contains(&0) {
            return Self { data: &[], shape, ..self };
        }
        let start = rows.start * self.strides[0] + cols.start * self.strides[1];
        Self { data: &self.data[start..], shape, ..self }
    }

    /// `cols` of all rows.
    pub(crate) fn columns(self, cols: Range<usize>) -> Self {
        self.block(0..self.shape[0], cols)
    }

    /// The transpose.
    pub(crate) fn t(self) -> Self {
        let ([rows, cols], [down, right]) = (self.shape, self.strides);
        Self { data: self.data, shape: [cols, rows], strides: [right, down] }
    }
}

/// Where a product goes: rows of `shape[1]` numbers that start `stride` apart.
pub(crate) struct ViewMut<'a> {
    data: &'a mut [f32],
    shape: [usize; 2],
    stride: usize,
}

impl<'a> ViewMut<'a> {
    /// All of `data`, row after row.
    pub(crate) fn rows(data: &'a mut [f32], cols: usize) -> Self {
        let rows = data.len() / cols;
        Self::strided(data, [rows, cols], cols)
    }

    /// Rows of `shape[1]` numbers that start `stride` numbers apart.
    pub(crate) fn strided(data: &'a mut [f32], shape: [usize; 2], stride: usize) -> Self {
        assert!(fits(data.len(), shape, stride), "{shape:?} by {stride} in {} numbers", data.len());
        Self { data, shape, stride }
    }
}

fn fits(len: usize, [rows, cols]: [usize; 2], stride: usize) -> bool {
    cols <= stride && (rows == 0 || (rows - 1) * stride + cols <= len)
}

/// What becomes of the numbers that are already where a product goes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Into {
    /// `c = a b`.
    Fresh,
    /// `c += a b`.
    Plus,
    /// `c -= a b`.
    Minus,
}

/// `c = a b`, or that added or subtracted, on this thread.
pub(crate) fn multiply(c: ViewMut<'_>, how: Into, a: View<'_>, b: View<'_>) {
    let ([m, k], n) = (a.shape, b.shape[1]);
    assert!(b.shape[0] == k && c.shape == [m, n], "{:?} times {:?} is not {:?}", a.shape, b.shape, c.shape);
    if m == 0 || n == 0 {
        return;
    }
    let (keep, sign) = match how {
        Into::Fresh => (0.0, 1.0),
        Into::Plus => (1.0, 1.0),
        Into::Minus => (1.0, -1.0),
    };
    // SAFETY: the constructors have checked that each view's last number lies in its slice (a transpose and a block
    // keep that), the shapes agree, and `c` is borrowed mutably, so it overlaps neither other.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            c.data.as_mut_ptr(),
            1,
            c.stride as isize,
            how != Into::Fresh,
            a.data.as_ptr(),
            a.strides[1] as isize,
            a.strides[0] as isize,
            b.data.as_ptr(),
            b.strides[1] as isize,
            b.strides[0] as isize,
            keep,
            sign,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

/// A dot product in f64, in eight partial sums so that it vectorises.
pub(crate) fn dot(a: &[f32], b: &[f32]) -> f64 {
    let mut sums = [0.0_f64; 8];
    for (i, (a, b)) in a.iter().zip(b).enumerate() {
        sums[i % 8] += f64::from(*a) * f64::from(*b);
    }
    sums.iter().sum()
}

/// A dot product, in eight partial sums so that it vectorises.
fn dot_f64(a: &[f64], b: &[f64]) -> f64 {
    let mut sums = [0.0; 8];
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<8>(), b.as_chunks::<8>());
    for (a, b) in a.iter().zip(b) {
        (0..8).for_each(|i| sums[i] += a[i] * b[i]);
    }
    let rest: f64 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
    sums.iter().sum::<f64>() + rest
}

/// Columns that one step of the factorisation finishes.
const PANEL: usize = 128;

/// Rows of one task.
const TASK_ROWS: usize = 128;

/// A pivot that is not positive: the matrix is not positive definite in f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NotPositive;

/// The lower Cholesky factor of a symmetric matrix, in place. Reads and writes the lower triangle only. Returns the inverses
/// of the factor's diagonal blocks, of [`PANEL`] rows but for the last: what [`solve`] needs.
///
/// Right-looking and blocked: a panel's diagonal block is factored in f64, the rows below are multiplied by its inverse,
/// and what is left is updated by products. Uses the current rayon pool.
pub(crate) fn cholesky(a: &mut [f32], n: usize) -> Result<Vec<Vec<f32>>, NotPositive> {
    assert_eq!(a.len(), n * n, "a square matrix");
    let mut inverses = Vec::new();
    for start in (0..n).step_by(PANEL) {
        let width = PANEL.min(n - start);
        let (above, below) = a.split_at_mut((start + width) * n);
        let inverse = factor_diagonal(&mut above[start * n..], n, start, width)?;
        let panel: Vec<f32> = below
            .par_chunks_mut(TASK_ROWS * n)
            .flat_map_iter(|rows| {
                let count = rows.len() / n;
                let old = View::strided(&rows[start..], [count, width], n);
                let mut new = vec![0.0; count * width];
                multiply(ViewMut::rows(&mut new, width), Into::Fresh, old, View::rows(&inverse, width).t());
                for (row, new) in rows.chunks_exact_mut(n).zip(new.chunks_exact(width)) {
                    row[start..start + width].copy_from_slice(new);
                }
                new
            })
            .collect();
        below.par_chunks_mut(TASK_ROWS * n).enumerate().for_each(|(task, rows)| {
            let (first, count) = (task * TASK_ROWS, rows.len() / n);
            let (left, all) = (View::rows(&panel, width), 0..width);
            let shape = [count, first + count];
            let update = ViewMut::strided(&mut rows[start + width..], shape, n);
            let [own, upto] = [first..first + count, 0..first + count].map(|r| left.block(r, all.clone()));
            multiply(update, Into::Minus, own, upto.t());
        });
        inverses.push(inverse);
    }
    Ok(inverses)
}

/// `x (L Lᵀ)⁻¹` for a few rows `x`, in place, on this thread: `l` and `inverses` are [`cholesky`]'s.
pub(crate) fn solve(l: &[f32], inverses: &[Vec<f32>], x: &mut [f32]) {
    let n = l.len().isqrt();
    let l = View::rows(l, n);
    let panel = |i: usize| i * PANEL..n.min((i + 1) * PANEL);
    // x = u Lᵀ, from the first columns to the last; then u = v L, backwards.
    for (i, inverse) in inverses.iter().enumerate() {
        let own = panel(i);
        let inverse = View::rows(inverse, own.len()).t();
        eliminate(x, n, own.clone(), 0..own.start, l.block(own, 0..i * PANEL).t(), inverse);
    }
    for (i, inverse) in inverses.iter().enumerate().rev() {
        let own = panel(i);
        let inverse = View::rows(inverse, own.len());
        eliminate(x, n, own.clone(), own.end..n, l.block(own.end..n, own), inverse);
    }
}

/// `x[own] = (x[own] - x[done] l) inverse`, by columns of `x`.
fn eliminate(x: &mut [f32], n: usize, own: Range<usize>, done: Range<usize>, l: View<'_>, inverse: View<'_>) {
    let width = own.len();
    let mut rest: Vec<f32> = x.chunks_exact(n).flat_map(|row| &row[own.clone()]).copied().collect();
    multiply(ViewMut::rows(&mut rest, width), Into::Minus, View::rows(x, n).columns(done), l);
    let out = ViewMut::strided(&mut x[own.start..], [rest.len() / width, width], n);
    multiply(out, Into::Fresh, View::rows(&rest, width), inverse);
}

/// Factors the block of `width` rows and columns at column `start` of `rows`, and returns its factor's inverse.
fn factor_diagonal(rows: &mut [f32], n: usize, start: usize, width: usize) -> Result<Vec<f32>, NotPositive> {
    let mut l = vec![0.0_f64; width * width];
    for i in 0..width {
        for j in 0..=i {
            let products = dot_f64(&l[i * width..][..j], &l[j * width..][..j]);
            let rest = f64::from(rows[i * n + start + j]) - products;
            l[i * width + j] = if i > j {
                rest / l[j * width + j]
            } else if rest > 0.0 && rest.is_finite() {
                rest.sqrt()
            } else {
                return Err(NotPositive);
            };
            rows[i * n + start + j] = l[i * width + j] as f32;
        }
    }
    Ok(invert_lower(&l, width).into_iter().map(|x| x as f32).collect())
}

/// The inverse of a lower triangular matrix.
pub(crate) fn invert_lower(l: &[f64], n: usize) -> Vec<f64> {
    let mut inverse = vec![0.0; n * n];
    let mut column = vec![0.0; n];
    for j in 0..n {
        for i in j..n {
            let unit = if i == j { 1.0 } else { 0.0 };
            column[i] = (unit - dot_f64(&l[i * n + j..i * n + i], &column[j..i])) / l[i * n + i];
            inverse[i * n + j] = column[i];
        }
    }
    inverse
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wave(len: usize) -> Vec<f32> {
        (0..len).map(|i| (i as f32 * 0.731).sin()).collect()
    }

    #[test]
    fn products_of_blocks_and_transposes() {
        let (a, b) = (wave(6 * 5), wave(4 * 5));
        let mut c = [1.0; 3 * 7];
        let left = View::rows(&a, 5).block(2..5, 1..5);
        let right = View::rows(&b, 5).block(0..4, 1..5).t();
        multiply(ViewMut::strided(&mut c[1..], [3, 4], 7), Into::Minus, left, right);
        for i in 0..3 {
            for j in 0..4 {
                let dot: f32 = (1..5).map(|k| a[(i + 2) * 5 + k] * b[j * 5 + k]).sum();
                assert!((c[1 + i * 7 + j] - (1.0 - dot)).abs() < 1e-6);
            }
            assert_eq!(c[i * 7], 1.0, "outside the view");
        }
    }

    #[test]
    fn factor_times_its_transpose_is_the_matrix() {
        let n = 2 * PANEL + 37;
        let x = wave(n * 2 * n);
        let mut a = vec![0.0; n * n];
        multiply(ViewMut::rows(&mut a, n), Into::Fresh, View::rows(&x, 2 * n), View::rows(&x, 2 * n).t());
        (0..n).for_each(|i| a[i * n + i] += 1.0);
        let mut l = a.clone();
        let inverses = cholesky(&mut l, n).unwrap();
        let rows = wave(3 * n);
        let mut solved = vec![0.0; 3 * n];
        multiply(ViewMut::rows(&mut solved, n), Into::Fresh, View::rows(&rows, n), View::rows(&a, n));
        solve(&l, &inverses, &mut solved);
        let worst = rows.iter().zip(&solved).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(worst < 1e-2, "{worst}");
        for (i, row) in l.chunks_exact_mut(n).enumerate() {
            row[i + 1..].fill(0.0);
        }
        let mut back = vec![0.0; n * n];
        multiply(ViewMut::rows(&mut back, n), Into::Fresh, View::rows(&l, n), View::rows(&l, n).t());
        let worst = a.iter().zip(&back).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(worst < 1e-4 * a[0], "{worst}");
    }

    #[test]
    fn an_indefinite_matrix_is_refused() {
        assert_eq!(cholesky(&mut [1.0, 0.0, 2.0, 1.0], 2), Err(NotPositive));
        assert_eq!(cholesky(&mut [f32::NAN], 1), Err(NotPositive));
    }
}
