//! What rounding errors of a matrix cost in one sequence.

use super::linalg::{Into, View, ViewMut, cholesky, dot, multiply, solve};

/// What is added to second moments, relative to their mean: those of a few hundred tokens claim more than they know.
const DAMPINGS: [f64; 2] = [0.1, 1.0];

/// A token's own share in the moments that it is judged by, at most.
const MOST_LEVERAGE: f64 = 0.95;

/// Expected `(Σ_t g_t · e x_t)²` for errors `e` of a matrix's weights.
///
/// Errors of rounding to the nearest code are alike in all directions, row `r`'s of power `p_r` (relative to the code's
/// error): they cost `Σ_r p_r ‖Σ_t g_tr x_t‖²`, in terms of tokens `Σ_r p_r g_rᵀ K g_r`, `K = X Xᵀ`.
///
/// Rounding with feedback moves errors away from where inputs are large: with the damped second moments `H + λ` their
/// covariance is about `c (H + λ)⁻¹`, `c` the geometric mean of the eigenvalues (what LDLQ comes to for small blocks). In
/// terms of tokens `K` becomes `c K (K + λ)⁻¹`. There each token is judged by moments without it: its leverage, the
/// diagonal `h` of `K (K + λ)⁻¹`, becomes `h / (1 - h)`. Without this massive activations would buy bits that feedback makes
/// superfluous.
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
        let roots: Vec<f32> = powers.iter().map(|power| power.sqrt() as f32).collect();
        let mut scaled = gradient.to_vec();
        scaled.chunks_exact_mut(rows).for_each(|g| g.iter_mut().zip(&roots).for_each(|(g, root)| *g *= root));
        Self::of(&gram(input, input.len() / tokens), &gram(&scaled, rows), input.len() / tokens)
    }

    /// The same where tokens act apart: `weights` are their `Σ_r p_r g_tr²`.
    pub(crate) fn apart(input: &[f32], weights: &[f64]) -> Self {
        let tokens = weights.len();
        let mut gradients = vec![0.0; tokens * tokens];
        weights.iter().enumerate().for_each(|(t, weight)| gradients[t * tokens + t] = *weight as f32);
        Self::of(&gram(input, input.len() / tokens), &gradients, input.len() / tokens)
    }

    /// Of inputs of `cols` numbers and gradients with these products of tokens.
    fn of(inputs: &[f32], gradients: &[f32], cols: usize) -> Self {
        let plain = dot(inputs, gradients).max(0.0);
        let fed = DAMPINGS.iter().filter_map(|damping| fed(inputs, gradients, cols, *damping));
        Self { plain, fed: fed.fold(plain, f64::min) }
    }
}

/// [`Cost::fed`] at a damping; none where the moments have no factor at it.
fn fed(inputs: &[f32], gradients: &[f32], cols: usize, damping: f64) -> Option<f64> {
    let tokens = inputs.len().isqrt();
    let trace: f64 = (0..tokens).map(|t| f64::from(inputs[t * tokens + t])).sum();
    let lambda = damping * trace / cols as f64;
    let mut factor = inputs.to_vec();
    (0..tokens).for_each(|t| factor[t * tokens + t] += lambda as f32);
    let inverses = cholesky(&mut factor, tokens).ok()?;
    let log_determinant: f64 = (0..tokens).map(|t| 2.0 * f64::from(factor[t * tokens + t]).ln()).sum();
    // The other eigenvalues are λ; where there are more tokens than columns, so are the surplus ones of the tokens.
    let c = ((log_determinant + (cols as f64 - tokens as f64) * lambda.ln()) / cols as f64).exp();
    let mut seen = inputs.to_vec();
    solve(&factor, &inverses, &mut seen);
    let without = |t: usize| 1.0 - f64::from(seen[t * tokens + t]).min(MOST_LEVERAGE);
    let roots: Vec<f32> = (0..tokens).map(|t| without(t).powf(-0.5) as f32).collect();
    for (row, root) in seen.chunks_exact_mut(tokens).zip(&roots) {
        row.iter_mut().zip(&roots).for_each(|(x, other)| *x *= root * other);
    }
    Some(c * dot(&seen, gradients)).filter(|cost| *cost >= 0.0)
}

/// `X Xᵀ` of rows of `width` numbers.
fn gram(x: &[f32], width: usize) -> Vec<f32> {
    let rows = x.len() / width;
    let mut gram = vec![0.0; rows * rows];
    multiply(ViewMut::rows(&mut gram, rows), Into::Fresh, View::rows(x, width), View::rows(x, width).t());
    gram
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
        assert!(cost.fed <= cost.plain);
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
