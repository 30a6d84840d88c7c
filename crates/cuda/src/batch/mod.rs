//! Many tokens at once: every linear is one pass over its weights, multiplied by all tokens on the tensor cores.
//!
//! Activations are f16, divided by a step a token; sums are f32. A linear whose tiles would leave part of the card idle
//! is split over its columns, and whoever reads its output adds the slices up, so that a batch cut alike gives the same
//! bits each time.

pub(crate) mod abi;
mod memory;
pub(crate) mod shapes;

use std::ffi::c_void;

use upg_format::{ModelConfig, TensorKind};
use upg_pdvm::{BatchRow, KvPages, MachineError, MachineOptions, Op, Program, rope::RopeTable, rotation};

use self::{
    abi::{Batch, Biases, Gemm, Prepare},
    memory::{Buffers, FLASH_ROWS, Staging, padded},
    shapes::{ROWS, Shapes},
};
use crate::{
    abi::{MAX_WARPS, UNIT, WARP_HADAMARD},
    driver::{Buffer, Device, Kernel, Module},
    layout,
    load::{Matrix, Model},
    memory::Memory,
    plan::{Plan, heads_a_group},
};

/// Threads of a block of attention: `FLASH_THREADS` in `kernels/flash.cuh`.
const FLASH_THREADS: usize = 128;
/// Columns that a warp prepares at a time: `CHUNK` in `kernels/vector.cuh`.
const WARP_COLUMNS: usize = 512;
/// Threads of a block that handles one token.
const TOKEN_THREADS: usize = 256;

/// A linear and, but for attention's output, the preparation of its input.
struct Linear {
    prepare: Option<Prepare>,
    gemm: Gemm,
}

enum Step {
    Embed,
    Qkv { layer: i32, linear: Linear, biases: Biases },
    Attend { layer: i32 },
    Linear(Linear),
}

struct Kernels {
    embed: Kernel,
    prepare_narrow: Kernel,
    prepare_wide: Kernel,
    rope: Kernel,
    attend: Kernel,
    gemm: [Kernel; 3],
    /// Blocks of each `gemm` that run at a time.
    slots: [usize; 3],
}

/// Runs batches.
pub(crate) struct Batcher {
    steps: Vec<Step>,
    head: Linear,
    batch: Batch,
    kernels: Kernels,
    shapes: Shapes,
    shared: Shared,
    head_groups: usize,
    buffers: Buffers,
    staging: Staging,
    _tables: Buffer,
    _module: Module,
}

/// Bytes of dynamic shared memory.
struct Shared {
    gemm: [usize; 3],
    attend: usize,
    prepare: usize,
}

impl Batcher {
    /// Takes the buffers for batches of `options`; `module` holds the kernels, compiled for `shapes`.
    pub(crate) fn new(
        program: &Program,
        options: &MachineOptions,
        model: &Model,
        plan: &Plan,
        memory: &Memory,
        (module, shapes): (Module, Shapes),
        processors: usize,
    ) -> Result<Self, MachineError> {
        let config = &program.config;
        let buffers = Buffers::new(config, options)?;
        let group = heads_a_group(config);
        let staging = Staging::new(config, options, buffers.rows, group)?;
        let shared = Shared::new(config, model, &shapes)?;
        let kernels = Kernels::new(&module, &shared, processors)?;
        let tables = Buffer::of(&layout::biased_tables())?;
        let [rows, tiles, picked, rope, pages] = staging.addresses();
        let batch = Batch {
            model: plan.model(config, model)?,
            rows,
            tiles,
            rope,
            pages,
            cache: memory.cache(),
            tables: memory.tables(),
            embed_codes: model.embedding.codes.at(),
            embed_scales: model.embedding.scales.at(),
            x: buffers.x.at(),
            part: buffers.part.at(),
            q: buffers.q.at(),
            a: buffers.a.at(),
            layers: config.layers as i32,
            tokens: 0,
            page_list: staging.page_list as i32,
            embed_bits: model.embedding.bits.get() as i32,
            a_ld: padded(config.q_width()) as i32,
        };
        let lowering = Lowering { config, model, buffers: &buffers, tables: tables.at(), picked };
        let steps = program.ops.iter().filter_map(|op| lowering.step(*op).transpose());
        Ok(Self {
            steps: steps.collect::<Result<_, _>>()?,
            head: lowering.head()?,
            batch,
            kernels,
            shapes,
            shared,
            head_groups: config.heads / group,
            buffers,
            staging,
            _tables: tables,
            _module: module,
        })
    }

