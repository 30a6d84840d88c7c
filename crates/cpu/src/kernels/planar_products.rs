//! Products over the lane-planar layout with one token or many.

use std::ops::Range;

use upg_codec::Isa;

use super::{
    avx2, for_bits, output,
    planar::{OFFSET, PairTotals, RowSums, Tables, VECTOR},
    vnni,
};
use crate::{
    layout::TILE_ROWS,
    matrix::T8,
    quantize::{CHUNK, LIFT, PLANES, Quantized},
};

/// Rows that are multiplied by many tokens at a time: those of two tiles.
const PAIR_ROWS: usize = 2 * TILE_ROWS;

/// The most tokens whose sums the registers hold.
const MAX_TOKENS: usize = 6;

/// Chunks that are decoded at a time: together with the activations that they meet they stay in the first cache.
const SPAN_CHUNKS: usize = 4;

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

/// What is in a row's total that is not its product: the offset on every weight, or the lift of every activation.
fn surplus(isa: Isa, matrix: &T8, row: usize, token: &Quantized) -> i64 {
    match isa {
        Isa::AvxVnni => i64::from(OFFSET) * token.sum,
        _ => i64::from(LIFT) * i64::from(matrix.sums[row]),
    }
}

/// Checks that a token has the activations that `chunks` chunks are multiplied by.
fn check(isa: Isa, token: &Quantized, chunks: usize) {
    let planes = token.high.len().min(token.low.len());
    let len = if isa == Isa::AvxVnni { planes } else { planes.min(token.paired.len()) };
    assert!(len >= chunks * CHUNK, "activations of another width");
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
    let tables = tables(isa, matrix);
    for (first, y) in rows.step_by(TILE_ROWS).zip(y.chunks_mut(TILE_ROWS)) {
        let totals = totals(isa, matrix, first, token, &tables);
        for ((row, y), total) in (first..).zip(y).zip(totals) {
            *y = output(total - surplus(isa, matrix, row, token), token.unit, matrix.scales[row]);
        }
    }
}

/// What the kernel makes of the eight rows from `row` on.
fn totals(isa: Isa, matrix: &T8, row: usize, token: &Quantized, tables: &Tables) -> RowSums {
    let (chunks, bytes) = (matrix.cols.div_ceil(CHUNK), tile_row_bytes(matrix));
    check(isa, token, chunks);
    let tiles = matrix.codes[row / TILE_ROWS * bytes..][..bytes].as_ptr();
    // SAFETY: the slice holds the tiles of eight rows, the activations are counted, and an `Isa` is chosen only where
    // the processor has it.
    unsafe {
        match isa {
            Isa::AvxVnni => for_bits!(matrix.bits, vnni::gemv(tiles, chunks, token, tables)),
            _ => for_bits!(matrix.bits, avx2::gemv(tiles, chunks, token, tables)),
        }
    }
}

/// The sum of each row's weights, those beyond its end included.
pub(super) fn row_sums(matrix: &T8) -> Vec<i32> {
    let (ones, tables) = (Quantized::ones(matrix.cols), tables(Isa::Avx2, matrix));
    let tiles = (0..matrix.rows).step_by(TILE_ROWS);
    let sums = tiles.flat_map(|row| totals(Isa::Avx2, matrix, row, &ones, &tables));
    // A row has at most 2^18 columns.
    sums.take(matrix.rows).map(|sum| sum as i32).collect()
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
            // Activations were offset by nothing here: AVX2 multiplies many tokens in 16 bits.
            let offset = if isa == Isa::AvxVnni { i64::from(OFFSET) * token.sum } else { 0 };
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
        let activations = tokens.each_ref().map(|token| token.paired[span.start * CHUNK..].as_ptr().cast());
        // SAFETY: `decode_span` has written the steps; `check` has counted the activations, two a step; an `Isa` is
        // chosen only where the processor has it.
        unsafe { avx2::tokens(decoded.as_ptr(), span.len() * chunk_steps(isa), activations, totals) };
        return;
    }
    for plane in PLANES {
        let activations =
            tokens.each_ref().map(|token| plane.of(token)[span.start * CHUNK..].as_ptr().cast());
        let steps = span.len() * chunk_steps(isa);
        // SAFETY: as above, with four activations a step.
        unsafe { vnni::tokens(decoded.as_ptr(), steps, activations, plane.worth(), totals) };
    }
}
