//! `upg inspect`: what a model is made of.

mod report;

use anyhow::Context as _;
use clap::Args;
use upg_format::UpgFile;

use self::report::{CheckpointReport, UpgReport};
use crate::{args::ModelArg, printer::Printer, source::Source};

/// Show what a model is made of: configuration, sizes, bits per tensor, where it comes from
#[derive(Args)]
#[command(after_help = "\
Examples:
  upg inspect model.upg                # an overview
  upg inspect model.upg --tensors      # every tensor
  upg inspect model.upg --verify       # check every byte against its checksum
  upg inspect model.gguf               # what upg makes of a checkpoint")]
pub struct InspectArgs {
    #[command(flatten)]
    model: ModelArg,
    /// Check every tensor against its checksum (reads the whole file)
    #[arg(long)]
    verify: bool,
    /// List every tensor
    #[arg(long)]
    tensors: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Prints the report.
pub fn run(args: InspectArgs, printer: &Printer) -> anyhow::Result<()> {
    let path = &args.model.model;
    match Source::open(path)? {
        Source::Upg(file) => {
            if args.verify {
                verify(&file, printer).with_context(|| format!("{} is damaged", path.display()))?;
            }
            let report = UpgReport::new(&file, args.verify)?;
            if args.json { printer.json(&report) } else { Ok(printer.answer(report.text(args.tensors))?) }
        }
        Source::Checkpoint(_) if args.verify => anyhow::bail!(
            "{} is a checkpoint, which carries no checksums: leave --verify out, or compress it first",
            path.display()
        ),
        Source::Checkpoint(checkpoint) => {
            let report = CheckpointReport::new(checkpoint.as_ref())?;
            if args.json { printer.json(&report) } else { Ok(printer.answer(report.text(args.tensors))?) }
        }
    }
}

fn verify(file: &UpgFile, printer: &Printer) -> anyhow::Result<()> {
    let mut progress = printer.bytes_progress("Verifying", file.data_len());
    Ok(file.verify(&mut |bytes| progress.add(bytes))?)
}