    /// Tokens of a batch, at most.
    pub(crate) fn rows(&self) -> usize {
        self.buffers.rows
    }

    /// Runs a batch of at most [`Self::rows`] tokens and writes the logits asked for to the front of `logits`; returns how many
    /// numbers that is.
    pub(crate) fn run(
        &mut self,
        device: &Device,
        rows: &[BatchRow],
        pages: &KvPages,
        rope: &RopeTable,
        logits: &mut [f32],
    ) -> Result<usize, MachineError> {
        self.staging.stage(device, rows, pages, rope)?;
        self.batch.tokens = rows.len() as i32;
        let splits = self.start_body(device, rows.len())?;
        let (picked, vocab) = (self.staging.picked, self.batch.model.vocab as usize);
        for first in (0..picked).step_by(self.buffers.logit_rows) {
            let count = (picked - first).min(self.buffers.logit_rows);
            self.start_head(device, first, count, splits)?;
            let width = self.buffers.logit_width;
            self.buffers.host_logits.fetch(device, 0..count * width, self.buffers.logits.at())?;
            device.synchronize()?;
            let found = self.buffers.host_logits.as_mut().chunks_exact(width);
            for (to, from) in logits[first * vocab..].chunks_exact_mut(vocab).zip(found).take(count) {
                to.copy_from_slice(&from[..vocab]);
            }
        }
        // The staged rows may be written again.
        device.synchronize()?;
        Ok(picked * vocab)
    }

    /// Starts all but the head; returns the slices that the last linear left to be added to the residual stream.
    fn start_body(&self, device: &Device, tokens: usize) -> Result<usize, MachineError> {
        let mut batch = self.batch;
        let mut splits = 0;
        for step in &self.steps {
            match step {
                Step::Embed => {
                    let arguments = &mut [argument(&mut batch)];
                    // SAFETY: the arguments are those of the kernel in `kernels/batch.cu`, whose sizes the compilation
                    // checked; the buffers that they name live as long as `self`. So for all launches here.
                    unsafe {
                        self.kernels.embed.launch(device, [tokens, 1, 1], TOKEN_THREADS, 0, arguments)
                    }?;
                }
                Step::Qkv { layer, linear, biases } => {
                    splits = self.start_linear(device, linear, tokens, splits)?;
                    let (mut layer, mut slices, mut biases) = (*layer, splits as i32, *biases);
                    let arguments = &mut [
                        argument(&mut batch),
                        argument(&mut layer),
                        argument(&mut slices),
                        argument(&mut biases),
                    ];
                    // SAFETY: as above.
                    unsafe { self.kernels.rope.launch(device, [tokens, 1, 1], TOKEN_THREADS, 0, arguments) }?;
                }
                Step::Attend { layer } => {
                    let mut layer = *layer;
                    let arguments = &mut [argument(&mut batch), argument(&mut layer)];
                    let grid = [self.staging.tiles, self.head_groups, 1];
                    // SAFETY: as above.
                    unsafe {
                        self.kernels.attend.launch(device, grid, FLASH_THREADS, self.shared.attend, arguments)
                    }?;
                }
                Step::Linear(linear) => splits = self.start_linear(device, linear, tokens, splits)?,
            }
        }
        Ok(splits)
    }

    /// Starts the head for rows `first..first + count` of those picked.
    fn start_head(
        &self,
        device: &Device,
        first: usize,
        count: usize,
        splits: usize,
    ) -> Result<(), MachineError> {
        let tokens = self.batch.tokens;
        let prepare = self.head.prepare.map(|p| Prepare { pick: p.pick + 4 * first as u64, tokens, ..p });
        self.start_prepare(device, prepare, count, splits)?;
        self.start_gemm(device, self.head.gemm, count, 1)
    }

