//! The instructions, one function each; attention's are in `ops/attend.rs`. `n` is the number of tokens of the batch,
//! and buffers have a row for each.

mod attend;

use upg_codec::Isa;
use upg_pdvm::rotation;

use crate::{
    activations::Activations,
    kernels::{MANY, MAX_STEP},
    machine::CpuMachine,
    math,
    matrix::{Input, Matrix},
    panel,
    pool::{Grid, Pool},
    scratch::ThreadScratch,
};

/// Items of work for every thread: enough that none waits long for the last.
const ITEMS_PER_THREAD: usize = 16;

/// The same for many tokens, where items take longer, and rows of one item share what they read of the activations.
const LONG_ITEMS_PER_THREAD: usize = 5;

/// Rows of an f32 matrix in one item: fixed, as the `gemm` crate's sums may depend on it.
const DENSE_STEP: usize = 64;

impl CpuMachine {
    /// `x = embed[token]`.
    pub(crate) fn embed(&mut self) {
        let Self { pool, threads, rows, model, scratch, program, .. } = self;
        let hidden = program.config.hidden;
        each_row(pool, threads, &mut scratch.x[..rows.len() * hidden], hidden, &|i, x| {
            model.embed.row(rows[i].token as usize, x);
        });
    }

    /// `q, k, v = W norm(x)` (plus biases); q and k turned, k and v into the cache.
    pub(crate) fn norm_qkv_rope(&mut self, layer: usize) {
        self.norm();
        let Self { pool, threads, rows, model, scratch, program, isa, .. } = self;
        let (config, n) = (&program.config, rows.len());
        let [q, k, v] = &model.layers[layer].qkv;
        let input = Input { x: &scratch.normed[..n * config.hidden], integers: scratch.integers.first(n) };
        let out = &mut scratch.qkv[..n * (config.q_width() + 2 * config.kv_width())];
        linear(*isa, pool, threads, &[q, k, v], input, out, Output::Set);
        self.rope_and_append(layer);
    }

    /// `x += O a`.
    pub(crate) fn out_add(&mut self, layer: usize) {
        let Self { pool, threads, rows, model, scratch, program, isa, .. } = self;
        let (config, n) = (&program.config, rows.len());
        let attended = &scratch.attended[..n * config.q_width()];
        quantize(*isa, pool, threads, attended, n, &mut scratch.integers);
        let input = Input { x: attended, integers: scratch.integers.first(n) };
        let x = &mut scratch.x[..n * config.hidden];
        linear(*isa, pool, threads, &[&model.layers[layer].o], input, x, Output::Add);
    }

    /// `h = hadamard(silu(gate n) · (up n))` with `n = norm(x)`.
    pub(crate) fn norm_gate_up(&mut self, layer: usize) {
        self.norm();
        let Self { pool, threads, rows, model, scratch, program, isa, .. } = self;
        let (config, n, isa) = (&program.config, rows.len(), *isa);
        let (gate, up) = (&model.layers[layer].gate, &model.layers[layer].up);
        let input = Input { x: &scratch.normed[..n * config.hidden], integers: scratch.integers.first(n) };
        let grid = Grid {
            stride: config.mlp,
            row_step: n,
            parts: &[config.mlp],
            col_step: step(&[gate, up], n, pool.threads()),
        };
        let h = &mut scratch.mlp[..n * config.mlp];
        pool.tiles(threads, h, grid, &|mine, tile| {
            let (cols, width) = (tile.cols.clone(), tile.cols.len());
            let (g, u) = mine.tile[..2 * n * width].split_at_mut(n * width);
            gate.multiply(isa, cols.clone(), input, g, &mut mine.kernel);
            up.multiply(isa, cols, input, u, &mut mine.kernel);
            for (i, (g, u)) in g.chunks_exact(width).zip(u.chunks_exact(width)).enumerate() {
                math::swiglu(isa, g, u, tile.row(i));
            }
        });
        if config.rotation.is_some() {
            let block = rotation::block(config.mlp);
            each_row(pool, threads, h, block, &|_, h| math::hadamard(isa, h, block));
        }
    }

    /// `x += down h`.
    pub(crate) fn down_add(&mut self, layer: usize) {
        let Self { pool, threads, rows, model, scratch, program, isa, .. } = self;
        let (config, n) = (&program.config, rows.len());
        let h = &scratch.mlp[..n * config.mlp];
        quantize(*isa, pool, threads, h, n, &mut scratch.integers);
        let input = Input { x: h, integers: scratch.integers.first(n) };
        let x = &mut scratch.x[..n * config.hidden];
        linear(*isa, pool, threads, &[&model.layers[layer].down], input, x, Output::Add);
    }

