//! The `upg` command: compress a checkpoint, talk to it, measure it.
//!
//! [`main`] is the whole command line; [`call`] is a command for a program, which gets what the command would print.

mod args;
mod chat;
mod commands;
mod exit;
mod host;
mod hub;
mod interrupt;
mod printer;
mod source;
mod units;

use std::ffi::OsString;

use clap::Parser as _;

use crate::{
    args::{Cli, Command},
    printer::Printer,
};
pub use crate::{
    exit::Interrupted,
    host::{Host, UsageError},
    source::{NoSuchModel, load_engine},
};

/// Runs a command line, the program's name first, and returns its exit code.
pub fn main(args: impl IntoIterator<Item = impl Into<OsString> + Clone>) -> u8 {
    match Cli::try_parse_from(args) {
        Ok(cli) => {
            let printer = Printer::new(&cli.output);
            exit::code(run(cli.command, &printer), &printer)
        }
        Err(error) => {
            // Nobody is left to hear that standard error is closed. `--help` is an error to clap, with exit code 0.
            let _ = error.print();
            u8::try_from(error.exit_code()).unwrap_or(exit::USAGE)
        }
    }
}

/// Runs a command for a program: `args` are those behind `upg`, such as `["inspect", "model.upg", "--json"]`. Returns what
/// it would print to standard output; says nothing itself, and leaves Ctrl-C alone.
///
/// # Errors
/// [`UsageError`] where the command line is wrong, [`Interrupted`] where [`Host::cancel`] was set, and whatever the command
/// meets.
pub fn call(args: impl IntoIterator<Item = OsString>, host: Host) -> anyhow::Result<String> {
    let args = std::iter::once("upg".into()).chain(args);
    let cli = Cli::try_parse_from(args).map_err(|error| UsageError::from(&error))?;
    let printer = Printer::hosted(host);
    run(cli.command, &printer)?;
    Ok(printer.answered())
}

fn run(command: Command, printer: &Printer) -> anyhow::Result<()> {
    match command {
        Command::Compress(args) => commands::compress::run(args, printer),
        Command::Pull(args) => commands::pull::run(args, printer),
        Command::Run(args) => commands::run::run(args, printer),
        Command::Inspect(args) => commands::inspect::run(args, printer),
        Command::Bench(args) => commands::bench::run(args, printer),
        Command::Eval(args) => commands::eval::run(args, printer),
        Command::Devices(args) => commands::devices::run(args, printer),
        Command::Completions(args) => commands::completions::run(args, printer),
    }
}
