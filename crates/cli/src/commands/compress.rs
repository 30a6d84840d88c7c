//! `upg compress`: a checkpoint to a `.upg`.

mod calibration;
mod own;
mod progress;
mod remote;

use std::path::PathBuf;

use anyhow::{Context as _, ensure};
use clap::{Args, ValueHint};
use serde_json::json;
use upg_compress::{CompressError, Options, Report, Sensitivities, Target, compress, plan::allocate};
use upg_format::RotationConfig;

use self::{
    calibration::{CalibrationArgs, Subject},
    progress::Shown,
};
use crate::{
    args::positive,
    exit::Interrupted,
    printer::Printer,
    source::read_capped,
    units::{bytes, parse_size, seconds, three_digits},
};

/// The largest plan file, in bytes.
const MAX_PLAN: u64 = 16 << 20;

/// Compress a checkpoint to a .upg file
///
/// Reads a GGUF file or a Hugging Face folder tensor by tensor, so that memory stays bounded whatever the model's size.
/// The plan is printed before anything is written. Ctrl-C stops; the same command then goes on where it stopped.
/// A model on the Hugging Face hub (hf:OWNER/NAME) is compressed shard by shard: it needs the disk of OUT and of two
/// shards, which are in OUT.part.hub meanwhile. See `upg pull --help` for the hub's environment.
#[derive(Args)]
#[command(after_help = "\
Examples:
  upg compress phi-4/ -o phi-4.upg                  # 10:1 against fp32: 5.5 GiB
  upg compress hf:microsoft/phi-4 -o phi-4.upg      # from the hub, without storing it
  upg compress model.gguf -o model.upg --bits 4.25
  upg compress phi-4/ -o phi-4.upg --size 6GiB
  upg compress model.gguf -o model.upg --calibrate text.txt
  upg compress model.gguf -o model.upg --calibrate none        # quickly
  upg compress model.gguf -o model.upg --save-plan plan.json   # edit it, then
  upg compress model.gguf -o model.upg --plan plan.json --force")]
pub struct CompressArgs {
    /// The checkpoint: a GGUF file, a Hugging Face folder, or on the hub hf:OWNER/NAME[@REVISION][/FILE.gguf]
    #[arg(value_name = "SRC", value_hint = ValueHint::AnyPath)]
    source: PathBuf,
    /// The .upg file to write
    #[arg(short, long, value_name = "OUT", value_hint = ValueHint::FilePath)]
    output: PathBuf,
    #[command(flatten)]
    target: TargetArgs,
    /// Store each tensor as FILE says (JSON, as --save-plan writes it); a size is then only a limit
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    plan: Option<PathBuf>,
    /// Write the plan to FILE before starting
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    save_plan: Option<PathBuf>,
    #[command(flatten)]
    calibration: CalibrationArgs,
    /// Seed of the rotation's signs
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Leave the rotation out (for experiments: quality suffers)
    #[arg(long, conflicts_with = "seed")]
    no_rotate: bool,
    /// Overwrite OUT where it exists
    #[arg(short, long)]
    force: bool,
    /// Threads [default: one a core]
    #[arg(long, value_name = "N", value_parser = positive)]
    threads: Option<usize>,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

/// How large the file may be; one of these.
#[derive(Args)]
#[group(multiple = false)]
struct TargetArgs {
    /// Times smaller than all parameters in 32-bit floats [default: 10]
    #[arg(long, value_name = "R")]
    ratio: Option<f64>,
    /// Bits a weight, the whole file counted
    #[arg(long, value_name = "B")]
    bits: Option<f64>,
    /// Size of the file, such as 5.5GiB
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    size: Option<u64>,
}

impl CompressArgs {
    /// The size that is asked for, and the default one.
    fn sized(&self) -> Option<Target> {
        let TargetArgs { ratio, bits, size } = self.target;
        match (ratio, bits, size) {
            (Some(ratio), ..) => Some(Target::Ratio(ratio)),
            (_, Some(bits), _) => Some(Target::Bits(bits)),
            (.., Some(size)) => Some(Target::Size(size)),
            _ if self.plan.is_some() => None,
            _ => Some(Target::Ratio(10.0)),
        }
    }

