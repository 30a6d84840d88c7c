//! The shaders of a model: WGSL of `shaders/`, with the model's shapes written in as constants and the decoders of its
//! codes.

use std::fmt::Write as _;

use upg_format::ModelConfig;
use upg_pdvm::{PAGE_TOKENS, rotation};

use crate::{
    code::{self, Arithmetic, Code},
    coop, gemm,
    gemv::{self, Cut},
    step::StepLayout,
    target::Target,
    tile::{scales, slots},
};

/// Rows of a matrix that the shader for many tokens takes at a time, and tokens.
pub(crate) const GEMM_TILE: usize = 64;

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
    /// Transformed by Hadamard's matrix, in blocks.
    Hadamard,
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

    /// The same behind a dispatch that has transformed its input.
    pub(crate) fn transformed(self) -> Self {
        let input = if self.input == Input::Hadamard { Input::Plain } else { self.input };
        Self { input, ..self }
    }

    /// Workgroups of tiles of `rows` rows.
    pub(crate) fn tiles_of(&self, rows: usize) -> usize {
        if self.paired() {
            self.matrices[0].1.div_ceil(rows / 2)
        } else {
            self.matrices.iter().map(|(_, m)| m.div_ceil(rows)).sum()
        }
    }

    /// Workgroups for [`GEMM_TILE`] tokens.
    pub(crate) fn gemm_tiles(&self) -> usize {
        self.tiles_of(GEMM_TILE)
    }

    pub(crate) fn codes(&self) -> Vec<Code> {
        self.matrices.iter().map(|(code, _)| *code).collect()
    }
}

