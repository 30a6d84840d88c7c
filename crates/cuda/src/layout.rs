//! T8 matrices as the kernels read them (`kernels/t8.cuh`): a tile is a few rows by 32 groups, one group a lane, its
//! 16-byte vectors vector-major, so that a warp's load of a vector is one contiguous piece.

use rayon::prelude::*;
use upg_codec::{Bits, GROUP};

use crate::abi::{SPAN, UNIT};

const LANES: usize = 32;
const VECTOR: usize = 16;

/// Rows of a tile: as many as keep it a whole number of vectors a lane.
pub(crate) const fn tile_rows(bits: Bits) -> usize {
    if bits.get() <= 6 { 4 } else { 2 }
}

/// Bytes of a tile.
pub(crate) const fn tile_bytes(bits: Bits) -> usize {
    tile_rows(bits) * bits.group_bytes() * LANES
}

/// Spans of a row of `cols` columns.
pub(crate) const fn spans(cols: usize) -> usize {
    cols.div_ceil(SPAN)
}

/// Units of `rows` rows.
pub(crate) const fn units(rows: usize) -> usize {
    rows.div_ceil(UNIT)
}

/// Bytes of a matrix in tiles.
pub(crate) const fn bytes(bits: Bits, rows: usize, cols: usize) -> usize {
    units(rows) * (UNIT / tile_rows(bits)) * spans(cols) * tile_bytes(bits)
}

/// Repacks the codes of a matrix, rows of a file's order, into tiles. What lies past the last row or column is zero:
/// its activations are zero, or its sums are not read.
///
/// `codes` holds `rows` times [`Bits::row_bytes`] of `cols`.
pub(crate) fn pack(bits: Bits, rows: usize, cols: usize, codes: &[u8]) -> Vec<u8> {
    let mut packed = vec![0; bytes(bits, rows, cols)];
    let row_bytes = cols / GROUP * bits.group_bytes();
    let block = spans(cols) * tile_bytes(bits);
    packed.par_chunks_mut(block).zip(codes.par_chunks(tile_rows(bits) * row_bytes)).for_each(
        |(tiles, rows)| {
            for (r, row) in rows.chunks(row_bytes).enumerate() {
                for (g, group) in row.chunks_exact(bits.group_bytes()).enumerate() {
                    let tile = &mut tiles[g / LANES * tile_bytes(bits)..][..tile_bytes(bits)];
                    place(tile, g % LANES, r * bits.group_bytes(), group);
                }
            }
        },
    );
    packed
}

/// Puts a group at byte `at` of a lane's part of a tile.
fn place(tile: &mut [u8], lane: usize, at: usize, group: &[u8]) {
    // Groups are whole words, and a word never straddles two vectors.
    for (i, word) in group.chunks_exact(4).enumerate() {
        let byte = at + 4 * i;
        let to = (byte / VECTOR * LANES + lane) * VECTOR + byte % VECTOR;
        tile[to..to + 4].copy_from_slice(word);
    }
}

/// The kernels' look-up table of a code: for each state the value, for codes of at most 4 bits also the low part of
/// the next weight's value and the high part of the last one's, which the state determines.
pub(crate) fn entries(bits: Bits) -> [u32; 256] {
    entries_above(bits, 0, 0)
}

/// The same with `low` added to low parts and `high` to high ones.
fn entries_above(bits: Bits, low: i32, high: i32) -> [u32; 256] {
    let (table, k) = (bits.table(), bits.get());
    let byte = |value: i8, more: i32| (i32::from(value) + more) as u32 & 0xff;
    std::array::from_fn(|state| {
        let value = byte(table.value(state as u8), low + high);
        if k > 4 {
            return value;
        }
        let (next, last) = (table.low[state >> k & 15], table.high[state >> (4 - k) & 15]);
        value | byte(next, low) << 8 | byte(last, high) << 24
    })
}

/// Words of all codes' tables: a table of 256 entries at 256 times its bits.
const TABLES: usize = 256 * 9;

/// The tables of all codes.
pub(crate) fn tables() -> [u32; TABLES] {
    all_tables(entries)
}

/// The tables of all codes whose bytes are not negative: parts are moved up so that a whole value is 128 too large.
pub(crate) fn biased_tables() -> [u32; TABLES] {
    all_tables(|bits| {
        let least = bits.table().low.into_iter().map(i32::from).min().unwrap_or(0);
        entries_above(bits, -least, 128 + least)
    })
}

