//! A batch's buffers, taken once, when the machine is made.

use upg_format::ModelConfig;
use upg_pdvm::{BatchRow, KvPages, MachineError, MachineOptions, PAGE_TOKENS, SeqId, rope::RopeTable};

use super::shapes::{MAX_COLUMNS, MAX_TOKENS};
use crate::{
    abi,
    driver::{Buffer, Device, Pinned},
    layout,
};

/// Tokens that go through the program at once, at most.
const MAX_ROWS: usize = 512;
/// Rows of logits that are computed at once, at most.
const MAX_LOGITS: usize = 64;
/// Rows of queries in a tile of attention: `FLASH_ROWS` in `kernels/flash.cuh`.
pub(crate) const FLASH_ROWS: usize = 64;

/// Columns of a row of f16 activations.
pub(crate) fn padded(cols: usize) -> usize {
    cols.next_multiple_of(MAX_COLUMNS)
}

/// Buffers of the activations.
pub(crate) struct Buffers {
    /// Tokens there is room for.
    pub rows: usize,
    /// Rows of logits there is room for.
    pub logit_rows: usize,
    /// Rows of a token's output of a linear, at most.
    pub part_rows: usize,
    /// Residual stream, f32 `[rows][hidden]`.
    pub x: Buffer,
    /// What linears write, f32 `[rows][part_rows]`.
    pub part: Buffer,
    /// Queries, f16 `[rows][q_width]`.
    pub q: Buffer,
    /// Attention's output, f16 `[rows][padded(q_width)]`.
    pub a: Buffer,
    /// The normed residual stream, f16 `[rows][padded(hidden)]`.
    pub normed: Buffer,
    /// Inside of the MLP, f16 `[rows][padded(mlp)]`.
    pub hidden: Buffer,
    /// What each token's f16 activations were divided by, `[rows]`.
    pub step: Buffer,
    /// `[logit_rows][vocab, in whole units]`.
    pub logits: Buffer,
    pub host_logits: Pinned<f32>,
    /// A row of logits.
    pub logit_width: usize,
}

impl Buffers {
    pub(crate) fn new(config: &ModelConfig, options: &MachineOptions) -> Result<Self, MachineError> {
        let rows = options.max_batch.min(MAX_ROWS);
        let logit_rows = rows.min(MAX_LOGITS);
        let tiles = rows.next_multiple_of(MAX_TOKENS);
        let qkv = config.q_width() + 2 * config.kv_width();
        let part_rows = qkv.max(2 * config.mlp).max(config.hidden);
        let logit_width = layout::units(config.vocab) * abi::UNIT;
        let floats = |count: usize| Buffer::zeroed(count * size_of::<f32>());
        let halves = |count: usize| Buffer::zeroed(count * size_of::<u16>());
        Ok(Self {
            rows,
            logit_rows,
            part_rows,
            x: floats(rows * config.hidden)?,
            part: floats(rows * part_rows)?,
            q: halves(rows * config.q_width())?,
            a: halves(tiles * padded(config.q_width()))?,
            normed: halves(tiles * padded(config.hidden))?,
            hidden: halves(tiles * padded(config.mlp))?,
            step: floats(rows)?,
            logits: floats(logit_rows * logit_width)?,
            host_logits: Pinned::zeroed(logit_rows * logit_width)?,
            logit_width,
        })
    }
}

/// What the host tells of a batch's tokens, in one buffer of words on either side.
pub(crate) struct Staging {
    device: Buffer,
    host: Pinned<u32>,
    /// Words from which on tiles, picked rows, RoPE angles and page lists lie; the rows come first.
    at: [usize; 4],
    /// Sequences of the batch, in the order of their page lists.
    sequences: Vec<SeqId>,
    rope_dim: usize,
    /// Words of a page list.
    pub page_list: usize,
    /// Tokens of a tile of attention.
    tile_tokens: usize,
    /// Tiles of attention.
    pub tiles: usize,
    /// Rows whose logits are asked for.
    pub picked: usize,
}

impl Staging {
    /// For `rows` tokens; attention takes `heads_a_group` heads together.
    pub(crate) fn new(
        config: &ModelConfig,
        options: &MachineOptions,
        rows: usize,
        heads_a_group: usize,
    ) -> Result<Self, MachineError> {
        let (rope_dim, page_list) = (config.rope.dim, options.context.div_ceil(PAGE_TOKENS));
        let tiles = 4 * rows;
        let picked = tiles + 4 * rows;
        let rope = (picked + rows).next_multiple_of(4);
        let pages = rope + rows * rope_dim;
        let words = pages + options.sequences.min(rows) * page_list;
        Ok(Self {
            device: Buffer::zeroed(4 * words)?,
            host: Pinned::zeroed(words)?,
            at: [tiles, picked, rope, pages],
            sequences: Vec::with_capacity(options.sequences.min(rows)),
            rope_dim,
            page_list,
            tile_tokens: FLASH_ROWS / heads_a_group,
            tiles: 0,
            picked: 0,
        })
    }

    /// Addresses of rows, tiles, picked rows, RoPE angles and page lists.
    pub(crate) fn addresses(&self) -> [u64; 5] {
        let at = |word: usize| self.device.at() + 4 * word as u64;
        [at(0), at(self.at[0]), at(self.at[1]), at(self.at[2]), at(self.at[3])]
    }

    /// Writes the rows of a batch and starts their copies. Rows of a sequence stand together, in order.
    pub(crate) fn stage(
        &mut self,
        device: &Device,
        rows: &[BatchRow],
        pages: &KvPages,
        rope: &RopeTable,
    ) -> Result<(), MachineError> {
        (self.tiles, self.picked) = (0, 0);
        self.sequences.clear();
        let [tiles, picked, angles, lists] = self.at;
        let words = self.host.as_mut();
        let mut open = 0;
        for (i, row) in rows.iter().enumerate() {
            let follows = i > 0 && rows[i - 1].seq == row.seq;
            if !follows {
                let list = pages.pages(row.seq)?;
                words[lists + self.sequences.len() * self.page_list..][..list.len()].copy_from_slice(list);
                self.sequences.push(row.seq);
            }
            let sequence = self.sequences.len() as u32 - 1;
            words[4 * i..][..4].copy_from_slice(&[row.token, row.position as u32, sequence, 0]);
            if !follows || i - open == self.tile_tokens {
                open = i;
                words[tiles + 4 * self.tiles..][..4].copy_from_slice(&[
                    i as u32,
                    0,
                    row.position as u32,
                    sequence,
                ]);
                self.tiles += 1;
            }
            words[tiles + 4 * (self.tiles - 1) + 1] += 1;
            if row.logits {
                words[picked + self.picked] = i as u32;
                self.picked += 1;
            }
            let angles = &mut words[angles + i * self.rope_dim..][..self.rope_dim];
            let (cos, sin) = bytemuck::cast_slice_mut(angles).split_at_mut(self.rope_dim / 2);
            rope.fill(row.position, row.rope_length, cos, sin);
        }
        let used = [
            (0, 4 * rows.len()),
            (tiles, 4 * self.tiles),
            (picked, self.picked),
            (angles, rows.len() * self.rope_dim),
            (lists, self.sequences.len() * self.page_list),
        ];
        for (from, count) in used {
            self.host.send(device, from..from + count, self.device.at() + 4 * from as u64)?;
        }
        Ok(())
    }
}
