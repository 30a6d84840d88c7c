//! One function an instruction. `n` is the number of tokens of the batch; shapes stand beside the buffers.

use super::{
    ReferenceMachine,
    math::{add, dot, norm, silu, softmax},
    model::Head,
};
use crate::{
    KvError, PAGE_TOKENS,
    rope::rotate,
    rotation::{block, hadamard},
};

impl ReferenceMachine {
    /// `x = embed[token]`.
    pub(super) fn embed(&mut self) {
        let hidden = self.program.config.hidden;
        for (x, row) in self.scratch.x.chunks_exact_mut(hidden).zip(&self.rows) {
            x.copy_from_slice(self.model.embed.row(row.token as usize));
        }
    }

    /// `q, k, v = W norm(x) + b`; q and k turn by their position (and, before a quantised cache, go through a Hadamard
    /// transform); k and v go to the cache.
    pub(super) fn norm_qkv_rope(&mut self, layer: usize) -> Result<(), KvError> {
        let (n, config, weights) = (self.rows.len(), &self.program.config, &self.model.layers[layer]);
        let s = &mut self.scratch;
        norm(&s.x[..n * config.hidden], &mut s.normed, config.hidden, config.norm_eps); // [n, hidden]
        weights.q.apply(n, &s.normed, &mut s.q); // [n, heads·head_dim]
        weights.k.apply(n, &s.normed, &mut s.k); // [n, kv_heads·head_dim]
        weights.v.apply(n, &s.normed, &mut s.v); // [n, kv_heads·head_dim]
        let tokens = self.rows.iter().zip(s.q.chunks_exact_mut(config.q_width()));
        let kv_width = config.kv_width();
        let tokens = tokens.zip(s.k.chunks_exact_mut(kv_width)).zip(s.v.chunks_exact_mut(kv_width));
        for (((row, q), k), v) in tokens {
            if let Some([q_bias, k_bias, v_bias]) = &weights.biases {
                add(q, q_bias);
                add(k, k_bias);
                add(v, v_bias);
            }
            self.rope.fill(row.position, row.rope_length, &mut s.cos, &mut s.sin);
            for head in q.chunks_exact_mut(config.head_dim).chain(k.chunks_exact_mut(config.head_dim)) {
                rotate(head, &s.cos, &s.sin);
                if let Some(block) = self.options.kv.hadamard(config) {
                    hadamard(head, block);
                }
            }
            let page = self.kv.pages(row.seq)?[row.position / PAGE_TOKENS];
            self.cache.write(layer, page, row.position % PAGE_TOKENS, k, v);
        }
        Ok(())
    }

    /// `a = softmax(q kᵀ / sqrt(head_dim)) v` per query head, over the tokens from the window's start to its own.
    pub(super) fn attend(&mut self, layer: usize) -> Result<(), KvError> {
        let (config, s) = (&self.program.config, &mut self.scratch);
        let (width, group) = (config.head_dim, config.heads / config.kv_heads);
        let scale = 1.0 / (width as f32).sqrt();
        let queries = s.q.chunks_exact(config.q_width()).zip(s.a.chunks_exact_mut(config.q_width()));
        for (row, (q, a)) in self.rows.iter().zip(queries) {
            let end = row.position + 1;
            let start = end.saturating_sub(config.sliding_window.unwrap_or(end));
            let pages = self.kv.pages(row.seq)?;
            let at = |token: usize| (layer, pages[token / PAGE_TOKENS], token % PAGE_TOKENS);
            let heads = q.chunks_exact(width).zip(a.chunks_exact_mut(width));
            for (head, (q, a)) in heads.enumerate() {
                let columns = head / group * width..(head / group + 1) * width;
                let scores = &mut s.scores[..end - start];
                for (score, token) in scores.iter_mut().zip(start..end) {
                    *score = scale * dot(q, &self.cache.keys(at(token))[columns.clone()]);
                }
                softmax(scores);
                a.fill(0.0);
                for (p, token) in scores.iter().zip(start..end) {
                    let v = &self.cache.values(at(token))[columns.clone()];
                    for (a, v) in a.iter_mut().zip(v) {
                        *a += p * v;
                    }
                }
            }
        }
        Ok(())
    }

    /// `x += O a`.
    pub(super) fn out_add(&mut self, layer: usize) {
        let (n, s) = (self.rows.len(), &mut self.scratch);
        self.model.layers[layer].o.apply(n, &s.a, &mut s.y);
        add(&mut s.x[..n * self.program.config.hidden], &s.y);
    }

    /// `h = hadamard(silu(gate n) · (up n))`, `n = norm(x)`.
    pub(super) fn norm_gate_up(&mut self, layer: usize) {
        let (n, config, weights) = (self.rows.len(), &self.program.config, &self.model.layers[layer]);
        let s = &mut self.scratch;
        norm(&s.x[..n * config.hidden], &mut s.normed, config.hidden, config.norm_eps); // [n, hidden]
        weights.gate.apply(n, &s.normed, &mut s.gate); // [n, mlp]
        weights.up.apply(n, &s.normed, &mut s.up); // [n, mlp]
        let h = &mut s.gate[..n * config.mlp];
        for (h, up) in h.iter_mut().zip(&s.up) {
            *h = silu(*h) * up;
        }
        if config.rotation.is_some() {
            hadamard(h, block(config.mlp));
        }
    }

    /// `x += down h`.
    pub(super) fn down_add(&mut self, layer: usize) {
        let (n, s) = (self.rows.len(), &mut self.scratch);
        self.model.layers[layer].down.apply(n, &s.gate, &mut s.y);
        add(&mut s.x[..n * self.program.config.hidden], &s.y);
    }

    /// `logits = head norm(x)`, or `embed R(g · Rᵀ norm(x))`, for the tokens whose logits are asked for.
    pub(super) fn norm_head(&mut self, logits: &mut [f32]) {
        let (config, s) = (&self.program.config, &mut self.scratch);
        let wanted = self.rows.iter().zip(s.x.chunks_exact(config.hidden)).filter(|(row, _)| row.logits);
        let mut n = 0;
        for ((_, x), normed) in wanted.zip(s.normed.chunks_exact_mut(config.hidden)) {
            norm(x, normed, config.hidden, config.norm_eps);
            n += 1;
        }
        let normed = &mut s.normed[..n * config.hidden]; // [rows of logits, hidden]
        match &self.model.head {
            Head::Own(head) => head.apply(n, normed, logits),
            Head::Tied { gain, rotation } => {
                for normed in normed.chunks_exact_mut(config.hidden) {
                    if let Some(rotation) = rotation {
                        rotation.undo(normed);
                    }
                    for (normed, gain) in normed.iter_mut().zip(gain) {
                        *normed *= gain;
                    }
                    if let Some(rotation) = rotation {
                        rotation.apply(normed);
                    }
                }
                self.model.embed.apply(n, normed, logits);
            }
        }
    }
}
