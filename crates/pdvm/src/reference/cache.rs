use upg_format::ModelConfig;

use crate::{KvKind, PAGE_TOKENS};

/// Keys and values of every page: `[layer, page, slot, kv_heads·head_dim]` each.
///
/// The operating system hands out zeroed memory when it is first written, so pages cost nothing before they are used.
#[derive(Debug)]
pub(super) struct Cache {
    kind: KvKind,
    layers: usize,
    pages: usize,
    width: usize,
    head_dim: usize,
    keys: Vec<f32>,
    values: Vec<f32>,
}

impl Cache {
    pub(super) fn new(config: &ModelConfig, pages: usize, kind: KvKind) -> Self {
        let (layers, width) = (config.layers, config.kv_width());
        let len = layers * pages * PAGE_TOKENS * width;
        let head_dim = config.head_dim;
        Self { kind, layers, pages, width, head_dim, keys: vec![0.0; len], values: vec![0.0; len] }
    }

    /// Stores the key and value of one token, as exact as the kind keeps them.
    pub(super) fn write(&mut self, layer: usize, page: u32, slot: usize, key: &[f32], value: &[f32]) {
        let start = self.start((layer, page, slot));
        for (stored, given) in [(&mut self.keys, key), (&mut self.values, value)] {
            let stored = &mut stored[start..start + self.width];
            stored.copy_from_slice(&given[..self.width]);
            stored.chunks_exact_mut(self.head_dim).for_each(|head| self.kind.keep(head));
        }
    }

    /// The key of the token at `(layer, page, slot)`, all heads.
    pub(super) fn keys(&self, at: (usize, u32, usize)) -> &[f32] {
        &self.keys[self.start(at)..][..self.width]
    }

    /// The value of the token at `(layer, page, slot)`, all heads.
    pub(super) fn values(&self, at: (usize, u32, usize)) -> &[f32] {
        &self.values[self.start(at)..][..self.width]
    }

    pub(super) fn bytes_per_token(&self) -> u64 {
        (2 * self.layers * self.width * size_of::<f32>()) as u64
    }

    fn start(&self, (layer, page, slot): (usize, u32, usize)) -> usize {
        ((layer * self.pages + page as usize) * PAGE_TOKENS + slot) * self.width
    }
}
