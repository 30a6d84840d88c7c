use half::f16;
use upg_pdvm::{BatchRow, KvKind, KvPages, PAGE_TOKENS, rope::rotate};

use super::each_row;
use crate::{
    attention::{attend_page, finish, merge, pages, partial_len, visible},
    kv::{Element, Place},
    machine::CpuMachine,
    math,
    pool::Grid,
    scratch::SPLIT_ROWS,
};

impl CpuMachine {
    /// Cosines and sines of the batch's positions.
    pub(crate) fn angles(&mut self) {
        let dim = self.program.config.rope.dim;
        for (row, angles) in self.rows.iter().zip(self.scratch.rope.chunks_exact_mut(dim)) {
            let (cos, sin) = angles.split_at_mut(dim / 2);
            self.rope.fill(row.position, row.rope_length, cos, sin);
        }
    }

    /// Adds the biases, turns q and k by the token's position, and appends k and v to the cache.
    pub(super) fn rope_and_append(&mut self, layer: usize) {
        match self.kv.kind() {
            KvKind::F32 => self.append::<f32>(layer),
            KvKind::F16 => self.append::<f16>(layer),
        }
    }

    fn append<T: Element>(&mut self, layer: usize) {
        let Self { pool, threads, rows, model, scratch, program, isa, kv, pages, .. } = self;
        let config = &program.config;
        let (dim, turning, turned) = (config.head_dim, config.rope.dim, config.q_width() + config.kv_width());
        let width = turned + config.kv_width();
        let (isa, rope, bias) = (*isa, &scratch.rope, model.layers[layer].qkv_bias.as_deref());
        each_row(pool, threads, &mut scratch.qkv[..rows.len() * width], width, &|i, qkv| {
            if let Some(bias) = bias {
                math::add(isa, qkv, bias);
            }
            let (cos, sin) = rope[i * turning..][..turning].split_at(turning / 2);
            let (turned, values) = qkv.split_at_mut(turned);
            turned.chunks_exact_mut(dim).for_each(|head| rotate(head, cos, sin));
            let keys = &turned[config.q_width()..];
            let row = &rows[i];
            let page = pages_of(pages, row)[row.position / PAGE_TOKENS];
            for (head, (key, value)) in keys.chunks_exact(dim).zip(values.chunks_exact(dim)).enumerate() {
                // SAFETY: `T` is the cache's kind (see `rope_and_append`); the rows of a batch are different tokens,
                // each written by the one thread that has its row, and attention reads after all are done.
                unsafe { kv.write::<T>(Place { page, layer, head }, row.position % PAGE_TOKENS, key, value) };
            }
        });
    }

    /// `a = softmax(q kᵀ / sqrt(head_dim)) v` for every query head.
    pub(crate) fn attend(&mut self, layer: usize) {
        match (self.kv.kind(), self.rows.len() <= SPLIT_ROWS) {
            (KvKind::F32, true) => self.attend_split::<f32>(layer),
            (KvKind::F16, true) => self.attend_split::<f16>(layer),
            (KvKind::F32, false) => self.attend_whole::<f32>(layer),
            (KvKind::F16, false) => self.attend_whole::<f16>(layer),
        }
    }

    /// Few tokens: each (token, page, key/value head) is an item of work; the partials are merged afterwards.
    fn attend_split<T: Element>(&mut self, layer: usize) {
        let Self { pool, threads, rows, scratch, program, isa, kv, pages: books, .. } = self;
        let (config, isa, rows) = (&program.config, *isa, &rows[..]);
        let len = partial_len(kv.padded_dim());
        let (group, stride) = (config.heads / config.kv_heads, config.heads * len);
        let splits =
            rows.iter().map(|row| pages(row.position, config.sliding_window).len()).max().unwrap_or(0);
        let grid = Grid { stride, row_step: 1, parts: &[stride], col_step: group * len };
        let (qkv, qkv_width) = (&scratch.qkv, config.q_width() + 2 * config.kv_width());
        let partials = &mut scratch.partials[..rows.len() * splits * stride];
        pool.tiles(threads, partials, grid, &|_, tile| {
            let (item, head) = (tile.rows.start, tile.cols.start / (group * len));
            let row = &rows[item / splits];
            let Some(index) = pages(row.position, config.sliding_window).nth(item % splits) else { return };
            let place = Place { page: pages_of(books, row)[index], layer, head };
            // SAFETY: `T` is the cache's kind (see `attend`); the cache is written before and after, not now.
            let (keys, values) = unsafe { kv.read::<T>(place) };
            let queries = &qkv[item / splits * qkv_width..][head * group * config.head_dim..];
            let queries = &queries[..group * config.head_dim];
            let seen = visible(index, row.position, config.sliding_window);
            attend_page(isa, queries, config.head_dim, keys, values, seen, tile.row(item));
        });
        let out = scratch.attended.chunks_exact_mut(config.q_width());
        for ((row, partials), out) in rows.iter().zip(partials.chunks_exact_mut(splits * stride)).zip(out) {
            let count = pages(row.position, config.sliding_window).len();
            let (first, others) = partials[..count * stride].split_at_mut(stride);
            others.chunks_exact(stride).for_each(|later| merge(isa, first, later, len));
            finish(isa, first, len, config.head_dim, out);
        }
    }

    /// Many tokens: each (token, key/value head) is an item of work, page after page.
    fn attend_whole<T: Element>(&mut self, layer: usize) {
        let Self { pool, threads, rows, scratch, program, isa, kv, pages: books, .. } = self;
        let (config, isa, rows) = (&program.config, *isa, &rows[..]);
        let len = partial_len(kv.padded_dim());
        let (q_width, group_width) = (config.q_width(), config.q_width() / config.kv_heads);
        let grid = Grid { stride: q_width, row_step: 1, parts: &[q_width], col_step: group_width };
        let (qkv, qkv_width) = (&scratch.qkv, q_width + 2 * config.kv_width());
        let attended = &mut scratch.attended[..rows.len() * q_width];
        pool.tiles(threads, attended, grid, &|mine, tile| {
            let (i, head) = (tile.rows.start, tile.cols.start / group_width);
            let row = &rows[i];
            let queries = &qkv[i * qkv_width + head * group_width..][..group_width];
            let [all, one] = &mut mine.partials;
            let range = pages(row.position, config.sliding_window);
            for index in range.clone() {
                let place = Place { page: pages_of(books, row)[index], layer, head };
                // SAFETY: `T` is the cache's kind (see `attend`); the cache is written before and after, not now.
                let (keys, values) = unsafe { kv.read::<T>(place) };
                let seen = visible(index, row.position, config.sliding_window);
                if index == range.start {
                    attend_page(isa, queries, config.head_dim, keys, values, seen, all);
                } else {
                    attend_page(isa, queries, config.head_dim, keys, values, seen, one);
                    merge(isa, all, one, len);
                }
            }
            finish(isa, all, len, config.head_dim, tile.row(i));
        });
    }
}

/// The pages of a row's sequence.
fn pages_of<'a>(books: &'a KvPages, row: &BatchRow) -> &'a [u32] {
    // A listed row's sequence is open.
    books.pages(row.seq).unwrap_or_default()
}
