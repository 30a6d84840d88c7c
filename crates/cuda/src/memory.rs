//! A machine's buffers on the card, beside its weights: taken once, when it is made.

use upg_format::ModelConfig;
use upg_pdvm::{BatchRow, KvKind, MachineError, MachineOptions, PAGE_TOKENS, kv_kind, rope::RopeTable};

use crate::{
    abi,
    driver::{Buffer, Device, Pinned},
    execute::Launcher,
    layout,
    load::Model,
    plan::{Buffers, Plan, splits},
};

/// Words of a step before its RoPE angles: token, position, the run's number, room for alignment. The token comes
/// first, since the device may have chosen it: then the rest alone is sent.
const STEP_HEAD: usize = 4;
/// Steps that may be on their way at once.
pub(crate) const STEPS: usize = 8;

/// Buffers of a machine.
pub(crate) struct Memory {
    /// What instructions pass on, tagged (`kernels/handoff.cuh`).
    scratch: Buffer,
    /// Where its buffers lie.
    pub buffers: Buffers,
    tables: Buffer,
    cache: Buffer,
    partial: Buffer,
    pub failed: Buffer,
    /// What changes from token to token: see [`Memory::stage`].
    step: Buffer,
    step_words: usize,
    /// Runs staged since the tagged buffers were all zeros.
    runs: u32,
    /// Tokens that the device chose, and what it needs to choose them.
    chosen: Buffer,
    vote: Buffer,
    host_steps: Pinned<u32>,
    pub host_chosen: Pinned<u32>,
    pub host_logits: Pinned<f32>,
    pub host_failed: Pinned<u32>,
}

/// Bytes that one token adds to one layer's cache, as `kernels/cache.cuh` has it.
pub(crate) fn kv_token_bytes(config: &ModelConfig, kv: KvKind) -> usize {
    let head = match kv {
        KvKind::Q8 => config.head_dim + config.head_dim.div_ceil(kv_kind::BLOCK) * size_of::<u16>(),
        _ => config.head_dim * size_of::<u16>(),
    };
    2 * config.kv_heads * head
}

impl Memory {
    /// Takes the buffers for `pages` pages of the cache; `grid` blocks run.
    pub(crate) fn new(
        config: &ModelConfig,
        options: &MachineOptions,
        pages: usize,
        grid: usize,
    ) -> Result<Self, MachineError> {
        let logits = layout::units(config.vocab) * abi::UNIT;
        let (qkv, widest) = (config.q_width() + 2 * config.kv_width(), config.hidden.max(config.mlp));
        let widths = [config.hidden, qkv, config.q_width(), config.mlp, widest, logits];
        // Every buffer begins where a vector of any width may.
        let starts = widths.iter().scan(0, |end, width| {
            let start = *end;
            *end = (start + 4 * width).next_multiple_of(256);
            Some(start as u64)
        });
        let starts: Vec<u64> = starts.collect();
        let scratch = Buffer::zeroed(starts[5] as usize + 4 * logits)?;
        let at = |i: usize| scratch.at() + starts[i];
        let buffers = Buffers { x: at(0), q: at(1), a: at(2), h: at(3), y: at(4), logits: at(5) };
        let splits = splits(config, grid);
        let step_words = STEP_HEAD + config.rope.dim + options.context.div_ceil(PAGE_TOKENS);
        Ok(Self {
            buffers,
            tables: Buffer::of(&layout::tables())?,
            cache: Buffer::zeroed(pages * PAGE_TOKENS * kv_token_bytes(config, options.kv) * config.layers)?,
            partial: Buffer::zeroed(8 * config.heads * splits * (config.head_dim + 1))?,
            failed: Buffer::zeroed(4)?,
            step: Buffer::zeroed(4 * step_words)?,
            chosen: Buffer::zeroed(4 * STEPS)?,
            vote: Buffer::zeroed(16)?,
            step_words,
            runs: 0,
            host_steps: Pinned::zeroed(STEPS * step_words)?,
            host_chosen: Pinned::zeroed(STEPS)?,
            host_logits: Pinned::zeroed(config.vocab)?,
            host_failed: Pinned::zeroed(1)?,
            scratch,
        })
    }

