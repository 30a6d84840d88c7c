//! The shaders of a model: WGSL of `shaders/`, with the model's shapes written in as constants and the decoders of its
//! codes.

use std::fmt::Write as _;

use upg_format::ModelConfig;
use upg_pdvm::{PAGE_TOKENS, rotation};

use crate::{
    code::{self, Arithmetic, Code},
    step::StepLayout,
    tile::{add_tile, emit_pair, reduction, scales, slots},
};

/// Rows of a matrix that the shader for many tokens takes at a time, and tokens.
pub(crate) const GEMM_TILE: usize = 64;
/// Threads of a workgroup where nothing else decides.
const THREADS: usize = 128;
/// Threads that make one head's scores of a page into weights.
const TEAM: usize = 8;
/// Keys that a tile of attention takes at a time; they lie in one page.
const KEYS: usize = 32;
/// The most query heads that attention takes together.
const MOST_SHARED: usize = 8;

/// What the adapter offers, as far as shaders differ by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Target {
    /// The smallest subgroup, where there are subgroups.
    pub smallest_subgroup: Option<usize>,
    /// How products with activations are computed.
    pub arithmetic: Arithmetic,
    /// Copies of a look-up table in workgroup memory, a power of two up to 16.
    pub copies: usize,
    /// Groups of four rows that a workgroup multiplies by one token, an even number; more where there are very many rows.
    pub quads: usize,
    /// Whether linears run plainly.
    pub plain: bool,
}

/// A shader: its source and whether it writes to each of its buffers.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Shader {
    pub label: String,
    pub source: String,
    /// One a binding, in order.
    pub writes: Vec<bool>,
}

/// Where a linear's input comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Input {
    /// As it is.
    Plain,
    /// Normed by the root of its mean square.
    Norm,
    /// Attention's output.
    Attend,
}

/// Where a linear's output goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Output {
    /// Queries, and the cache.
    Qkv { biases: bool },
    /// The residual stream.
    Add,
    /// The inside of the MLP: rows of two matrices are joined.
    SwiGlu,
    /// Logits.
    Logits,
}

/// A linear: one to three matrices that share an input.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Linear {
    /// Columns.
    pub cols: usize,
    /// Code and rows of each matrix, or of the part of it that is bound.
    pub matrices: Vec<(Code, usize)>,
    /// The first row of the part, and rows of the whole matrix.
    pub part: (usize, usize),
    pub input: Input,
    pub output: Output,
}

impl Linear {
    /// Whether rows of the same number of two matrices make a pair.
    pub(crate) fn paired(&self) -> bool {
        self.output == Output::SwiGlu
    }

    /// Workgroups of tiles of `rows` rows.
    fn tiles_of(&self, rows: usize) -> usize {
        if self.paired() {
            self.matrices[0].1.div_ceil(rows / 2)
        } else {
            self.matrices.iter().map(|(_, m)| m.div_ceil(rows)).sum()
        }
    }

    /// Workgroups for one token, of `quads` quads each.
    fn gemv_tiles(&self, quads: usize) -> usize {
        self.tiles_of(4 * quads)
    }

    /// Workgroups for [`GEMM_TILE`] tokens.
    pub(crate) fn gemm_tiles(&self) -> usize {
        self.tiles_of(GEMM_TILE)
    }

    /// Threads of a workgroup for one token: as many as leave few of them idle in the last round.
    fn threads(&self) -> usize {
        let groups = self.cols / 32;
        groups.div_ceil(groups.div_ceil(256)).next_multiple_of(32)
    }

    pub(crate) fn codes(&self) -> Vec<Code> {
        self.matrices.iter().map(|(code, _)| *code).collect()
    }
}

/// Makes the shaders of one model.
pub(crate) struct Shaders {
    config: ModelConfig,
    target: Target,
    constants: String,
}

