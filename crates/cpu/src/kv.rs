use half::f16;
use upg_pdvm::{KvKind, MachineError, PAGE_TOKENS};

use crate::memory::{Arena, Region};

/// Numbers that attention takes at a time.
pub(crate) const WIDE: usize = 16;

/// Keys and values of all pages, in memory that is committed as pages are first written.
///
/// Each (page, layer, head) has its keys as `[head_dim][PAGE_TOKENS]`, so that scores of neighbouring tokens are
/// lanes of a vector, and its values as `[PAGE_TOKENS][head_dim]` (padded to [`WIDE`]), so that dimensions are: no sum
/// runs across lanes.
pub(crate) struct KvStore {
    region: Region,
    shape: Shape,
}

#[derive(Clone, Copy)]
struct Shape {
    layers: usize,
    heads: usize,
    dim: usize,
    kind: KvKind,
}

/// A page of one layer and key/value head.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub page: u32,
    pub layer: usize,
    pub head: usize,
}

/// How a key or value is kept.
pub(crate) trait Element: Copy + Send + Sync + 'static {
    fn narrow(x: f32) -> Self;
    fn widen(x: &[Self; WIDE]) -> [f32; WIDE];
}

impl Element for f32 {
    fn narrow(x: f32) -> Self {
        x
    }

    #[inline(always)]
    fn widen(x: &[Self; WIDE]) -> [f32; WIDE] {
        *x
    }
}

impl Element for f16 {
    fn narrow(x: f32) -> Self {
        // The largest f16 stands for all that is larger: attention may be wrong then, but not NaN.
        f16::from_f32(x.clamp(-65504.0, 65504.0))
    }

    /// Shifts the exponent and mantissa into place and corrects the exponent's bias by a multiplication, which is
    /// exact, for subnormals too. (There are no infinities in the cache.)
    #[inline(always)]
    fn widen(x: &[Self; WIDE]) -> [f32; WIDE] {
        const BIAS: f32 = f32::from_bits((127 + 112) << 23);
        let mut wide = [0.0; WIDE];
        for (wide, x) in wide.iter_mut().zip(x) {
            let bits = u32::from(x.to_bits());
            let magnitude = f32::from_bits((bits & 0x7fff) << 13) * BIAS;
            *wide = f32::from_bits(magnitude.to_bits() | (bits & 0x8000) << 16);
        }
        wide
    }
}

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
        let shape = Shape { layers, heads, dim, kind };
        let bytes = pages.checked_mul(layers * heads * shape.place_bytes()).ok_or_else(|| {
            MachineError::Unsupported(
                "the KV cache would be larger than memory can be: lower the context".into(),
            )
        })?;
        Ok(Self { region: arena.take(bytes)?.freeze(), shape })
    }

    /// How keys and values are kept.
    pub(crate) fn kind(&self) -> KvKind {
        self.shape.kind
    }

    /// Bytes that a token takes, all layers.
    pub(crate) fn bytes_per_token(&self) -> u64 {
        (self.shape.layers * self.shape.heads * self.shape.place_bytes() / PAGE_TOKENS) as u64
    }

    /// Head dimension, padded.
    pub(crate) fn padded_dim(&self) -> usize {
        self.shape.padded()
    }

    /// Keys `[dim][PAGE_TOKENS]` and values `[PAGE_TOKENS][padded dim]`.
    ///
    /// # Safety
    /// `T` is the cache's kind, and nobody writes to the place while the slices live.
    pub(crate) unsafe fn read<T: Element>(&self, place: Place) -> (&[T], &[T]) {
        let (keys, values) = self.shape.lengths();
        let first = self.first::<T>(place);
        // SAFETY: `first` is the place's first element and `lengths` its elements; any bits make a `T`; the caller
        // keeps writers away.
        unsafe {
            (std::slice::from_raw_parts(first, keys), std::slice::from_raw_parts(first.add(keys), values))
        }
    }

    /// Writes the key and value of token `slot` of a page.
    ///
    /// # Safety
    /// `T` is the cache's kind, and nobody reads or writes the same token's key and value in this place.
    pub(crate) unsafe fn write<T: Element>(&self, place: Place, slot: usize, key: &[f32], value: &[f32]) {
        assert!(slot < PAGE_TOKENS && key.len() == self.shape.dim && value.len() == self.shape.dim);
        let first = self.first::<T>(place);
        let (keys, _) = self.shape.lengths();
        let values = keys + slot * self.shape.padded();
        for (d, (&k, &v)) in key.iter().zip(value).enumerate() {
            // SAFETY: both lie within the place by the lengths above; the caller keeps others away from this token.
            unsafe {
                first.add(d * PAGE_TOKENS + slot).write(T::narrow(k));
                first.add(values + d).write(T::narrow(v));
            }
        }
    }

    fn first<T: Element>(&self, place: Place) -> *mut T {
        let Shape { layers, heads, kind, .. } = self.shape;
        assert!(place.layer < layers && place.head < heads && size_of::<T>() == element_bytes(kind));
        let bytes = self.shape.place_bytes();
        let start = ((place.page as usize * layers + place.layer) * heads + place.head) * bytes;
        assert!(start + bytes <= self.region.len(), "page {} of the KV cache", place.page);
        self.region.as_mut_ptr().wrapping_add(start).cast()
    }
}

impl Shape {
    fn padded(self) -> usize {
        self.dim.next_multiple_of(WIDE)
    }

    /// Elements of the keys and of the values of a place.
    fn lengths(self) -> (usize, usize) {
        (self.dim * PAGE_TOKENS, PAGE_TOKENS * self.padded())
    }

    fn place_bytes(self) -> usize {
        let (keys, values) = self.lengths();
        (keys + values) * element_bytes(self.kind)
    }
}

fn element_bytes(kind: KvKind) -> usize {
    match kind {
        KvKind::F32 => 4,
        KvKind::F16 => 2,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn widening_is_exact_for_every_finite_f16() {
        for bits in 0..=u16::MAX {
            let x = f16::from_bits(bits);
            if x.is_finite() {
                assert_eq!(f16::widen(&[x; WIDE])[WIDE - 1].to_bits(), x.to_f32().to_bits(), "{bits:#x}");
            }
        }
    }

    #[test]
    fn a_token_is_read_where_it_was_written() {
        let store = KvStore::new(&Arena::default(), 3, (2, 2, 8), KvKind::F16).unwrap();
        let place = Place { page: 2, layer: 1, head: 1 };
        let key: Vec<f32> = (0..8).map(|i| i as f32 + 0.5).collect();
        let value: Vec<f32> = (0..8).map(|i| -1e6 - i as f32).collect();
        // SAFETY: one thread, and f16 is the cache's kind.
        let (keys, values) = unsafe {
            store.write::<f16>(place, 5, &key, &value);
            store.read::<f16>(place)
        };
        assert_eq!(keys[3 * PAGE_TOKENS + 5].to_f32(), 3.5);
        assert_eq!(values[5 * 16 + 7].to_f32(), -65504.0);
        assert_eq!(keys.iter().filter(|k| k.to_bits() != 0).count(), 8);
    }
}
