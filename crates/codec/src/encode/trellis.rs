use crate::{Bits, GROUP, Table};

/// Numbers are clamped to `±REACH` table units for the search: every value of a table is nearer than that, and
/// the metrics of 32 such numbers still fit 32 bits.
const REACH: f32 = 160.0;

/// The metrics' fixed point: they count `2^-SCALE` squared table units, of which the lowest `K` bits hold the
/// predecessor instead.
const SCALE: usize = 11;

/// One position's squared error, split so that a state costs the search a single addition.
///
/// With `v = low + high`, `w(x - v)² - w x² = (w low² - 2w x low) + (w high² - 2w x high) + 2w low high`. The first
/// two terms are needed for 16 nibbles only; the last one does not depend on `x` and is a constant of the state.
#[derive(Clone, Debug)]
pub(super) struct Position {
    /// `w low²`, plus the part of the predecessor's choice that the low nibble tells.
    pub low: [i32; 16],
    /// `w high²`, plus the part of the predecessor's choice that the high nibble tells.
    pub high: [i32; 16],
    /// `2w low high`, by state.
    pub cross: [i32; 256],
}

/// The constants of a search.
#[derive(Clone, Debug)]
pub(super) struct Trellis {
    bits: Bits,
    /// The code's low values.
    pub low: [i32; 16],
    /// The code's high values.
    pub high: [i32; 16],
    /// One position for all 32, or one for each.
    positions: Vec<Position>,
    /// The integer importance `w` of each position.
    scales: [f32; GROUP],
    /// What `positions` were made for.
    weights: Option<[f32; GROUP]>,
}

impl Trellis {
    pub fn new(bits: Bits, table: &Table) -> Self {
        let mut trellis = Self {
            bits,
            low: table.low.map(i32::from),
            high: table.high.map(i32::from),
            positions: Vec::new(),
            scales: [0.0; GROUP],
            weights: None,
        };
        trellis.prepare(None);
        trellis
    }

    /// Makes the positions for these importances, unless they already are.
    pub fn set_weights(&mut self, weights: Option<&[f32; GROUP]>) {
        if self.weights.as_ref() != weights {
            self.prepare(weights);
        }
    }

    fn prepare(&mut self, weights: Option<&[f32; GROUP]>) {
        let integers = weights.map_or([self.unit(); GROUP], |weights| self.integers(weights));
        let distinct = if weights.is_some() { &integers[..] } else { &integers[..1] };
        self.positions = distinct.iter().map(|w| self.position(*w)).collect();
        self.scales = integers.map(|w| w as f32);
        self.weights = weights.copied();
    }

    /// The constants of weight `i` of a group.
    #[inline(always)]
    pub fn at(&self, i: usize) -> &Position {
        &self.positions[if self.positions.len() == 1 { 0 } else { i }]
    }

    /// What the search multiplies by a low or high value to get the part of the error that depends on both: `-2w x`
    /// in the metrics' fixed point. A NaN counts as zero.
    #[inline(always)]
    pub fn slopes(&self, x: &[f32; GROUP]) -> [i32; GROUP] {
        let mut slopes = [0; GROUP];
        for ((slope, x), weight) in slopes.iter_mut().zip(x).zip(&self.scales) {
            let scaled = x.clamp(-REACH, REACH) * weight;
            *slope = (scaled + 0.5f32.copysign(scaled)) as i32 * (-2 << self.bits.get());
        }
        slopes
    }

    /// The largest importance: with it, metrics have [`SCALE`] fractional bits.
    fn unit(&self) -> i32 {
        1 << (SCALE - self.bits.get())
    }

    /// Importances as integers, in proportion to the largest; only zero (and NaN and below) becomes zero.
    fn integers(&self, weights: &[f32; GROUP]) -> [i32; GROUP] {
        let finite = weights.map(|w| w.clamp(0.0, f32::MAX));
        let largest = finite.iter().copied().fold(0.0, f32::max);
        finite.map(|w| {
            let share = f64::from(w) / f64::from(largest) * f64::from(self.unit());
            if w > 0.0 { (share.round() as i32).max(1) } else { 0 }
        })
    }

    fn position(&self, weight: i32) -> Position {
        let k = self.bits.get();
        let fixed = |square: i32| (weight * square) << k;
        let choice = (1 << k) - 1;
        Position {
            low: std::array::from_fn(|n| fixed(self.low[n] * self.low[n]) + (n & choice) as i32),
            high: std::array::from_fn(|n| fixed(self.high[n] * self.high[n]) + (n << 4 & choice) as i32),
            cross: std::array::from_fn(|s| fixed(2 * self.low[s & 15] * self.high[s >> 4])),
        }
    }
}
