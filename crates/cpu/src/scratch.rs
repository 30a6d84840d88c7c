use upg_codec::Isa;
use upg_format::ModelConfig;
use upg_pdvm::{MachineOptions, PAGE_TOKENS};

use crate::{activations::Activations, attention::partial_len, kernels::KernelScratch, kv::WIDE};

/// Batches of at most so many tokens share one token's attention among threads, page by page: larger ones have tokens
/// enough for all threads.
pub(crate) const SPLIT_ROWS: usize = 4;

/// Buffers of a batch, allocated once. Row-major, one row a token.
pub(crate) struct Scratch {
    /// Residual stream.
    pub x: Vec<f32>,
    /// The normalised residual stream.
    pub normed: Vec<f32>,
    /// Queries, keys and values side by side.
    pub qkv: Vec<f32>,
    /// Attention's output.
    pub attended: Vec<f32>,
    /// The MLP's hidden activations.
    pub mlp: Vec<f32>,
    /// The input of the next matrix in integers.
    pub integers: Activations,
    /// Cosines and sines of every token's position, side by side.
    pub rope: Vec<f32>,
    /// Partials of attention that is split among threads: a row for each token and page.
    pub partials: Vec<f32>,
}

impl Scratch {
    pub(crate) fn new(config: &ModelConfig, options: &MachineOptions, isa: Isa) -> Self {
        let rows = options.max_batch;
        let zeros = |width: usize| vec![0.0; rows * width];
        let widest = config.hidden.max(config.q_width()).max(config.mlp);
        let partial = config.heads * partial_len(config.head_dim.next_multiple_of(WIDE));
        let splits = options.context.div_ceil(PAGE_TOKENS);
        Self {
            x: zeros(config.hidden),
            normed: zeros(config.hidden),
            qkv: zeros(config.q_width() + 2 * config.kv_width()),
            attended: zeros(config.q_width()),
            mlp: zeros(config.mlp),
            integers: Activations::new(isa, widest, rows),
            rope: zeros(config.rope.dim),
            partials: vec![0.0; SPLIT_ROWS.min(rows) * splits * partial],
        }
    }
}

/// Buffers of one thread.
pub(crate) struct ThreadScratch {
    pub kernel: KernelScratch,
    /// Outputs of a tile of one or two matrices.
    pub tile: Vec<f32>,
    /// Partials of the pages so far, and of one page.
    pub partials: [Vec<f32>; 2],
}

impl ThreadScratch {
    /// Room for tiles of up to `tile` numbers.
    pub(crate) fn new(config: &ModelConfig, max_batch: usize, tile: usize) -> Self {
        let widest = config.hidden.max(config.q_width()).max(config.mlp);
        let group = config.heads / config.kv_heads;
        let partial = vec![0.0; group * partial_len(config.head_dim.next_multiple_of(WIDE))];
        Self {
            kernel: KernelScratch::new(widest, max_batch),
            tile: vec![0.0; tile],
            partials: [partial.clone(), partial],
        }
    }
}
