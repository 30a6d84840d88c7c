//! Products over the lane-planar layout with one token or many.

use std::ops::Range;

use upg_codec::Isa;

use super::{
    avx2, for_bits, output,
    planar::{BLOCK_CHUNKS, OFFSET, PairTotals, RowSums, Tables, VECTOR},
    vnni,
};
use crate::{
    layout::TILE_ROWS,
    matrix::T8,
    quantize::{CHUNK, PLANES, Quantized},
};

/// Tiles of rows that are multiplied by one token at a time.
const TILES: usize = 4;

/// Rows that are multiplied by many tokens at a time: those of two tiles.
const PAIR_ROWS: usize = 2 * TILE_ROWS;

/// The most tokens whose sums the registers hold.
const MAX_TOKENS: usize = 6;

/// Blocks of columns that are decoded at a time: as many as can be summed in 32 bits (see [`avx2::tokens`]).
const SPAN_BLOCKS: usize = 4;

/// Chunks of a span.
const SPAN_CHUNKS: usize = SPAN_BLOCKS * BLOCK_CHUNKS;

/// Bytes of a span of two decoded tiles: at most 16 bits a weight.
const DECODED: usize = 2 * SPAN_CHUNKS * CHUNK * PAIR_ROWS;

/// Bytes of a step of two decoded tiles.
const STEP: usize = 2 * VECTOR;

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
fn check(isa: Isa, token: &Quantized, chunks: usize) {
    let len = if isa == Isa::AvxVnni {
        token.high.len().min(token.low.len())
    } else {
        token.paired.len().min(token.folded.len())
    };
    assert!(
        len >= chunks * CHUNK && token.multipliers.len() * BLOCK_CHUNKS >= chunks,
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

/// One token: [`TILES`] tiles of rows at a time, one where fewer are left, decoded in registers.
pub(super) fn single(isa: Isa, matrix: &T8, rows: Range<usize>, token: &Quantized, y: &mut [f32]) {
    check(isa, token, matrix.cols.div_ceil(CHUNK));
    let tables = tables(isa, matrix);
    let (together, rest) = y.split_at_mut(y.len() / (TILES * TILE_ROWS) * TILES * TILE_ROWS);
    let rest_start = rows.start + together.len();
    for (i, y) in together.chunks_exact_mut(TILES * TILE_ROWS).enumerate() {
        tiles::<TILES>(isa, matrix, rows.start + i * TILES * TILE_ROWS, token, &tables, y);
    }
    for (i, y) in rest.chunks_mut(TILE_ROWS).enumerate() {
        tiles::<1>(isa, matrix, rest_start + i * TILE_ROWS, token, &tables, y);
    }
}

/// The products of the `N` times eight rows from `row` on, as many as `y` has room for.
fn tiles<const N: usize>(
    isa: Isa,
    matrix: &T8,
    row: usize,
    token: &Quantized,
    tables: &Tables,
    y: &mut [f32],
) {
    let (chunks, bytes) = (matrix.cols.div_ceil(CHUNK), tile_row_bytes(matrix));
    let tiles = std::array::from_fn(|n| matrix.codes[(row / TILE_ROWS + n) * bytes..][..bytes].as_ptr());
    // SAFETY: each slice holds the tiles of eight rows, `single` has counted the activations, and an `Isa` is chosen
    // only where the processor has it.
    let totals: [RowSums; N] = unsafe {
        match isa {
            Isa::AvxVnni => for_bits!(matrix.bits, vnni::gemv<N>(tiles, chunks, token, tables)),
            _ => for_bits!(matrix.bits, avx2::gemv<N>(tiles, chunks, token, tables)),
        }
    };
    let offset = offset_sum(isa, token);
    for ((y, total), scale) in y.iter_mut().zip(totals.as_flattened()).zip(&matrix.scales[row..]) {
        *y = output(total - offset, token.unit, *scale);
    }
}

/// Several tokens: sixteen rows at a time, a span of columns decoded once and multiplied by every token.
pub(super) fn several(
    isa: Isa,
    matrix: &T8,
    rows: Range<usize>,
    tokens: &[Quantized],
    y: &mut [f32],
    buffers: &mut Buffers,
) {
    let (chunks, width) = (matrix.cols.div_ceil(CHUNK), rows.len());
    tokens.iter().for_each(|token| check(isa, token, chunks));
    assert!(tokens.len() <= buffers.tokens, "more tokens than the scratch has room for");
    let tables = tables(isa, matrix);
    let Buffers { decoded, totals, .. } = buffers;
    for first in rows.clone().step_by(PAIR_ROWS) {
        totals.clear();
        // SAFETY: an `Isa` with this layout is chosen only where the processor has AVX2.
        totals.resize(tokens.len(), unsafe { PairTotals::zero() });
        for start in (0..chunks).step_by(SPAN_CHUNKS) {
            let span = start..chunks.min(start + SPAN_CHUNKS);
            decode_span(isa, matrix, (first, rows.end), span.clone(), &tables, &mut decoded.0);
            multiply_span(isa, &decoded.0, tokens, span, totals);
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

/// Steps of a decoded chunk.
fn chunk_steps(isa: Isa) -> usize {
    if isa == Isa::AvxVnni { 32 } else { 64 }
}

/// Decodes a span of columns (its chunks) of the rows from `first` on, two tiles side by side (the second is left as it
/// is where the rows end before it: its sums are not used).
fn decode_span(
    isa: Isa,
    matrix: &T8,
    (first, end): (usize, usize),
    span: Range<usize>,
    tables: &Tables,
    decoded: &mut [u8; DECODED],
) {
    let chunk_bytes = chunk_steps(isa) * STEP;
    for (pair, row) in (first..end.min(first + PAIR_ROWS)).step_by(TILE_ROWS).enumerate() {
        for (chunk, decoded) in span.clone().zip(decoded.chunks_exact_mut(chunk_bytes)) {
            let start = row / TILE_ROWS * tile_row_bytes(matrix) + chunk * tile_bytes(matrix);
            let tile = matrix.codes[start..][..tile_bytes(matrix)].as_ptr();
            // SAFETY: the slices are a tile and the room for its steps; `pair` shifts by one of a step's two vectors;
            // an `Isa` is chosen only where the processor has it.
            unsafe {
                let to = decoded.as_mut_ptr().add(pair * VECTOR);
                match isa {
                    Isa::AvxVnni => for_bits!(matrix.bits, vnni::decode(tile, tables, to, STEP)),
                    _ => for_bits!(matrix.bits, avx2::decode(tile, tables, to, STEP)),
                }
            }
        }
    }
}

/// Multiplies a decoded span by all tokens, as many at a time as the registers hold.
fn multiply_span(
    isa: Isa,
    decoded: &[u8; DECODED],
    tokens: &[Quantized],
    span: Range<usize>,
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
            MAX_TOKENS => multiply_tokens::<MAX_TOKENS>(isa, decoded, now, span.clone(), now_totals),
            4 => multiply_tokens::<4>(isa, decoded, now, span.clone(), now_totals),
            2 => multiply_tokens::<2>(isa, decoded, now, span.clone(), now_totals),
            _ => multiply_tokens::<1>(isa, decoded, now, span.clone(), now_totals),
        }
        (tokens, totals) = (later, later_totals);
    }
}

fn multiply_tokens<const T: usize>(
    isa: Isa,
    decoded: &[u8; DECODED],
    tokens: &[Quantized],
    span: Range<usize>,
    totals: &mut [PairTotals],
) {
    let (Ok(tokens), Ok(totals)) =
        (<&[Quantized; T]>::try_from(tokens), <&mut [PairTotals; T]>::try_from(totals))
    else {
        return;
    };
    if isa != Isa::AvxVnni {
        let activations = tokens.each_ref().map(|token| token.folded[span.start * CHUNK..].as_ptr().cast());
        // SAFETY: `decode_span` has written the steps; `check` has counted the activations, two a step; an `Isa` is
        // chosen only where the processor has it.
        unsafe { avx2::tokens(decoded.as_ptr(), span.len() * chunk_steps(isa), activations, totals) };
        return;
    }
    for (i, first) in span.clone().step_by(BLOCK_CHUNKS).enumerate() {
        let decoded = decoded[i * BLOCK_CHUNKS * chunk_steps(isa) * STEP..].as_ptr();
        let steps = span.end.min(first + BLOCK_CHUNKS).saturating_sub(first) * chunk_steps(isa);
        for plane in PLANES {
            let activations = tokens.each_ref().map(|token| plane.of(token)[first * CHUNK..].as_ptr().cast());
            let multipliers =
                tokens.each_ref().map(|token| plane.worth() * token.multipliers[first / BLOCK_CHUNKS]);
            // SAFETY: as above, with four activations a step.
            unsafe { vnni::tokens(decoded, steps, activations, multipliers, totals) };
        }
    }
}