    fn target(&self) -> Target {
        // A plan says it all: no more than fp32 is no limit.
        self.sized().unwrap_or(Target::Ratio(1.0))
    }

    fn options(&self, subject: &Subject<'_>) -> anyhow::Result<Options> {
        let plan = self.plan.as_deref().map(|path| read_capped(path, MAX_PLAN)).transpose()?;
        let rotation = (!self.no_rotate).then_some(RotationConfig { seed: self.seed });
        // What is quick to refuse comes before the text.
        let (config, beside) =
            (subject.checkpoint.config(), subject.checkpoint.tokenizer_json().len() as u64);
        if plan.is_none() {
            allocate(config, &Sensitivities::prior(config), self.target(), beside)?;
        }
        let calibration = self.calibration.read(subject)?;
        Ok(Options { rotation, plan, calibration, memory: self.calibration.memory(), ..Options::default() })
    }
}

/// Compresses.
pub fn run(args: CompressArgs, printer: &Printer) -> anyhow::Result<()> {
    let (source, out) = (args.source.display(), args.output.display());
    ensure!(
        args.force || !args.output.exists(),
        "{out} exists: pass --force to overwrite it, or choose another file"
    );
    let interrupt = printer.interrupt()?;
    let opened = remote::open(&args.source, &args.output, args.sized(), printer, &interrupt);
    let (checkpoint, working) = match opened {
        Err(_) if interrupt.raised() => return Err(Interrupted(CompressError::Cancelled.to_string()).into()),
        opened => opened.with_context(|| format!("cannot open the checkpoint {source}"))?,
    };
    // 0: one a core.
    let pool = rayon::ThreadPoolBuilder::new().num_threads(args.threads.unwrap_or(0)).build();
    let pool = pool.context("cannot start the threads: ask for fewer with --threads")?;
    printer.note(format_args!("{source}: {}", checkpoint.describe()));
    let subject = Subject {
        checkpoint: checkpoint.as_ref(),
        local: working.is_local(),
        out: &args.output,
        threads: args.threads,
        printer,
        interrupt: &interrupt,
    };
    let options = match pool.install(|| args.options(&subject)) {
        Err(_) if interrupt.raised() => return Err(Interrupted(CompressError::Cancelled.to_string()).into()),
        options => options?,
    };
    let shown = Shown::new(printer, args.save_plan.clone());
    let result = pool.install(|| {
        compress(checkpoint.as_ref(), &args.output, args.target(), &options, &shown, interrupt.flag())
    });
    shown.close()?;
    let report = match result {
        Err(_) if interrupt.raised() => return Err(Interrupted(CompressError::Cancelled.to_string()).into()),
        result => result.with_context(|| format!("cannot compress {source}"))?,
    };
    drop(checkpoint);
    working.remove()?;
    own::remove_text(&args.output);
    if args.json {
        return printer.json(&json!({
            "file": args.output,
            "file_bytes": report.file_bytes,
            "parameters": report.plan.parameters(),
            "ratio": report.plan.ratio(),
            "bits_per_weight": report.plan.bits_per_weight(),
            "seconds": report.seconds,
            "weights": report.weights,
            "peak_rss_bytes": report.peak_rss,
        }));
    }
    printer.note(summary(&report, &out.to_string()));
    Ok(())
}

fn summary(report: &Report, out: &str) -> String {
    let plan = &report.plan;
    let peak = report.peak_rss.map(|peak| format!(", peak memory {}", bytes(peak))).unwrap_or_default();
    let rate = report.weights as f64 / report.seconds / 1e6;
    format!(
        "{out}: {}, {:.2}:1 against fp32, {:.3} bits a weight\n{} ({} M weights/s){peak}",
        bytes(report.file_bytes),
        plan.ratio(),
        plan.bits_per_weight(),
        seconds(report.seconds),
        three_digits(rate),
    )
}