/// Makes the shaders of one model.
pub(crate) struct Shaders {
    pub(crate) config: ModelConfig,
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
            ("TRIPLES_AT", step.triples_at),
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
    pub(crate) fn shader(&self, label: String, buffers: &[(&str, &str, bool)], parts: &[&str]) -> Shader {
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

    /// Whether a linear for one token does that itself.
    pub(crate) fn lanes_transform(&self) -> bool {
        let block = rotation::block(self.config.mlp);
        self.config.rotation.is_some() && !self.target.plain && gemv::fits_lanes(block, &self.target)
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

    /// The choice of the likeliest token. Buffers: step, logits, chosen.
    pub(crate) fn likeliest(&self) -> Shader {
        self.shader(
            "likeliest".into(),
            &[("step", "u32", false), ("logits", "u32", false), ("chosen", "u32", true)],
            &[
                "const THREADS: u32 = 256u;\n",
                include_str!("../shaders/step.wgsl"),
                include_str!("../shaders/likeliest.wgsl"),
            ],
        )
    }

    /// The names, elements and accesses of a linear's buffers: step, input, the matrices, their scales and biases, outputs.
    fn buffers(&self, linear: &Linear) -> Vec<(&'static str, &'static str, bool)> {
        let mut buffers = vec![("step", "u32", false), ("input", "vec4<f32>", false)];
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

    /// The most workgroups for one token that have something to do.
    pub(crate) fn gemv_workgroups(&self, linear: &Linear) -> usize {
        Cut::new(linear, &self.target).most_workgroups()
    }

    /// A linear for one token a workgroup.
    pub(crate) fn gemv(&self, linear: &Linear) -> Shader {
        let codes = linear.codes();
        let cut = Cut::new(linear, &self.target);
        let Cut { arithmetic, copies, .. } = cut;
        let mut parts = self.linear_parts(linear, cut.threads(), self.lanes_transform());
        parts.push(code::tables(&codes, copies, cut.threads(), arithmetic));
        parts.push(code::acts(arithmetic));
        parts.push(if cut.shared {
            include_str!("../shaders/share.wgsl").into()
        } else {
            code::prepare(arithmetic)
        });
        let mut distinct = codes.clone();
        distinct.sort();
        distinct.dedup();
        for code in distinct {
            parts.extend([code::ring(code, arithmetic), code::rings(code, arithmetic)]);
        }
        parts.extend(codes.iter().enumerate().map(|(m, code)| code::quad(m, *code)));
        parts.push(gemv::gemv(linear, &cut));
        self.linear_shader("one token", linear, &parts)
    }

    /// A linear for many tokens.
    pub(crate) fn gemm(&self, linear: &Linear) -> Shader {
        let codes = linear.codes();
        let threads = self.target.cells.threads();
        let mut parts = self.linear_parts(linear, threads, false);
        parts.push(code::tables(&codes, 1, threads, Arithmetic::Float).replace("fill_tables", "fill_values"));
        parts.extend(codes.iter().enumerate().map(|(m, code)| code::decode(m, *code)));
        parts.extend([slots(linear, "decode", "g", "Group"), gemm::gemm(linear, self.target.cells)]);
        self.linear_shader("many tokens", linear, &parts)
    }

    /// Whether many tokens are multiplied by cooperative matrices.
    pub(crate) fn by_matrices(&self, linear: &Linear) -> bool {
        self.target.matrices && coop::fits(linear, self.target.workgroup_bytes)
    }

    /// Makes a linear's input f16. Buffers: input, packed, scales.
    pub(crate) fn pack(&self, linear: &Linear) -> Shader {
        let constants = format!(
            "const GROUPS: u32 = {}u;\nconst THREADS: u32 = 256u;\n{}",
            linear.cols / 32,
            norm_scale(linear.input)
        );
        self.shader(
            format!("pack {} from {:?}", linear.cols, linear.input),
            &[("input", "vec4<f32>", false), ("packed", "vec2<u32>", true), ("packed_scales", "f32", true)],
            &[&constants, include_str!("../shaders/pack.wgsl")],
        )
    }

    /// A linear for many tokens, by cooperative matrices.
    pub(crate) fn gemm_by_matrices(&self, linear: &Linear) -> Shader {
        let mut buffers = self.buffers(linear);
        buffers[1] = ("input", "vec4<f16>", false);
        buffers.insert(2, ("scales", "f32", false));
        let mut parts = self.constants_and_rows(linear, coop::THREADS);
        parts.push(include_str!("../shaders/step.wgsl").into());
        parts.push(emits(linear.output, false));
        parts.push(coop::gemm(linear));
        let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
        let label = format!(
            "{:?} from {:?} of {}, many tokens by matrices",
            linear.output, linear.input, linear.cols
        );
        let mut shader = self.shader(label, &buffers, &parts);
        shader.source.insert_str(0, "enable f16;\nenable wgpu_cooperative_matrix;\n");
        shader
    }

    /// A linear, plainly, for any number of tokens.
    pub(crate) fn plain(&self, linear: &Linear) -> Shader {
        let codes = linear.codes();
        let mut parts = self.linear_parts(linear, 64, false);
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
        let label = format!("{:?} from {:?} of {}, {what}", linear.output, linear.input, linear.cols);
        let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
        self.shader(label, &self.buffers(linear), &parts)
    }

    /// What the shaders of a linear begin with; `turned`: see [`emits`].
    fn linear_parts(&self, linear: &Linear, threads: usize, turned: bool) -> Vec<String> {
        let mut parts = self.constants_and_rows(linear, threads);
        parts.push(norm_scale(linear.input));
        parts.extend(
            [
                include_str!("../shaders/step.wgsl"),
                include_str!("../shaders/group.wgsl"),
                match linear.input {
                    Input::Hadamard => include_str!("../shaders/load_turned.wgsl"),
                    _ => include_str!("../shaders/load.wgsl"),
                },
            ]
            .map(String::from),
        );
        parts.push(emits(linear.output, turned));
        parts
    }

    fn constants_and_rows(&self, linear: &Linear, threads: usize) -> Vec<String> {
        let (first, whole) = linear.part;
        let mut constants = format!(
            "const GROUPS: u32 = {}u;\nconst THREADS: u32 = {threads}u;\nconst FIRST_ROW: u32 = {first}u;\n\
             const WHOLE_ROWS: u32 = {whole}u;\n",
            linear.cols / 32
        );
        for (m, (_, rows)) in linear.matrices.iter().enumerate() {
            let _ = writeln!(constants, "const ROWS{m}: u32 = {rows}u;");
        }
        vec![constants, scales(linear)]
    }
}

/// `fn norm_scale(squares) -> f32`: what an input is scaled by, from the sum of its squares.
fn norm_scale(input: Input) -> String {
    let norm = match input {
        Input::Norm => "inverseSqrt(squares / f32(GROUPS * 32u) + EPS)",
        Input::Plain | Input::Hadamard => "1.0",
    };
    format!("fn norm_scale(squares: f32) -> f32 {{ return {norm}; }}\n")
}

/// `fn emit`: what becomes of a pair of rows. `turned`: the inside of the MLP stands as `load_turned.wgsl` reads it.
fn emits(output: Output, turned: bool) -> String {
    match output {
        Output::Qkv { .. } => {
            [include_str!("../shaders/cache.wgsl"), include_str!("../shaders/emit_qkv.wgsl")].concat()
        }
        Output::Add => include_str!("../shaders/emit_add.wgsl").into(),
        Output::SwiGlu => {
            let place =
                if turned { "(row % 32u / 4u * (MLP / 32u) + row / 32u) * 4u + row % 4u" } else { "row" };
            include_str!("../shaders/emit_swiglu.wgsl").replace("PLACE", place)
        }
        Output::Logits => include_str!("../shaders/emit_logits.wgsl").into(),
    }
}

fn block_constants(block: usize) -> String {
    let threads = (block / 2).clamp(32, 256);
    format!(
        "const BLOCK: u32 = {block}u;\nconst THREADS: u32 = {threads}u;\nconst HADAMARD_SCALE: f32 = {:e};\n",
        1.0 / (block as f32).sqrt()
    )
}
