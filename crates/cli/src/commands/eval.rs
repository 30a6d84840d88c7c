//! `upg eval`: how good a model is, on a text.

mod logits;

use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use clap::{Args, ValueHint};
use serde::Serialize;
use upg_engine::{
    Engine,
    eval::{
        Comparison, Estimate, EvalOptions, MachineScorer, Perplexity, compare_scorers, perplexity_scorer,
    },
};

use self::logits::{Kept, Logits};
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
  upg eval model.upg --text wiki.test.raw --against model.gguf --json
  upg eval model.upg --text wiki.test.raw --against model.gguf --markdown
  upg eval model.upg --text wiki.test.raw --logits logits.npy    # for numpy.load")]
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
    match (args.json, args.markdown) {
        (true, _) => printer.json(&report),
        (_, true) => Ok(printer.answer(report.markdown())?),
        _ => Ok(printer.answer(report.text())?),
    }
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
    let (cancel, machine) = (interrupt.flag(), model.machine_mut());
    let vocab = machine.program().config.vocab;
    let create = |path: &PathBuf| Logits::create(path, options.scored(tokens.len()), vocab);
    let logits = args.logits.as_ref().map(create).transpose()?;
    let mut model = Kept { scorer: MachineScorer::new(machine)?, logits };
    let outcome = match reference {
        None => Outcome::Alone(perplexity_scorer(&mut model, tokens, &options, cancel, &mut on_progress)?),
        Some(reference) => {
            let reference = &mut MachineScorer::new(reference.machine_mut())?;
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

fn settings(p: &Perplexity) -> String {
    format!("{} chunks of {} tokens, the second half of each scored: {} tokens", p.chunks, p.ctx, p.scored)
}

impl Report<'_> {
    /// A row for the model under a line that says how it was measured.
    fn markdown(&self) -> String {
        let (columns, own, rest) = match &self.result {
            Outcome::Alone(own) => ("", own, String::new()),
            Outcome::Against(c) => (
                " perplexity ratio | mean KL | median | 99 % | 99.9 % | top-1 |",
                &c.model,
                format!(
                    " {:.4} | {} | {:.4} | {:.4} | {:.4} | {} |",
                    c.ratio,
                    plus_minus(c.kl, 4),
                    c.kl_median,
                    c.kl_p99,
                    c.kl_p999,
                    percent(c.top1)
                ),
            ),
        };
        let against = self.against.map(|path| format!(", against {}", path.display())).unwrap_or_default();
        format!(
            "{}, {}{against}; {}\n\n| model | perplexity |{columns}\n|---|--:|{}\n| {} | {} |{rest}",
            self.text.display(),
            settings(own),
            self.device,
            "--:|".repeat(columns.matches('|').count()),
            self.model.display(),
            plus_minus(own.perplexity, 2),
        )
    }

    fn text(&self) -> String {
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
                format!("top-1       {}", percent(c.top1)),
            ]
            .join("\n"),
        }
    }
}

fn percent(share: Estimate) -> String {
    plus_minus(Estimate { value: share.value * 100.0, error: share.error * 100.0 }, 2) + " %"
}

fn plus_minus(estimate: Estimate, digits: usize) -> String {
    format!("{:.digits$} ± {:.digits$}", estimate.value, estimate.error)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn estimate(value: f64) -> Estimate {
        Estimate { value, error: value / 10.0 }
    }

    #[test]
    fn markdown_has_as_many_cells_as_columns() {
        let own =
            Perplexity { perplexity: estimate(30.0), nll: estimate(3.4), chunks: 2, ctx: 512, scored: 510 };
        let against = Comparison {
            model: own.clone(),
            reference: own.clone(),
            ratio: 1.1,
            kl: estimate(0.1),
            kl_median: 0.05,
            kl_p99: 1.0,
            kl_p999: 2.0,
            kl_max: 3.0,
            top1: estimate(0.8),
        };
        for result in [Outcome::Alone(own), Outcome::Against(against)] {
            let report = Report {
                model: Path::new("m.upg"),
                against: None,
                text: Path::new("t.txt"),
                device: "cpu".into(),
                against_device: None,
                result,
            };
            let text = report.markdown();
            let cells: Vec<usize> = text.lines().skip(2).map(|line| line.matches('|').count()).collect();
            assert!(cells.len() == 3 && cells.iter().all(|n| *n == cells[0]), "{text}");
        }
    }
}
