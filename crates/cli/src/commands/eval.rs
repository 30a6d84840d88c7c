//! `upg eval`: how good a model is, on a text.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use clap::{Args, ValueHint};
use serde::Serialize;
use upg_engine::{
    Engine,
    eval::{Comparison, Estimate, EvalOptions, Perplexity, compare, perplexity},
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
/// both find the same token likeliest (top-1).
#[derive(Args)]
#[command(after_help = "\
Examples:
  upg eval model.upg --text wiki.test.raw --chunks 16
  upg eval model.upg --text wiki.test.raw --against model.gguf --chunks 16
  upg eval model.gguf --text wiki.test.raw      # the checkpoint's own perplexity
  upg eval model.upg --text wiki.test.raw --against model.upg --against-device reference  # what the device costs
  upg eval model.upg --text wiki.test.raw --against model.upg --kv q4    # what a 4-bit cache costs
  upg eval model.upg --text wiki.test.raw --against model.gguf --json")]
pub struct EvalArgs {
    #[command(flatten)]
    model: ModelArg,
    /// The text, UTF-8
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    text: PathBuf,
    /// The checkpoint that MODEL was made from (or another model with the same vocabulary)
    #[arg(long, value_name = "CHECKPOINT", value_hint = ValueHint::AnyPath)]
    against: Option<PathBuf>,
    /// The device that CHECKPOINT runs on, with as many threads as it likes [default: MODEL's device and threads]
    #[arg(long, value_name = "DEVICE", requires = "against")]
    against_device: Option<String>,
    /// Tokens a chunk
    #[arg(long, value_name = "N", default_value = "512", value_parser = positive)]
    ctx: usize,
    /// The first N chunks only [default: the whole text]
    #[arg(long, value_name = "N", value_parser = positive)]
    chunks: Option<usize>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    device: DeviceArgs,
}

/// What was measured.
#[derive(Serialize)]
struct Report<'a> {
    model: &'a Path,
    against: Option<&'a Path>,
    text: &'a Path,
    device: String,
    against_device: Option<String>,
    #[serde(flatten)]
    result: Outcome,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Outcome {
    Alone(Perplexity),
    Against(Comparison),
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
    let text = read_capped(&args.text, MAX_TEXT)?;
    let interrupt = printer.interrupt()?;
    let mut model = load(&args.model.model, &args.device, Some(args.ctx), printer)?;
    let mut reference = match &args.against {
        Some(path) => Some(load(path, &args.against_device(), Some(args.ctx), printer)?),
        None => None,
    };
    let tokens = model.tokenizer().encode(&text, false).context("cannot encode the text")?;
    if let Some(reference) = &reference {
        same_tokens(reference, &tokens, &text)?;
    }
    let outcome = measure(&mut model, reference.as_mut(), &tokens, &args, &interrupt, printer);
    let result = match outcome {
        Err(_) if interrupt.raised() => {
            return Err(Interrupted("interrupted: nothing was measured".into()).into());
        }
        outcome => outcome?,
    };
    let report = Report {
        model: &args.model.model,
        against: args.against.as_deref(),
        text: &args.text,
        device: device_name(&model),
        against_device: reference.as_ref().map(device_name),
        result,
    };
    if args.json { printer.json(&report) } else { Ok(printer.answer(report.text())?) }
}

fn device_name(engine: &Engine) -> String {
    engine.machine().info().name.to_owned()
}

/// Divergence means something only where both models read the same tokens.
fn same_tokens(reference: &Engine, tokens: &[u32], text: &str) -> anyhow::Result<()> {
    let theirs = reference.tokenizer().encode(text, false).context("cannot encode the text")?;
    ensure!(
        theirs == tokens,
        "the two models cut the text into different tokens, so they cannot be compared: give --against the checkpoint \
         that MODEL was made from"
    );
    Ok(())
}

fn measure(
    model: &mut Engine,
    reference: Option<&mut Engine>,
    tokens: &[u32],
    args: &EvalArgs,
    interrupt: &Interrupt,
    printer: &Printer,
) -> anyhow::Result<Outcome> {
    let text = model.text();
    let bos = text.bos.filter(|_| text.add_bos);
    let options = EvalOptions { ctx: args.ctx, chunks: args.chunks, bos };
    let in_text = (tokens.len() / args.ctx) as u64;
    let total = args.chunks.map_or(in_text, |chunks| in_text.min(chunks as u64));
    let mut progress = printer.progress("Measuring", total);
    let what = if reference.is_some() { "mean KL" } else { "perplexity" };
    let mut on_progress = |done: usize, _: usize, estimate: f64| {
        progress.set(done as u64);
        progress.message(format!("{what} {estimate:.4}"));
    };
    let (model, cancel) = (model.machine_mut(), interrupt.flag());
    Ok(match reference {
        None => Outcome::Alone(perplexity(model, tokens, &options, cancel, &mut on_progress)?),
        Some(reference) => {
            let reference = reference.machine_mut();
            Outcome::Against(compare(model, reference, tokens, &options, cancel, &mut on_progress)?)
        }
    })
}

impl Report<'_> {
    fn text(&self) -> String {
        let settings = |p: &Perplexity| {
            format!(
                "{} chunks of {} tokens, the second half of each scored: {} tokens",
                p.chunks, p.ctx, p.scored
            )
        };
        match &self.result {
            Outcome::Alone(own) => format!(
                "text        {}, {}\nperplexity  {}",
                self.text.display(),
                settings(own),
                plus_minus(own.perplexity, 3)
            ),
            Outcome::Against(c) => [
                format!("text        {}, {}", self.text.display(), settings(&c.model)),
                format!("perplexity  {}", plus_minus(c.model.perplexity, 3)),
                format!("against     {} (ratio {:.4})", plus_minus(c.reference.perplexity, 3), c.ratio),
                format!(
                    "KL          mean {}, median {:.4}, 99 % {:.4}, 99.9 % {:.4}, largest {:.4}",
                    plus_minus(c.kl, 4),
                    c.kl_median,
                    c.kl_p99,
                    c.kl_p999,
                    c.kl_max
                ),
                format!(
                    "top-1       {} %",
                    plus_minus(Estimate { value: c.top1.value * 100.0, error: c.top1.error * 100.0 }, 2)
                ),
            ]
            .join("\n"),
        }
    }
}

fn plus_minus(estimate: Estimate, digits: usize) -> String {
    format!("{:.digits$} ± {:.digits$}", estimate.value, estimate.error)
}
