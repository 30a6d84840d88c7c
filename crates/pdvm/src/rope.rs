//! Rotary position embedding (Su et al. 2021).

use upg_format::ModelConfig;

/// The frequencies of a model's rotary embedding.
#[derive(Clone, Debug)]
pub struct RopeTable {}

impl RopeTable {
    /// The table of a model.
    pub fn new(_config: &ModelConfig) -> Self {
        todo!()
    }

    /// Pairs of dimensions that turn: `rope.dim / 2`.
    pub fn pairs(&self) -> usize {
        todo!()
    }

    /// The inverse frequencies for a sequence of `length` tokens.
    pub fn frequencies(&self, _length: usize) -> &[f32] {
        todo!()
    }

    /// Cosines and sines of one position in a sequence of `length` tokens (see [`crate::BatchRow::rope_length`]),
    /// attention factor included, [`RopeTable::pairs`] each.
    pub fn fill(&self, _position: usize, _length: usize, _cos: &mut [f32], _sin: &mut [f32]) {
        todo!()
    }
}

/// Turns one head in place: `(x[i], x[i + pairs])` by angle `i`; dimensions past `2 · pairs` stay.
pub fn rotate(_head: &mut [f32], _cos: &[f32], _sin: &[f32]) {
    todo!()
}
