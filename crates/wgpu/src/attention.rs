//! The shaders of attention, for one token and for many.

use crate::shaders::{Shader, Shaders};

/// Threads of a workgroup where nothing else decides.
const THREADS: usize = 128;
/// Keys that attention takes at a time; they lie in one page.
pub(crate) const KEYS: usize = 32;
/// The most query heads that attention takes together.
const MOST_SHARED: usize = 8;

impl Shaders {
    /// Query heads that attention takes together.
    pub(crate) fn share(&self) -> usize {
        let group = self.config.heads / self.config.kv_heads;
        (1..=group.min(MOST_SHARED)).rev().find(|n| group.is_multiple_of(*n)).unwrap_or(1)
    }

    /// Attention of one token, a split of the context a workgroup. Buffers: step, q, cache, partial, weights, attended.
    pub(crate) fn attend(&self) -> Shader {
        let half = self.config.head_dim / 2;
        // A thread a score, and a word of the values.
        let threads = THREADS.max(half.next_multiple_of(32)).max(self.share() * KEYS);
        let parts = threads / KEYS;
        // A power of two, which divides the keys.
        let slots = 1 << (threads / half).min(KEYS).ilog2();
        let words = half.div_ceil(parts);
        let source = include_str!("../shaders/attend.wgsl")
            .replace(
                "LOAD_KEYS",
                &each(
                    words,
                    "let k# = cache[key_at(page, kv_head, min(word0 + #u, HALF - 1u), slot + key)];",
                ),
            )
            .replace(
                "LOAD_VALUES",
                &each(
                    KEYS / slots,
                    "let v# = cache[value_at(page, kv_head, slot + min(#u * SLOTS + slot0, last), word)];",
                ),
            )
            .replace("SCORE_KEYS", &each(words, "score(k#, word0 + #u, &sum);"))
            .replace("ADD_VALUES", &each(KEYS / slots, "add(v#, #u * SLOTS + slot0, &acc);"));
        let constants = format!(
            "const THREADS: u32 = {threads}u;\nconst SHARE: u32 = {}u;\nconst KEYS: u32 = {KEYS}u;\nconst PARTS: u32 = \
             {parts}u;\nconst PART_WORDS: u32 = {}u;\nconst SLOTS: u32 = {slots}u;\n",
            self.share(),
            words
        );
        self.shader(
            "attend".into(),
            &[
                ("step", "u32", false),
                ("q", "vec2<f32>", false),
                ("cache", "u32", false),
                ("partial", "vec2<f32>", true),
                ("weights", "vec2<f32>", true),
                ("attended", "vec2<f32>", true),
            ],
            &[
                &constants,
                include_str!("../shaders/step.wgsl"),
                include_str!("../shaders/cache.wgsl"),
                &source,
            ],
        )
    }

    /// Joins the splits of a context. Buffers: step, partial, weights, attended.
    pub(crate) fn join(&self) -> Shader {
        self.shader(
            "join".into(),
            &[
                ("step", "u32", false),
                ("partial", "vec2<f32>", false),
                ("weights", "vec2<f32>", false),
                ("attended", "vec2<f32>", true),
            ],
            &[
                &format!("const THREADS: u32 = {}u;\n", Self::JOIN_THREADS),
                include_str!("../shaders/step.wgsl"),
                include_str!("../shaders/join.wgsl"),
            ],
        )
    }

    pub(crate) const JOIN_THREADS: usize = 64;

    /// Tokens of a tile of [`Shaders::attend_block`].
    pub(crate) fn block_tokens(&self) -> usize {
        (self.block_rows() / self.share()).max(1)
    }

    /// Rows of a tile, a row a token and query head: as many as fit workgroup memory.
    fn block_rows(&self) -> usize {
        if self.config.head_dim <= 128 { 32 } else { 16 }
    }

    /// Attention of a tile of tokens. Buffers: step, q, cache, attended.
    pub(crate) fn attend_block(&self) -> Shader {
        let half = self.config.head_dim / 2;
        let threads = THREADS.max(half.next_multiple_of(32));
        let (slots, rows) = (threads / half, self.block_rows());
        let constants = format!(
            "const THREADS: u32 = {threads}u;\nconst SHARE: u32 = {}u;\nconst ROWS: u32 = {rows}u;\nconst KEYS: u32 = \
             {KEYS}u;\nconst SLOTS: u32 = {slots}u;\nconst ROWS_A_THREAD: u32 = {}u;\n",
            self.share(),
            rows.div_ceil(slots)
        );
        self.shader(
            "attend, many tokens".into(),
            &[
                ("step", "u32", false),
                ("q", "vec2<f32>", false),
                ("cache", "u32", false),
                ("attended", "vec2<f32>", true),
            ],
            &[
                &constants,
                include_str!("../shaders/step.wgsl"),
                include_str!("../shaders/cache.wgsl"),
                include_str!("../shaders/attend_block.wgsl"),
            ],
        )
    }
}

/// A statement for each of the numbers below `count`, which stand for its `#`. Written out, and not a loop: then what is on
/// its way from memory is in registers.
fn each(count: usize, statement: &str) -> String {
    (0..count).map(|i| statement.replace('#', &i.to_string()) + "\n").collect()
}
