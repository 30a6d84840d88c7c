//! The `upg` command: compress a checkpoint, talk to it, measure it.

mod args;
mod chat;
mod commands;
mod exit;
mod hub;
mod interrupt;
mod printer;
mod source;
mod units;

use std::process::ExitCode;

use clap::Parser as _;

use crate::{
    args::{Cli, Command},
    printer::Printer,
};

fn main() -> ExitCode {
    let cli = Cli::parse();
    let printer = Printer::new(&cli.output);
    let result = match cli.command {
        Command::Compress(args) => commands::compress::run(args, &printer),
        Command::Pull(args) => commands::pull::run(args, &printer),
        Command::Run(args) => commands::run::run(args, &printer),
        Command::Inspect(args) => commands::inspect::run(args, &printer),
        Command::Bench(args) => commands::bench::run(args, &printer),
        Command::Eval(args) => commands::eval::run(args, &printer),
        Command::Devices(args) => commands::devices::run(args, &printer),
        Command::Completions(args) => commands::completions::run(args, &printer),
    };
    exit::code(result, &printer)
}
