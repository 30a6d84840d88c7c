//! What all kernels over the lane-planar layout share.
//!
//! A vector holds byte `b` of 32 groups: four neighbouring groups of each of eight rows. Step `i` finds weight `i` of
//! all 32: two nibbles of the ring, each a shift and a mask, two look-ups, one addition. Its 32 products with the
//! activations of the four groups (one dword, the same for all rows) go to eight sums, one a row.

use upg_codec::{Bits, Table};

use crate::{layout::TILE_ROWS, matrix::T8, quantize::CHUNK};

/// Bytes of a vector.
pub(super) const VECTOR: usize = 32;

/// Bytes of a step of two decoded tiles.
pub(super) const STEP: usize = 2 * VECTOR;

/// The sums of a tile's rows.
pub(super) type RowSums = [i64; TILE_ROWS];

/// The look-up tables of one code in both halves of a vector, for every order of an index's bits.
///
/// A nibble that lies in two bytes is put together from the upper bits of the one, shifted down by four, and the lower
/// bits of the other, in place: its bits then stand rotated to the left, by as much as the second byte has of them.
/// Looking up in a table in that order saves the shifts.
pub(super) struct Tables {
    pub(super) low: [[u8; VECTOR]; 4],
    pub(super) high: [[u8; VECTOR]; 4],
    /// `high[0]` for an index that is one too large, modulo 16.
    #[cfg(target_arch = "x86_64")]
    pub(super) high_after: [u8; VECTOR],
}

impl Tables {
    /// The tables of a code, with `offset` added to every value (modulo 256).
    pub(super) fn new(bits: Bits, offset: u8) -> Self {
        let Table { low, high, .. } = bits.table();
        let rotated = |table: &[i8; 16], offset: u8| {
            std::array::from_fn(|rotation| {
                std::array::from_fn(|i| {
                    let index = i % 16;
                    let nibble = (index >> rotation | index << (4 - rotation)) & 15;
                    (table[nibble] as u8).wrapping_add(offset)
                })
            })
        };
        Self {
            low: rotated(low, offset),
            high: rotated(high, 0),
            #[cfg(target_arch = "x86_64")]
            high_after: std::array::from_fn(|i| high[(i + 15) % 16] as u8),
        }
    }
}

/// The bytes of the tiles of eight rows.
pub(super) fn tile_row_bytes(matrix: &T8) -> usize {
    matrix.cols.div_ceil(CHUNK) * tile_bytes(matrix)
}

/// The bytes of a tile.
pub(super) fn tile_bytes(matrix: &T8) -> usize {
    4 * matrix.bits.get() * VECTOR
}

/// Calls a macro for each of the 32 weights of a group, with a literal, so that every shift is a constant.
macro_rules! each_weight {
    ($do:ident) => {
        $do!(0);
        $do!(1);
        $do!(2);
        $do!(3);
        $do!(4);
        $do!(5);
        $do!(6);
        $do!(7);
        $do!(8);
        $do!(9);
        $do!(10);
        $do!(11);
        $do!(12);
        $do!(13);
        $do!(14);
        $do!(15);
        $do!(16);
        $do!(17);
        $do!(18);
        $do!(19);
        $do!(20);
        $do!(21);
        $do!(22);
        $do!(23);
        $do!(24);
        $do!(25);
        $do!(26);
        $do!(27);
        $do!(28);
        $do!(29);
        $do!(30);
        $do!(31);
    };
}

pub(super) use each_weight;
