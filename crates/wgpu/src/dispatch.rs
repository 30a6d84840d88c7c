//! A dispatch: a compiled shader, its buffers, and how many workgroups a batch needs.

use crate::{attention::KEYS, plan::FEW};

/// The most splits of a context, and the fewest blocks of keys that are worth one.
pub(crate) const MOST_SPLITS: usize = 64;
const SPLIT_BLOCKS: usize = 4;

/// What the numbers of workgroups depend on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    /// Tokens of the batch.
    pub tokens: usize,
    /// Splits of the context.
    pub splits: usize,
    /// Tiles of tokens that attention takes together.
    pub tiles: usize,
    /// Rows of logits.
    pub logits: usize,
    /// Whether the device chooses the next token by them.
    pub chooses: bool,
}

impl Shape {
    /// How a batch of `tokens` tokens whose longest context has `length` tokens is run.
    pub(crate) fn new(tokens: usize, length: usize) -> Self {
        let blocks = length.div_ceil(KEYS);
        // Few blocks one after the other take less time than joining splits. Rounded down to a power of two: a shape in use
        // stays in use.
        let splits =
            if tokens <= FEW && blocks >= SPLIT_BLOCKS { 1 << blocks.min(MOST_SPLITS).ilog2() } else { 1 };
        Self { tokens, splits, tiles: 0, logits: 0, chooses: false }
    }
}

/// How many workgroups.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Grid {
    /// So many a token.
    Tokens(usize),
    /// As many as the device runs at once, at most so many, a token.
    Steps(usize),
    /// So many a tile of so many tokens.
    Tiles(usize, usize),
    /// So many a split of the context and token.
    Splits(usize),
    /// So many a token, where the context is split.
    Joins(usize),
    /// So many a tile of attention.
    Blocks(usize),
}

/// A shader with its buffers.
pub(crate) struct Dispatch {
    pub label: String,
    pub pipeline: wgpu::ComputePipeline,
    pub bindings: wgpu::BindGroup,
    pub grid: Grid,
}

impl Dispatch {
    /// Workgroups that have something to do, where any number of them can run it.
    pub(crate) fn steps(&self) -> usize {
        match self.grid {
            Grid::Steps(most) => most,
            _ => 0,
        }
    }

    /// Whether a batch of this shape has no use for it.
    pub(crate) fn is_left_out(&self, shape: Shape) -> bool {
        matches!(self.grid, Grid::Joins(_)) && shape.splits == 1
    }

    /// `workgroups`: that the device runs at once.
    pub(crate) fn record(
        &self,
        pass: &mut wgpu::ComputePass<'_>,
        tokens: usize,
        shape: Shape,
        workgroups: usize,
    ) {
        if self.is_left_out(shape) {
            return;
        }
        let [x, y, z] = match self.grid {
            Grid::Tokens(n) => [n, tokens, 1],
            Grid::Steps(most) => [workgroups.min(most), tokens, 1],
            Grid::Tiles(n, tile) => [n, tokens.div_ceil(tile), 1],
            Grid::Splits(n) => [n, shape.splits, tokens],
            Grid::Joins(n) => [n, tokens, 1],
            Grid::Blocks(n) => [n, shape.tiles, 1],
        };
        pass.set_pipeline(&self.pipeline);
        pass.set_bind_group(0, &self.bindings, &[]);
        pass.dispatch_workgroups(x as u32, y as u32, z as u32);
    }
}

/// One step of the program: the dispatches for few tokens and those for many.
pub(crate) struct Work {
    pub few: Vec<Dispatch>,
    /// `None`: the same.
    pub many: Option<Vec<Dispatch>>,
}

impl Work {
    pub(crate) fn dispatches(&self, tokens: usize) -> &[Dispatch] {
        match &self.many {
            Some(many) if tokens > FEW => many,
            _ => &self.few,
        }
    }
}
