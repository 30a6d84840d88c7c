#[cfg(target_arch = "aarch64")]
mod arm;
mod search;
mod trellis;
mod vector;
#[cfg(target_arch = "x86_64")]
mod x86;

use std::{fmt, ops::Range};

use crate::{Bits, GROUP, Isa, Table};
use search::Forward;
use trellis::Trellis;
use vector::Line;

/// The metric of a path that must not be taken: more than any other can lose, with room below 2³¹.
const FORBIDDEN: i32 = 1 << 30;

/// Finds the codes of many groups: a 256-state Viterbi search, closed into rings.
///
/// The best path round a ring would need a search for each overlap that the last weight can leave to the first.
/// Three passes come within hundredths of a decibel. The first runs from the middle of the group to its middle, with
/// free ends, and tells the overlap at the seam between last and first weight. The second runs from the seam to the
/// seam with that overlap given, and tells the overlap in the middle. The third runs from there to there and is
/// the result.
///
/// Groups go in the lanes of a vector. All arithmetic of the search is on integers, so that every path gives the same
/// codes. An encoder holds scratch memory: make one per thread.
#[derive(Clone)]
pub struct Encoder {
    bits: Bits,
    isa: Isa,
    /// The value of each state.
    values: [i8; 256],
    trellis: Trellis,
    forward: Forward,
    lanes: usize,
    /// [`Forward`]'s, for one vector of groups.
    slopes: Vec<Line>,
    /// [`Forward`]'s.
    metrics: Vec<Line>,
    /// The states found, by group of the vector.
    paths: Vec<[u8; GROUP]>,
}

impl fmt::Debug for Encoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Encoder").field("bits", &self.bits).field("isa", &self.isa).finish_non_exhaustive()
    }
}

impl Encoder {
    /// An encoder on the fastest path of this processor.
    pub fn new(bits: Bits) -> Self {
        Self::with_isa(bits, Isa::best())
    }

    /// An encoder on a given path. All paths give the same codes.
    ///
    /// # Panics
    /// If this processor lacks the path.
    pub fn with_isa(bits: Bits, isa: Isa) -> Self {
        Self::with_table(bits, isa, bits.table())
    }

    /// An encoder for tables other than the code's own: what training them needs.
    ///
    /// # Panics
    /// If this processor lacks the path.
    pub fn with_table(bits: Bits, isa: Isa, table: &Table) -> Self {
        assert!(isa.is_available(), "this processor has no {}: use one of Isa::available()", isa.name());
        let (forward, lanes) = search::forward(bits, isa);
        Self {
            bits,
            isa,
            values: std::array::from_fn(|state| table.value(state as u8)),
            trellis: Trellis::new(bits, table),
            forward,
            lanes,
            slopes: Line::zeroed(GROUP * lanes),
            metrics: Line::zeroed((GROUP + 1) * classes(bits) * lanes),
            paths: vec![[0; GROUP]; lanes],
        }
    }

    /// Encodes groups of [`GROUP`] numbers, one after the other.
    ///
    /// `x` is in table units (data of unit variance times [`Table::sigma`] fits best), `codes` holds
    /// [`Bits::group_bytes`] bytes a group. `weights` are importances by position in the group (all one where
    /// `None`); they are resolved to between 1/32 (`K` = 6) and 1/512 (`K` = 2) of the largest. `errors[g]`, if
    /// wanted, becomes `Σ wᵢ (xᵢ - vᵢ)²` of group `g`.
    ///
    /// Any input gives valid codes: for the search, numbers are clamped a little beyond the tables' range and a NaN
    /// is zero, and so is a NaN or negative weight; the errors are computed from the numbers as they came.
    ///
    /// # Panics
    /// If the lengths do not belong together.
    pub fn encode(
        &mut self,
        x: &[f32],
        weights: Option<&[f32; GROUP]>,
        codes: &mut [u8],
        errors: Option<&mut [f32]>,
    ) {
        let (groups, rest) = x.as_chunks::<GROUP>();
        assert!(rest.is_empty(), "numbers come in whole groups of {GROUP}");
        assert_eq!(codes.len(), groups.len() * self.bits.group_bytes(), "bytes of the groups' codes");
        assert!(errors.as_ref().is_none_or(|e| e.len() == groups.len()), "one error for each group");

        self.trellis.set_weights(weights);
        let mut errors = errors.map(|errors| errors.chunks_mut(self.lanes));
        let code_blocks = codes.chunks_mut(self.lanes * self.bits.group_bytes());
        for (groups, codes) in groups.chunks(self.lanes).zip(code_blocks) {
            self.search(groups);
            for (path, code) in self.paths.iter().zip(codes.chunks_exact_mut(self.bits.group_bytes())) {
                pack(self.bits, path, code);
            }
            if let Some(errors) = errors.as_mut().and_then(Iterator::next) {
                for ((x, path), error) in groups.iter().zip(&self.paths).zip(errors) {
                    *error = self.error(x, path, weights);
                }
            }
        }
    }