    /// What the kernels are started with, for the whole of `plan`.
    pub(crate) fn run(
        &self,
        config: &ModelConfig,
        model: &Model,
        plan: &Plan,
        patience: u64,
    ) -> Result<(abi::Run, [Buffer; 2]), MachineError> {
        let (program, entries) = (Buffer::of_bytes(&plan.instruction_bytes())?, Buffer::of(&plan.entries)?);
        let step = |word: usize| self.step.at() + 4 * word as u64;
        let run = abi::Run {
            program: program.at(),
            instructions: plan.instructions.len() as i32,
            entries: entries.at(),
            entry_count: plan.entries.len() as i32,
            model: plan.model(config, model)?,
            tables: self.tables.at(),
            embed_codes: model.embedding.codes.at(),
            embed_scales: model.embedding.scales.at(),
            embed_bits: model.embedding.bits.get() as i32,
            rope: step(STEP_HEAD),
            token: step(0),
            pages: step(STEP_HEAD + config.rope.dim),
            cache: self.cache.at(),
            layers: config.layers as i32,
            partial: self.partial.at(),
            failed: self.failed.at(),
            patience,
        };
        Ok((run, [program, entries]))
    }

    /// The address of the cache.
    pub(crate) fn cache(&self) -> u64 {
        self.cache.at()
    }

    /// The address of the look-up tables.
    pub(crate) fn tables(&self) -> u64 {
        self.tables.at()
    }

    /// Writes step `i`: token, position, the run's number, cosines and sines of the position, and the pages of its
    /// sequence.
    pub(crate) fn stage(&mut self, i: usize, row: &BatchRow, rope: &RopeTable, pages: &[u32]) {
        self.runs = self.runs.wrapping_add(1);
        let step = &mut self.host_steps.as_mut()[i * self.step_words..][..self.step_words];
        let (head, rest) = step.split_at_mut(STEP_HEAD);
        head.copy_from_slice(&[row.token, row.position as u32, self.runs, 0]);
        let (angles, table) = rest.split_at_mut(2 * rope.pairs());
        let (cos, sin) = bytemuck::cast_slice_mut(angles).split_at_mut(rope.pairs());
        rope.fill(row.position, row.rope_length, cos, sin);
        table[..pages.len()].copy_from_slice(pages);
    }

    /// After a run that failed, and may have left anything: no number counts as passed on.
    pub(crate) fn forget(&mut self) -> Result<(), MachineError> {
        self.runs = 0;
        self.failed.clear()?;
        self.scratch.clear()?;
        self.partial.clear()
    }

    /// Starts sending step `i`, with its token or with the one that the device chose.
    pub(crate) fn send_step(&self, device: &Device, i: usize, with_token: bool) -> Result<(), MachineError> {
        let (first, skipped) = (i * self.step_words, usize::from(!with_token));
        let range = first + skipped..first + self.step_words;
        self.host_steps.send(device, range, self.step.at() + 4 * skipped as u64)
    }

    /// Starts choosing the likeliest token after step `i`, which the next step runs.
    pub(crate) fn choose(
        &self,
        device: &Device,
        launcher: &Launcher,
        i: usize,
        vocab: usize,
    ) -> Result<(), MachineError> {
        let logits = (self.buffers.logits, vocab);
        launcher.choose(device, logits, self.vote.at(), self.step.at(), self.chosen.at() + 4 * i as u64)
    }

    /// Starts fetching the first `count` tokens that were chosen.
    pub(crate) fn fetch_chosen(&mut self, device: &Device, count: usize) -> Result<(), MachineError> {
        self.host_chosen.fetch(device, 0..count, self.chosen.at())
    }
}
