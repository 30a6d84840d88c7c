use std::{
    env,
    time::{Duration, Instant},
};

use cudarc::driver::sys::{self, CUdevice_attribute as Attribute};
use upg_codec::Bits;
use upg_pdvm::{
    Batch, BatchRow, KvKind, KvPages, Machine, MachineError, MachineInfo, MachineOptions, Program, SeqId,
    Weights, lower, rope::RopeTable,
};

use crate::{
    abi::Run,
    compile::{self, Target},
    driver::{Buffer, Device, Module, check},
    execute::{Execution, Graph, Launcher},
    layout,
    load::{self, Model},
    memory::{Memory, QUEUE, kv_token_bytes},
    plan::{Block, Plan, heads_a_group},
};

/// How long a block waits for the others: far longer than any program, time slices of other processes included.
const PATIENCE: Duration = Duration::from_secs(20);

/// How a [`CudaMachine`] is made to run, for tests and measurements.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// How the program is executed; `None`: the faster way, measured while loading.
    pub execution: Option<Execution>,
    /// How long a block of the persistent kernel waits for the others before the run fails.
    pub patience: Duration,
}

impl Settings {
    /// What the environment asks for: `UPG_CUDA` is `persistent`, `graph` or not set.
    ///
    /// # Errors
    /// Any other value.
    pub fn from_env() -> Result<Self, MachineError> {
        let execution = match env::var("UPG_CUDA").as_deref() {
            Err(_) | Ok("") => None,
            Ok("persistent") => Some(Execution::Persistent),
            Ok("graph") => Some(Execution::Graph),
            Ok(other) => {
                return Err(MachineError::Unsupported(format!(
                    "UPG_CUDA is {other:?}: set it to persistent or graph, or unset it"
                )));
            }
        };
        Ok(Self { execution, patience: PATIENCE })
    }
}

/// The CUDA machine: T8 weights in tiles on one card, int8 activations, exact integer sums, an f16 KV cache in pages.
///
/// Logits have the same bits whether the program runs as a persistent kernel or as a graph, and however a prompt is
/// cut into batches. A batch is run token by token.
pub struct CudaMachine {
    program: Program,
    options: MachineOptions,
    info: MachineInfo,
    pages: KvPages,
    rope: RopeTable,
    rows: Vec<BatchRow>,
    plan: Plan,
    execution: Execution,
    patience: Duration,
    /// The whole program, and without its head.
    runs: [Run; 2],
    graphs: Option<[Graph; 2]>,
    launcher: Launcher,
    memory: Memory,
    /// The program and its list of matrices.
    _operands: [Buffer; 2],
    _module: Module,
    _model: Model,
    // Last: everything above lives in its context.
    device: Device,
}

impl CudaMachine {
    /// Loads `weights` on the first card, as the environment asks ([`Settings::from_env`]); `progress` is told the
    /// fraction done, from 0 to 1.
    ///
    /// # Errors
    /// Without an NVIDIA driver, card or NVRTC; for a model or options that the machine cannot run; where the card's
    /// memory does not suffice. Each message ends with the remedy.
    pub fn new(
        weights: &dyn Weights,
        options: &MachineOptions,
        progress: &mut dyn FnMut(f32),
    ) -> Result<Self, MachineError> {
        Self::with(weights, options, Settings::from_env()?, progress)
    }

