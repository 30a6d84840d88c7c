//! What rounding errors of a matrix cost in one sequence.

use super::linalg::{Into, View, ViewMut, dot, multiply};

/// Directions of the inputs that are followed one by one.
const SPIKES: usize = 4;

/// Rounds of the iteration that finds them.
const ROUNDS: usize = 8;

/// The damping that rounding with feedback is expected to choose.
const DAMPING: f64 = 0.1;

/// Expected `(Σ_t g_t · e x_t)²` for errors `e` of a matrix's weights.
///
/// Errors of rounding to the nearest code are alike in all directions, row `r`'s of power `p_r` (relative to the code's
/// error): they cost `Σ_r p_r ‖Σ_t g_tr x_t‖²`, in terms of tokens `Σ_r p_r g_rᵀ K g_r`, `K = X Xᵀ`.
///
/// Rounding with feedback moves errors away from where inputs are large. A direction whose second moment is `1 + ρ` times
/// the damped rest then has about `ln(1 + ρ) / ρ` of the error. Massive activations are such directions: without this they
/// would buy bits that feedback makes superfluous.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Cost {
    /// Of rounding to the nearest code.
    pub(crate) plain: f64,
    /// Of rounding with feedback.
    pub(crate) fed: f64,
}

impl Cost {
    /// Of a matrix applied to `input`, `[tokens, cols]`, with this gradient of its outputs, `[tokens, rows]`.
    pub(crate) fn new(input: &[f32], gradient: &[f32], powers: &[f64]) -> Self {
        let (rows, tokens) = (powers.len(), gradient.len() / powers.len());
        let cols = input.len() / tokens;
        let roots: Vec<f32> = powers.iter().map(|power| power.sqrt() as f32).collect();
        let mut scaled = gradient.to_vec();
        scaled.chunks_exact_mut(rows).for_each(|g| g.iter_mut().zip(&roots).for_each(|(g, root)| *g *= root));
        let (inputs, gradients) = (gram(input, cols), gram(&scaled, rows));
        let plain = dot(&inputs, &gradients);
        let trace: f64 = (0..tokens).map(|t| f64::from(inputs[t * tokens + t])).sum();
        let floor = DAMPING * trace / cols as f64;
        let saved = |v: &Vec<f32>| {
            let own = square(&inputs, v);
            let left = floor * (own / floor).ln_1p();
            (own - left).max(0.0) * square(&gradients, v)
        };
        let saved: f64 = if trace > 0.0 { largest(&inputs, tokens).iter().map(saved).sum() } else { 0.0 };
        Self { plain, fed: (plain - saved).max(0.0) }
    }
}

/// `X Xᵀ` of rows of `width` numbers.
fn gram(x: &[f32], width: usize) -> Vec<f32> {
    let rows = x.len() / width;
    let mut gram = vec![0.0; rows * rows];
    multiply(ViewMut::rows(&mut gram, rows), Into::Fresh, View::rows(x, width), View::rows(x, width).t());
    gram
}

/// `vᵀ A v`.
fn square(a: &[f32], v: &[f32]) -> f64 {
    a.chunks_exact(v.len()).zip(v).map(|(row, weight)| f64::from(*weight) * dot(row, v)).sum()
}

/// About the eigenvectors of the largest eigenvalues of a symmetric matrix, orthonormal: iteration of a subspace.
fn largest(a: &[f32], n: usize) -> Vec<Vec<f32>> {
    // The first columns of a cosine transform.
    let start =
        |k: usize| (0..n).map(move |i| ((i as f64 + 0.5) * k as f64 * std::f64::consts::PI / n as f64).cos());
    let mut basis: Vec<Vec<f32>> = (0..SPIKES.min(n)).map(|k| start(k).map(|x| x as f32).collect()).collect();
    for _ in 0..ROUNDS {
        for v in &mut basis {
            *v = a.chunks_exact(n).map(|row| dot(row, v) as f32).collect();
        }
        orthonormalise(&mut basis);
    }
    basis
}

/// Gram and Schmidt's; drops what is left without length.
fn orthonormalise(basis: &mut Vec<Vec<f32>>) {
    let mut done: Vec<Vec<f32>> = Vec::new();
    for mut v in basis.drain(..) {
        let before = dot(&v, &v).sqrt();
        // Twice is enough.
        for _ in 0..2 {
            for d in &done {
                let along = dot(&v, d) as f32;
                v.iter_mut().zip(d).for_each(|(v, d)| *v -= along * d);
            }
        }
        let length = dot(&v, &v).sqrt();
        if length > 1e-5 * before {
            v.iter_mut().for_each(|v| *v = (f64::from(*v) / length) as f32);
            done.push(v);
        }
    }
    *basis = done;
}

#[cfg(test)]
mod tests {
    use upg_pdvm::rotation::SplitMix64;

    use super::*;

    fn noise(len: usize, seed: u64) -> Vec<f32> {
        let mut random = SplitMix64(seed);
        (0..len).map(|_| (random.next() >> 40) as f32 / (1 << 23) as f32 - 1.0).collect()
    }

    #[test]
    fn the_plain_cost_is_the_gradient_of_the_weights_squared() {
        let (tokens, rows, cols) = (24, 5, 64);
        let (x, g) = (noise(tokens * cols, 1), noise(tokens * rows, 2));
        let powers = [1.0, 2.0, 0.0, 4.0, 0.5];
        let mut expected = 0.0;
        for (r, power) in powers.iter().enumerate() {
            for c in 0..cols {
                let product = |t: usize| f64::from(g[t * rows + r]) * f64::from(x[t * cols + c]);
                expected += power * (0..tokens).map(product).sum::<f64>().powi(2);
            }
        }
        let cost = Cost::new(&x, &g, &powers);
        assert!((cost.plain / expected - 1.0).abs() < 1e-4, "{} is not {expected}", cost.plain);
        assert!(cost.fed < cost.plain);
    }

    #[test]
    fn feedback_takes_the_cost_of_one_massive_token() {
        let (tokens, rows, cols) = (32, 4, 256);
        let (mut x, g) = (noise(tokens * cols, 3), noise(tokens * rows, 4));
        let quiet = Cost::new(&x, &g, &[1.0; 4]);
        x[..cols].iter_mut().for_each(|x| *x *= 1000.0);
        let massive = Cost::new(&x, &g, &[1.0; 4]);
        assert!(massive.plain > 1e3 * quiet.plain, "{massive:?}, {quiet:?}");
        assert!(massive.fed < 1e-2 * massive.plain, "{massive:?}");
    }
}
