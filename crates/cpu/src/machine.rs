use std::time::{Duration, Instant};

use upg_codec::Isa;
use upg_format::ModelConfig;
use upg_pdvm::{
    Batch, BatchRow, KvPages, Machine, MachineError, MachineInfo, MachineOptions, Op, Program, Weights,
    lower, rope::RopeTable, rotation::Rotation,
};

use crate::{
    kernels::MAX_STEP,
    kv::KvStore,
    load::Model,
    memory::{self, Arena},
    pool::Pool,
    scratch::{Scratch, ThreadScratch},
    self_check,
};

/// The CPU machine.
///
/// T8 matrices are multiplied in integers (activations quantised to 12 bits), everything else is f32. Logits have the same bits on every instruction set, with any number of threads, and however a prompt is cut
/// into batches.
pub struct CpuMachine {
    pub(crate) program: Program,
    options: MachineOptions,
    info: MachineInfo,
    pub(crate) pages: KvPages,
    pub(crate) isa: Isa,
    pub(crate) model: Model,
    pub(crate) rope: RopeTable,
    /// The residual stream's rotation, where the final norm needs it.
    pub(crate) rotation: Option<Rotation>,
    pub(crate) kv: KvStore,
    pub(crate) pool: Pool,
    pub(crate) rows: Vec<BatchRow>,
    pub(crate) scratch: Scratch,
    pub(crate) threads: Vec<ThreadScratch>,
}

impl CpuMachine {
    /// Loads `weights` in the layout that `isa` wants; `progress` is told the fraction done, from 0 to 1.
    ///
    /// # Errors
    /// Where the weights cannot be had, or the options make no sense.
    pub fn new(
        weights: &dyn Weights,
        options: &MachineOptions,
        isa: Isa,
        progress: &mut dyn FnMut(f32),
    ) -> Result<Self, MachineError> {
        let config = weights.config();
        let threads = check(config, options, isa)?;
        self_check::check(isa)?;
        let pool = Pool::new(threads).map_err(|error| {
            MachineError::Device(format!("no {threads} threads can be started ({error}): ask for fewer"))
        })?;
        let arena = Arena::default();
        progress(0.0);
        let model = Model::load(weights, isa, threads, &arena, progress)?;
        let pages = KvPages::new(options.context, options.sequences);
        let shape = (config.layers, config.kv_heads, config.head_dim);
        let kv = KvStore::new(&Arena::default(), pages.total(), shape, options.kv)?;
        let cores = if threads == 1 { "thread" } else { "threads" };
        let info = MachineInfo {
            name: "cpu",
            detail: format!("{}, {threads} {cores}, {}", isa.name(), memory::huge_pages()),
            weight_bytes: model.bytes() as u64,
            kv_bytes_per_token: kv.bytes_per_token(),
        };
        let rotation = config.rotation.filter(|_| config.tied_embeddings);
        Ok(Self {
            program: lower(config),
            info,
            pages,
            isa,
            rope: RopeTable::new(config),
            rotation: rotation.map(|r| Rotation::residual(config.hidden, r.seed)),
            kv,
            pool,
            rows: Vec::with_capacity(options.max_batch),
            scratch: Scratch::new(config, options, isa),
            threads: (0..threads)
                .map(|_| ThreadScratch::new(config, options.max_batch, options.max_batch * 2 * MAX_STEP))
                .collect(),
            options: options.clone(),
            model,
        })
    }

    /// [`Machine::run`] that tells `seen` each instruction and how long it took.
    ///
    /// # Errors
    /// Those of [`Machine::run`].
    pub fn run_timed(
        &mut self,
        batch: &Batch<'_>,
        logits: &mut [f32],
        seen: &mut dyn FnMut(Op, Duration),
    ) -> Result<(), MachineError> {
        let vocab = self.program.config.vocab;
        let max = self.options.max_batch;
        BatchRow::admit(batch, vocab, max, logits, &mut self.pages, &mut self.rows)?;
        self.angles();
        let mut started = Instant::now();
        for i in 0..self.program.ops.len() {
            let op = self.program.ops[i];
            self.step(op, logits);
            let ended = Instant::now();
            seen(op, ended - started);
            started = ended;
        }
        Ok(self.pages.advance_all(batch)?)
    }

    fn step(&mut self, op: Op, logits: &mut [f32]) {
        match op {
            Op::Embed => self.embed(),
            Op::NormQkvRope { layer } => self.norm_qkv_rope(layer),
            Op::Attend { layer } => self.attend(layer),
            Op::OutAdd { layer } => self.out_add(layer),
            Op::NormGateUp { layer } => self.norm_gate_up(layer),
            Op::DownAdd { layer } => self.down_add(layer),
            Op::NormHead => self.norm_head(logits),
        }
    }
}

/// Checks the options; returns the number of threads.
fn check(config: &ModelConfig, options: &MachineOptions, isa: Isa) -> Result<usize, MachineError> {
    let refuse = |message: String| Err(MachineError::Unsupported(message));
    if let Err(error) = config.validate() {
        return refuse(format!("{error}: verify the model file and fetch it anew"));
    }
    if !isa.is_available() {
        return refuse(format!("this processor has no {}: choose another instruction set", isa.name()));
    }
    if options.context == 0 || options.sequences == 0 || options.max_batch == 0 {
        return refuse("context, sequences and max_batch must be at least 1: raise the one that is 0".into());
    }
    match options.threads {
        Some(0) => refuse("0 threads were asked for: ask for at least 1".into()),
        Some(threads) => Ok(threads),
        None => Ok(std::thread::available_parallelism().map_or(1, |n| n.get())),
    }
}

impl Machine for CpuMachine {
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
        self.run_timed(batch, logits, &mut |_, _| ())
    }
}
