//! Products over the lane-planar layout: eight rows and one token, or sixteen rows and many.

use std::ops::Range;

use upg_codec::Isa;

use super::{
    avx2, for_bits, output,
    planar::{BLOCK_CHUNKS, OFFSET, PairTotals, Tables, VECTOR},
    vnni,
};
use crate::{
    layout::TILE_ROWS,
    matrix::T8,
    quantize::{CHUNK, Quantized},
};

/// Rows that are multiplied by many tokens at a time: those of two tiles.
const PAIR_ROWS: usize = 2 * TILE_ROWS;

/// The most tokens whose sums the registers hold.
const MAX_TOKENS: usize = 6;

/// Bytes of a block of two decoded tiles: at most 16 bits a weight.
const DECODED: usize = 2 * BLOCK_CHUNKS * CHUNK * PAIR_ROWS;

/// A thread's memory for products with several tokens.
pub(super) struct Buffers {
    decoded: Box<Decoded>,
    /// One a token.
    totals: Vec<PairTotals>,
    tokens: usize,
}

#[repr(align(64))]
struct Decoded([u8; DECODED]);

impl Buffers {
    pub(super) fn new(tokens: usize) -> Self {
        Self { decoded: Box::new(Decoded([0; DECODED])), totals: Vec::with_capacity(tokens), tokens }
    }
}

fn tables(isa: Isa, matrix: &T8) -> Tables {
    Tables::new(matrix.bits, if isa == Isa::AvxVnni { OFFSET } else { 0 })
}

/// What the offset on every weight adds to a token's totals.
fn offset_sum(isa: Isa, token: &Quantized) -> i64 {
    if isa == Isa::AvxVnni { i64::from(OFFSET) * token.sum } else { 0 }
}

/// Checks that a token has the activations that `chunks` chunks are multiplied by.
fn check(token: &Quantized, chunks: usize) {
    let len = chunks * CHUNK;
    assert!(
        token.ordered.len() >= len
            && token.magnitudes.len() >= len
            && token.folded.len() >= len
            && token.multipliers.len() * BLOCK_CHUNKS >= chunks,
        "activations of another width"
    );
}

/// The bytes of the tiles of eight rows.
fn tile_row_bytes(matrix: &T8) -> usize {
    matrix.cols.div_ceil(CHUNK) * tile_bytes(matrix)
}

fn tile_bytes(matrix: &T8) -> usize {
    4 * matrix.bits.get() * VECTOR
}

/// One token: eight rows at a time, decoded in registers.
pub(super) fn single(isa: Isa, matrix: &T8, rows: Range<usize>, token: &Quantized, y: &mut [f32]) {
    let chunks = matrix.cols.div_ceil(CHUNK);
    check(token, chunks);
    let (tables, offset) = (tables(isa, matrix), offset_sum(isa, token));
    for (row, y) in rows.step_by(TILE_ROWS).zip(y.chunks_mut(TILE_ROWS)) {
        let tiles =
            matrix.codes[row / TILE_ROWS * tile_row_bytes(matrix)..][..tile_row_bytes(matrix)].as_ptr();
        // SAFETY: the slice holds the tiles of eight rows, `check` has counted the activations, and an `Isa` is chosen
        // only where the processor has it.
        let totals = unsafe {
            match isa {
                Isa::AvxVnni => for_bits!(matrix.bits, vnni::gemv(tiles, chunks, token, &tables)),
                _ => for_bits!(matrix.bits, avx2::gemv(tiles, chunks, token, &tables)),
            }
        };
        for ((y, total), scale) in y.iter_mut().zip(totals).zip(&matrix.scales[row..]) {
            *y = output(total - offset, token.unit, *scale);
        }
    }
}

/// Several tokens: sixteen rows at a time, a block of columns decoded once and multiplied by every token.
pub(super) fn several(
    isa: Isa,
    matrix: &T8,
    rows: Range<usize>,
    tokens: &[Quantized],
    y: &mut [f32],
    buffers: &mut Buffers,
) {
    let (chunks, width) = (matrix.cols.div_ceil(CHUNK), rows.len());
    tokens.iter().for_each(|token| check(token, chunks));
    assert!(tokens.len() <= buffers.tokens, "more tokens than the scratch has room for");
    let tables = tables(isa, matrix);
    let Buffers { decoded, totals, .. } = buffers;
    for first in rows.clone().step_by(PAIR_ROWS) {
        totals.clear();
        // SAFETY: an `Isa` with this layout is chosen only where the processor has AVX2.
        totals.resize(tokens.len(), unsafe { PairTotals::zero() });
        for block in 0..chunks.div_ceil(BLOCK_CHUNKS) {
            let steps = decode_block(isa, matrix, (first, rows.end), block, &tables, &mut decoded.0);
            multiply_block(isa, &decoded.0, steps, tokens, block, totals);
        }
        let end = rows.end.min(first + PAIR_ROWS);
        for ((token, totals), y) in tokens.iter().zip(totals.iter()).zip(y.chunks_exact_mut(width)) {
            let offset = offset_sum(isa, token);
            // SAFETY: as above.
            let totals = unsafe { totals.rows() };
            let y = &mut y[first - rows.start..end - rows.start];
            for ((y, total), scale) in y.iter_mut().zip(totals.as_flattened()).zip(&matrix.scales[first..]) {
                *y = output(total - offset, token.unit, *scale);
            }
        }
    }
}

