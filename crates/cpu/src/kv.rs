use half::f16;
use upg_pdvm::{KvKind, MachineError, PAGE_TOKENS};

use crate::{
    kv_kinds::{BLOCK, Kind},
    memory::{Arena, Region},
};

/// Numbers that attention takes at a time.
pub(crate) const WIDE: usize = 16;

/// Keys and values of all pages, in memory that is committed as pages are first written.
///
/// A page of one layer and head has keys as `[head_dim][PAGE_TOKENS]`, so that scores of neighbouring tokens are lanes
/// of a vector, and values as `[PAGE_TOKENS][head_dim]` (padded to [`WIDE`]), so that dimensions are: no sum runs across
/// lanes. Kinds of 4 bits keep keys of two neighbouring dimensions in a byte, and values of dimensions `WIDE / 2` apart.
/// The scales of quantised kinds are `[head_dim / BLOCK][PAGE_TOKENS]`.
pub(crate) struct KvStore {
    region: Region,
    shape: Shape,
    kind: KvKind,
}

/// A page of one layer and key/value head.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub page: u32,
    pub layer: usize,
    pub head: usize,
}

/// What a place holds.
pub(crate) struct Page<'a, K: Kind> {
    pub keys: &'a [K::Code],
    pub values: &'a [K::Code],
    /// Empty where the kind has no scales.
    pub key_scales: &'a [f16],
    pub value_scales: &'a [f16],
}

/// Sizes of the cache.
#[derive(Clone, Copy)]
struct Shape {
    layers: usize,
    heads: usize,
    dim: usize,
    /// Bytes of the four parts of a place, in their order.
    parts: [usize; 4],
}

/// Calls a function that is generic over the kind.
macro_rules! for_kind {
    ($kind:expr, $($function:ident).+ ($($arg:expr),* $(,)?)) => {
        match $kind {
            upg_pdvm::KvKind::F32 => $($function).+::<f32>($($arg),*),
            upg_pdvm::KvKind::F16 => $($function).+::<half::f16>($($arg),*),
            upg_pdvm::KvKind::Q8 => $($function).+::<crate::kv_kinds::Q8>($($arg),*),
            upg_pdvm::KvKind::Q4 => $($function).+::<crate::kv_kinds::Q4>($($arg),*),
        }
    };
}

pub(crate) use for_kind;

impl KvStore {
    /// Reserves room for `pages` pages.
    ///
    /// # Errors
    /// Where the system cannot reserve it.
    pub(crate) fn new(
        arena: &Arena,
        pages: usize,
        (layers, heads, dim): (usize, usize, usize),
        kind: KvKind,
    ) -> Result<Self, MachineError> {
        let parts = for_kind!(kind, parts(dim));
        let shape = Shape { layers, heads, dim, parts };
        let bytes = pages.checked_mul(layers * heads * shape.place_bytes()).ok_or_else(|| {
            MachineError::Unsupported(
                "the KV cache would be larger than memory can be: lower the context".into(),
            )
        })?;
        Ok(Self { region: arena.take(bytes)?.freeze(), shape, kind })
    }

    /// How keys and values are kept.
    pub(crate) fn kind(&self) -> KvKind {
        self.kind
    }

    /// Bytes that a token takes, all layers.
    pub(crate) fn bytes_per_token(&self) -> u64 {
        (self.shape.layers * self.shape.heads * self.shape.place_bytes() / PAGE_TOKENS) as u64
    }

    /// Head dimension, padded.
    pub(crate) fn padded_dim(&self) -> usize {
        self.shape.dim.next_multiple_of(WIDE)
    }

    /// What a place holds.
    ///
    /// # Safety
    /// `K` is the cache's kind, and nobody writes to the place while the slices live.
    pub(crate) unsafe fn read<K: Kind>(&self, place: Place) -> Page<'_, K> {
        // SAFETY: each part begins where `part` says and has its bytes; any bits make a code or an f16; the caller keeps
        // writers away.
        unsafe {
            Page {
                keys: self.slice(place, 0),
                values: self.slice(place, 1),
                key_scales: self.slice(place, 2),
                value_scales: self.slice(place, 3),
            }
        }
    }

    /// Writes the key and value of token `slot` of a page.
    ///
    /// # Safety
    /// `K` is the cache's kind, and nobody reads or writes the same token's key and value in this place.
    pub(crate) unsafe fn write<K: Kind>(&self, place: Place, slot: usize, key: &[f32], value: &[f32]) {
        assert!(slot < PAGE_TOKENS && key.len() == self.shape.dim && value.len() == self.shape.dim);
        let (keys, values) = (self.part::<K::Code>(place, 0), self.part::<K::Code>(place, 1));
        let scales = [self.part::<f16>(place, 2), self.part::<f16>(place, 3)];
        let (key_rows, value_codes) = (BLOCK / K::PER_CODE, BLOCK / K::PER_CODE);
        for (b, (key, value)) in key.chunks(BLOCK).zip(value.chunks(BLOCK)).enumerate() {
            let (key_codes, key_scale) = K::encode_key(key);
            let (codes, value_scale) = K::encode_value(value);
            let first = slot * self.padded_dim() / K::PER_CODE + b * value_codes;
            // SAFETY: a block's codes lie within the place by the sizes of its parts (the rows of a key are as many as
            // its numbers fill, the codes of a value as many as its padded numbers); the caller keeps others away.
            unsafe {
                for (row, code) in key_codes.into_iter().take(key.len().div_ceil(K::PER_CODE)).enumerate() {
                    keys.add((b * key_rows + row) * PAGE_TOKENS + slot).write(code);
                }
                let padded = value.len().next_multiple_of(WIDE) / K::PER_CODE;
                for (i, code) in codes.into_iter().take(padded).enumerate() {
                    values.add(first + i).write(code);
                }
                if K::SCALED {
                    scales[0].add(b * PAGE_TOKENS + slot).write(key_scale);
                    scales[1].add(b * PAGE_TOKENS + slot).write(value_scale);
                }
            }
        }
    }

    /// # Safety
    /// `T` is what the part consists of, and nobody writes to it while the slice lives.
    unsafe fn slice<T>(&self, place: Place, part: usize) -> &[T] {
        // SAFETY: the part's bytes lie in the region and are whole `T`.
        unsafe { std::slice::from_raw_parts(self.part(place, part), self.shape.parts[part] / size_of::<T>()) }
    }

    /// Where a part of a place begins.
    fn part<T>(&self, place: Place, part: usize) -> *mut T {
        let Shape { layers, heads, parts, .. } = self.shape;
        assert!(place.layer < layers && place.head < heads);
        let bytes = self.shape.place_bytes();
        let start = ((place.page as usize * layers + place.layer) * heads + place.head) * bytes;
        assert!(start + bytes <= self.region.len(), "page {} of the KV cache", place.page);
        let before: usize = parts[..part].iter().sum();
        self.region.as_mut_ptr().wrapping_add(start + before).cast()
    }
}

