//! A program that calls commands instead of a person.

use std::{
    fmt,
    sync::{Arc, atomic::AtomicBool},
};

/// What a program gives to a command.
#[derive(Clone)]
pub struct Host {
    /// Set it to stop the command.
    pub cancel: Arc<AtomicBool>,
    /// Gets what is being done (`Compressing`, …) and the fraction done, 0 to 1. Called from any thread; cheap calls only.
    pub progress: Arc<dyn Fn(&'static str, f64) + Send + Sync>,
}

/// The command line makes no sense.
#[derive(Debug)]
pub struct UsageError(String);

impl From<&clap::Error> for UsageError {
    /// What is wrong, without the usage that clap adds for people at a terminal.
    fn from(error: &clap::Error) -> Self {
        let text = error.render().to_string();
        let wrong = text.split("\n\nUsage:").next().unwrap_or(&text);
        Self(wrong.trim().trim_start_matches("error: ").to_owned())
    }
}

impl fmt::Display for UsageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for UsageError {}
