//! The program as the kernels run it: instructions with their operands, and what a block needs of shared memory.

use std::collections::HashMap;

use upg_format::{ModelConfig, TensorKind};
use upg_pdvm::{MachineError, Op, Program, rotation};

use crate::{
    abi::{self, Instruction, Kind, Sizes},
    layout,
    load::{Matrix, Model},
};

/// Addresses of the buffers that instructions pass numbers in.
#[derive(Clone, Copy)]
pub(crate) struct Buffers {
    /// Residual stream, `[hidden]`.
    pub x: u64,
    /// Queries, keys and values, `[q_width + 2 kv_width]`.
    pub q: u64,
    /// Attention's output, `[q_width]`.
    pub a: u64,
    /// Inside of the MLP, `[mlp]`.
    pub h: u64,
    /// What is transformed before a linear, `[max(hidden, mlp)]`: not in place, since a vector is written anew only after all
    /// have read it.
    pub y: u64,
    /// `[vocab]`, in whole units.
    pub logits: u64,
}

/// Instructions in order, and all their matrices as (instruction, matrix).
pub(crate) struct Plan {
    pub instructions: Vec<Instruction>,
    pub entries: Vec<[i32; 2]>,
    /// Instructions and entries before the head's: what a token runs whose logits nobody wants.
    pub body: (usize, usize),
}

impl Plan {
    /// Lowers `program` to instructions over the weights of `model`.
    pub(crate) fn new(program: &Program, model: &Model, buffers: &Buffers) -> Result<Self, MachineError> {
        let mut plan = Self { instructions: vec![], entries: vec![], body: (0, 0) };
        for op in &program.ops {
            plan.lower(*op, &program.config, model, buffers)?;
        }
        plan.take_turns();
        Ok(plan)
    }

    /// Sets the tags: the writings of a buffer take turns, and a reader wants the last one before it.
    fn take_turns(&mut self) {
        let mut turns = HashMap::new();
        for instruction in &mut self.instructions {
            let reads = turns.get(&instruction.input).copied().unwrap_or(0);
            let writes = turns.entry(instruction.out).and_modify(|turn| *turn ^= 1).or_insert(0);
            instruction.turns = reads | *writes << 1;
        }
    }

    fn lower(
        &mut self,
        op: Op,
        config: &ModelConfig,
        model: &Model,
        b: &Buffers,
    ) -> Result<(), MachineError> {
        use TensorKind::{Down, Embed, Gate, Head, K, KBias, O, Q, QBias, Up, V, VBias};
        let matrix = |kind| model.matrix(op.layer().unwrap_or(0), kind);
        let bias = |layer, kind| if config.qkv_bias { model.vector(layer, kind) } else { Ok(0) };
        match op {
            Op::Embed => self.instructions.push(vector(Kind::Embed, 0, (0, b.x))),
            Op::NormQkvRope { layer } => {
                let mut qkv = linear(Kind::Qkv, layer, &[matrix(Q)?, matrix(K)?, matrix(V)?], (b.x, b.q));
                for (m, kind) in qkv.matrix.iter_mut().zip([QBias, KBias, VBias]) {
                    m.bias = bias(layer, kind)?;
                }
                self.push(Instruction { norm: 1, ..qkv });
            }
            Op::Attend { layer } => self.instructions.push(vector(Kind::Attend, layer, (b.q, b.a))),
            Op::OutAdd { layer } => self.push(linear(Kind::Out, layer, &[matrix(O)?], (b.a, b.x))),
            Op::NormGateUp { layer } => {
                let gate_up = linear(Kind::GateUp, layer, &[matrix(Gate)?, matrix(Up)?], (b.x, b.h));
                // A block takes the same rows of both.
                self.push(Instruction { norm: 1, units: gate_up.units / 2, ..gate_up });
            }
            Op::DownAdd { layer } => {
                let mut down = linear(Kind::Down, layer, &[matrix(Down)?], (b.h, b.x));
                let block = if config.rotation.is_some() { rotation::block(config.mlp) } else { 1 };
                if block > abi::WARP_HADAMARD {
                    let wide = vector(Kind::Hadamard, layer, (b.h, b.y));
                    down.input = b.y;
                    let (cols, hadamard) = (config.mlp as i32, block as i32);
                    self.instructions.push(Instruction { cols, hadamard, ..wide });
                } else if block > 1 {
                    down.hadamard = block as i32;
                    // The first stages are done where the numbers are written: see `unit_hadamard` in `kernels/vector.cuh`.
                    if let Some(gate_up) = self.instructions.last_mut() {
                        gate_up.hadamard = abi::UNIT as i32;
                    }
                }
                self.push(down);
            }
            Op::NormHead => {
                // The rotation is of every run: what it writes would else be older than tags can tell.
                if config.tied_embeddings {
                    self.instructions.push(vector(Kind::HeadRotate, 0, (b.x, b.y)));
                }
                self.body = (self.instructions.len(), self.entries.len());
                if config.tied_embeddings {
                    self.push(linear(Kind::Head, 0, &[matrix(Embed)?], (b.y, b.logits)));
                } else {
                    let head = linear(Kind::Head, 0, &[matrix(Head)?], (b.x, b.logits));
                    self.push(Instruction { norm: 1, ..head });
                }
            }
        }
        Ok(())
    }

