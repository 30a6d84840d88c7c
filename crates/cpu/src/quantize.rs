use upg_codec::{GROUP, Isa};

use crate::{
    layout::{Layout, spread_column},
    per_isa::per_isa,
};

/// Columns that share a multiplier.
pub(crate) const BLOCK: usize = 128;

/// Columns that the vector kernels take at a time: four groups.
pub(crate) const CHUNK: usize = 128;

/// The largest multiplier: how much finer than the largest block's the steps of a block may be.
const FINEST: f32 = 32.0;

/// Bits of the low plane.
pub(crate) const LOW_BITS: usize = 4;

/// The largest value: 11 bits.
const LARGEST: f32 = 1023.0;

/// A vector of activations in integers: `x[i] = unit · multipliers[i / BLOCK] · values[i]`, to within rounding.
///
/// One float for the whole vector and integer multipliers make a product with integer weights exact up to one last
/// multiplication, in whatever order it is summed: every instruction set and thread count gives the same bits.
///
/// Kernels that multiply bytes take a value as two: `2^LOW_BITS · high + low`.
pub(crate) struct Quantized {
    /// The unit of all values.
    pub unit: f32,
    /// One a block, in `1..=32`.
    pub multipliers: Vec<i32>,
    /// The values, of whole blocks (zero past the vector's end), in the columns' order.
    pub values: Vec<i16>,
    /// The values in the order in which the layout's kernel wants them, whole chunks of [`CHUNK`].
    ordered: Vec<i16>,
    /// The high plane of `ordered`, in `-64..64`, where the kernel multiplies bytes.
    pub high: Vec<i8>,
    /// The low plane of `ordered`, in `0..16`, likewise.
    pub low: Vec<i8>,
    /// The values in the order of a kernel that multiplies 16 bits: the even groups of each step before its odd ones.
    pub paired: Vec<i16>,
    /// `paired` times the multipliers.
    pub folded: Vec<i16>,
    /// `Σ multiplier · value`: what an offset of one on every weight adds.
    pub sum: i64,
    layout: Layout,
}

impl Quantized {
    /// Room for vectors of up to `cols` numbers.
    pub(crate) fn new(layout: Layout, cols: usize) -> Self {
        let cols = cols.next_multiple_of(BLOCK);
        Self {
            unit: 0.0,
            multipliers: Vec::with_capacity(cols / BLOCK),
            values: Vec::with_capacity(cols),
            ordered: Vec::with_capacity(cols),
            high: Vec::with_capacity(cols),
            low: Vec::with_capacity(cols),
            paired: Vec::with_capacity(cols),
            folded: Vec::with_capacity(cols),
            sum: 0,
            layout,
        }
    }

    /// Quantises a vector. Does not allocate where [`Quantized::new`] made room.
    pub(crate) fn set(&mut self, isa: Isa, x: &[f32]) {
        let cols = x.len().next_multiple_of(BLOCK);
        self.multipliers.resize(cols / BLOCK, 1);
        self.values.resize(cols, 0);
        self.unit = quantize(isa, x, &mut self.values, &mut self.multipliers);
        self.sum = 0;
        for (values, multiplier) in self.values.chunks_exact(BLOCK).zip(&self.multipliers) {
            let sum: i32 = values.iter().map(|&v| i32::from(v)).sum();
            self.sum += i64::from(multiplier * sum);
        }
        let arrange = match self.layout {
            // Scalar code takes the values as they are.
            Layout::RowOrder => return,
            Layout::Spread => arrange_spread,
            Layout::LanePlanar => arrange_planar,
        };
        self.ordered.resize(cols, 0);
        arrange(isa, &self.values, &mut self.ordered);
        if self.layout == Layout::LanePlanar && isa != Isa::AvxVnni {
            self.paired.resize(cols, 0);
            pair(isa, &self.ordered, &mut self.paired);
            self.folded.resize(cols, 0);
            fold(isa, &self.paired, &self.multipliers, &mut self.folded);
        } else {
            self.high.resize(cols, 0);
            self.low.resize(cols, 0);
            split(isa, &self.ordered, &mut self.high, &mut self.low);
        }
    }
}

/// One of the planes of a [`Quantized`].
#[derive(Clone, Copy)]
pub(crate) enum Plane {
    High,
    Low,
}

