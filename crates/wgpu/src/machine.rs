use std::time::{Duration, Instant};

use upg_format::ModelConfig;
use upg_pdvm::{
    Batch, BatchRow, Counters, KvKind, KvPages, Machine, MachineError, MachineInfo, MachineOptions, Program,
    SeqId, Weights, lower, rope::RopeTable,
};

use crate::{
    dispatch::Shape,
    gpu::Gpu,
    load::Model,
    memory::{Memory, kv_token_bytes},
    plan::{CHOICES, LOGITS, Lowering, Plan},
    shaders::Shaders,
    step::{Step, StepLayout},
    target::Tuning,
    tune,
};

/// Tokens of one submission: a larger batch is several. Fewer where a processor emulates the adapter, so that no submission
/// lasts as long as the host is willing to wait, however busy that processor is.
const TOKENS: usize = 512;
const EMULATED_TOKENS: usize = 64;

/// How long a reader may wait for tokens that the device chooses without the host.
const BURST: Duration = Duration::from_millis(50);

/// The wgpu machine: T8 weights in quads of rows on one adapter, 32-bit float activations and sums, an f16 KV cache in
/// pages. The program is a list of dispatches; batches of a few tokens decode weights for each token, larger ones
/// once for up to 64.
pub struct WgpuMachine {
    program: Program,
    options: MachineOptions,
    info: MachineInfo,
    pages: KvPages,
    rope: RopeTable,
    rows: Vec<BatchRow>,
    step: Step,
    /// Tokens that attention takes together.
    block_tokens: usize,
    pub(crate) plan: Plan,
    /// Of the last submission.
    pub(crate) shape: Shape,
    memory: Memory,
    /// Commands of one token, encoded while the device worked on the last.
    prepared: Option<(Shape, wgpu::CommandBuffer)>,
    counters: Counters,
    /// What the last token took that ran alone, or each of those that the device chose.
    token_time: Duration,
    _model: Model,
    pub(crate) gpu: Gpu,
}

impl WgpuMachine {
    /// Loads `weights` on the adapter of number `adapter` in [`crate::adapters`]; `progress` is told the fraction done,
    /// from 0 to 1.
    ///
    /// # Errors
    /// Without such an adapter; for a model or options that the machine cannot run; where the adapter's limits or memory
    /// do not suffice. Each message ends with the remedy.
    pub fn new(
        weights: &dyn Weights,
        options: &MachineOptions,
        adapter: usize,
        progress: &mut dyn FnMut(f32),
    ) -> Result<Self, MachineError> {
        Self::with(weights, options, adapter, Tuning::default(), progress)
    }

    /// Loads with shaders made as told.
    ///
    /// # Errors
    /// As [`WgpuMachine::new`].
    pub fn with(
        weights: &dyn Weights,
        options: &MachineOptions,
        adapter: usize,
        tuning: Tuning,
        progress: &mut dyn FnMut(f32),
    ) -> Result<Self, MachineError> {
        let config = weights.config();
        let invalid = |e| MachineError::Unsupported(format!("{e}: verify the model file and fetch it anew"));
        config.validate().map_err(invalid)?;
        options.validate(config)?;
        check(config, options)?;
        let gpu = Gpu::open(adapter, tuning)?;
        progress(0.0);
        let most = if gpu.emulated { EMULATED_TOKENS } else { TOKENS };
        let step = Step::new(StepLayout::new(config, options, options.max_batch.min(most)));
        let pages = KvPages::new(options.context, options.sequences);
        // What fails for want of memory fails before the weights take their time.
        let memory = Memory::new(&gpu, config, &step, pages.total())?;
        let model = Model::load(&gpu, weights, progress)?;
        let shaders = Shaders::new(config, gpu.target, &step.layout);
        let program = lower(config);
        let lowering = Lowering { gpu: &gpu, model: &model, memory: &memory, shaders: &shaders, config };
        let mut plan = lowering.plan(&program)?;
        gpu.wait()?;
        match tuning.workgroups {
            Some(workgroups) => plan.workgroups = workgroups,
            None => tune::tune(&gpu, &mut plan)?,
        }
        let info = MachineInfo {
            name: "wgpu",
            detail: format!("{}; {} workgroups at once", gpu.detail, plan.workgroups),
            weight_bytes: model.bytes_per_token(config),
            kv_bytes_per_token: kv_token_bytes(config) * config.layers as u64,
        };
        Ok(Self {
            program,
            options: options.clone(),
            info,
            pages,
            rope: RopeTable::new(config),
            rows: Vec::with_capacity(options.max_batch),
            step,
            block_tokens: shaders.block_tokens(),
            plan,
            shape: Shape::new(1, 1),
            memory,
            prepared: None,
            counters: Counters::default(),
            token_time: BURST,
            _model: model,
            gpu,
        })
    }

