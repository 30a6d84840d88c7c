//! The rotation that makes weights look Gaussian, folded into them offline.
//!
//! With `H_b` the orthonormal Hadamard matrix of size `b` (Sylvester's order) and `D` random signs:
//!
//! - residual stream: `R = blockdiag(H_b) · D`, `b` the largest power of two that divides `hidden`;
//! - values and the output projection's input: `blockdiag(H_b)` per head, `b` dividing `head_dim`;
//! - the MLP's hidden activations: `blockdiag(H_b) · D'`, `b` dividing `mlp`; `D'` is folded into `up`, so that a
//!   plain [`hadamard`] remains at run time.

/// The largest power of two that divides `width`: the block of its rotation.
pub const fn block(width: usize) -> usize {
    1 << width.trailing_zeros()
}

/// Multiplies each block of `x` by the orthonormal Hadamard matrix, in place. It is its own inverse.
///
/// Every butterfly is one addition and one subtraction in a fixed order, so the result has the same bits however it
/// is vectorised.
///
/// # Panics
/// If `block` is not a power of two that divides `x.len()`.
#[inline(always)]
pub fn hadamard(x: &mut [f32], block: usize) {
    assert!(block.is_power_of_two() && x.len().is_multiple_of(block), "block {block} for {} values", x.len());
    let norm = 1.0 / (block as f32).sqrt();
    for x in x.chunks_exact_mut(block) {
        let mut half = 1;
        while half < block {
            for pair in x.chunks_exact_mut(2 * half) {
                let (a, b) = pair.split_at_mut(half);
                for (a, b) in a.iter_mut().zip(b) {
                    (*a, *b) = (*a + *b, *a - *b);
                }
            }
            half *= 2;
        }
        for x in x {
            *x *= norm;
        }
    }
}

/// A randomised block-Hadamard rotation of vectors of one width.
#[derive(Clone, Debug)]
pub struct Rotation {
    block: usize,
    signs: Vec<f32>,
}

impl Rotation {
    /// The residual stream's rotation of a model whose configuration holds `seed`.
    pub fn residual(hidden: usize, seed: u64) -> Self {
        Self::new(hidden, seed)
    }

    /// The rotation of the MLP's hidden activations.
    pub fn mlp(mlp: usize, seed: u64) -> Self {
        Self::new(mlp, seed ^ 0x6d6c_7000_0000_0000)
    }

    fn new(width: usize, seed: u64) -> Self {
        let mut random = SplitMix64(seed);
        let signs = (0..width).map(|_| if random.next() >> 63 == 0 { 1.0 } else { -1.0 }).collect();
        Self { block: block(width), signs }
    }

    /// The random signs, one per dimension.
    pub fn signs(&self) -> &[f32] {
        &self.signs
    }

    /// `x = R x`: `x` holds whole vectors, one after the other.
    pub fn apply(&self, x: &mut [f32]) {
        self.flip(x);
        hadamard(x, self.block);
    }

    /// `x = Rᵀ x`, the inverse.
    pub fn undo(&self, x: &mut [f32]) {
        hadamard(x, self.block);
        self.flip(x);
    }

    fn flip(&self, x: &mut [f32]) {
        for x in x.chunks_exact_mut(self.signs.len()) {
            for (x, sign) in x.iter_mut().zip(&self.signs) {
                *x *= sign;
            }
        }
    }
}

/// Steele, Lea and Flood 2014: a tiny generator whose stream is part of the file format (the signs come from it).
#[derive(Clone, Debug)]
pub struct SplitMix64(pub u64);

impl SplitMix64 {
    /// The next 64 random bits.
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn undo_inverts_apply_and_keeps_length() {
        let rotation = Rotation::residual(96, 7);
        let x: Vec<f32> = (0..192).map(|i| (i as f32 * 0.37).sin()).collect();
        let mut y = x.clone();
        rotation.apply(&mut y);
        let norm = |v: &[f32]| v.iter().map(|a| a * a).sum::<f32>();
        assert!((norm(&x) - norm(&y)).abs() < 1e-4 * norm(&x));
        rotation.undo(&mut y);
        assert!(x.iter().zip(&y).all(|(a, b)| (a - b).abs() < 1e-5));
    }

    #[test]
    fn blocks_are_those_of_the_design() {
        assert_eq!(
            [block(5120), block(17920), block(576), block(1536), block(128)],
            [1024, 512, 64, 512, 128]
        );
    }
}