    /// `logits = head norm(x)` for the tokens whose logits are asked for; before a tied head the norm's gain is
    /// applied to the residual stream as it was before its rotation.
    pub(crate) fn norm_head(&mut self, logits: &mut [f32]) {
        let Self { pool, threads, rows, model, scratch, program, isa, rotation, .. } = self;
        let (config, isa) = (&program.config, *isa);
        let hidden = config.hidden;
        let asked = rows.iter().zip(scratch.x.chunks_exact(hidden)).filter(|(row, _)| row.logits);
        let mut n = 0;
        for ((_, x), y) in asked.zip(scratch.normed.chunks_exact_mut(hidden)) {
            math::norm(isa, x, y, config.norm_eps);
            if let Some(gain) = &model.final_norm {
                if let Some(rotation) = rotation {
                    rotation.undo(y);
                }
                y.iter_mut().zip(gain).for_each(|(y, gain)| *y *= gain);
                if let Some(rotation) = rotation {
                    rotation.apply(y);
                }
            }
            n += 1;
        }
        if n == 0 {
            return;
        }
        let normed = &scratch.normed[..n * hidden];
        quantize(isa, pool, threads, normed, n, &mut scratch.integers);
        let input = Input { x: normed, integers: scratch.integers.first(n) };
        linear(isa, pool, threads, &[model.head()], input, logits, Output::Set);
    }

    /// `normed = norm(x)`, and its form in integers.
    fn norm(&mut self) {
        let Self { pool, threads, rows, scratch, program, isa, .. } = self;
        let (isa, hidden, eps, n) = (*isa, program.config.hidden, program.config.norm_eps, rows.len());
        let (x, normed) = (&scratch.x, &mut scratch.normed[..n * hidden]);
        each_row(pool, threads, normed, hidden, &|i, y| {
            math::norm(isa, &x[i * hidden..][..hidden], y, eps);
        });
        quantize(isa, pool, threads, normed, n, &mut scratch.integers);
    }
}

/// What becomes of a product.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Output {
    /// In place of what was there.
    Set,
    /// Added to it.
    Add,
}

/// `out = [W0 x, W1 x, …]` or `out += …` for every token; a row of `out` holds the outputs side by side.
fn linear(
    isa: Isa,
    pool: &mut Pool,
    threads: &mut [ThreadScratch],
    matrices: &[&Matrix],
    input: Input<'_>,
    out: &mut [f32],
    output: Output,
) {
    let n = input.integers.tokens.len();
    let mut parts = [0; 3];
    for (part, matrix) in parts.iter_mut().zip(matrices) {
        *part = matrix.rows();
    }
    let parts = &parts[..matrices.len()];
    let col_step = step(matrices, n, pool.threads());
    let grid = Grid { stride: parts.iter().sum(), row_step: n, parts, col_step };
    pool.tiles(threads, out, grid, &|mine, tile| {
        let width = tile.cols.len();
        let y = &mut mine.tile[..n * width];
        matrices[tile.part].multiply(isa, tile.cols.clone(), input, y, &mut mine.kernel);
        for (i, y) in y.chunks_exact(width).enumerate() {
            match output {
                Output::Set => tile.row(i).copy_from_slice(y),
                Output::Add => math::add(isa, tile.row(i), y),
            }
        }
    });
}

/// Rows of these matrices to do at a time for `n` tokens.
fn step(matrices: &[&Matrix], n: usize, threads: usize) -> usize {
    let mut unit = 1;
    for matrix in matrices {
        match matrix {
            Matrix::T8(matrix) => unit = unit.max(matrix.layout.step_rows(n)),
            Matrix::Dense(_) => return DENSE_STEP,
        }
    }
    let rows: usize = matrices.iter().map(|m| m.rows()).sum();
    let items = if n < MANY { ITEMS_PER_THREAD } else { LONG_ITEMS_PER_THREAD };
    (rows / (threads * items)).next_multiple_of(unit).clamp(unit, MAX_STEP)
}

/// Makes `n` vectors integers.
fn quantize(
    isa: Isa,
    pool: &mut Pool,
    threads: &mut [ThreadScratch],
    x: &[f32],
    n: usize,
    to: &mut Activations,
) {
    let (width, most) = (x.len() / n, panel::tokens(isa));
    let (tokens, panels) = to.first_mut(n);
    each_row(pool, threads, tokens, 1, &|i, to| {
        if let [to] = to {
            to.set(isa, &x[i * width..][..width]);
        }
    });
    each_row(pool, threads, panels, 1, &|i, to| {
        if let [to] = to {
            to.set(&tokens[i * most..n.min((i + 1) * most)]);
        }
    });
}

/// Calls `work` for every row of `width` elements. One row (or none) is done at once: waking others would take longer.
fn each_row<T: Send>(
    pool: &mut Pool,
    threads: &mut [ThreadScratch],
    data: &mut [T],
    width: usize,
    work: &(dyn Fn(usize, &mut [T]) + Sync),
) {
    if data.len() <= width {
        if !data.is_empty() {
            work(0, data);
        }
        return;
    }
    let grid = Grid { stride: width, row_step: 1, parts: &[width], col_step: width };
    pool.tiles(threads, data, grid, &|_, tile| {
        let row = tile.rows.start;
        work(row, tile.row(row));
    });
}
