use upg_codec::{GROUP, Isa};

use crate::{
    layout::{Layout, spread_column},
    per_isa::per_isa,
};

/// Columns that the vector kernels take at a time: four groups.
pub(crate) const CHUNK: usize = 128;

/// The largest value: 12 bits with its sign.
const LARGEST: i16 = 2047;

/// Bits of the low plane.
pub(crate) const LOW_BITS: usize = 6;

/// A vector of activations in integers: `x[i] = unit · values[i]`, to within rounding.
///
/// One float for the whole vector makes a product with integer weights exact up to one last multiplication, in whatever
/// order it is summed: every instruction set and thread count gives the same bits. Kernels that multiply bytes take a
/// value as two, its *planes*.
pub(crate) struct Quantized {
    /// The unit of all values.
    pub unit: f32,
    /// The values, of whole chunks (zero past the vector's end), in the columns' order.
    pub values: Vec<i16>,
    /// The values in the order in which the layout's kernel wants them.
    pub ordered: Vec<i16>,
    /// The planes of `ordered`: `2^LOW_BITS · high + low` with both in `-32..=32`.
    pub high: Vec<i8>,
    /// See `high`.
    pub low: Vec<i8>,
    /// The sum of all values: what an offset of one on every weight adds.
    pub sum: i64,
    layout: Layout,
}

impl Quantized {
    /// Room for vectors of up to `cols` numbers.
    pub(crate) fn new(layout: Layout, cols: usize) -> Self {
        let cols = cols.next_multiple_of(CHUNK);
        Self {
            unit: 0.0,
            values: Vec::with_capacity(cols),
            ordered: Vec::with_capacity(cols),
            high: Vec::with_capacity(cols),
            low: Vec::with_capacity(cols),
            sum: 0,
            layout,
        }
    }

    /// Quantises a vector. Does not allocate where [`Quantized::new`] made room.
    pub(crate) fn set(&mut self, isa: Isa, x: &[f32]) {
        let cols = x.len().next_multiple_of(CHUNK);
        self.values.resize(cols, 0);
        self.unit = quantize(isa, x, &mut self.values);
        self.sum = total(isa, &self.values);
        if self.layout == Layout::RowOrder {
            // Scalar code takes the values as they are.
            return;
        }
        for buffer in [&mut self.high, &mut self.low] {
            buffer.resize(cols, 0);
        }
        self.ordered.resize(cols, 0);
        if self.layout == Layout::Spread {
            arrange_spread(isa, &self.values, &mut self.ordered);
        } else {
            arrange_planar(isa, &self.values, &mut self.ordered);
        }
        split(isa, &self.ordered, &mut self.high, &mut self.low);
    }
}

/// One of the planes of a [`Quantized`].
#[cfg(target_arch = "aarch64")]
#[derive(Clone, Copy)]
pub(crate) enum Plane {
    High,
    Low,
}

/// Both planes.
#[cfg(target_arch = "aarch64")]
pub(crate) const PLANES: [Plane; 2] = [Plane::High, Plane::Low];

#[cfg(target_arch = "aarch64")]
impl Plane {
    /// The plane of a vector, in its kernel's order.
    pub(crate) fn of(self, vector: &Quantized) -> &[i8] {
        match self {
            Plane::High => &vector.high,
            Plane::Low => &vector.low,
        }
    }

    /// What one of the plane is worth in a value.
    pub(crate) fn worth(self) -> i32 {
        match self {
            Plane::High => 1 << LOW_BITS,
            Plane::Low => 1,
        }
    }
}

per_isa! {
    /// Quantises `x` into whole chunks of `values`; returns the unit.
    fn quantize(x: &[f32], values: &mut [i16]) -> f32 {
        let unit = max_magnitude(x) / f32::from(LARGEST);
        let inverse = 1.0 / unit;
        // Where all is tiny or infinite the inverse is useless: such a vector counts as zero.
        let inverse = if inverse.is_finite() { inverse } else { 0.0 };
        let (given, padding) = values.split_at_mut(x.len());
        for (x, value) in x.iter().zip(given) {
            *value = round(x * inverse);
        }
        padding.fill(0);
        unit
    }

    /// The sum of whole chunks of values.
    fn total(values: &[i16]) -> i64 {
        let (chunks, _) = values.as_chunks::<CHUNK>();
        let sum = |chunk: &[i16; CHUNK]| chunk.iter().map(|&value| i32::from(value)).sum::<i32>();
        chunks.iter().map(|chunk| i64::from(sum(chunk))).sum()
    }

    /// Puts values into the order of the lane-planar kernels: step by step, a value of each of a chunk's four groups.
    fn arrange_planar(values: &[i16], ordered: &mut [i16]) {
        let (values, _) = values.as_chunks::<CHUNK>();
        let (ordered, _) = ordered.as_chunks_mut::<CHUNK>();
        for (values, ordered) in values.iter().zip(ordered) {
            let (groups, _) = values.as_chunks::<GROUP>();
            let [a, b, c, d] = [&groups[0], &groups[1], &groups[2], &groups[3]];
            for (i, step) in ordered.as_chunks_mut::<4>().0.iter_mut().enumerate() {
                *step = [a[i], b[i], c[i], d[i]];
            }
        }
    }

    /// Puts values into the order of the AVX-512 kernels.
    fn arrange_spread(values: &[i16], ordered: &mut [i16]) {
        let (values, _) = values.as_chunks::<CHUNK>();
        let (ordered, _) = ordered.as_chunks_mut::<CHUNK>();
        for (values, ordered) in values.iter().zip(ordered) {
            let (values, _) = values.as_chunks::<8>();
            for (i, eight) in ordered.as_chunks_mut::<8>().0.iter_mut().enumerate() {
                *eight = values[spread_column(8 * i) / 8];
            }
        }
    }

    /// Planes of values.
    fn split(values: &[i16], high: &mut [i8], low: &mut [i8]) {
        for ((value, high), low) in values.iter().zip(high).zip(low) {
            let rounded = (value + (1 << (LOW_BITS - 1))) >> LOW_BITS;
            *high = rounded as i8;
            *low = (value - (rounded << LOW_BITS)) as i8;
        }
    }
}

