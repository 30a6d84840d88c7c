use std::{
    env, thread,
    time::{Duration, Instant},
};

use cudarc::driver::sys::CUdevice_attribute as Attribute;
use upg_codec::Bits;
use upg_pdvm::{
    Batch, BatchRow, Counters, KvKind, KvPages, Machine, MachineError, MachineInfo, MachineOptions, Program,
    SeqId, Weights, lower, rope::RopeTable,
};

use crate::{
    abi::{self, Run},
    batch::{Batcher, shapes::Shapes},
    compile::{self, Kernels, Target},
    driver::{Buffer, Device, Module},
    execute::{Execution, Graph, Launcher},
    layout,
    load::{self, Model},
    memory::{Memory, STEPS, kv_token_bytes},
    plan::{Block, Plan, heads_a_group},
};

/// Up to so many tokens are run one after the other: a batch takes longer (on an H100 as long as three and a half).
const FEW: usize = 3;

/// How long a block waits for the others: far longer than any program, time slices of other processes included.
const PATIENCE: Duration = Duration::from_secs(20);

/// How a [`CudaMachine`] is made to run, for tests and measurements.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// How the program is executed; `None`: the faster way, measured while loading.
    pub execution: Option<Execution>,
    /// How long a block of the persistent kernel waits for the others before the run fails.
    pub patience: Duration,
    /// Bytes of shared memory that a block may take, at most: to run the kernels of smaller cards.
    pub shared: usize,
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
        Ok(Self { execution, patience: PATIENCE, shared: usize::MAX })
    }
}

/// The CUDA machine: T8 weights in tiles on one card, a KV cache in pages, of f16 or q8.
///
/// A token alone is multiplied as 15-bit activations in exact integer sums; its logits have the same bits whether the
/// program runs as a persistent kernel or as a graph. A run of more than three tokens goes through the tensor cores in
/// f16, and gives the same bits each time that a prompt is cut into the same runs.
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
    /// Runs of more than [`FEW`] tokens; `None` where none may have so many.
    batcher: Option<Batcher>,
    memory: Memory,
    /// What starting one token after the other has taken.
    host_time: Duration,
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
        if !matches!(options.kv, KvKind::F16 | KvKind::Q8) {
            return Err(MachineError::Unsupported(format!(
                "the cuda machine keeps keys and values in f16 or q8, not in {}: ask for one of those, or use --device cpu",
                options.kv
            )));
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
        let limit = limit.min(settings.shared);
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
            kv_q8: options.kv == KvKind::Q8,
            warps: block.warps,
            kernels: Kernels::Decode { slots: block.slots, table_row: block.table_row },
        };
        let shapes = (options.max_batch > FEW).then(|| batch_shapes(&model, limit)).transpose()?;
        let (module, batch_module) = compile(target, shapes)?;
        let launcher = Launcher {
            program: module.kernel(c"run_program", block.shared)?,
            instruction: module.kernel(c"run_instruction", block.shared)?,
            likeliest: module.kernel(c"likeliest", 0)?,
            grid,
            block,
            overlap: capability >= 90,
        };
        let cycles = device.attribute(Attribute::CU_DEVICE_ATTRIBUTE_CLOCK_RATE)? as f64 * 1e3;
        let patience = (settings.patience.as_secs_f64() * cycles) as u64;
        let (run, operands) = memory.run(config, &model, &plan, patience)?;
        let (instructions, entries) = plan.body;
        let body = Run { instructions: instructions as i32, entry_count: entries as i32, ..run };
        let batcher = batch_module
            .map(|module| Batcher::new(&program, options, &model, &plan, &memory, module, grid))
            .transpose()?;
        let mut machine = Self {
            info: MachineInfo {
                name: "cuda",
                detail: String::new(),
                weight_bytes: model.bytes() as u64,
                kv_bytes_per_token: (kv_token_bytes(config, options.kv) * config.layers) as u64,
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
            batcher,
            memory,
            host_time: Duration::ZERO,
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
            self.start(0, true, true)?;
            self.finish()?;
            *time = start.elapsed();
        }
        times.sort();
        Ok(times[times.len() / 2])
    }

    /// Starts staged step `i`: with its token or with the one that the device chose, with the head or without.
    fn start(&mut self, i: usize, with_token: bool, head: bool) -> Result<(), MachineError> {
        self.memory.send_step(&self.device, i, with_token)?;
        match (&self.graphs, self.execution) {
            (Some(graphs), Execution::Graph) => graphs[usize::from(!head)].launch(&self.device),
            _ => self.launcher.persistent(&self.device, &self.runs[usize::from(!head)]),
        }
    }

    /// Waits for what has been started, and reports a wait that came to no end.
    fn finish(&mut self) -> Result<(), MachineError> {
        self.memory.host_failed.fetch(&self.device, 0..1, self.memory.failed.at())?;
        self.device.synchronize()?;
        let failed = self.memory.host_failed.as_mut()[0];
        if failed == 0 {
            return Ok(());
        }
        Err(MachineError::Device(format!(
            "blocks waited more than {:?} for each other at {}: try again, set UPG_CUDA=graph, or use --device cpu",
            self.patience,
            self.plan.describe(failed as usize - 1)
        )))
    }

    /// Does `run`, and makes the buffers ready for the next one where it fails.
    fn recovering(
        &mut self,
        run: impl FnOnce(&mut Self) -> Result<(), MachineError>,
    ) -> Result<(), MachineError> {
        let result = run(self);
        if result.is_err() {
            self.memory.forget()?;
        }
        result
    }

    /// Runs row `i` alone, and writes its logits to `logits`, which is empty where it asks for none.
    fn decode(&mut self, i: usize, logits: &mut [f32]) -> Result<(), MachineError> {
        let (row, begin) = (self.rows[i], Instant::now());
        self.memory.stage(0, &row, &self.rope, self.pages.pages(row.seq)?);
        self.start(0, true, row.logits)?;
        if row.logits {
            let (count, from) = (logits.len(), self.memory.buffers.logits);
            self.memory.host_logits.fetch(&self.device, 0..count, from)?;
        }
        self.host_time += begin.elapsed();
        self.finish()?;
        logits.copy_from_slice(&self.memory.host_logits.as_mut()[..logits.len()]);
        Ok(())
    }
}