    /// Finds the paths of at most one vector of groups.
    fn search(&mut self, groups: &[[f32; GROUP]]) {
        let slopes = Line::numbers_mut(&mut self.slopes);
        for (lane, x) in groups.iter().enumerate() {
            for (slope, lanes) in self.trellis.slopes(x).iter().zip(slopes.chunks_exact_mut(self.lanes)) {
                lanes[lane] = *slope;
            }
        }

        let mut overlaps = [0u8; Line::LEN];
        if classes(self.bits) > 1 {
            self.run(GROUP / 2, None);
            self.best_ends(&mut overlaps);
            self.step_back(GROUP / 2..GROUP, &mut overlaps, |_, _, _| ());
            self.run(0, Some(&overlaps));
            self.step_back(GROUP / 2..GROUP, &mut overlaps, |_, _, _| ());
        }
        self.run(GROUP / 2, Some(&overlaps));
        let mut paths = std::mem::take(&mut self.paths);
        self.step_back(0..GROUP, &mut overlaps, |i, lane, state| {
            paths[lane][(GROUP / 2 + i) % GROUP] = state;
        });
        self.paths = paths;
    }

    /// Runs the forward search over the ring from weight `first` on, from any overlap or from the given ones.
    fn run(&mut self, first: usize, overlaps: Option<&[u8; Line::LEN]>) {
        let metrics = &mut Line::numbers_mut(&mut self.metrics)[..classes(self.bits) * self.lanes];
        metrics.fill(if overlaps.is_some() { FORBIDDEN } else { 0 });
        for (lane, overlap) in overlaps.into_iter().flatten().enumerate().take(self.lanes) {
            metrics[usize::from(*overlap) * self.lanes + lane] = 0;
        }
        // SAFETY: `with_table` has checked that the processor has the path.
        unsafe { (self.forward)(&self.trellis, first, &self.slopes, &mut self.metrics) }
    }

    /// The overlap that the best path over the whole group leaves, by lane.
    fn best_ends(&self, overlaps: &mut [u8; Line::LEN]) {
        let row = classes(self.bits) * self.lanes;
        let metrics = &Line::numbers(&self.metrics)[GROUP * row..][..row];
        let mut best = [i32::MAX; Line::LEN];
        for (class, metrics) in metrics.chunks_exact(self.lanes).enumerate() {
            for ((metric, best), overlap) in metrics.iter().zip(&mut best).zip(&mut *overlaps) {
                if metric < best {
                    (*best, *overlap) = (*metric, class as u8);
                }
            }
        }
    }

    /// From the overlaps after the last of the search's `steps` back to those before the first of them; on the way
    /// tells step, lane and state.
    #[inline(always)]
    fn step_back(
        &self,
        steps: Range<usize>,
        overlaps: &mut [u8; Line::LEN],
        mut found: impl FnMut(usize, usize, u8),
    ) {
        let (k, classes) = (self.bits.get(), classes(self.bits));
        let rows = Line::numbers(&self.metrics).chunks_exact(classes * self.lanes).skip(1);
        for (i, row) in rows.enumerate().take(steps.end).skip(steps.start).rev() {
            for (lane, overlap) in overlaps[..self.lanes].iter_mut().enumerate() {
                let class = usize::from(*overlap);
                let choice = row[class * self.lanes + lane] as usize & ((1 << k) - 1);
                let state = class << k | choice;
                found(i, lane, state as u8);
                *overlap = (state & (classes - 1)) as u8;
            }
        }
    }

    fn error(&self, x: &[f32; GROUP], path: &[u8; GROUP], weights: Option<&[f32; GROUP]>) -> f32 {
        let mut sum = 0.0;
        for i in 0..GROUP {
            let error = x[i] - f32::from(self.values[usize::from(path[i])]);
            sum += weights.map_or(1.0, |w| w[i]) * error * error;
        }
        sum
    }
}

/// The number of overlaps that a state can leave to the next.
fn classes(bits: Bits) -> usize {
    1 << (8 - bits.get())
}

/// Writes the ring of a path of states: each state's lowest `K` bits are the ring's at that weight.
fn pack(bits: Bits, path: &[u8; GROUP], code: &mut [u8]) {
    let k = bits.get();
    let mask = (1u64 << k) - 1;
    for (states, bytes) in path.chunks_exact(8).zip(code.chunks_exact_mut(k)) {
        let word = states.iter().rev().fold(0u64, |word, state| word << k | u64::from(*state) & mask);
        bytes.copy_from_slice(&word.to_le_bytes()[..k]);
    }
}
