//! The `upg` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    upg_cli::main(std::env::args_os()).into()
}
