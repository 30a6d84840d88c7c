//! `upg completions`: completion scripts for shells.

use clap::{Args, CommandFactory as _};
use clap_complete::Shell;

use crate::{args::Cli, printer::Printer};

/// Print a completion script for a shell
#[derive(Args)]
#[command(after_help = "\
Examples:
  upg completions bash > ~/.local/share/bash-completion/completions/upg
  upg completions zsh > \"${fpath[1]}/_upg\"
  upg completions fish > ~/.config/fish/completions/upg.fish")]
pub struct CompletionsArgs {
    /// The shell
    shell: Shell,
}

/// Prints the script.
pub fn run(args: CompletionsArgs, printer: &Printer) -> anyhow::Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "upg", &mut script);
    // Through the printer: a closed pipe is then an error that can be told, not a panic.
    printer.piece(&String::from_utf8_lossy(&script))?;
    Ok(())
}