#[inline(always)]
fn max_magnitude(x: &[f32]) -> f32 {
    const LANES: usize = 32;
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    let mut lanes = [0.0f32; LANES];
    let (chunks, rest) = x.as_chunks::<LANES>();
    for chunk in chunks {
        for (lane, x) in lanes.iter_mut().zip(chunk) {
            *lane = larger(*lane, x.abs());
        }
    }
    lanes.into_iter().chain(rest.iter().map(|x| x.abs())).fold(0.0, larger)
}

/// To the nearest integer, ties to even, in `-LARGEST..=LARGEST`.
#[inline(always)]
fn round(x: f32) -> i16 {
    // Adding 1.5·2^23 leaves the rounded integer in the low bits of the sum.
    const ROUND: f32 = 12_582_912.0;
    let clamped = x.clamp(-f32::from(LARGEST), f32::from(LARGEST));
    ((clamped + ROUND).to_bits() as i32).wrapping_sub(ROUND.to_bits() as i32) as i16
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::planar_column;

    fn quantized(x: &[f32]) -> Quantized {
        let mut q = Quantized::new(Layout::RowOrder, x.len());
        q.set(Isa::Scalar, x);
        q
    }

    #[test]
    fn error_is_half_a_unit() {
        let x: Vec<f32> =
            (0..700).map(|i| (i as f32 * 0.37).sin() * if i < 99 { 10.0 } else { 0.6 }).collect();
        let q = quantized(&x);
        for (x, &value) in x.iter().zip(&q.values) {
            assert!((x - q.unit * f32::from(value)).abs() <= 0.5001 * q.unit);
        }
        assert!(q.values.iter().any(|value| value.abs() == LARGEST));
        assert!(q.values[700..].iter().all(|&value| value == 0));
        assert_eq!(q.sum, q.values.iter().map(|&value| i64::from(value)).sum::<i64>());
    }

    #[test]
    fn nothing_and_nonsense_are_zero() {
        for x in [[0.0; 40], [f32::NAN; 40], [f32::INFINITY; 40], [1e-44; 40]] {
            assert!(quantized(&x).values.iter().all(|&v| v == 0), "{}", x[0]);
        }
    }

    #[test]
    fn arranged_values_are_those_of_their_columns() {
        let x: Vec<f32> = (0..300).map(|i| (i as f32 * 0.7).sin()).collect();
        for (layout, column) in
            [(Layout::LanePlanar, planar_column as fn(usize) -> usize), (Layout::Spread, spread_column)]
        {
            for isa in Isa::available() {
                let mut q = Quantized::new(layout, x.len());
                q.set(isa, &x);
                let value = |i: usize| q.values[i / CHUNK * CHUNK + column(i % CHUNK)];
                assert_eq!(q.high.len(), x.len().next_multiple_of(CHUNK));
                for (i, (high, low)) in q.high.iter().zip(&q.low).enumerate() {
                    assert_eq!((i16::from(*high) << LOW_BITS) + i16::from(*low), value(i));
                    assert!((-32..=32).contains(high) && (-32..=32).contains(low));
                }
            }
        }
    }

    #[test]
    fn every_isa_gives_the_same_bits() {
        let x: Vec<f32> = (0..1000).map(|i| (i as f32).sin() / (1.0 + i as f32)).collect();
        let expected = quantized(&x);
        for isa in Isa::available() {
            let mut q = Quantized::new(Layout::of(isa), x.len());
            q.set(isa, &x);
            assert_eq!(
                (q.unit.to_bits(), &q.values, q.sum),
                (expected.unit.to_bits(), &expected.values, expected.sum)
            );
        }
    }
}