impl CudaMachine {
    /// Runs `first` and the likeliest tokens after it, at most [`STEPS`] of them, without waiting in between.
    fn decode_greedily(&mut self, first: BatchRow, found: &mut [u32]) -> Result<(), MachineError> {
        let begin = Instant::now();
        for i in 0..found.len() {
            self.memory.stage(i, &first.ahead(i), &self.rope, self.pages.pages(first.seq)?);
            self.start(i, i == 0, true)?;
            self.memory.choose(&self.device, &self.launcher, i, self.program.config.vocab)?;
        }
        self.memory.fetch_chosen(&self.device, found.len())?;
        self.host_time += begin.elapsed();
        self.finish()?;
        found.copy_from_slice(&self.memory.host_chosen.as_mut()[..found.len()]);
        if found.contains(&u32::MAX) { Err(MachineError::NoNumbers) } else { Ok(()) }
    }
}

/// The tiles of batches on a card with `limit` bytes of shared memory a block.
fn batch_shapes(model: &Model, limit: usize) -> Result<Shapes, MachineError> {
    // The kernels hold a few static words too.
    Shapes::fitting(model.most_bits(), limit.saturating_sub(2048)).ok_or_else(|| {
        MachineError::Unsupported(format!(
            "{limit} bytes of shared memory are too few for runs of several tokens: use --device cpu"
        ))
    })
}

/// The kernels of `target`, and those of batches in such tiles, compiled side by side.
fn compile(
    target: Target,
    shapes: Option<Shapes>,
) -> Result<(Module, Option<(Module, Shapes)>), MachineError> {
    let batch = shapes
        .map(|shapes| (Target { warps: abi::MAX_WARPS, kernels: Kernels::Batch(shapes), ..target }, shapes));
    let (one, many) = thread::scope(|scope| {
        let many = batch.map(|(target, shapes)| (scope.spawn(move || compile::kernels(&target)), shapes));
        let one = compile::kernels(&target);
        let joined = many.map(|(thread, shapes)| {
            let compiled =
                thread.join().unwrap_or_else(|_| Err("the compiler's thread died: try again".into()));
            (compiled, shapes)
        });
        (one, joined)
    });
    let load = |cubin: Result<Vec<u8>, String>| Module::load(&cubin.map_err(MachineError::Device)?);
    let many = many.map(|(cubin, shapes)| Ok::<_, MachineError>((load(cubin)?, shapes))).transpose()?;
    Ok((load(one)?, many))
}

impl Machine for CudaMachine {
    fn info(&self) -> MachineInfo {
        self.info.clone()
    }

    fn counters(&self) -> Option<Counters> {
        Some(Counters { dispatches: self.device.launches(), host_time: self.host_time })
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
        self.device.enter()?;
        let mut written = 0;
        if self.rows.len() <= FEW {
            for i in 0..self.rows.len() {
                let count = if self.rows[i].logits { vocab } else { 0 };
                self.recovering(|machine| machine.decode(i, &mut logits[written..written + count]))?;
                written += count;
            }
        } else if let Some(batcher) = &mut self.batcher {
            for rows in self.rows.chunks(batcher.rows()) {
                let logits = &mut logits[written..];
                written += batcher.run(&self.device, rows, &self.pages, &self.rope, logits)?;
            }
        }
        Ok(self.pages.advance_all(batch)?)
    }

    fn greedy_tokens(&self) -> usize {
        STEPS
    }

    fn run_greedy(&mut self, seq: SeqId, token: u32, found: &mut [u32]) -> Result<(), MachineError> {
        let vocab = self.program.config.vocab;
        let first = BatchRow::admit_greedy(seq, token, found.len(), vocab, &mut self.pages)?;
        self.device.enter()?;
        let (mut token, mut done) = (token, 0);
        for found in found.chunks_mut(STEPS) {
            self.recovering(|machine| {
                machine.decode_greedily(BatchRow { token, ..first.ahead(done) }, found)
            })?;
            done += found.len();
            token = found[found.len() - 1];
        }
        Ok(self.pages.advance(seq, done)?)
    }
}

impl Drop for CudaMachine {
    fn drop(&mut self) {
        // Nothing may be freed that a kernel still uses. An error has nobody to go to.
        let _ = self.device.enter();
        let _ = self.device.synchronize();
    }
}