/// Both planes.
pub(crate) const PLANES: [Plane; 2] = [Plane::High, Plane::Low];

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
    /// Quantises `x` into whole blocks of `values`; returns the unit.
    fn quantize(x: &[f32], values: &mut [i16], multipliers: &mut [i32]) -> f32 {
        let largest = max_magnitude(x);
        let unit = largest / (FINEST * LARGEST);
        let blocks = x.chunks(BLOCK).zip(values.chunks_exact_mut(BLOCK)).zip(multipliers);
        for ((x, values), multiplier) in blocks {
            // The cast takes NaN (0/0, all zero) to 0.
            *multiplier = ((FINEST * max_magnitude(x) / largest).ceil() as i32).clamp(1, FINEST as i32);
            let inverse = 1.0 / (unit * *multiplier as f32);
            // Where all is tiny or infinite the inverse is useless: such a vector counts as zero.
            let inverse = if inverse.is_finite() { inverse } else { 0.0 };
            let (given, padding) = values.split_at_mut(x.len());
            for (x, value) in x.iter().zip(given) {
                *value = round(x * inverse);
            }
            padding.fill(0);
        }
        unit
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

    /// Puts the even groups of each step before its odd ones.
    fn pair(ordered: &[i16], paired: &mut [i16]) {
        let steps = ordered.as_chunks::<4>().0.iter().zip(paired.as_chunks_mut::<4>().0);
        for (&[a, b, c, d], step) in steps {
            *step = [a, c, b, d];
        }
    }

    /// Multiplies values by their block's multiplier.
    fn fold(values: &[i16], multipliers: &[i32], folded: &mut [i16]) {
        let (values, _) = values.as_chunks::<BLOCK>();
        let (folded, _) = folded.as_chunks_mut::<BLOCK>();
        for ((values, folded), &multiplier) in values.iter().zip(folded).zip(multipliers) {
            for (value, folded) in values.iter().zip(folded) {
                *folded = value * multiplier as i16;
            }
        }
    }

    /// The two planes of values.
    fn split(values: &[i16], high: &mut [i8], low: &mut [i8]) {
        for ((value, high), low) in values.iter().zip(high).zip(low) {
            *high = (value >> LOW_BITS) as i8;
            *low = (value & ((1 << LOW_BITS) - 1)) as i8;
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
    let clamped = x.clamp(-LARGEST, LARGEST);
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
    fn error_is_half_a_step_of_the_block() {
        let x: Vec<f32> =
            (0..700).map(|i| (i as f32 * 0.37).sin() * if i < BLOCK { 10.0 } else { 0.6 }).collect();
        let q = quantized(&x);
        assert_eq!(q.multipliers, [32, 2, 2, 2, 2, 2]);
        for (i, x) in x.iter().enumerate() {
            let step = q.unit * q.multipliers[i / BLOCK] as f32;
            assert!((x - step * f32::from(q.values[i])).abs() <= 0.5001 * step);
        }
        assert!(q.values[700..].iter().all(|&v| v == 0));
    }

    #[test]
    fn nothing_and_nonsense_are_zero() {
        for x in [[0.0; 40], [f32::NAN; 40], [f32::INFINITY; 40], [1e-44; 40]] {
            assert!(quantized(&x).values.iter().all(|&v| v == 0), "{}", x[0]);
        }
    }

    #[test]
    fn arranged_values_are_those_of_their_columns() {
        let x: Vec<f32> =
            (0..300).map(|i| (i as f32 * 0.7).sin() * if i < BLOCK { 1.0 } else { 0.1 }).collect();
        for (layout, column) in
            [(Layout::LanePlanar, planar_column as fn(usize) -> usize), (Layout::Spread, spread_column)]
        {
            for isa in Isa::available() {
                let mut q = Quantized::new(layout, x.len());
                q.set(isa, &x);
                let value = |i: usize| q.values[i / CHUNK * CHUNK + column(i % CHUNK)];
                assert_eq!(q.paired.len().max(q.high.len()), x.len().next_multiple_of(BLOCK));
                for (i, &paired) in q.paired.iter().enumerate() {
                    assert_eq!(paired, value(i / 4 * 4 + [0, 2, 1, 3][i % 4]));
                    assert_eq!(q.folded[i], paired * q.multipliers[i / BLOCK] as i16);
                }
                for (i, &high) in q.high.iter().enumerate() {
                    assert!((-64..64).contains(&high) && (0..16).contains(&q.low[i]));
                    assert_eq!((i16::from(high) << LOW_BITS) + i16::from(q.low[i]), value(i));
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
                (q.unit.to_bits(), &q.values, &q.multipliers, q.sum),
                (expected.unit.to_bits(), &expected.values, &expected.multipliers, expected.sum)
            );
        }
    }
}