    fn push(&mut self, mut instruction: Instruction) {
        instruction.entry = self.entries.len() as i32;
        let number = self.instructions.len() as i32;
        self.entries.extend((0..instruction.matrices).map(|matrix| [number, matrix]));
        self.instructions.push(instruction);
    }

    /// The instructions as the kernels read them.
    pub(crate) fn instruction_bytes(&self) -> Vec<u8> {
        let bytes = size_of_val(self.instructions.as_slice());
        // SAFETY: `Instruction` is `repr(C)` and made of integers without gaps, so every byte is initialised.
        unsafe { std::slice::from_raw_parts(self.instructions.as_ptr().cast::<u8>(), bytes) }.to_vec()
    }

    /// The model's numbers.
    pub(crate) fn model(&self, config: &ModelConfig, model: &Model) -> Result<abi::Model, MachineError> {
        let tied = config.tied_embeddings;
        Ok(abi::Model {
            hidden: config.hidden as i32,
            heads: config.heads as i32,
            kv_heads: config.kv_heads as i32,
            head_dim: config.head_dim as i32,
            mlp: config.mlp as i32,
            vocab: config.vocab as i32,
            rope_dim: config.rope.dim as i32,
            window: config.sliding_window.unwrap_or(0) as i32,
            eps: config.norm_eps,
            head_block: if tied && config.rotation.is_some() {
                rotation::block(config.hidden) as i32
            } else {
                0
            },
            head_gain: if tied { model.vector(0, TensorKind::FinalNorm)? } else { 0 },
        })
    }

    /// An instruction's name for people.
    pub(crate) fn describe(&self, instruction: usize) -> String {
        match self.instructions.get(instruction) {
            Some(i) => format!("instruction {instruction} ({} of layer {})", i.kind.name(), i.layer),
            None => format!("instruction {instruction}"),
        }
    }
}

/// An instruction without matrices.
fn vector(kind: Kind, layer: usize, (input, out): (u64, u64)) -> Instruction {
    Instruction { input, out, ..Instruction::new(kind, layer) }
}

fn linear(kind: Kind, layer: usize, matrices: &[&Matrix], (input, out): (u64, u64)) -> Instruction {
    let mut instruction = Instruction::new(kind, layer);
    for (to, matrix) in instruction.matrix.iter_mut().zip(matrices) {
        *to = matrix.abi(0);
        instruction.cols = matrix.cols as i32;
    }
    instruction.matrices = matrices.len() as i32;
    instruction.units = instruction.matrix.iter().map(|m| m.units).sum();
    instruction.spans = layout::spans(instruction.cols as usize) as i32;
    Instruction { input, out, ..instruction }
}

