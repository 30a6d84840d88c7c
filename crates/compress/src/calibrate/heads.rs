//! What errors of a head's queries and keys do together.
//!
//! To second order, errors `e` of a head's rows of `q` cost `tr(G e H eᵀ)`: `H` are the second moments of the inputs, `G`
//! those of the loss's gradients with respect to the head's queries (YAQA, Tseng, Sun and De Sa 2025). With
//! `G = (1 + M) E (1 + M)ᵀ`, block by block like `H`, an error of a row is made up for by those that follow.
//!
//! Queries act through their products with keys alone, and keys lie in few directions of a head; so do queries, seen from
//! keys. That is nearly all that there is to `G`. So its gradients start as noise behind the attention, and no pass through
//! the rest of the model is needed.

use rayon::prelude::*;
use upg_format::TensorKind;

use super::{
    forward::{Activations, Forward, Layer},
    hessian::{Factor, Hessian},
};

/// Rows of a head that do not see each other's errors.
pub(crate) const ROWS: usize = 4;

/// Sequences that `G` is gathered from, at most: a head has few rows.
pub(crate) const SEQUENCES: usize = 8;

/// What is added to the diagonal of `G`, relative to its mean.
pub(crate) const DAMPING: f64 = 0.1;

/// How errors are passed on between the rows of each head of a layer's `q` and `k`.
pub(crate) struct Heads {
    /// One factor a head; none where a head has none, as of keys that have no effect.
    q: Option<Vec<Factor>>,
    k: Option<Vec<Factor>>,
}

impl Heads {
    /// From a layer's weights and its normed inputs, `[tokens, hidden]`. Uses the current rayon pool; the result does not
    /// depend on it.
    pub(crate) fn new(forward: &Forward, layer: &Layer, normed: &[f32]) -> Self {
        let c = &forward.config;
        let width = forward.ctx * c.hidden;
        let sequences = normed.par_chunks(width).take(SEQUENCES).enumerate();
        let found: Vec<[Activations; 2]> =
            sequences.map(|(i, normed)| forward.noise_back(layer, normed, i as u64)).collect();
        let factors = |which: usize, width: usize| {
            let gradients: Vec<f32> = found.iter().flat_map(|found| &found[which]).copied().collect();
            factors(&gradients, width, c.head_dim)
        };
        Self { q: factors(0, c.q_width()), k: factors(1, c.kv_width()) }
    }

    /// Those of one kind of matrix; none of matrices other than `q` and `k`.
    pub(crate) fn of(&self, kind: TensorKind) -> Option<&[Factor]> {
        match kind {
            TensorKind::Q => self.q.as_deref(),
            TensorKind::K => self.k.as_deref(),
            _ => None,
        }
    }
}

/// A factor a head, from gradients `[tokens, width]`.
pub(crate) fn factors(gradients: &[f32], width: usize, head_dim: usize) -> Option<Vec<Factor>> {
    if !head_dim.is_multiple_of(ROWS) {
        return None;
    }
    let head = |first: usize| {
        let own = gradients.chunks_exact(width).flat_map(|g| &g[first..first + head_dim]);
        let own: Vec<f32> = own.copied().collect();
        Hessian::of(&own, head_dim).factor_in(DAMPING, ROWS).ok()
    };
    (0..width).step_by(head_dim).map(head).collect()
}
