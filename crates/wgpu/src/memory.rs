//! Buffers that dispatches pass numbers in.

use upg_format::ModelConfig;
use upg_pdvm::{MachineError, PAGE_TOKENS};

use crate::{
    dispatch::MOST_SPLITS,
    gpu::Gpu,
    plan::{CHOICES, FEW, LOGITS},
    step::Step,
};

/// Buffers that dispatches pass numbers in; a row a token.
pub(crate) struct Memory {
    pub step: wgpu::Buffer,
    /// Residual stream.
    pub x: wgpu::Buffer,
    /// Queries.
    pub q: wgpu::Buffer,
    /// Attention's output of each split of the context, a row a token and split.
    pub partial: wgpu::Buffer,
    /// What the splits' outputs are joined by.
    pub weights: wgpu::Buffer,
    /// Attention's output.
    pub attended: wgpu::Buffer,
    /// Inside of the MLP.
    pub h: wgpu::Buffer,
    /// A linear's input in f16, and each token's scale, where there are cooperative matrices.
    pub packed: wgpu::Buffer,
    pub packed_scales: wgpu::Buffer,
    /// What goes into the head.
    pub rows: wgpu::Buffer,
    pub logits: wgpu::Buffer,
    /// The logits where the host can read them.
    pub staging: wgpu::Buffer,
    /// Tokens that the device has chosen: the last one, then all of a run.
    pub chosen: wgpu::Buffer,
    pub chosen_staging: wgpu::Buffer,
    /// Keys and values of each layer.
    pub caches: Vec<wgpu::Buffer>,
}

/// Bytes that one token adds to one layer's cache.
pub(crate) fn kv_token_bytes(config: &ModelConfig) -> u64 {
    2 * 2 * config.kv_width() as u64
}

impl Memory {
    pub(crate) fn new(
        gpu: &Gpu,
        config: &ModelConfig,
        step: &Step,
        pages: usize,
    ) -> Result<Self, MachineError> {
        let tokens = step.layout.tokens as u64;
        let floats = |label: &str, rows: u64, width: usize| gpu.storage(label, 4 * rows * width as u64);
        let partials = (FEW * MOST_SPLITS) as u64;
        let cache = (pages * PAGE_TOKENS) as u64 * kv_token_bytes(config);
        let logits = tokens.min(LOGITS as u64);
        let widest = config.hidden.max(config.q_width()).max(config.mlp) as u64;
        let packed = if gpu.target.matrices { tokens * widest } else { 0 };
        let label = |layer| format!("the KV cache of layer {layer}");
        Ok(Self {
            step: gpu.upload("the step", step.all())?,
            x: floats("activations", tokens, config.hidden)?,
            q: floats("queries", tokens, config.q_width())?,
            partial: floats("attention's splits", partials, config.q_width())?,
            weights: floats("attention's sums", partials, 2 * config.heads)?,
            attended: floats("attention's output", tokens, config.q_width())?,
            h: floats("activations of the MLP", tokens, config.mlp)?,
            packed: gpu.storage("activations in f16", 2 * packed)?,
            packed_scales: gpu.storage("scales of activations", 4 * tokens)?,
            rows: floats("the head's input", logits, config.hidden)?,
            logits: floats("logits", logits, config.vocab)?,
            staging: gpu.buffer(
                "logits for the host",
                4 * logits * config.vocab as u64,
                wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST,
            )?,
            chosen: gpu.storage("chosen tokens", 4 * (1 + CHOICES) as u64)?,
            chosen_staging: gpu.buffer(
                "chosen tokens for the host",
                4 * CHOICES as u64,
                wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST,
            )?,
            caches: (0..config.layers).map(|l| gpu.storage(&label(l), cache)).collect::<Result<_, _>>()?,
        })
    }
}
