//! Exit codes, as `upg --help` documents them.

use std::{fmt, io};

use crate::printer::Printer;

/// The command went well.
pub const SUCCESS: u8 = 0;
/// It failed.
pub const FAILURE: u8 = 1;
/// The command line is wrong.
pub const USAGE: u8 = 2;
/// Ended by Ctrl-C (128 + SIGINT, as shells have it).
pub const INTERRUPTED: u8 = 130;

/// The user interrupted the command. It says by itself what is left to do, if anything.
#[derive(Debug)]
pub struct Interrupted(pub String);

impl fmt::Display for Interrupted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Interrupted {}

/// Reports a command's error, and turns its outcome into the exit code.
pub fn code(result: anyhow::Result<()>, printer: &Printer) -> u8 {
    let Err(error) = result else { return SUCCESS };
    if let Some(interrupted) = error.downcast_ref::<Interrupted>() {
        printer.warn(interrupted);
        return INTERRUPTED;
    }
    // `upg inspect MODEL | head`: the reader has had enough, which is no error.
    let closed = |cause: &(dyn std::error::Error + 'static)| {
        cause.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe)
    };
    if error.chain().any(closed) {
        return SUCCESS;
    }
    printer.error(&error);
    FAILURE
}
