//! Products of lane-planar matrices with many tokens in plain AVX2: blocks of rows are decoded once, a span of columns at a
//! time, and multiplied by panels of tokens.

use std::ops::Range;

use super::{
    MAX_STEP, avx2, for_bits, output,
    planar::{STEP, Tables, VECTOR},
};
use crate::{
    activations::Integers,
    layout::TILE_ROWS,
    matrix::T8,
    panel::{PANEL_TOKENS, Panel},
    quantize::{CHUNK, Quantized},
};

/// Rows that are multiplied at a time: those of two tiles.
const PAIR_ROWS: usize = 2 * TILE_ROWS;

/// Rows of a block: those of an item of work.
const BLOCK_ROWS: usize = MAX_STEP;

/// Its pairs of tiles, which share a panel while the first cache holds it.
const PAIRS: usize = BLOCK_ROWS / PAIR_ROWS;

/// Steps of a decoded chunk.
const CHUNK_STEPS: usize = CHUNK / 2;

/// Chunks that are decoded at a time: a pair's weights and a panel's values fit the first cache, a block's weights the second.
const SPAN_CHUNKS: usize = 4;

/// Bytes of a decoded span of a pair: 16 bits a weight.
const PAIR_BYTES: usize = 2 * SPAN_CHUNKS * CHUNK * PAIR_ROWS;

/// The most chunks whose products fit 32 bits: each of the 64 steps of a chunk adds at most 2 · 128 · 2047.
const SAFE_CHUNKS: usize = 64;

/// A thread's memory.
pub(super) struct Buffers {
    decoded: Box<[Decoded; PAIRS]>,
    /// Of a block: one for each panel and pair, a panel's side by side.
    sums: Vec<Sums<i32>>,
    /// The same where rows are so wide that their products leave 32 bits.
    totals: Vec<Sums<i64>>,
}

#[derive(Clone, Copy)]
#[repr(align(64))]
struct Decoded([u8; PAIR_BYTES]);

/// Sums of each token of a panel and the rows of a pair.
#[derive(Clone, Copy)]
#[repr(align(32))]
pub(super) struct Sums<N>(pub(super) [[N; PAIR_ROWS]; PANEL_TOKENS]);

impl<N: Copy + Default> Default for Sums<N> {
    fn default() -> Self {
        Self([[N::default(); PAIR_ROWS]; PANEL_TOKENS])
    }
}

impl Buffers {
    /// Room for batches of up to `tokens` tokens and matrices of up to `cols` columns.
    pub(super) fn new(cols: usize, tokens: usize) -> Self {
        let count = tokens.div_ceil(PANEL_TOKENS) * PAIRS;
        let wide = cols > SAFE_CHUNKS * CHUNK;
        Self {
            decoded: Box::new([Decoded([0; PAIR_BYTES]); PAIRS]),
            sums: Vec::with_capacity(count),
            totals: Vec::with_capacity(if wide { count } else { 0 }),
        }
    }
}

/// Products with the tokens of panels.
pub(super) fn multiply(
    matrix: &T8,
    rows: Range<usize>,
    activations: Integers<'_>,
    y: &mut [f32],
    buffers: &mut Buffers,
) {
    let Integers { tokens, panels } = activations;
    let chunks = matrix.cols.div_ceil(CHUNK);
    let tables = Tables::new(matrix.bits, 0);
    for first in rows.clone().step_by(BLOCK_ROWS) {
        let block = first..rows.end.min(first + BLOCK_ROWS);
        let place = first - rows.start..block.end - rows.start;
        let outputs = y.chunks_exact_mut(rows.len()).map(|y| &mut y[place.clone()]).zip(tokens);
        let scales = &matrix.scales[block.clone()];
        if chunks <= SAFE_CHUNKS {
            sum(matrix, block, 0..chunks, panels, &tables, buffers);
            write(&buffers.sums, scales, outputs);
        } else {
            total(matrix, block, chunks, panels, &tables, buffers);
            write(&buffers.totals, scales, outputs);
        }
    }
}