fn all_tables(of: impl Fn(Bits) -> [u32; 256]) -> [u32; TABLES] {
    let mut tables = [0; TABLES];
    for bits in Bits::ALL {
        tables[256 * bits.get()..][..256].copy_from_slice(&of(bits));
    }
    tables
}

#[cfg(test)]
mod tests {
    use upg_codec::decode_row;
    use upg_pdvm::rotation::SplitMix64;

    use super::*;

    /// What `dot_ring` computes for one lane's group: the same look-ups, windows and packed activations.
    fn dot_ring(bits: Bits, ring: &[u8], a: &[i16]) -> i32 {
        let (table, k) = (entries(bits), bits.get());
        let words: Vec<u32> =
            ring.chunks_exact(4).map(|w| u32::from_le_bytes([w[0], w[1], w[2], w[3]])).collect();
        let entry = |weight: usize| {
            // The window's eight bits end up at bit 7.
            let at = (k * weight + 32 * k - 7) % (32 * k);
            let pair = u64::from(words[at / 32]) | u64::from(words[(at / 32 + 1) % k]) << 32;
            table[((pair >> (at % 32)) >> 7 & 0xff) as usize].to_le_bytes().map(|b| i32::from(b as i8))
        };
        let a = |i: usize| i32::from(a[i % GROUP]);
        let pair = |j: usize| {
            let even = entry(2 * j);
            if k <= 4 {
                // The high half meets the pair before: its even activation by a zero.
                assert_eq!(even[2], 0);
                even[0] * a(2 * j) + even[1] * a(2 * j + 1) + even[3] * a(2 * j + GROUP - 1)
            } else {
                even[0] * a(2 * j) + entry(2 * j + 1)[0] * a(2 * j + 1)
            }
        };
        (0..GROUP / 2).map(pair).sum()
    }

    /// A lane's group of row `r`, read from its tile as the kernel does.
    fn ring(bits: Bits, packed: &[u8], cols: usize, row: usize, group: usize) -> Vec<u8> {
        let tile = (row / tile_rows(bits) * spans(cols) + group / LANES) * tile_bytes(bits);
        let lane_words: Vec<u8> = (0..tile_bytes(bits) / (LANES * VECTOR))
            .flat_map(|v| packed[tile + (v * LANES + group % LANES) * VECTOR..][..VECTOR].to_vec())
            .collect();
        lane_words[row % tile_rows(bits) * bits.group_bytes()..][..bits.group_bytes()].to_vec()
    }

    #[test]
    fn products_over_tiles_are_those_of_the_plain_decoder() {
        let mut random = SplitMix64(5);
        for bits in Bits::ALL {
            for (rows, cols) in [(8, 1024), (13, 96), (3, 1088)] {
                let row_bytes = bits.row_bytes(cols).unwrap();
                let codes: Vec<u8> = (0..rows * row_bytes).map(|_| random.next() as u8).collect();
                let a: Vec<i16> = (0..cols).map(|_| (random.next() % 32_767) as i16 - 16_383).collect();
                let packed = pack(bits, rows, cols, &codes);
                for row in 0..rows {
                    let mut values = vec![0; cols];
                    decode_row(bits, &codes[row * row_bytes..][..row_bytes], &mut values);
                    let plain: i32 = values.iter().zip(&a).map(|(v, a)| i32::from(*v) * i32::from(*a)).sum();
                    let tiled: i32 = (0..cols / GROUP)
                        .map(|g| dot_ring(bits, &ring(bits, &packed, cols, row, g), &a[g * GROUP..][..GROUP]))
                        .sum();
                    assert_eq!(tiled, plain, "{bits:?}, row {row} of {rows} x {cols}");
                }
            }
        }
    }

    #[test]
    fn tiles_are_whole_vectors_and_cover_whole_units() {
        for bits in Bits::ALL {
            assert_eq!(tile_bytes(bits) % (LANES * VECTOR), 0);
            assert_eq!(UNIT % tile_rows(bits), 0);
            assert_eq!(bytes(bits, 9, 1025 + 31), 2 * UNIT / tile_rows(bits) * 2 * tile_bytes(bits));
        }
    }
}
