//! `upg bench`: how fast a model runs, beside how fast the machine could read it.

mod measure;
mod python;
mod report;

use std::{
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::{Context as _, bail, ensure};
use clap::{Args, ValueEnum, ValueHint};
use upg_compress::{Folded, plan::parameters};
use upg_engine::device;
use upg_format::{ModelConfig, TensorName};
use upg_pdvm::{Machine, MachineOptions, UpgWeights, Weights, synthetic};

use self::{
    measure::{Tests, measure},
    python::PythonTimes,
    report::Report,
};
use crate::{
    args::{DeviceArgs, positive},
    exit::Interrupted,
    interrupt::Interrupt,
    printer::Printer,
    source::{Source, files_len},
    units::count,
};

/// Seed of the synthetic weights and of the tokens.
const SEED: u64 = 1;
/// Tokens in one run of a prompt.
const MAX_BATCH: usize = 512;

/// Measure how fast a model runs
///
/// Prompt processing (pp) and token generation (tg), in the shape of llama-bench's table, beside the weights read per
/// second and the percent of what this machine's memory delivers, measured by the same command.
/// --synthetic needs no model: it makes random weights in the exact shapes of a model, at 10:1. Speed and memory do not
/// depend on the values.
#[derive(Args)]
#[command(after_help = "\
Examples:
  upg bench model.upg
  upg bench model.upg -p 64 -n 32 -r 5
  upg bench model.upg -p 1,2,4,8,16 -n 0      # what a batch costs
  upg bench model.upg -p 0 -n 32 -d 0,4096    # a short and a long context
  upg bench --synthetic phi-4                 # needs 7 GB of memory
  upg bench --synthetic phi-4 --layers 8      # a fifth of it, and says so
  upg bench model.upg -o json")]
pub struct BenchArgs {
    /// A .upg file, or an uncompressed checkpoint (GGUF file or Hugging Face folder)
    #[arg(value_name = "MODEL", value_hint = ValueHint::AnyPath, required_unless_present = "synthetic")]
    model: Option<PathBuf>,
    /// Random weights in the shapes of this model, such as phi-4
    #[arg(long, value_name = "NAME", conflicts_with = "model")]
    synthetic: Option<String>,
    /// Only the first N layers of the synthetic model; the result is that of the smaller model
    #[arg(long, value_name = "N", value_parser = positive, requires = "synthetic")]
    layers: Option<usize>,
    /// Tokens of the prompt; 0: no such test; several numbers, as in 1,8,512: a test each
    #[arg(short = 'p', long, value_name = "N", value_delimiter = ',', default_value = "512")]
    prompt: Vec<usize>,
    /// Tokens to generate; 0: no such test; several: a test each
    #[arg(short = 'n', long = "gen", value_name = "N", value_delimiter = ',', default_value = "128")]
    generate: Vec<usize>,
    /// Tokens that are in the context before a test; several: every test at each
    #[arg(short, long, value_name = "N", value_delimiter = ',', default_value = "0")]
    depth: Vec<usize>,
    /// Times that each test is run; the median is reported
    #[arg(short, long, value_name = "N", default_value = "3", value_parser = positive)]
    reps: usize,
    /// Time the same decoding in NumPy as well (in UPG's source folder, for phi-4)
    #[arg(long, requires = "synthetic")]
    against_python: bool,
    /// How to print the result
    #[arg(short, long, value_name = "FORMAT", default_value = "md")]
    output: Output,
    #[command(flatten)]
    device: DeviceArgs,
}

/// How the result is printed.
#[derive(Clone, Copy, ValueEnum)]
enum Output {
    /// A Markdown table
    Md,
    /// JSON
    Json,
}

impl BenchArgs {
    fn tests(&self) -> Tests {
        Tests {
            prompts: self.prompt.clone(),
            generations: self.generate.clone(),
            depths: self.depth.clone(),
            reps: self.reps,
        }
    }
}

/// What is measured.
struct Subject {
    name: String,
    /// Bytes of the file, or of all tensors where there is no file.
    bytes: u64,
    config: ModelConfig,
    /// Layers of the whole model.
    all_layers: usize,
}

/// Measures and prints.
pub fn run(args: BenchArgs, printer: &Printer) -> anyhow::Result<()> {
    ensure!(!args.tests().is_empty(), "there is nothing to measure: give -p or -n");
    let interrupt = printer.interrupt()?;
    let python = args.against_python.then(|| time_python(&args, printer)).transpose()?;
    let mut report = match (&args.synthetic, &args.model) {
        (Some(name), _) => bench_synthetic(name, &args, &interrupt, printer),
        (None, Some(model)) => bench_model(model, &args, &interrupt, printer),
        (None, None) => bail!("there is nothing to measure: give a MODEL or --synthetic"),
    }
    .map_err(|error| match interrupt.raised() {
        true => Interrupted("interrupted: nothing was measured".into()).into(),
        false => error,
    })?;
    if let Some(python) = python {
        report.compare(python);
    }
    match args.output {
        Output::Json => printer.json(&report),
        Output::Md => Ok(printer.answer(report.text())?),
    }
}

fn time_python(args: &BenchArgs, printer: &Printer) -> anyhow::Result<PythonTimes> {
    ensure!(args.synthetic.as_deref() == Some("phi-4"), "--against-python has phi-4's shapes only");
    printer.note("timing the same in Python, one layer and the head");
    PythonTimes::measure(args.reps)
}

fn bench_synthetic(
    name: &str,
    args: &BenchArgs,
    interrupt: &Interrupt,
    printer: &Printer,
) -> anyhow::Result<Report> {
    let mut config = synthetic::preset(name)?;
    let all = config.layers;
    let layers = args.layers.unwrap_or(all);
    ensure!(layers <= all, "{name} has {all} layers: ask for --layers {all} or fewer");
    config.layers = layers;
    let weights = synthetic::Synthetic::new(config.clone(), synthetic::ten_to_one, SEED);
    let bytes = TensorName::of_upg(&config).into_iter().map(|name| {
        let shape = name.shape(&config).map(|n| n as u64);
        weights.encoding(name).stored_length(shape).context("the model is too large to count")
    });
    let subject = Subject {
        name: if layers == all { name.to_owned() } else { format!("{name} ({layers} of {all} layers)") },
        bytes: bytes.sum::<anyhow::Result<u64>>()?,
        config,
        all_layers: all,
    };
    bench(&weights, subject, args, interrupt, printer)
}

fn bench_model(
    path: &Path,
    args: &BenchArgs,
    interrupt: &Interrupt,
    printer: &Printer,
) -> anyhow::Result<Report> {
    let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
    let subject = |bytes, config: &ModelConfig| Subject {
        name,
        bytes,
        config: config.clone(),
        all_layers: config.layers,
    };
    match Source::open(path)? {
        Source::Upg(file) => {
            let subject = subject(file.file_len(), &file.header().config);
            bench(&UpgWeights::new(*file), subject, args, interrupt, printer)
        }
        Source::Checkpoint(checkpoint) => {
            let subject = subject(files_len(&checkpoint.sources())?, checkpoint.config());
            bench(&Folded::new(checkpoint.as_ref(), None), subject, args, interrupt, printer)
        }
    }
}

fn bench(
    weights: &dyn Weights,
    subject: Subject,
    args: &BenchArgs,
    interrupt: &Interrupt,
    printer: &Printer,
) -> anyhow::Result<Report> {
    let tests = args.tests();
    // Before the model takes its memory.
    let limits = device::limits(&args.device.device, args.device.threads)?;
    forget_peak_memory();
    let started = Instant::now();
    let mut machine = make(weights, &tests, args, printer)?;
    // Synthetic weights are made, not loaded.
    let load = args.model.as_ref().map(|_| started.elapsed());
    let info = machine.info();
    printer.note(format_args!(
        "{}: {} on {} ({})",
        subject.name,
        count(parameters(&subject.config)),
        info.name,
        info.detail
    ));
    let mut progress = printer.progress("Measuring", tests.total_tokens());
    let measured = measure(machine.as_mut(), &tests, SEED, interrupt, &mut progress)?;
    drop(progress);
    Ok(Report::new(&subject, &tests, (load, measured), limits, machine.as_ref()))
}

fn make(
    weights: &dyn Weights,
    tests: &Tests,
    args: &BenchArgs,
    printer: &Printer,
) -> anyhow::Result<Box<dyn Machine>> {
    let context = tests.context();
    let longest = weights.config().context;
    ensure!(
        context <= longest,
        "the tests need {context} tokens but the model allows {longest}: lower -p, -n or -d"
    );
    let kv = match args.device.kv {
        Some(kv) => kv,
        None => device::usual_kv(&args.device.device)?,
    };
    let options = MachineOptions {
        context,
        max_batch: MAX_BATCH.min(context),
        threads: args.device.threads,
        kv,
        ..MachineOptions::default()
    };
    let mut progress = printer.progress(if args.synthetic.is_some() { "Making" } else { "Loading" }, 1000);
    Ok(device::make(&args.device.device, weights, &options, &mut |done| {
        progress.set((done * 1000.0) as u64)
    })?)
}

/// The model's peak memory is reported, not that of measuring the limits: Linux can start counting anew. Elsewhere no
/// peak is reported at all.
fn forget_peak_memory() {
    // Where /proc is closed to us the peak includes the limits' buffer: too much rather than too little.
    let _ = std::fs::write("/proc/self/clear_refs", "5");
}