/// Sums the products of a block and of all columns into `buffers.totals`.
fn total(
    matrix: &T8,
    block: Range<usize>,
    chunks: usize,
    panels: &[Panel],
    tables: &Tables,
    buffers: &mut Buffers,
) {
    buffers.totals.clear();
    buffers.totals.resize(panels.len() * PAIRS, Sums::default());
    for start in (0..chunks).step_by(SAFE_CHUNKS) {
        sum(matrix, block.clone(), start..chunks.min(start + SAFE_CHUNKS), panels, tables, buffers);
        for (totals, sums) in buffers.totals.iter_mut().zip(&buffers.sums) {
            let totals = totals.0.as_flattened_mut().iter_mut();
            totals.zip(sums.0.as_flattened()).for_each(|(total, sum)| *total += i64::from(*sum));
        }
    }
}

/// Sums the products of a block and of some columns (their chunks, at most [`SAFE_CHUNKS`]) into `buffers.sums`.
fn sum(
    matrix: &T8,
    block: Range<usize>,
    chunks: Range<usize>,
    panels: &[Panel],
    tables: &Tables,
    buffers: &mut Buffers,
) {
    let Buffers { decoded, sums, .. } = buffers;
    sums.clear();
    sums.resize(panels.len() * PAIRS, Sums::default());
    for start in chunks.clone().step_by(SPAN_CHUNKS) {
        let span = start..chunks.end.min(start + SPAN_CHUNKS);
        decode_span(matrix, block.clone(), span.clone(), tables, decoded);
        let pairs = block.len().div_ceil(PAIR_ROWS);
        for (panel, sums) in panels.iter().zip(sums.chunks_exact_mut(PAIRS)) {
            for (decoded, sums) in decoded[..pairs].iter().zip(sums) {
                multiply_span(decoded, panel, span.clone(), sums);
            }
        }
    }
}

/// Decodes a span of columns (its chunks) of a block. A pair's second tile is left as it is where the rows end before it:
/// its sums are not used.
fn decode_span(
    matrix: &T8,
    block: Range<usize>,
    span: Range<usize>,
    tables: &Tables,
    decoded: &mut [Decoded; PAIRS],
) {
    let tile_bytes = 4 * matrix.bits.get() * VECTOR;
    let tile_row = matrix.cols.div_ceil(CHUNK) * tile_bytes;
    for (tile, row) in block.step_by(TILE_ROWS).enumerate() {
        let steps = decoded[tile / 2].0.chunks_exact_mut(CHUNK_STEPS * STEP);
        for (chunk, steps) in span.clone().zip(steps) {
            let codes = &matrix.codes[row / TILE_ROWS * tile_row + chunk * tile_bytes..][..tile_bytes];
            // SAFETY: the slices are a tile and the room for its steps, of which it has every first or every second
            // vector; this path is chosen only where the processor has AVX2.
            unsafe {
                let to = steps.as_mut_ptr().add(tile % 2 * VECTOR);
                for_bits!(matrix.bits, avx2::decode(codes.as_ptr(), tables, to, STEP));
            }
        }
    }
}

/// Adds the products of a decoded span with the tokens of a panel.
fn multiply_span(decoded: &Decoded, panel: &Panel, span: Range<usize>, sums: &mut Sums<i32>) {
    let steps = span.len() * CHUNK_STEPS;
    let pairs = panel.columns(span.start * CHUNK..span.end * CHUNK);
    let multiply = match panel.tokens() {
        1 => avx2::panel::<1>,
        2 => avx2::panel::<2>,
        3 => avx2::panel::<3>,
        4 => avx2::panel::<4>,
        5 => avx2::panel::<5>,
        _ => avx2::panel::<PANEL_TOKENS>,
    };
    assert!(pairs.len() == steps * panel.tokens() && steps * STEP <= decoded.0.len());
    // SAFETY: `decode_span` has written the steps, values are counted, and this path is chosen only where the processor has
    // AVX2.
    unsafe { multiply(decoded.0.as_ptr(), steps, pairs.as_ptr(), sums) };
}

/// Writes a block's outputs, each with its token.
fn write<'a, N: Copy + Into<i64>>(
    sums: &[Sums<N>],
    scales: &[f32],
    outputs: impl Iterator<Item = (&'a mut [f32], &'a Quantized)>,
) {
    for (i, (y, token)) in outputs.enumerate() {
        let (panel, place) = (i / PANEL_TOKENS * PAIRS, i % PANEL_TOKENS);
        let rows = y.chunks_mut(PAIR_ROWS).zip(scales.chunks(PAIR_ROWS));
        for ((y, scales), sums) in rows.zip(&sums[panel..]) {
            for ((y, scale), sum) in y.iter_mut().zip(scales).zip(sums.0[place]) {
                *y = output(sum.into(), token.unit, *scale);
            }
        }
    }
}
