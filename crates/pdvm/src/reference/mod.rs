//! The reference machine, short enough to read in one sitting: `ops.rs` holds one function an instruction, `math.rs`
//! the arithmetic, `model.rs` the weights, `cache.rs` the keys and values.

mod cache;
mod math;
mod model;
mod ops;

use self::{cache::Cache, model::Model};
use crate::{
    Batch, BatchRow, KvPages, Machine, MachineError, MachineInfo, MachineOptions, Op, Program, Weights,
    lower, rope::RopeTable,
};

/// The reference machine: plain f32, one thread, the executable definition of every instruction.
///
/// Weights are decoded to f32 when it is made: 4 bytes a weight of memory. Activations, keys and values are f32 (the
/// last two as exact as [`MachineOptions::kv`] keeps them). Sums of squares, softmax and SiLU are computed
/// in f64; a dot product sums 16 f32 lanes and joins them in f64. Its logits are within a few 1e-6 (relative) of an
/// all-f64 forward pass, and are the same bits however a prompt is cut into batches.
#[derive(Debug)]
pub struct ReferenceMachine {
    program: Program,
    options: MachineOptions,
    model: Model,
    rope: RopeTable,
    kv: KvPages,
    cache: Cache,
    /// The batch that runs, a row a token.
    rows: Vec<BatchRow>,
    scratch: Scratch,
}

/// Activations of one batch, `[max_batch, width]` each but where noted; allocated once.
#[derive(Debug)]
struct Scratch {
    /// The residual stream, `hidden` wide.
    x: Vec<f32>,
    /// The normed residual stream, `hidden` wide.
    normed: Vec<f32>,
    /// Queries, `heads · head_dim` wide.
    q: Vec<f32>,
    /// Keys, `kv_heads · head_dim` wide.
    k: Vec<f32>,
    /// Values, `kv_heads · head_dim` wide.
    v: Vec<f32>,
    /// Attention's output, `heads · head_dim` wide.
    a: Vec<f32>,
    /// The MLP's gate and then its hidden activations, `mlp` wide.
    gate: Vec<f32>,
    /// The MLP's up projection, `mlp` wide.
    up: Vec<f32>,
    /// What goes to the residual stream, `hidden` wide.
    y: Vec<f32>,
    /// Scores of one head, `[context]`.
    scores: Vec<f32>,
    /// Cosines of one position, `[pairs]`.
    cos: Vec<f32>,
    /// Sines of one position, `[pairs]`.
    sin: Vec<f32>,
}

impl ReferenceMachine {
    /// Decodes the weights to f32 and takes all buffers.
    ///
    /// # Errors
    /// Weights that cannot be had; options that the model does not support; more than one thread.
    pub fn new(weights: &dyn Weights, options: &MachineOptions) -> Result<Self, MachineError> {
        let config = weights.config();
        options.validate(config)?;
        if options.threads.is_some_and(|threads| threads > 1) {
            let message = "the reference machine has one thread: leave threads unset or 1";
            return Err(MachineError::Unsupported(message.into()));
        }
        let kv = KvPages::new(options.context, options.sequences);
        let rope = RopeTable::new(config);
        Ok(Self {
            program: lower(config),
            model: Model::load(weights)?,
            cache: Cache::new(config, kv.total(), options.kv),
            rows: Vec::with_capacity(options.max_batch),
            scratch: Scratch::new(&rope, weights, options),
            options: options.clone(),
            rope,
            kv,
        })
    }
}

impl Scratch {
    fn new(rope: &RopeTable, weights: &dyn Weights, options: &MachineOptions) -> Self {
        let config = weights.config();
        let rows = |width| vec![0.0; options.max_batch * width];
        Self {
            x: rows(config.hidden),
            normed: rows(config.hidden),
            q: rows(config.q_width()),
            k: rows(config.kv_width()),
            v: rows(config.kv_width()),
            a: rows(config.q_width()),
            gate: rows(config.mlp),
            up: rows(config.mlp),
            y: rows(config.hidden),
            scores: vec![0.0; options.context],
            cos: vec![0.0; rope.pairs()],
            sin: vec![0.0; rope.pairs()],
        }
    }
}

impl Machine for ReferenceMachine {
    fn info(&self) -> MachineInfo {
        MachineInfo {
            name: "reference",
            detail: "plain f32, one thread".into(),
            weight_bytes: self.model.bytes_per_token(),
            kv_bytes_per_token: self.cache.bytes_per_token(),
        }
    }

    fn program(&self) -> &Program {
        &self.program
    }

    fn options(&self) -> &MachineOptions {
        &self.options
    }

    fn kv(&self) -> &KvPages {
        &self.kv
    }

    fn kv_mut(&mut self) -> &mut KvPages {
        &mut self.kv
    }

    fn run(&mut self, batch: &Batch<'_>, logits: &mut [f32]) -> Result<(), MachineError> {
        let vocab = self.program.config.vocab;
        let max = self.options.max_batch;
        BatchRow::admit(batch, vocab, max, logits, &mut self.kv, &mut self.rows)?;
        for i in 0..self.program.ops.len() {
            match self.program.ops[i] {
                Op::Embed => self.embed(),
                Op::NormQkvRope { layer } => self.norm_qkv_rope(layer)?,
                Op::Attend { layer } => self.attend(layer)?,
                Op::OutAdd { layer } => self.out_add(layer),
                Op::NormGateUp { layer } => self.norm_gate_up(layer),
                Op::DownAdd { layer } => self.down_add(layer),
                Op::NormHead => self.norm_head(logits),
            }
        }
        Ok(self.kv.advance_all(batch)?)
    }
}