    /// Loads with the given settings.
    ///
    /// # Errors
    /// As [`CudaMachine::new`].
    pub fn with(
        weights: &dyn Weights,
        options: &MachineOptions,
        settings: Settings,
        progress: &mut dyn FnMut(f32),
    ) -> Result<Self, MachineError> {
        let config = weights.config();
        let invalid = |e| MachineError::Unsupported(format!("{e}: verify the model file and fetch it anew"));
        config.validate().map_err(invalid)?;
        options.validate(config)?;
        load::check(config)?;
        if options.kv != KvKind::F16 {
            return Err(MachineError::Unsupported(
                "the cuda machine keeps keys and values in f16 only: ask for an f16 cache, or use --device cpu".into(),
            ));
        }
        let device = Device::open()?;
        let capability = device.capability()?;
        if capability < 80 {
            return Err(MachineError::Unsupported(format!(
                "{} has compute capability {}.{}, the kernels need 8.0: use --device cpu",
                device.name()?,
                capability / 10,
                capability % 10
            )));
        }
        progress(0.0);
        let model = Model::load(weights, progress)?;
        let program = lower(config);
        let pages = KvPages::new(options.context, options.sequences);
        let grid = device.attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?;
        let memory = Memory::new(config, options, pages.total(), grid)?;
        let plan = Plan::new(&program, &model, &memory.buffers)?;
        let limit = device.attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?;
        let used = model.bits_used();
        let slot = Bits::ALL.into_iter().filter(|b| used >> b.get() & 1 == 1).map(layout::tile_bytes).max();
        // The kernels hold a few static words too.
        let block = Block::fitting(&plan, config, grid, slot.unwrap_or(0), limit.saturating_sub(128));
        let block = block.ok_or_else(|| {
            MachineError::Unsupported(format!(
                "{limit} bytes of shared memory are too few for this model's width: use --device cpu"
            ))
        })?;
        let target = Target {
            capability,
            bits_used: used,
            heads_a_group: heads_a_group(config),
            head_dim: config.head_dim,
            warps: block.warps,
            slots: block.slots,
        };
        let module = Module::load(&compile::kernels(&target).map_err(MachineError::Device)?)?;
        let launcher = Launcher {
            program: module.kernel(c"run_program", block.shared)?,
            instruction: module.kernel(c"run_instruction", block.shared)?,
            grid,
            block,
            overlap: capability >= 90,
        };
        let cycles = device.attribute(Attribute::CU_DEVICE_ATTRIBUTE_CLOCK_RATE)? as f64 * 1e3;
        let patience = (settings.patience.as_secs_f64() * cycles) as u64;
        let (run, operands) = memory.run(config, &model, &plan, patience)?;
        let (instructions, entries) = plan.body;
        let body = Run { instructions: instructions as i32, entry_count: entries as i32, ..run };
        let mut machine = Self {
            info: MachineInfo {
                name: "cuda",
                detail: String::new(),
                weight_bytes: model.bytes() as u64,
                kv_bytes_per_token: (kv_token_bytes(config) * config.layers) as u64,
            },
            options: options.clone(),
            pages,
            rope: RopeTable::new(config),
            rows: Vec::with_capacity(options.max_batch),
            execution: Execution::Persistent,
            patience: settings.patience,
            runs: [run, body],
            graphs: None,
            launcher,
            memory,
            plan,
            program,
            _operands: operands,
            _module: module,
            _model: model,
            device,
        };
        machine.choose(settings.execution)?;
        Ok(machine)
    }

    /// Settles how to execute: as told, or the faster way.
    fn choose(&mut self, told: Option<Execution>) -> Result<(), MachineError> {
        let cooperative = self.device.attribute(Attribute::CU_DEVICE_ATTRIBUTE_COOPERATIVE_LAUNCH)? == 1;
        let mut times = vec![];
        for execution in [Execution::Persistent, Execution::Graph] {
            let wanted = told.is_none_or(|told| told == execution);
            if !wanted || (execution == Execution::Persistent && !cooperative) {
                continue;
            }
            self.execution = execution;
            if execution == Execution::Graph {
                let [run, body] = &self.runs;
                let record = |run| Graph::record(&self.device, &self.launcher, run);
                self.graphs = Some([record(run)?, record(body)?]);
            }
            times.push((self.measure()?, execution));
        }
        times.sort_by_key(|(time, _)| *time);
        let Some(&(best, execution)) = times.first() else {
            return Err(MachineError::Unsupported(
                "this card cannot run cooperative kernels: unset UPG_CUDA, or set it to graph".into(),
            ));
        };
        self.execution = execution;
        if execution == Execution::Persistent {
            self.graphs = None;
        }
        let millis = |time: Duration| format!("{:.2} ms a token", time.as_secs_f64() * 1e3);
        let other = times
            .get(1)
            .map_or_else(String::new, |(time, other)| format!(" ({}: {})", other.name(), millis(*time)));
        self.info.detail = format!("{}, {}, {}{other}", self.device.name()?, execution.name(), millis(best));
        Ok(())
    }

    /// The time of one token at position 0, in a page that no sequence has yet.
    fn measure(&mut self) -> Result<Duration, MachineError> {
        let row = BatchRow { seq: SeqId(0), token: 0, position: 0, rope_length: 1, logits: false };
        let mut times = [Duration::MAX; 7];
        for time in &mut times {
            let start = Instant::now();
            self.memory.stage(0, &row, &self.rope, &[0]);
            self.start(0, true)?;
            self.finish()?;
            *time = start.elapsed();
        }
        times.sort();
        Ok(times[times.len() / 2])
    }

