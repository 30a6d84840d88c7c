//! What rounding errors of a matrix cost.

use rayon::prelude::*;

use super::linalg::{Into, View, ViewMut, cholesky, dot, multiply, solve};

/// What is added to second moments, relative to their mean: those of a few thousand tokens claim more than they know.
const DAMPINGS: [f64; 2] = [0.1, 1.0];

/// A token's own share in the moments that it is judged by, at most.
const MOST_LEVERAGE: f64 = 0.95;

/// Expected `Σ (Σ_t g_t · e x_t)²` over sequences of tokens `t`, for errors `e` of a matrix's weights.
///
/// Errors of rounding to the nearest code are alike in all directions, row `r`'s of power `p_r` (relative to the code's
/// error): they cost `Σ_r p_r ‖Σ_t g_tr x_t‖²`, in terms of tokens `Σ_r p_r g_rᵀ K g_r`, `K = X Xᵀ`.
///
/// Rounding with feedback moves errors away from where inputs are large: with the damped second moments `H + λ` their
/// covariance is about `c (H + λ)⁻¹`, `c` the geometric mean of the eigenvalues (what LDLQ comes to for small blocks). In
/// terms of tokens `K` becomes `c K (K + λ)⁻¹`. There each token is judged by moments without it: its leverage, the
/// diagonal `h` of `K (K + λ)⁻¹`, becomes `h / (1 - h)`. Without this massive activations would buy bits that feedback makes
/// superfluous. The moments are those of all sequences together, as in rounding: a sequence's own would make wide matrices,
/// whose columns are many more than its tokens, look cheaper than they are.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Cost {
    /// Of rounding to the nearest code.
    pub(crate) plain: f64,
    /// Of rounding with feedback.
    pub(crate) fed: f64,
}

/// What feedback makes of one input of several matrices: its second moments over all sequences, in terms of tokens.
pub(crate) struct Moments {
    /// Tokens of a sequence.
    ctx: usize,
    /// Each sequence's block of `K`.
    plain: Vec<Vec<f32>>,
    /// Each sequence's block of `c K (K + λ)⁻¹`, judged by moments without each token itself; at each damping that has a
    /// factor.
    fed: Vec<Vec<Vec<f32>>>,
}

impl Moments {
    /// Of inputs, `[tokens, cols]`, in sequences of `ctx` tokens. Uses the current rayon pool; the result does not depend on
    /// it.
    pub(crate) fn new(input: &[f32], cols: usize, ctx: usize) -> Self {
        let all = products(input, cols, ctx);
        let fed = DAMPINGS.iter().filter_map(|damping| fed(&all, cols, ctx, *damping)).collect();
        let sequences = all.chunks(ctx * input.len() / cols).enumerate();
        let plain = sequences.map(|(sequence, rows)| block(rows, sequence, ctx)).collect();
        Self { ctx, plain, fed }
    }

    /// What errors of a matrix cost: `gradients` are each sequence's products of tokens' gradients, `[ctx, ctx]` (see
    /// [`gradients`]).
    pub(crate) fn cost<'g>(&self, gradients: impl Iterator<Item = &'g [f32]> + Clone) -> Cost {
        let sum = |blocks: &[Vec<f32>]| -> f64 {
            gradients.clone().zip(blocks).map(|(g, block)| dot(g, block)).sum()
        };
        let plain = sum(&self.plain).max(0.0);
        let fed = self.fed.iter().map(|blocks| sum(blocks)).filter(|cost| *cost >= 0.0);
        Cost { plain, fed: fed.fold(plain, f64::min) }
    }

    /// The same where tokens act apart: `weights` are their `Σ_r p_r g_tr²`.
    pub(crate) fn apart(&self, weights: &[f64]) -> Cost {
        let diagonals: Vec<Vec<f32>> = weights
            .chunks(self.ctx)
            .map(|weights| {
                let mut diagonal = vec![0.0; self.ctx * self.ctx];
                weights
                    .iter()
                    .enumerate()
                    .for_each(|(t, weight)| diagonal[t * self.ctx + t] = *weight as f32);
                diagonal
            })
            .collect();
        self.cost(diagonals.iter().map(Vec::as_slice))
    }
}

/// One sequence's products `Σ_r p_r g_tr g_ur` of gradients of a matrix's outputs, `[ctx, rows]`.
pub(crate) fn gradients(gradient: &[f32], powers: &[f64]) -> Vec<f32> {
    let rows = powers.len();
    let roots: Vec<f32> = powers.iter().map(|power| power.sqrt() as f32).collect();
    let mut scaled = gradient.to_vec();
    scaled.chunks_exact_mut(rows).for_each(|g| g.iter_mut().zip(&roots).for_each(|(g, root)| *g *= root));
    products(&scaled, rows, usize::MAX)
}