impl Shape {
    fn place_bytes(self) -> usize {
        self.parts.iter().sum()
    }
}

/// Bytes of keys, values, and their scales.
fn parts<K: Kind>(dim: usize) -> [usize; 4] {
    let codes = |numbers: usize| PAGE_TOKENS * numbers / K::PER_CODE * size_of::<K::Code>();
    let scales = if K::SCALED { PAGE_TOKENS * dim.div_ceil(BLOCK) * size_of::<f16>() } else { 0 };
    [codes(dim.next_multiple_of(2)), codes(dim.next_multiple_of(WIDE)), scales, scales]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kv_kinds::Q4;

    #[test]
    fn a_token_is_read_where_it_was_written() {
        let store = KvStore::new(&Arena::default(), 3, (2, 2, 8), KvKind::F16).unwrap();
        let place = Place { page: 2, layer: 1, head: 1 };
        let key: Vec<f32> = (0..8).map(|i| i as f32 + 0.5).collect();
        let value: Vec<f32> = (0..8).map(|i| -1e6 - i as f32).collect();
        // SAFETY: one thread, and f16 is the cache's kind.
        let page = unsafe {
            store.write::<f16>(place, 5, &key, &value);
            store.read::<f16>(place)
        };
        assert_eq!(page.keys[3 * PAGE_TOKENS + 5].to_f32(), 3.5);
        assert_eq!(page.values[5 * 16 + 7].to_f32(), -65504.0);
        assert_eq!(page.keys.iter().filter(|k| k.to_bits() != 0).count(), 8);
    }

    /// What attention reads of every kind is what the kind is defined to keep.
    fn reads_what_is_kept<K: Kind>(kind: KvKind) {
        for dim in [2, 20, 32, 80, 128] {
            let store = KvStore::new(&Arena::default(), 2, (1, 3, dim), kind).unwrap();
            let place = Place { page: 1, layer: 0, head: 2 };
            let token = |slot: usize, f: f32| -> Vec<f32> {
                (0..dim).map(|d| ((slot * dim + d) as f32 * f).sin() * (1 + slot % 5) as f32).collect()
            };
            for slot in (0..PAGE_TOKENS).rev() {
                // SAFETY: one thread, and `K` is the cache's kind.
                unsafe { store.write::<K>(place, slot, &token(slot, 0.7), &token(slot, 1.1)) };
            }
            // SAFETY: nobody writes any more.
            let page = unsafe { store.read::<K>(place) };
            for slot in 0..PAGE_TOKENS {
                let (mut key, mut value) = (token(slot, 0.7), token(slot, 1.1));
                kind.keep(&mut key);
                kind.keep(&mut value);
                let scale = |scales: &[f16], d: usize| match K::SCALED {
                    true => scales[d / BLOCK * PAGE_TOKENS + slot].to_f32(),
                    false => 1.0,
                };
                for d in 0..dim {
                    let found = K::keys(page.keys, d / 2, slot / WIDE)[d % 2][slot % WIDE];
                    assert_eq!(found * scale(page.key_scales, d), key[d], "{kind}: key {d} of {slot}");
                    let found = K::values(page.values, slot * dim.div_ceil(WIDE) + d / WIDE)[d % WIDE];
                    assert_eq!(found * scale(page.value_scales, d), value[d], "{kind}: value {d} of {slot}");
                }
            }
        }
    }

    #[test]
    fn every_kind_reads_what_it_keeps() {
        for kind in KvKind::ALL {
            for_kind!(kind, reads_what_is_kept(kind));
        }
    }

    /// Phi-4's 40 layers of 10 heads of 128, all 16,384 tokens of its context.
    #[test]
    fn phi_4_s_context_in_bytes() {
        let bytes = KvKind::ALL.map(|kind| {
            let parts: [usize; 4] = for_kind!(kind, parts(128));
            parts.iter().sum::<usize>() * 40 * 10 * 16_384 / PAGE_TOKENS
        });
        assert_eq!(bytes, [6_710_886_400, 3_355_443_200, 1_782_579_200, 943_718_400]);
        assert_eq!(parts::<Q4>(20), [128 * 10, 128 * 16, 256, 256]);
    }
}