/// Decodes a block of columns of the rows from `first` on, two tiles side by side (the second is left as it is where
/// the rows end before it: its sums are not used). Returns the number of steps.
fn decode_block(
    isa: Isa,
    matrix: &T8,
    (first, end): (usize, usize),
    block: usize,
    tables: &Tables,
    decoded: &mut [u8; DECODED],
) -> usize {
    let chunk_steps = if isa == Isa::AvxVnni { 32 } else { 64 };
    let chunks = block * BLOCK_CHUNKS..matrix.cols.div_ceil(CHUNK).min((block + 1) * BLOCK_CHUNKS);
    let stride = 2 * VECTOR;
    for (pair, row) in (first..end.min(first + PAIR_ROWS)).step_by(TILE_ROWS).enumerate() {
        for (i, chunk) in chunks.clone().enumerate() {
            let start = row / TILE_ROWS * tile_row_bytes(matrix) + chunk * tile_bytes(matrix);
            let tile = matrix.codes[start..][..tile_bytes(matrix)].as_ptr();
            let to = decoded[i * chunk_steps * stride..][..chunk_steps * stride].as_mut_ptr();
            // SAFETY: the slices are a tile and the room for its steps; `pair` shifts by one of a step's two vectors;
            // an `Isa` is chosen only where the processor has it.
            unsafe {
                let to = to.add(pair * VECTOR);
                match isa {
                    Isa::AvxVnni => for_bits!(matrix.bits, vnni::decode(tile, tables, to, stride)),
                    _ => for_bits!(matrix.bits, avx2::decode(tile, tables, to, stride)),
                }
            }
        }
    }
    chunks.len() * chunk_steps
}

/// Multiplies a decoded block by all tokens, as many at a time as the registers hold.
fn multiply_block(
    isa: Isa,
    decoded: &[u8; DECODED],
    steps: usize,
    tokens: &[Quantized],
    block: usize,
    totals: &mut [PairTotals],
) {
    let (mut tokens, mut totals) = (tokens, totals);
    while !tokens.is_empty() {
        let count = match tokens.len() {
            MAX_TOKENS.. => MAX_TOKENS,
            4.. => 4,
            2.. => 2,
            _ => 1,
        };
        let (now, later) = tokens.split_at(count);
        let (now_totals, later_totals) = totals.split_at_mut(count);
        match count {
            MAX_TOKENS => multiply_tokens::<MAX_TOKENS>(isa, decoded, steps, now, block, now_totals),
            4 => multiply_tokens::<4>(isa, decoded, steps, now, block, now_totals),
            2 => multiply_tokens::<2>(isa, decoded, steps, now, block, now_totals),
            _ => multiply_tokens::<1>(isa, decoded, steps, now, block, now_totals),
        }
        (tokens, totals) = (later, later_totals);
    }
}

fn multiply_tokens<const T: usize>(
    isa: Isa,
    decoded: &[u8; DECODED],
    steps: usize,
    tokens: &[Quantized],
    block: usize,
    totals: &mut [PairTotals],
) {
    let (Ok(tokens), Ok(totals)) =
        (<&[Quantized; T]>::try_from(tokens), <&mut [PairTotals; T]>::try_from(totals))
    else {
        return;
    };
    let start = block * BLOCK_CHUNKS * CHUNK;
    // SAFETY: `decode_block` has written the steps; `check` has counted the activations, of which a block's steps read
    // no more than a block's (four int8 or two int16 a step); an `Isa` is chosen only where the processor has it.
    unsafe {
        if isa == Isa::AvxVnni {
            let activations = tokens.each_ref().map(|token| token.ordered[start..].as_ptr().cast());
            let multipliers = tokens.each_ref().map(|token| token.multipliers[block]);
            vnni::tokens(decoded.as_ptr(), steps, activations, multipliers, totals);
        } else {
            let activations = tokens.each_ref().map(|token| token.folded[start..].as_ptr().cast());
            avx2::tokens(decoded.as_ptr(), steps, activations, totals);
        }
    }
}
