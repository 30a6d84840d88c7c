//! `upg devices`: where a model can run.

use clap::Args;
use serde_json::json;

use crate::{printer::Printer, units::table};

/// List the devices that a model can run on
#[derive(Args)]
#[command(after_help = "\
Examples:
  upg devices
  upg run model.upg --device cpu --threads 4
  upg run model.upg --device wgpu:1")]
pub struct DevicesArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Prints the list.
pub fn run(args: DevicesArgs, printer: &Printer) -> anyhow::Result<()> {
    let devices = upg_engine::devices();
    if args.json {
        let list: Vec<_> =
            devices.iter().map(|device| json!({"name": device.name, "detail": device.detail})).collect();
        return printer.json(&list);
    }
    let rows: Vec<_> = devices.into_iter().map(|device| vec![device.name, device.detail]).collect();
    Ok(printer.answer(table(&["device", "what it is"], &rows, 2).trim_end())?)
}