    /// Starts a linear whose input adds `before` slices; returns how many it leaves itself.
    fn start_linear(
        &self,
        device: &Device,
        linear: &Linear,
        tokens: usize,
        before: usize,
    ) -> Result<usize, MachineError> {
        let prepare = linear.prepare.map(|p| Prepare { tokens: tokens as i32, ..p });
        self.start_prepare(device, prepare, tokens, before)?;
        let (shape, gemm) = (self.shapes.choose(tokens), linear.gemm);
        let tiles = tokens.div_ceil(self.shapes.0[shape].tokens) * row_tiles(&gemm);
        let slots = self.kernels.slots[shape];
        let splits = shapes::splits(tiles, slots, gemm.rows as usize, self.buffers.part_rows);
        self.start_gemm(device, gemm, tokens, splits)?;
        Ok(splits)
    }

    fn start_prepare(
        &self,
        device: &Device,
        prepare: Option<Prepare>,
        blocks: usize,
        splits: usize,
    ) -> Result<(), MachineError> {
        let Some(prepare) = prepare else { return Ok(()) };
        let mut prepare = Prepare { splits: splits as i32, ..prepare };
        let narrow = prepare.cols as usize <= MAX_WARPS * WARP_COLUMNS;
        let kernel = if narrow { &self.kernels.prepare_narrow } else { &self.kernels.prepare_wide };
        let (grid, threads) = ([blocks, 1, 1], 32 * MAX_WARPS);
        let arguments = &mut [argument(&mut prepare)];
        // SAFETY: as above.
        unsafe { kernel.launch(device, grid, threads, self.shared.prepare, arguments) }
    }

    fn start_gemm(
        &self,
        device: &Device,
        gemm: Gemm,
        tokens: usize,
        splits: usize,
    ) -> Result<(), MachineError> {
        let mut gemm = Gemm { tokens: tokens as i32, splits: splits as i32, ..gemm };
        let shape = self.shapes.choose(tokens);
        let grid = [tokens.div_ceil(self.shapes.0[shape].tokens), row_tiles(&gemm), splits];
        let arguments = &mut [argument(&mut gemm)];
        // SAFETY: as above.
        unsafe {
            self.kernels.gemm[shape].launch(device, grid, shapes::THREADS, self.shared.gemm[shape], arguments)
        }
    }
}

/// A kernel's argument.
fn argument<T>(value: &mut T) -> *mut c_void {
    std::ptr::from_mut(value).cast()
}

/// Tiles of rows of all matrices of a linear.
fn row_tiles(gemm: &Gemm) -> usize {
    gemm.matrix.iter().map(|m| (m.units as usize * UNIT).div_ceil(ROWS)).sum()
}

impl Shared {
    fn new(config: &ModelConfig, model: &Model, shapes: &Shapes) -> Result<Self, MachineError> {
        // What is too wide for a warp's Hadamard goes through shared memory.
        let wide = |width: usize, rotated: bool| {
            if rotated && rotation::block(width) > WARP_HADAMARD { 4 * width } else { 0 }
        };
        let rotated = config.rotation.is_some();
        Ok(Self {
            gemm: shapes.0.map(|shape| shape.shared(model.most_bits())),
            attend: 3 * FLASH_ROWS * config.head_dim.next_multiple_of(64) * 2,
            prepare: wide(config.mlp, rotated).max(wide(config.hidden, rotated && config.tied_embeddings)),
        })
    }
}

impl Kernels {
    fn new(module: &Module, shared: &Shared, processors: usize) -> Result<Self, MachineError> {
        let [small, middle, large] = shared.gemm;
        let gemm = [
            module.kernel(c"gemm_small", small)?,
            module.kernel(c"gemm_middle", middle)?,
            module.kernel(c"gemm_large", large)?,
        ];
        let mut slots = [0; 3];
        for ((slots, kernel), shared) in slots.iter_mut().zip(&gemm).zip(shared.gemm) {
            *slots = kernel.resident(shapes::THREADS, shared)?.max(1) * processors;
        }
        Ok(Self {
            embed: module.kernel(c"embed_batch", 0)?,
            prepare_narrow: module.kernel(c"prepare_narrow", shared.prepare)?,
            prepare_wide: module.kernel(c"prepare_wide", shared.prepare)?,
            rope: module.kernel(c"rope_batch", 0)?,
            attend: module.kernel(c"attend_batch", shared.attend)?,
            gemm,
            slots,
        })
    }
}

