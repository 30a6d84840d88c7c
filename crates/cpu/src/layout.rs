#[cfg(target_arch = "x86_64")]
mod pack_x86;

use upg_codec::{Bits, GROUP, Isa};

use crate::{kernels::MANY, per_isa::per_isa, quantize::CHUNK};

/// Rows of a lane-planar tile: 32-bit lanes of an AVX2 vector, or of two NEON ones.
pub(crate) const TILE_ROWS: usize = 8;

/// Groups side by side in a chunk.
pub(crate) const CHUNK_GROUPS: usize = CHUNK / GROUP;

/// Groups of a lane-planar tile, one a byte lane.
const TILE_GROUPS: usize = TILE_ROWS * CHUNK_GROUPS;

/// The most words of a group: those of 8 bits a weight.
const MAX_WORDS: usize = 8;

/// How a T8 matrix lies in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Layout {
    /// Groups in the order of a file, row after row: for scalar code, which takes a group at a time.
    RowOrder,
    /// The same, for AVX-512, which spreads the bits of four groups with `vpermb`.
    Spread,
    /// For AVX2 and NEON, which cannot cut bits at any offset out of wider lanes: tiles of [`TILE_ROWS`] rows by
    /// [`CHUNK`] columns, in which byte `b` of all 32 groups lies side by side (lane `4·row + group`), so that one shift
    /// and mask gets a vector of look-ups' indices, and a 32-bit lane sums a row.
    LanePlanar,
}

impl Layout {
    /// The layout for the kernels of `isa`.
    pub(crate) fn of(isa: Isa) -> Self {
        match isa {
            Isa::Scalar => Layout::RowOrder,
            Isa::Avx2 | Isa::AvxVnni | Isa::Neon | Isa::NeonDot => Layout::LanePlanar,
            Isa::Avx512 => Layout::Spread,
        }
    }

    /// Rows that a kernel takes at once: work is cut at multiples of it.
    pub(crate) fn tile_rows(self) -> usize {
        match self {
            Layout::RowOrder => 1,
            Layout::Spread => 16,
            Layout::LanePlanar => TILE_ROWS,
        }
    }

    /// Rows whose multiples an item of work for `tokens` tokens should have: where there are many, those that are decoded
    /// together.
    pub(crate) fn step_rows(self, tokens: usize) -> usize {
        match self {
            Layout::Spread | Layout::LanePlanar if tokens >= MANY => 2 * self.tile_rows(),
            _ => self.tile_rows(),
        }
    }

    /// Bytes of the codes of a matrix, slack for whole-vector loads included.
    pub(crate) fn bytes(self, bits: Bits, rows: usize, cols: usize) -> usize {
        match self {
            Layout::RowOrder => rows * row_bytes(bits, cols),
            Layout::Spread => rows * row_bytes(bits, cols) + CHUNK,
            Layout::LanePlanar => {
                rows.div_ceil(TILE_ROWS) * cols.div_ceil(CHUNK) * TILE_GROUPS * bits.group_bytes()
            }
        }
    }

    /// Copies the rows `first..first + given.len() / row_bytes` of a matrix from a file's order into place; `first` is
    /// a multiple of [`Layout::tile_rows`] and `place` starts at that row.
    pub(crate) fn pack(self, bits: Bits, cols: usize, given: &[u8], place: &mut [u8]) {
        if self != Layout::LanePlanar {
            return place[..given.len()].copy_from_slice(given);
        }
        let row = row_bytes(bits, cols);
        let tiles = place.chunks_exact_mut(cols.div_ceil(CHUNK) * TILE_GROUPS * bits.group_bytes());
        for (rows, tiles) in given.chunks(TILE_ROWS * row).zip(tiles) {
            pack_rows(bits, rows, row, tiles);
        }
    }

    /// Copies a group out of a packed matrix of `cols` columns.
    pub(crate) fn group(
        self,
        bits: Bits,
        cols: usize,
        codes: &[u8],
        (row, group): (usize, usize),
        to: &mut [u8],
    ) {
        let bytes = bits.group_bytes();
        if self != Layout::LanePlanar {
            to.copy_from_slice(&codes[row * row_bytes(bits, cols) + group * bytes..][..bytes]);
            return;
        }
        let tile = row / TILE_ROWS * cols.div_ceil(CHUNK) + group / CHUNK_GROUPS;
        let lane = CHUNK_GROUPS * (row % TILE_ROWS) + group % CHUNK_GROUPS;
        for (b, to) in to.iter_mut().enumerate() {
            *to = codes[(tile * bytes + b) * TILE_GROUPS + lane];
        }
    }
}

