//! Tiles of the linears over a batch, as large as the card's shared memory allows, and how many blocks share a linear.

use upg_codec::Bits;

/// Rows of a block's tile: `GEMM_ROWS` in `kernels/gemm.cuh`.
pub(crate) const ROWS: usize = 128;
/// Bytes of the look-up table in shared memory: `GEMM_TABLE_BYTES`.
const TABLE_BYTES: usize = 256 * 32 * 4;
/// Threads of a block: `GEMM_THREADS`.
pub(crate) const THREADS: usize = 256;
/// The most columns of a stage: rows of activations are padded to whole ones.
pub(crate) const MAX_COLUMNS: usize = 256;
/// The most tokens of a tile: activations are padded to whole ones.
pub(crate) const MAX_TOKENS: usize = 256;

/// Slices of the columns, at most.
const MAX_SPLITS: usize = 8;
/// What one more slice costs a linear: the slices are written, read and added.
const SPLIT_COST: f64 = 0.03;

/// One kind of tile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    /// Tokens of a tile.
    pub tokens: usize,
    /// Columns of a stage.
    pub columns: usize,
    /// Stages that are in shared memory.
    pub stages: usize,
}

impl Shape {
    /// Bytes of dynamic shared memory, as `stage_bytes` has it, where no matrix has more bits than `bits`.
    pub(crate) fn shared(&self, bits: Bits) -> usize {
        let weights = ROWS * self.columns * bits.get() / 8;
        TABLE_BYTES + self.stages * (self.tokens * self.columns * 2 + weights)
    }
}

/// The tiles of a card: for few, for some and for many tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shapes(pub [Shape; 3]);

impl Shapes {
    /// The largest that fit `limit` bytes of shared memory; `None` where none do.
    pub(crate) fn fitting(bits: Bits, limit: usize) -> Option<Self> {
        let first = |candidates: &[(usize, usize, usize)]| {
            let shapes =
                candidates.iter().map(|&(tokens, columns, stages)| Shape { tokens, columns, stages });
            shapes.into_iter().find(|shape| shape.shared(bits) <= limit)
        };
        Some(Self([
            first(&[(16, 128, 4), (16, 128, 3), (16, 128, 2)])?,
            first(&[(64, 128, 3), (64, 128, 2)])?,
            first(&[(256, 64, 4), (256, 64, 3), (128, 64, 4), (128, 64, 3), (128, 64, 2)])?,
        ]))
    }

    /// The compiler's definitions.
    pub(crate) fn defines(&self) -> [(&'static str, usize); 5] {
        let [small, middle, large] = self.0;
        [
            ("SMALL_BK", small.columns),
            ("SMALL_STAGES", small.stages),
            ("MIDDLE_STAGES", middle.stages),
            ("LARGE_NT", large.tokens / 16),
            ("LARGE_STAGES", large.stages),
        ]
    }

    /// The kind of tile for so many tokens.
    pub(crate) fn choose(&self, tokens: usize) -> usize {
        match tokens {
            0..=16 => 0,
            17..=128 => 1,
            _ => 2,
        }
    }
}

/// Slices of the columns so that `tiles` blocks, `slots` at a time, leave the card idle least. The slices of all `rows`
/// must fit `room` rows.
pub(crate) fn splits(tiles: usize, slots: usize, rows: usize, room: usize) -> usize {
    let cost = |splits: usize| {
        let waves = (tiles * splits).div_ceil(slots);
        waves as f64 / splits as f64 * (1.0 + SPLIT_COST * splits as f64)
    };
    let most = (room / rows).clamp(1, MAX_SPLITS);
    (1..=most).min_by(|a, b| cost(*a).total_cmp(&cost(*b))).unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_has_tiles_on_every_card() {
        // Shared memory of a block on cards of compute capability 8.9, 8.0 and 9.0, less what the kernels hold.
        for limit in [99, 163, 227] {
            for bits in Bits::ALL {
                let limit = limit * 1024 - 2048;
                let shapes = Shapes::fitting(bits, limit).unwrap();
                for shape in shapes.0 {
                    assert!(shape.shared(bits) <= limit && shape.tokens <= MAX_TOKENS, "{shape:?}");
                    assert!(MAX_COLUMNS.is_multiple_of(shape.columns), "{shape:?}");
                }
            }
        }
        assert_eq!(Shapes::fitting(Bits::B3, 64 << 10), None);
    }

    #[test]
    fn few_tiles_are_split_and_many_are_not_split_past_the_room() {
        assert_eq!(splits(120, 132, 7680, 35_840), 1);
        assert_eq!(splits(80, 132, 5120, 35_840), 3);
        assert_eq!(splits(80, 132, 5120, 10_240), 1);
        assert_eq!(splits(1, 132, 8, 8), 1);
    }
}