/// What turns instructions into steps.
struct Lowering<'a> {
    config: &'a ModelConfig,
    model: &'a Model,
    buffers: &'a Buffers,
    tables: u64,
    picked: u64,
}

impl Lowering<'_> {
    /// The step of an instruction; `None` for the head, which is run for some rows only.
    fn step(&self, op: Op) -> Result<Option<Step>, MachineError> {
        use TensorKind::{Down, Gate, K, KBias, O, Q, QBias, Up, V, VBias};
        let (config, b) = (self.config, self.buffers);
        let part = b.part.at();
        Ok(Some(match op {
            Op::Embed => Step::Embed,
            Op::NormQkvRope { layer } => {
                let linear = self.linear(layer, &[Q, K, V], Some(self.normed()), part)?;
                let bias = |kind| if config.qkv_bias { self.model.vector(layer, kind) } else { Ok(0) };
                let biases = Biases([bias(QBias)?, bias(KBias)?, bias(VBias)?]);
                Step::Qkv { layer: layer as i32, linear, biases }
            }
            Op::Attend { layer } => Step::Attend { layer: layer as i32 },
            Op::OutAdd { layer } => Step::Linear(self.linear(layer, &[O], None, part)?),
            Op::NormGateUp { layer } => {
                Step::Linear(self.linear(layer, &[Gate, Up], Some(self.normed()), part)?)
            }
            Op::DownAdd { layer } => {
                let rotated = config.rotation.map_or(0, |_| rotation::block(config.mlp));
                let hidden = Prepare {
                    x: 0,
                    out: b.hidden.at(),
                    cols: config.mlp as i32,
                    ld: padded(config.mlp) as i32,
                    norm: 0,
                    hadamard: rotated as i32,
                    ..self.normed()
                };
                Step::Linear(self.linear(layer, &[Down], Some(hidden), part)?)
            }
            Op::NormHead => return Ok(None),
        }))
    }

    fn head(&self) -> Result<Linear, MachineError> {
        let (config, logits) = (self.config, self.buffers.logits.at());
        let prepare = Prepare { pick: self.picked, ..self.normed() };
        if !config.tied_embeddings {
            return self.linear(0, &[TensorKind::Head], Some(prepare), logits);
        }
        let gain = self.model.vector(0, TensorKind::FinalNorm)?;
        let rotated = config.rotation.map_or(0, |_| rotation::block(config.hidden));
        let prepare = Prepare { gain, hadamard: rotated as i32, ..prepare };
        self.linear(0, &[TensorKind::Embed], Some(prepare), logits)
    }

    /// The normed residual stream as an input.
    fn normed(&self) -> Prepare {
        let (config, b) = (self.config, self.buffers);
        Prepare {
            x: b.x.at(),
            part: b.part.at(),
            pick: 0,
            gain: 0,
            out: b.normed.at(),
            step: b.step.at(),
            splits: 0,
            tokens: 0,
            cols: config.hidden as i32,
            ld: padded(config.hidden) as i32,
            norm: 1,
            hadamard: 0,
            eps: config.norm_eps,
        }
    }

    /// Matrices over one input, which is attention's output where nothing prepares it.
    fn linear(
        &self,
        layer: usize,
        kinds: &[TensorKind],
        prepare: Option<Prepare>,
        out: u64,
    ) -> Result<Linear, MachineError> {
        let mut gemm = Gemm {
            matrix: Default::default(),
            x: prepare.map_or(self.buffers.a.at(), |p| p.out),
            step: prepare.map_or(0, |p| p.step),
            out,
            tables: self.tables,
            matrices: kinds.len() as i32,
            cols: 0,
            ld: 0,
            rows: 0,
            tokens: 0,
            splits: 1,
        };
        for (to, kind) in gemm.matrix.iter_mut().zip(kinds) {
            let matrix: &Matrix = self.model.matrix(layer, *kind)?;
            *to = matrix.abi(0);
            gemm.cols = matrix.cols as i32;
            gemm.rows += to.units * UNIT as i32;
        }
        gemm.ld = padded(gemm.cols as usize) as i32;
        Ok(Linear { prepare, gemm })
    }
}
