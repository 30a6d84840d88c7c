//! `upg eval`: how good a model is, on a text.

mod cache;
mod logits;
mod reference;
mod report;
mod tasks;

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::{Args, ValueHint};
use upg_engine::{
    Engine,
    eval::{EvalOptions, MachineScorer, compare_scorers, perplexity_scorer},
};

use self::{
    logits::{Kept, Logits},
    reference::{Reference, Subject, Text},
    report::{Outcome, Report},
};
use crate::{
    args::{DeviceArgs, ModelArg, positive},
    exit::Interrupted,
    interrupt::Interrupt,
    printer::Printer,
    source::{load, read_capped},
};

/// The largest text, in bytes.
const MAX_TEXT: u64 = 1 << 30;

/// Measure perplexity, and the divergence from the uncompressed model
///
/// The text is cut into chunks of --ctx tokens, and the second half of each is scored, as llama.cpp's perplexity does.
/// With --against, both models score the same tokens: KL(uncompressed || compressed) in nats a token, and how often
/// both find the same token likeliest (top-1). With --tasks, answers to fixed questions are checked instead.
#[derive(Args)]
#[command(after_help = "\
Examples:
  upg eval model.upg --text wiki.test.raw --chunks 16
  upg eval model.upg --text wiki.test.raw --against model.gguf --chunks 16
  upg eval model.gguf --text wiki.test.raw      # the checkpoint's own perplexity
  upg eval model.upg --text wiki.test.raw --against model.upg --against-device reference  # what the device costs
  upg eval model.upg --text wiki.test.raw --against model.upg --kv q4    # what a 4-bit cache costs
  upg eval model.upg --text wiki.test.raw --against model.gguf --json
  upg eval model.upg --text wiki.test.raw --against model.gguf --markdown
  upg eval model.upg --text wiki.test.raw --against model.gguf --reference-cache cache/  # the next one is quick
  upg eval model.upg --tasks --against model.gguf
  upg eval model.upg --text wiki.test.raw --logits logits.npy    # for numpy.load")]
pub struct EvalArgs {
    #[command(flatten)]
    model: ModelArg,
    /// The text, UTF-8
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, required_unless_present = "tasks")]
    text: Option<PathBuf>,
    /// Instead of a text: small fixed tasks (a conversation, copying, arithmetic, JSON), answered greedily, and which are done
    #[arg(long, conflicts_with_all = ["text", "ctx", "chunks", "logits", "reference_cache"])]
    tasks: bool,
    /// The checkpoint that MODEL was made from (or another model with the same vocabulary)
    #[arg(long, value_name = "CHECKPOINT", value_hint = ValueHint::AnyPath)]
    against: Option<PathBuf>,
    /// The device that CHECKPOINT runs on, with as many threads as it likes [default: MODEL's device and threads]
    #[arg(long, value_name = "DEVICE", requires = "against")]
    against_device: Option<String>,
    /// Keep CHECKPOINT's logits in DIR, 4 bytes each, and take them from there where the same checkpoint was run on the same
    /// text before
    #[arg(long, value_name = "DIR", requires = "against", value_hint = ValueHint::DirPath)]
    reference_cache: Option<PathBuf>,
    /// Tokens a chunk
    #[arg(long, value_name = "N", default_value = "512", value_parser = positive)]
    ctx: usize,
    /// The first N chunks only [default: the whole text]
    #[arg(long, value_name = "N", value_parser = positive)]
    chunks: Option<usize>,
    /// Write MODEL's logits after each scored token to FILE, which NumPy reads: 32-bit floats, [tokens, vocabulary]
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    logits: Option<PathBuf>,
    /// Print JSON
    #[arg(long, conflicts_with = "markdown")]
    json: bool,
    /// Print a Markdown table
    #[arg(long)]
    markdown: bool,
    #[command(flatten)]
    device: DeviceArgs,
}

impl EvalArgs {
    /// What CHECKPOINT runs on. It keeps keys and values as its device usually does: what --kv costs MODEL is seen.
    fn against_device(&self) -> DeviceArgs {
        match &self.against_device {
            None => DeviceArgs { kv: None, ..self.device.clone() },
            Some(device) => DeviceArgs { device: device.clone(), threads: None, kv: None },
        }
    }
}

/// Measures and prints.
pub fn run(args: EvalArgs, printer: &Printer) -> anyhow::Result<()> {
    let interrupt = printer.interrupt()?;
    let result = match &args.text {
        None => tasks::run(&args, &interrupt, printer),
        Some(path) => on_text(&args, path, &interrupt, printer),
    };
    match result {
        Err(_) if interrupt.raised() => Err(Interrupted("interrupted: nothing was measured".into()).into()),
        result => result,
    }
}

/// Measures on a text.
fn on_text(args: &EvalArgs, path: &Path, interrupt: &Interrupt, printer: &Printer) -> anyhow::Result<()> {
    let text = read_capped(path, MAX_TEXT)?;
    let mut model = load(&args.model.model, &args.device, Some(args.ctx), printer)?;
    let tokens = model.tokenizer().encode(&text, false).context("cannot encode the text")?;
    let bos = model.text().bos.filter(|_| model.text().add_bos);
    let options = EvalOptions { ctx: args.ctx, chunks: args.chunks, bos };
    let text = Text { text: &text, tokens: &tokens, options };
    let open = |path: &PathBuf| {
        let cache = args.reference_cache.as_deref();
        Reference::open(&Subject { path, device: args.against_device(), cache }, &text, printer)
    };
    let mut reference = args.against.as_ref().map(open).transpose()?;
    let result = measure(&mut model, reference.as_mut(), &text, args, interrupt, printer)?;
    let against_device = reference.as_ref().map(Reference::device);
    reference.map_or(Ok(()), Reference::finish)?;
    let report = Report {
        model: &args.model.model,
        against: args.against.as_deref(),
        text: path,
        device: model.machine().info().name.to_owned(),
        against_device,
        result,
    };
    match (args.json, args.markdown) {
        (true, _) => printer.json(&report),
        (_, true) => Ok(printer.answer(report.markdown())?),
        _ => Ok(printer.answer(report.text())?),
    }
}

fn measure(
    model: &mut Engine,
    reference: Option<&mut Reference>,
    text: &Text<'_>,
    args: &EvalArgs,
    interrupt: &Interrupt,
    printer: &Printer,
) -> anyhow::Result<Outcome> {
    let Text { tokens, options, .. } = *text;
    let mut progress = printer.progress("Measuring", options.whole_chunks(tokens.len()) as u64);
    let what = if reference.is_some() { "mean KL" } else { "perplexity" };
    let mut on_progress = |done: usize, _: usize, estimate: f64| {
        progress.set(done as u64);
        progress.message(format!("{what} {estimate:.4}"));
    };
    let (cancel, machine) = (interrupt.flag(), model.machine_mut());
    let vocab = machine.program().config.vocab;
    let create = |path: &PathBuf| Logits::create(path, options.scored(tokens.len()), vocab);
    let logits = args.logits.as_ref().map(create).transpose()?;
    let mut model = Kept { scorer: MachineScorer::new(machine)?, logits };
    let outcome = match reference {
        None => Outcome::Alone(perplexity_scorer(&mut model, tokens, &options, cancel, &mut on_progress)?),
        Some(reference) => {
            let reference = &mut reference.scorer()?;
            Outcome::Against(compare_scorers(
                &mut model,
                reference,
                tokens,
                &options,
                cancel,
                &mut on_progress,
            )?)
        }
    };
    model.logits.map_or(Ok(()), Logits::finish)?;
    Ok(outcome)
}
