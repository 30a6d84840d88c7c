use half::f16;
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
    keys: Vec<f32>,
    values: Vec<f32>,
}

impl Cache {
    pub(super) fn new(config: &ModelConfig, pages: usize, kind: KvKind) -> Self {
        let (layers, width) = (config.layers, config.kv_width());
        let len = layers * pages * PAGE_TOKENS * width;
        Self { kind, layers, pages, width, keys: vec![0.0; len], values: vec![0.0; len] }
    }

    /// Stores the key and value of one token, in the precision that the options ask for.
    pub(super) fn write(&mut self, layer: usize, page: u32, slot: usize, key: &[f32], value: &[f32]) {
        let start = self.start((layer, page, slot));
        for (stored, given) in [(&mut self.keys, key), (&mut self.values, value)] {
            for (stored, given) in stored[start..start + self.width].iter_mut().zip(given) {
                *stored = match self.kind {
                    KvKind::F32 => *given,
                    KvKind::F16 => f16::from_f32(*given).to_f32(),
                };
            }
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