impl Shaders {
    pub(crate) fn new(config: &ModelConfig, target: Target, step: &StepLayout) -> Self {
        let mut constants = String::new();
        for (name, value) in [
            ("HIDDEN", config.hidden),
            ("HEADS", config.heads),
            ("KV_HEADS", config.kv_heads),
            ("HEAD_DIM", config.head_dim),
            ("HALF", config.head_dim / 2),
            ("Q_WIDTH", config.q_width()),
            ("MLP", config.mlp),
            ("VOCAB", config.vocab),
            ("PAIRS", config.rope.dim / 2),
            ("WINDOW", config.sliding_window.unwrap_or(0)),
            ("PAGE", PAGE_TOKENS),
            ("TABLES_AT", step.tables_at),
            ("ROWS_AT", step.rows_at),
            ("ROW_WORDS", step.row_words),
            ("ROW_HEAD", StepLayout::ROW_HEAD),
        ] {
            let _ = writeln!(constants, "const {name}: u32 = {value}u;");
        }
        for (name, value) in
            [("EPS", config.norm_eps), ("SCALE", 1.0 / (config.head_dim as f32).sqrt()), ("LOWEST", -3.0e38)]
        {
            let _ = writeln!(constants, "const {name}: f32 = {value:e};");
        }
        Self { config: config.clone(), target, constants }
    }

    /// `buffers`: a WGSL variable's name, element and whether it is written.
    fn shader(&self, label: String, buffers: &[(&str, &str, bool)], parts: &[&str]) -> Shader {
        let mut source = self.constants.clone();
        for (binding, (name, element, writes)) in buffers.iter().enumerate() {
            let access = if *writes { "read_write" } else { "read" };
            let _ = writeln!(
                source,
                "@group(0) @binding({binding}) var<storage, {access}> {name}: array<{element}>;"
            );
        }
        for part in parts {
            source += part;
        }
        Shader { label, source, writes: buffers.iter().map(|(_, _, writes)| *writes).collect() }
    }

    /// The embedding's rows of each token, of the part of it that has `rows` rows from `first` on. Buffers: step, part,
    /// scales, x.
    pub(crate) fn embed(&self, code: Code, first: usize, rows: usize) -> Shader {
        let groups = self.config.hidden / 32;
        let constants = format!(
            "const GROUPS: u32 = {groups}u;\nconst FIRST_ROW: u32 = {first}u;\nconst ROWS0: u32 = {rows}u;\n\
             const THREADS: u32 = {}u;\n",
            Self::EMBED_THREADS
        );
        self.shader(
            format!("embed, rows from {first}"),
            &[
                ("step", "u32", false),
                ("m0", "vec4<u32>", false),
                ("vectors", "f32", false),
                ("x", "vec4<f32>", true),
            ],
            &[
                &constants,
                include_str!("../shaders/step.wgsl"),
                &code::four(0, code),
                include_str!("../shaders/embed.wgsl"),
            ],
        )
    }

    pub(crate) const EMBED_THREADS: usize = 64;

    /// Query heads that attention takes together.
    pub(crate) fn share(&self) -> usize {
        let group = self.config.heads / self.config.kv_heads;
        (1..=group.min(MOST_SHARED)).rev().find(|n| group.is_multiple_of(*n)).unwrap_or(1)
    }

    /// Attention of one token, a split of the context a workgroup. Buffers: step, q, cache, partial, weights.
    pub(crate) fn attend(&self) -> Shader {
        let half = self.config.head_dim / 2;
        let threads = THREADS.max(half.next_multiple_of(32));
        let constants = format!(
            "const THREADS: u32 = {threads}u;\nconst SHARE: u32 = {}u;\nconst TEAM: u32 = {TEAM}u;\n\
             const SLOTS: u32 = {}u;\n",
            self.share(),
            threads / half
        );
        self.shader(
            "attend".into(),
            &[
                ("step", "u32", false),
                ("q", "vec2<f32>", false),
                ("cache", "u32", false),
                ("partial", "vec2<f32>", true),
                ("weights", "vec2<f32>", true),
            ],
            &[
                &constants,
                include_str!("../shaders/step.wgsl"),
                include_str!("../shaders/cache.wgsl"),
                include_str!("../shaders/attend.wgsl"),
            ],
        )
    }

