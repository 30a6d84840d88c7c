//! Products in AVX-512: a row and one token, or 32 rows and many.

use std::ops::Range;

use super::{
    MAX_STEP,
    avx512::{
        BLOCK, BLOCK_CHUNKS, Constants, GEMV_ROWS, OFFSET, PAIR, ROWS, STEPS, Steps, Totals, VECTOR, decode,
        gemv, tokens, transpose,
    },
    for_bits, output,
};
use crate::{
    layout::row_bytes,
    matrix::T8,
    quantize::{CHUNK, PLANES, Quantized},
};

/// Rows that are decoded together for many tokens.
const GROUP_ROWS: usize = PAIR * ROWS;

/// The most tokens whose sums the registers hold.
const MAX_TOKENS: usize = 8;

/// A thread's memory for products with several tokens.
pub(super) struct Buffers {
    decoded: Box<Decoded>,
    /// One a token, group after group of the rows of an item of work.
    totals: Vec<Totals>,
    tokens: usize,
}

/// A block of columns.
#[repr(align(64))]
struct Decoded {
    /// Of [`ROWS`] rows, row after row.
    rows: [[u8; BLOCK]; ROWS],
    /// Of [`PAIR`] times as many, step after step.
    steps: Steps,
}

impl Buffers {
    pub(super) fn new(tokens: usize) -> Self {
        let decoded = Decoded { rows: [[0; BLOCK]; ROWS], steps: [[[0; VECTOR]; PAIR]; STEPS] };
        Self {
            decoded: Box::new(decoded),
            totals: Vec::with_capacity(tokens * (MAX_STEP / GROUP_ROWS)),
            tokens,
        }
    }
}

/// Checks that a token has the activations that `chunks` chunks are multiplied by.
fn check(token: &Quantized, chunks: usize) {
    assert!(token.high.len().min(token.low.len()) >= chunks * CHUNK, "activations of another width");
}

/// The codes of a row from a chunk on, with room to read whole vectors past its end.
fn codes_from(matrix: &T8, row: usize, chunk: usize) -> *const u8 {
    let row_bytes = row_bytes(matrix.bits, matrix.cols);
    assert!((row + 1) * row_bytes + CHUNK <= matrix.codes.len(), "row {row} of {}", matrix.rows);
    matrix.codes[row * row_bytes + chunk * CHUNK / 8 * matrix.bits.get()..].as_ptr()
}

/// One token: some rows at a time.
pub(super) fn single(matrix: &T8, rows: Range<usize>, token: &Quantized, y: &mut [f32]) {
    let chunks = matrix.cols.div_ceil(CHUNK);
    check(token, chunks);
    let constants = Constants::of(matrix.bits);
    let offset = i64::from(OFFSET) * token.sum;
    // From a row's end to the row that takes its place.
    let skip = (GEMV_ROWS - 1) * row_bytes(matrix.bits, matrix.cols);
    for (first, y) in rows.clone().step_by(GEMV_ROWS).zip(y.chunks_mut(GEMV_ROWS)) {
        // Where fewer are left, the last one is multiplied again.
        let codes = std::array::from_fn(|i| codes_from(matrix, rows.end.min(first + i + 1) - 1, 0));
        // SAFETY: `codes_from` has seen to the codes and the room past them, `check` has counted the activations, and
        // this layout is chosen only where the processor has AVX-512.
        let totals = unsafe { for_bits!(matrix.bits, gemv(codes, chunks, skip, token, constants)) };
        for ((y, total), scale) in y.iter_mut().zip(totals).zip(&matrix.scales[first..]) {
            *y = output(total - offset, token.unit, *scale);
        }
    }
}