    /// Starts the token of place `slot`, with the head or without.
    fn start(&mut self, slot: usize, head: bool) -> Result<(), MachineError> {
        let words = self.memory.step_words;
        let from = self.memory.host_steps.as_mut()[slot * words..].as_ptr();
        let to = self.memory.step.at();
        // SAFETY: both sides are a step long; the place is not written again before the stream has been waited for.
        let copied = unsafe { sys::cuMemcpyHtoDAsync_v2(to, from.cast(), words * 4, self.device.stream()) };
        check(copied, "copying a token to the card")?;
        match (&self.graphs, self.execution) {
            (Some(graphs), Execution::Graph) => graphs[usize::from(!head)].launch(&self.device),
            _ => self.launcher.persistent(&self.device, &self.runs[usize::from(!head)]),
        }
    }

    /// Asks for the logits of the last token started, as row `row` of the host's.
    fn fetch(&mut self, row: usize) -> Result<(), MachineError> {
        let vocab = self.program.config.vocab;
        let to = self.memory.host_logits.as_mut()[row * vocab..][..vocab].as_mut_ptr();
        let (from, stream) = (self.memory.buffers.logits, self.device.stream());
        // SAFETY: both sides hold `vocab` numbers; the host's are read after the stream has been waited for.
        let copied = unsafe { sys::cuMemcpyDtoHAsync_v2(to.cast(), from, vocab * 4, stream) };
        check(copied, "copying logits from the card")
    }

    /// Waits for what has been started, and reports a wait that came to no end.
    fn finish(&mut self) -> Result<(), MachineError> {
        let (to, from) = (self.memory.host_failed.as_mut().as_mut_ptr(), self.memory.failed.at());
        // SAFETY: both sides hold one word; the host's is read after the stream has been waited for.
        let copied = unsafe { sys::cuMemcpyDtoHAsync_v2(to.cast(), from, 4, self.device.stream()) };
        check(copied, "asking how it went")?;
        self.device.synchronize()?;
        let failed = self.memory.host_failed.as_mut()[0];
        if failed == 0 {
            return Ok(());
        }
        self.memory.failed.clear()?;
        self.memory.arrived.clear()?;
        Err(MachineError::Device(format!(
            "the blocks of the persistent kernel waited more than {:?} for each other at {}: try again, set \
             UPG_CUDA=graph, or use --device cpu",
            self.patience,
            self.plan.describe(failed as usize - 1)
        )))
    }

    /// Runs queued rows `first..last` of the batch, and writes the logits asked for to the front of `logits`.
    fn run_rows(&mut self, first: usize, last: usize, logits: &mut [f32]) -> Result<usize, MachineError> {
        let mut asked = 0;
        for (slot, i) in (first..last).enumerate() {
            let row = self.rows[i];
            self.memory.stage(slot, &row, &self.rope, self.pages.pages(row.seq)?);
            self.start(slot, row.logits)?;
            if row.logits {
                self.fetch(asked)?;
                asked += 1;
            }
        }
        self.finish()?;
        let count = asked * self.program.config.vocab;
        logits[..count].copy_from_slice(&self.memory.host_logits.as_mut()[..count]);
        Ok(count)
    }
}

impl Machine for CudaMachine {
    fn info(&self) -> MachineInfo {
        self.info.clone()
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
        let asked = BatchRow::list(batch, vocab, self.options.max_batch, &mut self.pages, &mut self.rows)?;
        if logits.len() != asked * vocab {
            return Err(MachineError::LogitsLength { found: logits.len(), expected: asked * vocab });
        }
        self.device.enter()?;
        let mut written = 0;
        for first in (0..self.rows.len()).step_by(QUEUE) {
            let last = (first + QUEUE).min(self.rows.len());
            written += self.run_rows(first, last, &mut logits[written..])?;
        }
        for segment in batch {
            self.pages.advance(segment.seq, segment.tokens.len())?;
        }
        Ok(())
    }
}

impl Drop for CudaMachine {
    fn drop(&mut self) {
        // Nothing may be freed that a kernel still uses. An error has nobody to go to.
        let _ = self.device.enter();
        let _ = self.device.synchronize();
    }
}