    /// Tokens of a tile of [`Shaders::attend_block`].
    pub(crate) fn block_tokens(&self) -> usize {
        (self.block_rows() / self.share()).max(1)
    }

    /// Rows of a tile, a row a token and query head: as many as fit workgroup memory.
    fn block_rows(&self) -> usize {
        if self.config.head_dim <= 128 { 32 } else { 16 }
    }

    /// Attention of a tile of tokens. Buffers: step, q, cache, partial.
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
                ("partial", "vec2<f32>", true),
            ],
            &[
                &constants,
                include_str!("../shaders/step.wgsl"),
                include_str!("../shaders/cache.wgsl"),
                include_str!("../shaders/attend_block.wgsl"),
            ],
        )
    }

    /// The Hadamard inside the MLP, in place; `None` where there is none. Buffers: step, h.
    pub(crate) fn mlp_hadamard(&self) -> Option<Shader> {
        let block = rotation::block(self.config.mlp);
        (self.config.rotation.is_some() && block > 1).then(|| {
            self.shader(
                "hadamard".into(),
                &[("h", "f32", true)],
                &[
                    &block_constants(block),
                    include_str!("../shaders/hadamard.wgsl"),
                    include_str!("../shaders/mlp_hadamard.wgsl"),
                ],
            )
        })
    }

    /// The block of [`Shaders::mlp_hadamard`].
    pub(crate) fn mlp_block(&self) -> usize {
        rotation::block(self.config.mlp)
    }

    /// What goes into the head. Buffers: step, x, gain (of any length where embeddings are not tied), rows.
    pub(crate) fn head_input(&self) -> Shader {
        let tied = self.config.tied_embeddings;
        let rotated = tied && self.config.rotation.is_some();
        let block = if rotated { rotation::block(self.config.hidden) } else { 1 };
        self.shader(
            "head input".into(),
            &[("step", "u32", false), ("x", "f32", false), ("gain", "f32", false), ("rows", "f32", true)],
            &[
                &block_constants(block),
                &format!("const TIED: u32 = {}u;\n", u32::from(tied)),
                include_str!("../shaders/step.wgsl"),
                include_str!("../shaders/hadamard.wgsl"),
                include_str!("../shaders/head_input.wgsl"),
            ],
        )
    }

    /// The names, elements and accesses of a linear's buffers: step, input, attention's weights where it is the input,
    /// the matrices, their scales and biases, outputs.
    fn buffers(&self, linear: &Linear) -> Vec<(&'static str, &'static str, bool)> {
        let mut buffers = vec![("step", "u32", false), ("input", "vec4<f32>", false)];
        if linear.input == Input::Attend {
            buffers.push(("weights", "vec2<f32>", false));
        }
        buffers.extend(
            ["m0", "m1", "m2"].map(|m| (m, "vec4<u32>", false)).into_iter().take(linear.matrices.len()),
        );
        buffers.push(("vectors", "f32", false));
        buffers.extend(match linear.output {
            Output::Qkv { .. } => vec![("q", "vec2<f32>", true), ("cache", "u32", true)],
            Output::Add => vec![("x", "vec2<f32>", true)],
            Output::SwiGlu => vec![("h", "f32", true)],
            Output::Logits => vec![("logits", "f32", true)],
        });
        buffers
    }

    /// Quads of a workgroup for one token.
    fn quads(&self, linear: &Linear) -> usize {
        let rows: usize = linear.matrices.iter().map(|(_, rows)| rows).sum();
        if rows >= 16_384 { 2 * self.target.quads } else { self.target.quads }
    }

    /// Workgroups for one token.
    pub(crate) fn gemv_tiles(&self, linear: &Linear) -> usize {
        linear.gemv_tiles(self.quads(linear))
    }

    /// A linear for one token a workgroup.
    pub(crate) fn gemv(&self, linear: &Linear) -> Shader {
        let codes = linear.codes();
        let Target { mut arithmetic, smallest_subgroup, mut copies, .. } = self.target;
        let (tables, bits) = code::table_count(&codes);
        if arithmetic == Arithmetic::Float && tables == 1 && bits <= 4 {
            // A table of pairs is 2^K times as large.
            (arithmetic, copies) = (Arithmetic::Pairs, copies >> bits);
        }
        let copies = (copies / tables.max(1).next_power_of_two()).max(1);
        let threads = linear.threads();
        let mut parts = self.linear_parts(linear, threads);
        parts.push(code::tables(&codes, copies, arithmetic));
        parts.push(code::activations(arithmetic));
        let mut distinct = codes.clone();
        distinct.sort();
        distinct.dedup();
        for code in distinct {
            parts.extend([code::ring(code, arithmetic, copies), code::rings(code, arithmetic)]);
        }
        parts.extend(codes.iter().enumerate().map(|(m, code)| code::quad(m, *code)));
        let quads = self.quads(linear);
        let (declare, reduce) = reduction(quads, threads, smallest_subgroup);
        let builtins = match smallest_subgroup {
            Some(_) => {
                "@builtin(subgroup_id) subgroup: u32, @builtin(num_subgroups) subgroups: u32, \
                 @builtin(subgroup_invocation_id) subgroup_lane: u32,"
            }
            None => "",
        };
        parts.push(declare);
        parts.push(
            include_str!("../shaders/gemv.wgsl")
                .replace("SUBGROUP_BUILTINS", builtins)
                .replace(
                    "DECLARE_SUMS",
                    &(0..quads).map(|i| format!("var sum{i} = vec4<f32>(); ")).collect::<String>(),
                )
                .replace("ADD_TILE", &add_tile(linear, quads))
                .replace("REDUCE", &reduce)
                .replace("EMIT_PAIR", &emit_pair(linear, quads))
                .replace("QUADS", &format!("{quads}u")),
        );
        self.linear_shader("one token", linear, &parts)
    }

    /// A linear for many tokens.
    pub(crate) fn gemm(&self, linear: &Linear) -> Shader {
        let codes = linear.codes();
        let mut parts = self.linear_parts(linear, 128);
        parts.push(code::tables(&codes, 1, Arithmetic::Float).replace("fill_tables", "fill_values"));
        parts.extend(codes.iter().enumerate().map(|(m, code)| code::decode(m, *code)));
        parts.push(slots(linear, "decode", "g", "Group"));
        let tokens = if linear.output == Output::Logits { "2u" } else { "0u" };
        let cells = || (0..4).flat_map(|p| (0..4).map(move |j| (p, j)));
        let declare: String = cells().map(|(p, j)| format!("var s{p}{j} = vec2<f32>(); ")).collect();
        let mut multiply: String = (0..4)
            .map(|p| {
                format!(
                    "let a{p} = tile[base + pair0 + {0}u]; let b{p} = tile[base + 32u + pair0 + {0}u];\n",
                    p * 8
                )
            })
            .collect();
        for j in 0..4 {
            let _ = writeln!(multiply, "let x{j} = tile[512u + base + token0 + {}u];", j * 16);
        }
        for (p, j) in cells() {
            let _ = writeln!(
                multiply,
                "s{p}{j} = vec2<f32>(mul(s{p}{j}.x, a{p}, x{j}), mul(s{p}{j}.y, b{p}, x{j}));"
            );
        }
        let mut emit = String::new();
        for j in 0..4 {
            let _ = writeln!(
                emit,
                "if wg.y * 64u + token0 + {0}u < tokens {{ let n = wg.y * 64u + token0 + {0}u; let scale = norms[token0 + {0}u];",
                j * 16
            );
            for p in 0..4 {
                let _ = writeln!(emit, "emit_slot(wg.x, n, pair0 + {}u, s{p}{j} * scale);", p * 8);
            }
            emit += "}\n";
        }
        parts.push(
            include_str!("../shaders/gemm.wgsl")
                .replace("GEMM_TOKENS_WORD", tokens)
                .replace("DECLARE_SUMS", &declare)
                .replace("MULTIPLY", &multiply)
                .replace("EMIT_PAIRS", &emit),
        );
        self.linear_shader("many tokens", linear, &parts)
    }

    /// A linear, plainly, for any number of tokens.
    pub(crate) fn plain(&self, linear: &Linear) -> Shader {
        let codes = linear.codes();
        let mut parts = self.linear_parts(linear, 64);
        parts.push(format!("const SLOT_TILES: u32 = {}u;\n", linear.gemm_tiles()));
        parts.extend(codes.iter().enumerate().map(|(m, code)| code::four(m, *code)));
        parts
            .extend([slots(linear, "four", "at", "vec4<f32>"), include_str!("../shaders/plain.wgsl").into()]);
        self.linear_shader("plainly", linear, &parts)
    }

    /// Whether linears run plainly.
    pub(crate) fn is_plain(&self) -> bool {
        self.target.plain
    }

    fn linear_shader(&self, what: &str, linear: &Linear, parts: &[String]) -> Shader {
        let label = format!("{:?} from {:?}, {what}", linear.output, linear.input);
        let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
        self.shader(label, &self.buffers(linear), &parts)
    }

    /// What both shaders of a linear begin with.
    fn linear_parts(&self, linear: &Linear, threads: usize) -> Vec<String> {
        let (first, whole) = linear.part;
        let mut constants = format!(
            "const GROUPS: u32 = {}u;\nconst THREADS: u32 = {threads}u;\nconst FIRST_ROW: u32 = {first}u;\n\
             const WHOLE_ROWS: u32 = {whole}u;\n",
            linear.cols / 32
        );
        for (m, (_, rows)) in linear.matrices.iter().enumerate() {
            let _ = writeln!(constants, "const ROWS{m}: u32 = {rows}u;");
        }
        let norm = match linear.input {
            Input::Norm => "inverseSqrt(squares / f32(GROUPS * 32u) + EPS)",
            _ => "1.0",
        };
        let norm = format!("fn norm_scale(squares: f32) -> f32 {{ return {norm}; }}\n");
        let input = match linear.input {
            Input::Attend => include_str!("../shaders/input_attend.wgsl"),
            _ => include_str!("../shaders/input_plain.wgsl"),
        };
        let emit = match linear.output {
            Output::Qkv { .. } => {
                [include_str!("../shaders/cache.wgsl"), include_str!("../shaders/emit_qkv.wgsl")]
            }
            Output::Add => ["", include_str!("../shaders/emit_add.wgsl")],
            Output::SwiGlu => ["", include_str!("../shaders/emit_swiglu.wgsl")],
            Output::Logits => ["", include_str!("../shaders/emit_logits.wgsl")],
        };
        let mut parts = vec![constants, norm, scales(linear)];
        parts.extend(
            [
                include_str!("../shaders/step.wgsl"),
                include_str!("../shaders/group.wgsl"),
                input,
                include_str!("../shaders/load.wgsl"),
                emit[0],
                emit[1],
            ]
            .map(String::from),
        );
        parts
    }
}

fn block_constants(block: usize) -> String {
    let threads = (block / 2).clamp(32, 256);
    format!(
        "const BLOCK: u32 = {block}u;\nconst THREADS: u32 = {threads}u;\nconst HADAMARD_SCALE: f32 = {:e};\n",
        1.0 / (block as f32).sqrt()
    )
}