/// How a block is built: what fits the card's shared memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Block {
    pub warps: usize,
    pub slots: usize,
    /// Bytes of a row of the look-up table (see `kernels/t8.cuh`).
    pub table_row: usize,
    pub sizes: Sizes,
    /// Bytes of dynamic shared memory.
    pub shared: usize,
}

/// Query heads that attention takes together: they share a key/value head, and more than eight would not fit the
/// registers.
pub(crate) fn heads_a_group(config: &ModelConfig) -> usize {
    let group = config.heads / config.kv_heads;
    (1..=group.min(8)).rev().find(|n| group.is_multiple_of(*n)).unwrap_or(1)
}

/// Blocks, at most, that share out the context of a head group.
pub(crate) fn splits(config: &ModelConfig, grid: usize) -> usize {
    (grid * heads_a_group(config) / config.heads).max(1)
}

/// Heads of a group that attention merges at a time: `MERGED` in `kernels/attend.cuh`.
const fn merged(group: usize) -> usize {
    match group {
        4 | 8 => 4,
        3 | 6 => 3,
        2 => 2,
        _ => 1,
    }
}

impl Block {
    /// The largest block within `limit` bytes of shared memory; `None` where none fits. `grid` is how many blocks run
    /// and `slot` the bytes of the largest tile.
    pub(crate) fn fitting(
        plan: &Plan,
        config: &ModelConfig,
        grid: usize,
        slot: usize,
        limit: usize,
    ) -> Option<Self> {
        // The fastest first: look-ups in few instructions, then many warps, then free of conflicts.
        const TABLES: [(usize, usize); 5] =
            [(256, abi::MAX_WARPS), (128, abi::MAX_WARPS), (64, abi::MAX_WARPS), (128, 8), (64, 8)];
        let shapes = TABLES.into_iter().flat_map(|(row, warps)| [4, 3, 2].map(|slots| (row, warps, slots)));
        let mut blocks = shapes.map(|shape| Self::new(plan, config, grid, slot, shape));
        blocks.find(|block| block.shared <= limit)
    }

    fn new(
        plan: &Plan,
        config: &ModelConfig,
        grid: usize,
        slot: usize,
        (table_row, warps, slots): (usize, usize, usize),
    ) -> Self {
        let most = |f: &dyn Fn(&Instruction) -> usize| plan.instructions.iter().map(f).max().unwrap_or(0);
        let spans = most(&|i| i.spans as usize);
        let hadamard = most(&|i| if i.kind == Kind::Hadamard { i.hadamard as usize } else { 0 });
        let rotate = if config.tied_embeddings { config.hidden } else { 0 };
        let head = config.head_dim;
        let group = heads_a_group(config);
        let (splits, share) = (splits(config, grid), group * head);
        // The queries, this token's key and value and a place for each warp's results, or what all splits found.
        let rows = 2 * (head / 2 + 4);
        let attend = (share + rows + merged(group) * warps * (head + 4)).max(share + splits * (group + 1));
        let act = (spans * abi::SPAN / 2).max(hadamard).max(rotate).max(attend).next_multiple_of(4);
        let share =
            |i: &Instruction| (i.units as usize).div_ceil(grid) * if i.kind == Kind::GateUp { 2 } else { 1 };
        let sums = most(&|i| share(i) * abi::UNIT * 2);
        let sizes = Sizes { entries: plan.entries.len() as i32, act_words: act as i32, sums: sums as i32 };
        let shared = 256 * table_row
            + warps * slots * (slot + 8)
            + plan.entries.len() * abi::ENTRY_BYTES
            + 2 * size_of::<Instruction>()
            + 4 * (act + 2 * warps + sums)
            // Of every row what is added to it, and its scale.
            + sums / 2 * 6;
        Self { warps, slots, table_row, sizes, shared }
    }
}
