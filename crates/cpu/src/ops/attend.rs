use upg_pdvm::{BatchRow, KvPages, PAGE_TOKENS, rope::rotate};

use super::each_row;
use crate::{
    attention::{attend_page, finish, merge, pages, partial_len, visible},
    kv::{Place, for_kind},
    kv_kinds::Kind,
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

    /// Adds the biases, turns q and k by the token's position, transforms them where the cache's kind wants it, and
    /// appends k and v to the cache.
    pub(super) fn rope_and_append(&mut self, layer: usize) {
        for_kind!(self.kv.kind(), self.append(layer));
    }

    fn append<K: Kind>(&mut self, layer: usize) {
        let Self { pool, threads, rows, model, scratch, program, isa, kv, pages, .. } = self;
        let config = &program.config;
        let (dim, turning, turned) = (config.head_dim, config.rope.dim, config.q_width() + config.kv_width());
        let width = turned + config.kv_width();
        let (isa, rope, bias) = (*isa, &scratch.rope, model.layers[layer].qkv_bias.as_deref());
        let hadamard = kv.kind().hadamard(config);
        each_row(pool, threads, &mut scratch.qkv[..rows.len() * width], width, &|i, qkv| {
            if let Some(bias) = bias {
                math::add(isa, qkv, bias);
            }
            let (cos, sin) = rope[i * turning..][..turning].split_at(turning / 2);
            let (turned, values) = qkv.split_at_mut(turned);
            turned.chunks_exact_mut(dim).for_each(|head| rotate(head, cos, sin));
            if let Some(block) = hadamard {
                math::hadamard(isa, turned, block);
            }
            let keys = &turned[config.q_width()..];
            let row = &rows[i];
            let page = pages_of(pages, row)[row.position / PAGE_TOKENS];
            for (head, (key, value)) in keys.chunks_exact(dim).zip(values.chunks_exact(dim)).enumerate() {
                // SAFETY: `K` is the cache's kind (see `rope_and_append`); the rows of a batch are different tokens,
                // each written by the one thread that has its row, and attention reads after all are done.
                unsafe { kv.write::<K>(Place { page, layer, head }, row.position % PAGE_TOKENS, key, value) };
            }
        });
    }

    /// `a = softmax(q kᵀ / sqrt(head_dim)) v` for every query head.
    pub(crate) fn attend(&mut self, layer: usize) {
        if self.rows.len() <= SPLIT_ROWS {
            for_kind!(self.kv.kind(), self.attend_split(layer));
            self.merge_splits();
        } else {
            for_kind!(self.kv.kind(), self.attend_whole(layer));
        }
    }

    /// Few tokens: each (token, page, key/value head) is an item of work; [`Self::merge_splits`] joins the partials.
    fn attend_split<K: Kind>(&mut self, layer: usize) {
        let splits = self.splits();
        let Self { pool, threads, rows, scratch, program, isa, kv, pages: books, .. } = self;
        let (config, isa, rows) = (&program.config, *isa, &rows[..]);
        let len = partial_len(kv.padded_dim());
        let (group, stride) = (config.heads / config.kv_heads, config.heads * len);
        let grid = Grid { stride, row_step: 1, parts: &[stride], col_step: group * len };
        let (qkv, qkv_width) = (&scratch.qkv, config.q_width() + 2 * config.kv_width());
        let partials = &mut scratch.partials[..rows.len() * splits * stride];
        pool.tiles(threads, partials, grid, &|_, tile| {
            let (item, head) = (tile.rows.start, tile.cols.start / (group * len));
            let row = &rows[item / splits];
            let Some(index) = pages(row.position, config.sliding_window).nth(item % splits) else { return };
            let place = Place { page: pages_of(books, row)[index], layer, head };
            // SAFETY: `K` is the cache's kind (see `attend`); the cache is written before and after, not now.
            let page = unsafe { kv.read::<K>(place) };
            let queries = &qkv[item / splits * qkv_width..][head * group * config.head_dim..];
            let queries = &queries[..group * config.head_dim];
            let seen = visible(index, row.position, config.sliding_window);
            attend_page(isa, queries, config.head_dim, &page, seen, tile.row(item));
        });
    }

    /// Joins the partials of [`Self::attend_split`]: each (token, key/value head) is an item of work.
    fn merge_splits(&mut self) {
        let splits = self.splits();
        let Self { pool, threads, rows, scratch, program, isa, kv, .. } = self;
        let (config, isa, rows) = (&program.config, *isa, &rows[..]);
        let len = partial_len(kv.padded_dim());
        let (q_width, group_width) = (config.q_width(), config.q_width() / config.kv_heads);
        let (stride, group_len) = (config.heads * len, config.heads / config.kv_heads * len);
        let grid = Grid { stride: q_width, row_step: 1, parts: &[q_width], col_step: group_width };
        let partials = &scratch.partials;
        let attended = &mut scratch.attended[..rows.len() * q_width];
        pool.tiles(threads, attended, grid, &|mine, tile| {
            let (i, head) = (tile.rows.start, tile.cols.start / group_width);
            let count = pages(rows[i].position, config.sliding_window).len();
            let of_page = |page| &partials[(i * splits + page) * stride + head * group_len..][..group_len];
            let [all, _] = &mut mine.partials;
            all.copy_from_slice(of_page(0));
            (1..count).for_each(|page| merge(isa, all, of_page(page), len));
            finish(isa, all, len, config.head_dim, tile.row(i));
        });
    }

    /// The most pages that a token of the batch sees.
    fn splits(&self) -> usize {
        let window = self.program.config.sliding_window;
        self.rows.iter().map(|row| pages(row.position, window).len()).max().unwrap_or(0)
    }

    /// Many tokens: each (token, key/value head) is an item of work, page after page.
    fn attend_whole<K: Kind>(&mut self, layer: usize) {
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
                // SAFETY: `K` is the cache's kind (see `attend`); the cache is written before and after, not now.
                let page = unsafe { kv.read::<K>(place) };
                let seen = visible(index, row.position, config.sliding_window);
                if index == range.start {
                    attend_page(isa, queries, config.head_dim, &page, seen, all);
                } else {
                    attend_page(isa, queries, config.head_dim, &page, seen, one);
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
