//! The kernels of x86-64 that multiply panels.

use std::ops::Range;

use upg_codec::{Bits, Isa};

use super::{
    avx2, avx512, for_bits,
    panel_products::{Kernels, SPAN_CHUNKS},
    planar::{Tables, VECTOR, tile_bytes, tile_row_bytes},
    planar_x86,
    spread_products::codes_from,
    vnni,
};
use crate::{
    layout::TILE_ROWS,
    matrix::T8,
    panel::{self, CHUNK_DWORDS},
    quantize::CHUNK,
};

/// [`Kernels::multiply`] by a module's `panel`, for each number of tokens.
macro_rules! multiply_by {
    ($module:ident: $($count:literal)*) => {
        fn multiply(decoded: &[u8], chunks: usize, values: &[i32], tokens: usize, sums: &mut [i32]) {
            check::<Self>(decoded, chunks, values, tokens, sums);
            let (decoded, values, sums) = (decoded.as_ptr(), values.as_ptr(), sums.as_mut_ptr());
            // SAFETY: `check` has counted; a path is chosen only where the processor has its instructions.
            unsafe {
                match tokens {
                    $($count => $module::panel::<$count>(decoded, chunks, values, sums),)*
                    tokens => unreachable!("a panel of {tokens} tokens"),
                }
            }
        }
    };
}

/// [`Kernels::tables`] and [`Kernels::decode`] by a module's `decode` of tiles.
macro_rules! decode_tiles_by {
    ($module:ident) => {
        type Tables = Tables;

        fn tables(bits: Bits) -> Tables {
            Tables::new(bits, Self::OFFSET)
        }

        fn decode(matrix: &T8, rows: Range<usize>, span: Range<usize>, tables: &Tables, to: &mut [u8]) {
            each_tile(matrix, rows, span, Self::CHUNK_BYTES, to, |tile, to| {
                // SAFETY: a tile, and room for every first or every second vector of its steps; a path is chosen only where
                // the processor has its instructions.
                unsafe { for_bits!(matrix.bits, $module::decode(tile, tables, to, 2 * VECTOR)) }
            });
        }
    };
}

/// Checks what a kernel reads and writes.
fn check<K: Kernels>(decoded: &[u8], chunks: usize, values: &[i32], tokens: usize, sums: &[i32]) {
    assert!(decoded.len() >= chunks * K::CHUNK_BYTES && sums.len() == K::TOKENS * K::ROWS);
    assert!(values.len() == chunks * CHUNK_DWORDS * tokens && tokens <= K::TOKENS);
}

/// Calls `decode` for each tile of a span of two tiles' rows, side by side, with the place of its first vector. Where the rows
/// end before the second tile, it is left as it is.
fn each_tile(
    matrix: &T8,
    rows: Range<usize>,
    span: Range<usize>,
    chunk_bytes: usize,
    to: &mut [u8],
    decode: impl Fn(*const u8, *mut u8),
) {
    let (tile_row, tile_bytes) = (tile_row_bytes(matrix), tile_bytes(matrix));
    for (tile, row) in rows.step_by(TILE_ROWS).enumerate() {
        for (chunk, to) in span.clone().zip(to.chunks_exact_mut(chunk_bytes)) {
            let codes = &matrix.codes[row / TILE_ROWS * tile_row + chunk * tile_bytes..][..tile_bytes];
            decode(codes.as_ptr(), to[tile * VECTOR..].as_mut_ptr());
        }
    }
}

/// Plain AVX2: weights become 16 bits.
pub(super) struct Avx2;

impl Kernels for Avx2 {
    const ROWS: usize = 2 * TILE_ROWS;
    const TOKENS: usize = panel::tokens(Isa::Avx2);
    const CHUNK_BYTES: usize = 2 * CHUNK * Self::ROWS;
    const OFFSET: u8 = 0;
    const LARGEST: usize = 128 * 2047;

    decode_tiles_by!(avx2);

    multiply_by!(avx2: 1 2 3 4 5 6);
}

/// AVX-VNNI.
pub(super) struct Vnni;

impl Kernels for Vnni {
    const ROWS: usize = 2 * TILE_ROWS;
    const TOKENS: usize = panel::tokens(Isa::AvxVnni);
    const CHUNK_BYTES: usize = CHUNK * Self::ROWS;
    const OFFSET: u8 = planar_x86::OFFSET;
    const LARGEST: usize = 255 * 2080;

    decode_tiles_by!(vnni);

    multiply_by!(vnni: 1 2 3 4 5 6);
}

/// AVX-512.
pub(super) struct Avx512;

impl Kernels for Avx512 {
    const ROWS: usize = avx512::PAIR * avx512::ROWS;
    const TOKENS: usize = panel::tokens(Isa::Avx512);
    const CHUNK_BYTES: usize = CHUNK * Self::ROWS;
    const OFFSET: u8 = avx512::OFFSET;
    const LARGEST: usize = 255 * 2080;
    type Tables = &'static avx512::Constants;

    fn tables(bits: Bits) -> Self::Tables {
        avx512::Constants::of(bits)
    }

    fn decode(matrix: &T8, rows: Range<usize>, span: Range<usize>, tables: &Self::Tables, to: &mut [u8]) {
        assert!(to.len() >= SPAN_CHUNKS * Self::CHUNK_BYTES && span.len() <= SPAN_CHUNKS);
        let mut decoded = [[0; avx512::BLOCK]; avx512::ROWS];
        for (place, first) in rows.clone().step_by(avx512::ROWS).enumerate() {
            for (row, to) in (first..rows.end).zip(&mut decoded) {
                let codes = codes_from(matrix, row, span.start);
                // SAFETY: `codes_from` has seen to the codes and the room past them; a row of `decoded` has room for a span;
                // this path is chosen only where the processor has AVX-512.
                unsafe { for_bits!(matrix.bits, avx512::decode(codes, span.len(), tables, to.as_mut_ptr())) };
            }
            // SAFETY: there is room for the steps of a span, of which every second vector is written; as above.
            unsafe { avx512::transpose(&decoded, to[place * avx512::VECTOR..].as_mut_ptr()) };
        }
    }

    multiply_by!(avx512: 1 2 3 4 5 6 7 8);
}