/// Several tokens: a block of columns of a group of rows is decoded once and multiplied by every token; then the same
/// columns of the next group, while the second cache still holds their activations.
pub(super) fn several(
    matrix: &T8,
    rows: Range<usize>,
    tokens: &[Quantized],
    y: &mut [f32],
    buffers: &mut Buffers,
) {
    let (chunks, width) = (matrix.cols.div_ceil(CHUNK), rows.len());
    tokens.iter().for_each(|token| check(token, chunks));
    assert!(tokens.len() <= buffers.tokens, "more tokens than the scratch has room for");
    let constants = Constants::of(matrix.bits);
    let Buffers { decoded, totals, .. } = buffers;
    totals.clear();
    totals.resize(rows.len().div_ceil(GROUP_ROWS) * tokens.len(), Totals::ZERO);
    let groups = || rows.clone().step_by(GROUP_ROWS).map(|first| first..rows.end.min(first + GROUP_ROWS));
    for block in 0..chunks.div_ceil(BLOCK_CHUNKS) {
        let count = (chunks - block * BLOCK_CHUNKS).min(BLOCK_CHUNKS);
        for (group, totals) in groups().zip(totals.chunks_exact_mut(tokens.len())) {
            decode_block(matrix, group, block, count, constants, decoded);
            multiply_block(&decoded.steps, count * CHUNK / 4, tokens, block, totals);
        }
    }
    for (group, totals) in groups().zip(totals.chunks_exact(tokens.len())) {
        for ((token, totals), y) in tokens.iter().zip(totals).zip(y.chunks_exact_mut(width)) {
            let offset = (i64::from(OFFSET) * token.sum) as f64;
            let y = &mut y[group.start - rows.start..group.end - rows.start];
            // SAFETY: this layout is chosen only where the processor has AVX-512.
            unsafe { totals.outputs(offset, token.unit, &matrix.scales[group.clone()], y) };
        }
    }
}

/// Decodes a block (`count` chunks) of some rows. Where there are fewer than `decoded` has room for, the others' steps
/// are left as they are: their sums are not used.
fn decode_block(
    matrix: &T8,
    rows: Range<usize>,
    block: usize,
    count: usize,
    constants: &Constants,
    decoded: &mut Decoded,
) {
    for (place, first) in rows.clone().step_by(ROWS).enumerate() {
        for (row, to) in (first..rows.end).zip(&mut decoded.rows) {
            let codes = codes_from(matrix, row, block * BLOCK_CHUNKS);
            // SAFETY: as in `single`; a row of `decoded` has room for a block.
            unsafe { for_bits!(matrix.bits, decode(codes, count, constants, to.as_mut_ptr())) };
        }
        // SAFETY: this layout is chosen only where the processor has AVX-512.
        unsafe { transpose(&decoded.rows, place, &mut decoded.steps) };
    }
}

/// Multiplies a decoded block by all tokens, as many at a time as the registers hold.
fn multiply_block(decoded: &Steps, steps: usize, tokens: &[Quantized], block: usize, totals: &mut [Totals]) {
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
            MAX_TOKENS => multiply_tokens::<MAX_TOKENS>(decoded, steps, [now, later], block, now_totals),
            4 => multiply_tokens::<4>(decoded, steps, [now, later], block, now_totals),
            2 => multiply_tokens::<2>(decoded, steps, [now, later], block, now_totals),
            _ => multiply_tokens::<1>(decoded, steps, [now, later], block, now_totals),
        }
        (tokens, totals) = (later, later_totals);
    }
}

/// Multiplies a decoded block by `T` tokens; `later` come next.
fn multiply_tokens<const T: usize>(
    decoded: &Steps,
    steps: usize,
    [now, later]: [&[Quantized]; 2],
    block: usize,
    totals: &mut [Totals],
) {
    let (Ok(now), Ok(totals)) = (<&[Quantized; T]>::try_from(now), <&mut [Totals; T]>::try_from(totals))
    else {
        return;
    };
    let columns = block * BLOCK..block * BLOCK + 4 * steps;
    let planes = |tokens: [&Quantized; T]| {
        PLANES.map(|plane| tokens.map(|token| plane.of(token)[columns.clone()].as_ptr().cast()))
    };
    let now = now.each_ref();
    let ahead = std::array::from_fn(|i| later.get(i).unwrap_or(now[i]));
    // SAFETY: the slices above hold a dword a step, of which a chunk has whole lines; this layout is chosen only where the
    // processor has AVX-512.
    unsafe { tokens(decoded, steps, planes(now), planes(ahead), totals) };
}
