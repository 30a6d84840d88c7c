//! Products with many tokens on x86-64: blocks of rows are decoded once, a span of columns at a time, and multiplied by panels
//! of tokens.

use std::ops::Range;

use upg_codec::{Bits, Isa};

use super::{MAX_STEP, output};
use crate::{
    activations::Integers,
    matrix::T8,
    panel::{self, Panel},
    quantize::{CHUNK, Quantized},
};

/// Chunks that are decoded at a time: a strip's weights and a panel's values fit the first cache, a block's the second.
pub(super) const SPAN_CHUNKS: usize = 4;

/// A path's kernels.
pub(super) trait Kernels {
    /// Rows that are decoded side by side: a *strip*.
    const ROWS: usize;

    /// The most tokens of a panel: see [`crate::panel::tokens`].
    const TOKENS: usize;

    /// Bytes of a decoded chunk of a strip.
    const CHUNK_BYTES: usize;

    /// What is added to every weight.
    const OFFSET: u8;

    /// The most that one column adds to a sum.
    const LARGEST: usize;

    /// What decoding looks up.
    type Tables;

    /// The tables of a code.
    fn tables(bits: Bits) -> Self::Tables;

    /// Decodes a span of columns (its chunks, at most [`SPAN_CHUNKS`]) of at most [`Self::ROWS`] rows into a whole span's room.
    /// What stands there of rows past the last one means nothing.
    fn decode(matrix: &T8, rows: Range<usize>, span: Range<usize>, tables: &Self::Tables, to: &mut [u8]);

    /// Adds the products of a decoded span of `chunks` chunks with a panel's values of these, `tokens` of them side by side, to
    /// `sums`, `[TOKENS, ROWS]`.
    fn multiply(decoded: &[u8], chunks: usize, values: &[i32], tokens: usize, sums: &mut [i32]);
}

/// The most tokens of any path's panel.
const MAX_TOKENS: usize = panel::tokens(Isa::Avx512);

/// Bytes of the decoded weights of a block and a span: at most 16 bits a weight.
const DECODED: usize = 2 * MAX_STEP * SPAN_CHUNKS * CHUNK;

/// A thread's memory.
pub(super) struct Buffers {
    decoded: Box<Decoded>,
    /// Of a block: `[panel, strip, token, row]`.
    sums: Vec<i32>,
    /// The same where rows are so wide that their products leave 32 bits.
    totals: Vec<f64>,
}

#[repr(align(64))]
struct Decoded([u8; DECODED]);

impl Buffers {
    /// Room for batches of up to `tokens` tokens.
    pub(super) fn new(tokens: usize) -> Self {
        // The last panel may be one token short of another's worth.
        let count = (tokens + MAX_TOKENS) * MAX_STEP;
        Self {
            decoded: Box::new(Decoded([0; DECODED])),
            sums: Vec::with_capacity(count),
            totals: Vec::with_capacity(count),
        }
    }
}

/// Products with the tokens of panels.
pub(super) fn multiply<K: Kernels>(
    matrix: &T8,
    rows: Range<usize>,
    activations: Integers<'_>,
    y: &mut [f32],
    buffers: &mut Buffers,
) {
    let Integers { tokens, panels } = activations;
    let chunks = matrix.cols.div_ceil(CHUNK);
    let tables = K::tables(matrix.bits);
    for first in rows.clone().step_by(MAX_STEP) {
        let block = first..rows.end.min(first + MAX_STEP);
        let place = first - rows.start..block.end - rows.start;
        let outputs = y.chunks_exact_mut(rows.len()).map(|y| &mut y[place.clone()]).zip(tokens);
        let scales = &matrix.scales[block.clone()];
        if chunks <= safe_chunks::<K>() {
            sum::<K>(matrix, block, 0..chunks, panels, &tables, buffers);
            write::<K, _>(&buffers.sums, scales, outputs);
        } else {
            total::<K>(matrix, block, chunks, panels, &tables, buffers);
            write::<K, _>(&buffers.totals, scales, outputs);
        }
    }
}

/// The most chunks whose products fit 32 bits.
const fn safe_chunks<K: Kernels>() -> usize {
    i32::MAX as usize / (CHUNK * K::LARGEST)
}

/// The strips of a block of rows.
fn strips<K: Kernels>(block: &Range<usize>) -> impl Iterator<Item = Range<usize>> + Clone {
    let end = block.end;
    block.clone().step_by(K::ROWS).map(move |first| first..end.min(first + K::ROWS))
}

/// Sums the products of a block and of all columns into `buffers.totals`.
fn total<K: Kernels>(
    matrix: &T8,
    block: Range<usize>,
    chunks: usize,
    panels: &[Panel],
    tables: &K::Tables,
    buffers: &mut Buffers,
) {
    buffers.totals.clear();
    for start in (0..chunks).step_by(safe_chunks::<K>()) {
        sum::<K>(
            matrix,
            block.clone(),
            start..chunks.min(start + safe_chunks::<K>()),
            panels,
            tables,
            buffers,
        );
        buffers.totals.resize(buffers.sums.len(), 0.0);
        let sums = buffers.totals.iter_mut().zip(&buffers.sums);
        sums.for_each(|(total, sum)| *total += f64::from(*sum));
    }
}

/// Sums the products of a block and of some columns (their chunks, at most [`safe_chunks`]) into `buffers.sums`.
fn sum<K: Kernels>(
    matrix: &T8,
    block: Range<usize>,
    chunks: Range<usize>,
    panels: &[Panel],
    tables: &K::Tables,
    buffers: &mut Buffers,
) {
    let Buffers { decoded, sums, .. } = buffers;
    let (strips, strip_sums) = (strips::<K>(&block), K::TOKENS * K::ROWS);
    let panel_sums = block.len().div_ceil(K::ROWS) * strip_sums;
    sums.clear();
    sums.resize(panels.len() * panel_sums, 0);
    for start in chunks.clone().step_by(SPAN_CHUNKS) {
        let span = start..chunks.end.min(start + SPAN_CHUNKS);
        let room = SPAN_CHUNKS * K::CHUNK_BYTES;
        for (rows, to) in strips.clone().zip(decoded.0.chunks_exact_mut(room)) {
            K::decode(matrix, rows, span.clone(), tables, to);
        }
        for (panel, sums) in panels.iter().zip(sums.chunks_exact_mut(panel_sums)) {
            let values = panel.chunks(span.clone());
            for (decoded, sums) in decoded.0.chunks_exact(room).zip(sums.chunks_exact_mut(strip_sums)) {
                K::multiply(decoded, span.len(), values, panel.tokens(), sums);
            }
        }
    }
}

/// Writes a block's outputs, each with its token.
fn write<'a, K: Kernels, N: Copy + Into<f64>>(
    sums: &[N],
    scales: &[f32],
    outputs: impl Iterator<Item = (&'a mut [f32], &'a Quantized)>,
) {
    let strips = scales.len().div_ceil(K::ROWS);
    for (i, (y, token)) in outputs.enumerate() {
        let (panel, place) = (i / K::TOKENS, i % K::TOKENS);
        let offset = (i64::from(K::OFFSET) * token.sum) as f64;
        let rows = y.chunks_mut(K::ROWS).zip(scales.chunks(K::ROWS));
        for (strip, (y, scales)) in rows.enumerate() {
            let sums = &sums[((panel * strips + strip) * K::TOKENS + place) * K::ROWS..][..K::ROWS];
            for ((y, scale), sum) in y.iter_mut().zip(scales).zip(sums) {
                *y = output((*sum).into() - offset, token.unit, *scale);
            }
        }
    }
}