    /// Runs rows `first..last` of the batch and writes their logits to the front of `logits`; returns how many numbers.
    fn run_rows(&mut self, first: usize, last: usize, logits: &mut [f32]) -> Result<usize, MachineError> {
        let rows = &self.rows[first..last];
        let wanted: Vec<usize> = (0..rows.len()).filter(|n| rows[*n].logits).collect();
        let longest = rows.iter().map(|row| row.position + 1).max().unwrap_or(1);
        let mut shape = Shape::new(rows.len(), longest);
        self.step.stage(rows, shape.splits, &self.pages, &self.rope)?;
        shape.tiles = self.step.stage_tiles(rows, self.block_tokens);
        let vocab = self.program.config.vocab;
        let mut wanted = wanted.chunks(LOGITS);
        let mut written = 0;
        let mut body = true;
        loop {
            let chunk = wanted.next().unwrap_or_default();
            if chunk.is_empty() && !body {
                return Ok(written);
            }
            shape.logits = chunk.len();
            self.step.stage_logits(chunk);
            let out = &mut logits[written..written + chunk.len() * vocab];
            self.submit(shape, body, out)?;
            written += out.len();
            body = false;
        }
    }

    /// Submits the body, where asked for, and the head for the rows of logits that are staged; waits for these.
    fn submit(&mut self, shape: Shape, body: bool, logits: &mut [f32]) -> Result<(), MachineError> {
        let start = Instant::now();
        self.send(shape, body, true)?;
        self.counters.host_time += start.elapsed();
        match logits {
            [] => self.gpu.wait()?,
            logits => self.gpu.read(&self.memory.staging, logits)?,
        }
        if shape.tokens == 1 {
            self.token_time = start.elapsed();
        }
        Ok(())
    }

    /// Gives the device the body, where asked for, and the head, with the tokens that are staged or with the one that it
    /// has chosen itself.
    fn send(&mut self, shape: Shape, body: bool, with_token: bool) -> Result<(), MachineError> {
        self.gpu.alive()?;
        self.shape = shape;
        let commands = match self.prepared.take() {
            Some((prepared, commands)) if body && prepared == shape => commands,
            _ => self.encode(shape, body),
        };
        let (words, token) = (self.step.used(shape.tokens), self.step.token_at());
        let write = |at: usize, words: &[u32]| {
            let at = (at * size_of::<u32>()) as u64;
            self.gpu.queue.write_buffer(&self.memory.step, at, bytemuck::cast_slice(words));
        };
        if with_token {
            write(0, words);
        } else {
            write(0, &words[..token]);
            write(token + 1, &words[token + 1..]);
        }
        self.gpu.queue.submit([commands]);
        if shape.tokens == 1 {
            // While the device works: the next token's commands are most likely the same.
            self.prepared = Some((shape, self.encode(shape, true)));
        }
        self.counters.dispatches += self.plan.dispatches(shape) as u64;
        Ok(())
    }

    /// Runs `first` and the likeliest tokens after it, at most [`CHOICES`] of them, without waiting in between.
    fn decode_greedily(&mut self, first: BatchRow, found: &mut [u32]) -> Result<(), MachineError> {
        let start = Instant::now();
        for i in 0..found.len() {
            let row = first.ahead(i);
            let shape = Shape { logits: 1, chooses: true, ..Shape::new(1, row.position + 1) };
            self.step.stage(&[row], shape.splits, &self.pages, &self.rope)?;
            let tiles = self.step.stage_tiles(&[row], self.block_tokens);
            self.step.stage_logits(&[0]);
            self.step.stage_choice(1 + i);
            self.send(Shape { tiles, ..shape }, true, i == 0)?;
        }
        let Memory { chosen, chosen_staging, .. } = &self.memory;
        let mut encoder =
            self.gpu.device.create_command_encoder(&wgpu::CommandEncoderDescriptor { label: None });
        encoder.copy_buffer_to_buffer(chosen, 4, chosen_staging, 0, size_of_val(found) as u64);
        self.gpu.queue.submit([encoder.finish()]);
        self.counters.host_time += start.elapsed();
        self.gpu.read(chosen_staging, found)?;
        self.token_time = start.elapsed() / found.len() as u32;
        if found.contains(&u32::MAX) { Err(MachineError::NoNumbers) } else { Ok(()) }
    }