/// Packs up to [`TILE_ROWS`] rows of `row` bytes into lane-planar tiles.
fn pack_rows(bits: Bits, rows: &[u8], row: usize, tiles: &mut [u8]) {
    #[cfg(target_arch = "x86_64")]
    let done = if Isa::Avx2.is_available() { pack_x86::whole_chunks(bits, rows, row, tiles) } else { 0 };
    #[cfg(not(target_arch = "x86_64"))]
    let done = 0;
    pack_chunks(Isa::best(), rows, row, bits.group_bytes(), done, tiles);
}

per_isa! {
    /// The plain version of [`pack_rows`], from the chunk `first` on, `group` bytes a group: fetching words is scalar,
    /// taking the bytes of all groups apart is not.
    fn pack_chunks(rows: &[u8], row: usize, group: usize, first: usize, tiles: &mut [u8]) {
        for (chunk, tile) in tiles.chunks_exact_mut(TILE_GROUPS * group).enumerate().skip(first) {
            let mut words = [[0u32; TILE_GROUPS]; MAX_WORDS];
            for (r, codes) in rows.chunks_exact(row).enumerate() {
                let start = chunk * CHUNK_GROUPS * group;
                let end = row.min(start + CHUNK_GROUPS * group);
                for (g, codes) in codes[start..end].chunks_exact(group).enumerate() {
                    let (codes, _) = codes.as_chunks::<4>();
                    for (words, code) in words.iter_mut().zip(codes) {
                        words[CHUNK_GROUPS * r + g] = u32::from_le_bytes(*code);
                    }
                }
            }
            let (lanes, _) = tile.as_chunks_mut::<TILE_GROUPS>();
            for (words, lanes) in words.iter().zip(lanes.chunks_exact_mut(4)) {
                for (b, lanes) in lanes.iter_mut().enumerate() {
                    for (lane, word) in lanes.iter_mut().zip(words) {
                        *lane = (word >> (8 * b)) as u8;
                    }
                }
            }
        }
    }
}

/// The column of a chunk whose activation a lane-planar kernel reads at place `i`: step by step, four groups a step.
/// (The arrangement itself is written out where it is done, for the compiler's sake.)
#[cfg(test)]
pub(crate) fn planar_column(i: usize) -> usize {
    i % CHUNK_GROUPS * GROUP + i / CHUNK_GROUPS
}

/// The column of a chunk whose activation the AVX-512 kernel multiplies in place `i`: byte `j` of quadword `q` of
/// vector `v` is weight `16·(q mod 2) + 8·v + j` of group `q / 2`.
pub(crate) const fn spread_column(i: usize) -> usize {
    let (v, q, j) = (i / 64, i % 64 / 8, i % 8);
    q / 2 * GROUP + q % 2 * 16 + v * 8 + j
}

/// Bytes of a row in a file's order. Columns are whole groups: the loader has checked that.
pub(crate) fn row_bytes(bits: Bits, cols: usize) -> usize {
    cols / GROUP * bits.group_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packing_loses_no_group() {
        for layout in [Layout::RowOrder, Layout::Spread, Layout::LanePlanar] {
            for (bits, rows, cols) in [(Bits::B3, 19, 160), (Bits::B2, 8, 128), (Bits::B8, 3, 32)] {
                let given: Vec<u8> =
                    (0..rows * row_bytes(bits, cols)).map(|i| (i * 37 + i / 251) as u8).collect();
                let mut codes = vec![0; layout.bytes(bits, rows, cols)];
                layout.pack(bits, cols, &given, &mut codes);
                let mut group = vec![0; bits.group_bytes()];
                for (i, expected) in given.chunks_exact(bits.group_bytes()).enumerate() {
                    layout.group(bits, cols, &codes, (i / (cols / GROUP), i % (cols / GROUP)), &mut group);
                    assert_eq!(group, expected, "{layout:?} {bits:?} group {i}");
                }
            }
        }
    }

    #[test]
    fn packed_in_vectors_or_plainly_is_the_same() {
        for bits in Bits::ALL {
            let (rows, cols) = (8, 3 * CHUNK + GROUP);
            let row = row_bytes(bits, cols);
            let given: Vec<u8> = (0..rows * row).map(|i| (i * 41 + i / 253) as u8).collect();
            let mut tiles = vec![0; Layout::LanePlanar.bytes(bits, rows, cols)];
            let mut plain = tiles.clone();
            pack_rows(bits, &given, row, &mut tiles);
            pack_chunks(Isa::Scalar, &given, row, bits.group_bytes(), 0, &mut plain);
            assert_eq!(tiles, plain, "{bits:?}");
        }
    }

    #[test]
    fn arrangements_are_permutations() {
        for column in [planar_column, spread_column] {
            let mut columns: Vec<usize> = (0..CHUNK).map(column).collect();
            columns.sort_unstable();
            assert!(columns.into_iter().eq(0..CHUNK));
        }
    }
}
