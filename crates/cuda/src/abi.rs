//! What the kernels read, field for field as in `kernels/program.cuh`; the kernels are compiled with the sizes of
//! these types and refuse others.

use cudarc::driver::sys::CUdeviceptr;

/// Warps of a block, unless the card's shared memory holds fewer.
pub(crate) const MAX_WARPS: usize = 16;
/// Columns of a tile: 32 lanes of one group.
pub(crate) const SPAN: usize = 1024;
/// Rows of a unit: a block owns whole units.
pub(crate) const UNIT: usize = 8;
/// The widest input.
pub(crate) const MAX_COLS: usize = 24_576;
/// The widest Hadamard that an input's quantisation does itself.
pub(crate) const WARP_HADAMARD: usize = 512;
/// Bytes of a block's share of a matrix in shared memory.
pub(crate) const ENTRY_BYTES: usize = 32;
/// Matrices of an instruction, at most.
pub(crate) const MAX_MATRICES: usize = 3;

/// What an instruction does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub(crate) enum Kind {
    Embed,
    Qkv,
    Attend,
    Out,
    GateUp,
    Hadamard,
    Down,
    HeadRotate,
    Head,
}

impl Kind {
    /// Its name in errors.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Kind::Embed => "embed",
            Kind::Qkv => "qkv",
            Kind::Attend => "attend",
            Kind::Out => "out",
            Kind::GateUp => "gate_up",
            Kind::Hadamard => "hadamard",
            Kind::Down => "down",
            Kind::HeadRotate => "head_rotate",
            Kind::Head => "head",
        }
    }
}

/// A T8 matrix in tiles.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub(crate) struct Matrix {
    pub tiles: CUdeviceptr,
    pub scales: CUdeviceptr,
    /// 0 where there is none.
    pub bias: CUdeviceptr,
    pub bits: i32,
    pub units: i32,
}

/// Up to three matrices over one input.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct Instruction {
    pub kind: Kind,
    pub layer: i32,
    pub matrices: i32,
    pub units: i32,
    pub cols: i32,
    pub spans: i32,
    pub hadamard: i32,
    pub norm: i32,
    pub entry: i32,
    /// Tags of `kernels/handoff.cuh`: bit 0 of what it reads, bit 1 of what it writes.
    pub turns: i32,
    pub input: CUdeviceptr,
    pub out: CUdeviceptr,
    pub matrix: [Matrix; MAX_MATRICES],
}

impl Instruction {
    /// An instruction without operands.
    pub(crate) fn new(kind: Kind, layer: usize) -> Self {
        Self {
            kind,
            layer: layer as i32,
            matrices: 0,
            units: 0,
            cols: 0,
            spans: 0,
            hadamard: 0,
            norm: 0,
            entry: 0,
            turns: 0,
            input: 0,
            out: 0,
            matrix: [Matrix::default(); MAX_MATRICES],
        }
    }
}

/// The model's numbers.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct Model {
    pub hidden: i32,
    pub heads: i32,
    pub kv_heads: i32,
    pub head_dim: i32,
    pub mlp: i32,
    pub vocab: i32,
    pub rope_dim: i32,
    /// 0: none.
    pub window: i32,
    pub eps: f32,
    /// 0: the residual stream is not rotated, or the head is not tied.
    pub head_block: i32,
    /// 0 where the head is not tied.
    pub head_gain: CUdeviceptr,
}

/// One run of the program over one token.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct Run {
    pub program: CUdeviceptr,
    pub instructions: i32,
    pub entries: CUdeviceptr,
    pub entry_count: i32,
    pub model: Model,
    pub tables: CUdeviceptr,
    pub embed_codes: CUdeviceptr,
    pub embed_scales: CUdeviceptr,
    pub embed_bits: i32,
    pub rope: CUdeviceptr,
    pub token: CUdeviceptr,
    pub pages: CUdeviceptr,
    pub cache: CUdeviceptr,
    pub layers: i32,
    pub partial: CUdeviceptr,
    pub failed: CUdeviceptr,
    pub patience: u64,
}

/// A block's shared memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct Sizes {
    pub entries: i32,
    pub act_words: i32,
    pub sums: i32,
}

/// The definitions that make the kernels check these sizes.
pub(crate) fn defines() -> [(&'static str, usize); 4] {
    [
        ("ABI_MATRIX", size_of::<Matrix>()),
        ("ABI_INSTRUCTION", size_of::<Instruction>()),
        ("ABI_MODEL", size_of::<Model>()),
        ("ABI_RUN", size_of::<Run>()),
    ]
}