    /// The commands of a batch of this shape, or of its head alone.
    fn encode(&self, shape: Shape, body: bool) -> wgpu::CommandBuffer {
        let mut encoder =
            self.gpu.device.create_command_encoder(&wgpu::CommandEncoderDescriptor { label: None });
        {
            let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
            if body {
                self.plan.record_body(&mut pass, shape);
            }
            if shape.logits > 0 {
                self.plan.record_head(&mut pass, shape);
            }
        }
        if shape.chooses {
            let token = (self.step.token_at() * size_of::<u32>()) as u64;
            encoder.copy_buffer_to_buffer(&self.memory.chosen, 0, &self.memory.step, token, 4);
        } else if shape.logits > 0 {
            let bytes = (shape.logits * self.program.config.vocab * size_of::<f32>()) as u64;
            encoder.copy_buffer_to_buffer(&self.memory.logits, 0, &self.memory.staging, 0, bytes);
        }
        encoder.finish()
    }
}

impl Machine for WgpuMachine {
    fn info(&self) -> MachineInfo {
        self.info.clone()
    }

    fn counters(&self) -> Option<Counters> {
        Some(self.counters)
    }

    fn program(&self) -> &Program {
        &self.program
    }

    fn options(&self) -> &MachineOptions {
        &self.options
    }

    fn kv(&self) -> &KvPages {
        &self.pages
    }

    fn kv_mut(&mut self) -> &mut KvPages {
        &mut self.pages
    }

    fn run(&mut self, batch: &Batch<'_>, logits: &mut [f32]) -> Result<(), MachineError> {
        let vocab = self.program.config.vocab;
        let max = self.options.max_batch;
        BatchRow::admit(batch, vocab, max, logits, &mut self.pages, &mut self.rows)?;
        let mut written = 0;
        let most = self.step.layout.tokens;
        for first in (0..self.rows.len()).step_by(most) {
            let last = (first + most).min(self.rows.len());
            written += self.run_rows(first, last, &mut logits[written..])?;
        }
        Ok(self.pages.advance_all(batch)?)
    }

    fn greedy_tokens(&self) -> usize {
        let fit = BURST.as_nanos() / self.token_time.as_nanos().max(1);
        (fit as usize).clamp(1, CHOICES)
    }

    fn run_greedy(&mut self, seq: SeqId, token: u32, found: &mut [u32]) -> Result<(), MachineError> {
        let vocab = self.program.config.vocab;
        let first = BatchRow::admit_greedy(seq, token, found.len(), vocab, &mut self.pages)?;
        let (mut token, mut done) = (token, 0);
        for found in found.chunks_mut(CHOICES) {
            self.decode_greedily(BatchRow { token, ..first.ahead(done) }, found)?;
            done += found.len();
            token = found[found.len() - 1];
        }
        Ok(self.pages.advance(seq, done)?)
    }
}

/// Refuses what the shaders cannot run.
fn check(config: &ModelConfig, options: &MachineOptions) -> Result<(), MachineError> {
    let refuse = |what: String| {
        Err(MachineError::Unsupported(format!("the wgpu machine cannot run this: {what}; use --device cpu")))
    };
    if options.kv != KvKind::F16 {
        return refuse("it keeps keys and values in f16 only, and another kind was asked for".into());
    }
    if !config.head_dim.is_multiple_of(4) || config.head_dim > 256 {
        return refuse(format!("head_dim is {}, not a multiple of 4 up to 256", config.head_dim));
    }
    // A Hadamard's block stands in 32 KiB of workgroup memory.
    for (name, width) in [("hidden", config.hidden), ("mlp", config.mlp)] {
        if config.rotation.is_some() && upg_pdvm::rotation::block(width) > 8192 {
            return refuse(format!("the rotation of {name} ({width}) has blocks of more than 8192"));
        }
    }
    Ok(())
}