/// `X Xᵀ` of rows of `width` numbers, so many rows of it a task.
fn products(x: &[f32], width: usize, task: usize) -> Vec<f32> {
    let rows = x.len() / width;
    let task = task.min(rows);
    let mut out = vec![0.0; rows * rows];
    out.par_chunks_mut(task * rows).zip(x.par_chunks(task * width)).for_each(|(out, own)| {
        multiply(ViewMut::rows(out, rows), Into::Fresh, View::rows(own, width), View::rows(x, width).t());
    });
    out
}

/// The `sequence`-th sequence's own columns of its rows.
fn block(rows: &[f32], sequence: usize, ctx: usize) -> Vec<f32> {
    let width = rows.len() / ctx;
    rows.chunks_exact(width).flat_map(|row| &row[sequence * ctx..][..ctx]).copied().collect()
}

/// [`Moments::fed`] at a damping; none where the moments have no factor at it.
fn fed(inputs: &[f32], cols: usize, ctx: usize, damping: f64) -> Option<Vec<Vec<f32>>> {
    let tokens = inputs.len().isqrt();
    let trace: f64 = (0..tokens).map(|t| f64::from(inputs[t * tokens + t])).sum();
    let lambda = damping * trace / cols as f64;
    let mut factor = inputs.to_vec();
    (0..tokens).for_each(|t| factor[t * tokens + t] += lambda as f32);
    let inverses = cholesky(&mut factor, tokens).ok()?;
    let log_determinant: f64 = (0..tokens).map(|t| 2.0 * f64::from(factor[t * tokens + t]).ln()).sum();
    // The other eigenvalues are λ; where there are more tokens than columns, so are the surplus ones of the tokens.
    let c = ((log_determinant + (cols as f64 - tokens as f64) * lambda.ln()) / cols as f64).exp();
    let blocks = inputs.par_chunks(ctx * tokens).enumerate().map(|(sequence, rows)| {
        let mut seen = rows.to_vec();
        solve(&factor, &inverses, &mut seen);
        let mut seen = block(&seen, sequence, ctx);
        let without = |t: usize| 1.0 - f64::from(seen[t * ctx + t]).min(MOST_LEVERAGE);
        let roots: Vec<f64> = (0..ctx).map(|t| without(t).powf(-0.5)).collect();
        for (row, root) in seen.chunks_exact_mut(ctx).zip(&roots) {
            row.iter_mut().zip(&roots).for_each(|(x, other)| *x = (c * f64::from(*x) * root * other) as f32);
        }
        seen
    });
    Some(blocks.collect())
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
        let cost = Moments::new(&x, cols, tokens).cost([gradients(&g, &powers).as_slice()].into_iter());
        assert!((cost.plain / expected - 1.0).abs() < 1e-4, "{} is not {expected}", cost.plain);
        assert!(cost.fed <= cost.plain);
    }

    #[test]
    fn feedback_takes_the_cost_of_one_massive_token() {
        let (tokens, rows, cols) = (32, 4, 256);
        let (mut x, g) = (noise(tokens * cols, 3), noise(tokens * rows, 4));
        let g = gradients(&g, &[1.0; 4]);
        let cost = |x: &[f32]| Moments::new(x, cols, tokens).cost([g.as_slice()].into_iter());
        let quiet = cost(&x);
        x[..cols].iter_mut().for_each(|x| *x *= 1000.0);
        let massive = cost(&x);
        assert!(massive.plain > 1e3 * quiet.plain, "{massive:?}, {quiet:?}");
        assert!(massive.fed < 1e-2 * massive.plain, "{massive:?}");
    }

    #[test]
    fn sequences_share_moments_and_nothing_else() {
        let (ctx, rows, cols) = (16, 3, 64);
        let (x, g) = (noise(2 * ctx * cols, 5), noise(2 * ctx * rows, 6));
        let g: Vec<Vec<f32>> = g.chunks(ctx * rows).map(|g| gradients(g, &[1.0; 3])).collect();
        let whole = Moments::new(&x, cols, ctx).cost(g.iter().map(Vec::as_slice));
        let apart = x.chunks(ctx * cols).zip(&g);
        let apart: Vec<Cost> =
            apart.map(|(x, g)| Moments::new(x, cols, ctx).cost([g.as_slice()].into_iter())).collect();
        assert!((whole.plain / (apart[0].plain + apart[1].plain) - 1.0).abs() < 1e-4, "{whole:?}, {apart:?}");
        assert!(whole.fed > 0.0 && whole.fed <= whole.plain, "{whole:?}");

        // Another sequence with the same inputs takes more of this one's cost away.
        let twice = [&x[..ctx * cols], &x[..ctx * cols]].concat();
        let silent = vec![0.0; ctx * ctx];
        let taught = Moments::new(&twice, cols, ctx).cost([g[0].as_slice(), &silent].into_iter());
        assert!(taught.fed < apart[0].fed, "{taught:?}, {apart:?}");
    }
}
