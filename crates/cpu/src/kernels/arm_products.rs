//! Products over the lane-planar layout with several tokens on Arm processors.

use std::ops::Range;

use upg_codec::Isa;

use super::{
    MAX_STEP, output,
    planar::{STEP, Tables, VECTOR, tile_bytes, tile_row_bytes},
    planar_arm::{self as arch, MAX_TOKENS},
};
use crate::{
    layout::TILE_ROWS,
    matrix::T8,
    quantize::{CHUNK, Quantized},
};

/// Rows that are multiplied by many tokens at a time: those of two tiles.
const PAIR_ROWS: usize = 2 * TILE_ROWS;

/// Chunks that are decoded at a time: together with the activations that they meet they stay in the first cache.
const SPAN_CHUNKS: usize = 4;

/// Bytes of a span of two decoded tiles: at most 16 bits a weight.
const DECODED: usize = 2 * SPAN_CHUNKS * CHUNK * PAIR_ROWS;

/// A thread's memory for products with several tokens.
pub(super) struct Buffers {
    decoded: Box<Decoded>,
    /// One a token, pair after pair of the tiles of an item of work.
    totals: Vec<arch::PairTotals>,
    tokens: usize,
}

#[repr(align(64))]
struct Decoded([u8; DECODED]);

impl Buffers {
    pub(super) fn new(tokens: usize) -> Self {
        Self {
            decoded: Box::new(Decoded([0; DECODED])),
            totals: Vec::with_capacity(tokens * (MAX_STEP / PAIR_ROWS)),
            tokens,
        }
    }
}

/// Several tokens: a span of columns of sixteen rows is decoded once and multiplied by every token; then the same columns of
/// the next rows, while the second cache still holds their activations.
pub(super) fn several(
    isa: Isa,
    matrix: &T8,
    rows: Range<usize>,
    tokens: &[Quantized],
    y: &mut [f32],
    buffers: &mut Buffers,
) {
    let (chunks, width) = (matrix.cols.div_ceil(CHUNK), rows.len());
    for token in tokens {
        assert!(arch::columns(isa, token) >= chunks * CHUNK, "activations of another width");
    }
    assert!(tokens.len() <= buffers.tokens, "more tokens than the scratch has room for");
    let tables = Tables::new(matrix.bits, arch::offset(isa));
    let Buffers { decoded, totals, .. } = buffers;
    totals.clear();
    // SAFETY: an `Isa` with this layout is chosen only where the processor has it.
    totals.resize(rows.len().div_ceil(PAIR_ROWS) * tokens.len(), unsafe { arch::PairTotals::zero() });
    let firsts = || rows.clone().step_by(PAIR_ROWS);
    for start in (0..chunks).step_by(SPAN_CHUNKS) {
        let span = start..chunks.min(start + SPAN_CHUNKS);
        for (first, totals) in firsts().zip(totals.chunks_exact_mut(tokens.len())) {
            decode_span(isa, matrix, (first, rows.end), span.clone(), &tables, &mut decoded.0);
            multiply_span(isa, &decoded.0, tokens, span.clone(), totals);
        }
    }
    for (first, totals) in firsts().zip(totals.chunks_exact(tokens.len())) {
        let end = rows.end.min(first + PAIR_ROWS);
        for ((token, totals), y) in tokens.iter().zip(totals).zip(y.chunks_exact_mut(width)) {
            let offset = i64::from(arch::offset(isa)) * token.sum;
            // SAFETY: as above.
            let totals = unsafe { totals.rows() };
            let y = &mut y[first - rows.start..end - rows.start];
            for ((y, total), scale) in y.iter_mut().zip(totals.as_flattened()).zip(&matrix.scales[first..]) {
                *y = output((total - offset) as f64, token.unit, *scale);
            }
        }
    }
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
    let chunk_bytes = arch::chunk_steps(isa) * STEP;
    for (pair, row) in (first..end.min(first + PAIR_ROWS)).step_by(TILE_ROWS).enumerate() {
        for (chunk, decoded) in span.clone().zip(decoded.chunks_exact_mut(chunk_bytes)) {
            let start = row / TILE_ROWS * tile_row_bytes(matrix) + chunk * tile_bytes(matrix);
            let tile = matrix.codes[start..][..tile_bytes(matrix)].as_ptr();
            // SAFETY: the slices are a tile and the room for its steps; `pair` shifts by one of a step's two vectors;
            // an `Isa` is chosen only where the processor has it.
            unsafe {
                let to = decoded.as_mut_ptr().add(pair * VECTOR);
                arch::decode(isa, matrix.bits, tile, tables, to);
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
    totals: &mut [arch::PairTotals],
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
    totals: &mut [arch::PairTotals],
) {
    let (Ok(tokens), Ok(totals)) =
        (<&[Quantized; T]>::try_from(tokens), <&mut [arch::PairTotals; T]>::try_from(totals))
    else {
        return;
    };
    // SAFETY: `decode_span` has written the steps, the activations are counted, and an `Isa` is chosen only where
    // the processor has it.
    unsafe { arch::multiply(isa, decoded.as_ptr(), tokens.each_ref(), span, totals) };
}
