//! What is said, and where: answers on standard output; notes, progress, warnings and errors on standard error.

use std::{
    fmt::Display,
    io::{self, IsTerminal as _, Write as _},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use clap::ColorChoice;
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;

use crate::{args::OutputArgs, host::Host, interrupt::Interrupt};

/// What takes less than this shows no progress.
const PATIENCE: Duration = Duration::from_millis(700);

const STEPS: &str = "{prefix:>12} [{bar:30}] {percent:>3} % {eta:>4}  {msg}";
const BYTES: &str =
    "{prefix:>12} [{bar:30}] {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {eta:>4}  {msg}";

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd)]
enum Level {
    Quiet,
    Normal,
    Verbose,
}

/// Knows how much the user wants to hear.
pub struct Printer {
    notes: Notes,
    progress: bool,
    hosted: Option<Hosted>,
}

/// What is said on standard error, from any thread.
#[derive(Clone)]
pub struct Notes {
    level: Level,
    /// Colours on standard error.
    color: bool,
    /// All bars that are shown.
    bars: MultiProgress,
}

/// A program listens, not a person.
struct Hosted {
    host: Host,
    /// What standard output would have got.
    answer: Mutex<String>,
}

impl Printer {
    /// As the options say; colours and progress only where standard error is a terminal.
    pub fn new(args: &OutputArgs) -> Self {
        let level = match (args.quiet, args.verbose) {
            (true, _) => Level::Quiet,
            (_, true) => Level::Verbose,
            _ => Level::Normal,
        };
        let terminal = io::stderr().is_terminal();
        let color = match args.color {
            ColorChoice::Always => true,
            ColorChoice::Never => false,
            ColorChoice::Auto => terminal && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty()),
        };
        let progress = terminal && !args.no_progress && level != Level::Quiet;
        Self { notes: Notes { level, color, bars: MultiProgress::new() }, progress, hosted: None }
    }

    /// Keeps answers for a program, and tells it the progress.
    pub fn hosted(host: Host) -> Self {
        let notes = Notes { level: Level::Quiet, color: false, bars: MultiProgress::new() };
        Self { notes, progress: false, hosted: Some(Hosted { host, answer: Mutex::default() }) }
    }

    /// What a hosted command answered.
    pub fn answered(self) -> String {
        let answer = self.hosted.map(|hosted| hosted.answer.into_inner());
        answer.map(|answer| answer.unwrap_or_else(PoisonError::into_inner)).unwrap_or_default()
    }

    /// What stops the command: Ctrl-C, which this takes over, or the program that called it.
    pub fn interrupt(&self) -> anyhow::Result<Interrupt> {
        match &self.hosted {
            None => Interrupt::install(),
            Some(hosted) => Ok(Interrupt::of(hosted.host.cancel.clone())),
        }
    }

    /// The part of it that can be given to another thread.
    pub fn notes(&self) -> Notes {
        self.notes.clone()
    }

    /// The answer: a line on standard output.
    pub fn answer(&self, text: impl Display) -> io::Result<()> {
        self.piece(&format!("{text}\n"))
    }

    /// A piece of a streamed answer: no line end, shown at once.
    pub fn piece(&self, text: &str) -> io::Result<()> {
        if let Some(hosted) = &self.hosted {
            hosted.answer.lock().unwrap_or_else(PoisonError::into_inner).push_str(text);
            return Ok(());
        }
        let mut out = io::stdout().lock();
        out.write_all(text.as_bytes())?;
        out.flush()
    }

    /// The answer as JSON.
    pub fn json(&self, value: &impl Serialize) -> anyhow::Result<()> {
        Ok(self.answer(serde_json::to_string_pretty(value)?)?)
    }

    /// Something that most users want to know.
    pub fn note(&self, text: impl Display) {
        self.notes.say(Level::Normal, text);
    }

    /// Something that few users want to know.
    pub fn detail(&self, text: impl Display) {
        self.notes.say(Level::Verbose, text);
    }

    /// Something that the user should act upon, said even where quiet.
    pub fn warn(&self, text: impl Display) {
        self.notes.warn(text);
    }

    /// Why the command failed: the causes from the outermost in; the last line says what to do next.
    pub fn error(&self, error: &anyhow::Error) {
        let notes = &self.notes;
        notes.say(Level::Quiet, format_args!("{} {error}", notes.paint("error:", "1;31")));
        let mut said = error.to_string();
        for cause in error.chain().skip(1).map(ToString::to_string) {
            // Errors that pass their cause's text on are not worth a second line.
            if !said.ends_with(&cause) {
                notes.say(Level::Quiet, format_args!("  because: {cause}"));
                said = cause;
            }
        }
    }

    /// Progress over `total` steps; shown only where it is wanted, and only once it takes a while.
    pub fn progress(&self, prefix: &'static str, total: u64) -> Progress {
        self.any_progress(prefix, total, STEPS)
    }

    /// Progress over `total` bytes.
    pub fn bytes_progress(&self, prefix: &'static str, total: u64) -> Progress {
        self.any_progress(prefix, total, BYTES)
    }

    fn any_progress(&self, prefix: &'static str, total: u64, template: &str) -> Progress {
        let host = self.hosted.as_ref().map(|hosted| hosted.host.clone());
        Progress::new(self.progress.then_some(&self.notes.bars), prefix, total, template, host)
    }
}

impl Notes {
    /// Something that the user should act upon, said even where quiet.
    pub fn warn(&self, text: impl Display) {
        self.say(Level::Quiet, format_args!("{} {text}", self.paint("warning:", "1;33")));
    }

    fn say(&self, level: Level, text: impl Display) {
        if self.level >= level {
            // Bars step aside; nobody is left to hear that standard error is closed.
            let _ = self.bars.suspend(|| writeln!(io::stderr(), "{text}"));
        }
    }

    fn paint(&self, text: &str, code: &str) -> String {
        if self.color { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

/// A progress bar on standard error; it goes when dropped.
pub struct Progress {
    bar: ProgressBar,
    /// When and where to begin to show it; `None`: never, or it is shown.
    show_at: Option<(Instant, MultiProgress)>,
    prefix: &'static str,
    host: Option<Host>,
}

impl Progress {
    fn new(
        bars: Option<&MultiProgress>,
        prefix: &'static str,
        total: u64,
        template: &str,
        host: Option<Host>,
    ) -> Self {
        let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
        let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::hidden());
        bar.set_style(style.progress_chars("=> "));
        bar.set_prefix(prefix);
        let show_at = bars.map(|bars| (Instant::now() + PATIENCE, bars.clone()));
        Self { bar, show_at, prefix, host }
    }

    /// `done` of the total are done.
    pub fn set(&mut self, done: u64) {
        if let Some((_, bars)) = self.show_at.take_if(|(at, _)| Instant::now() >= *at) {
            bars.add(self.bar.clone());
        }
        self.bar.set_position(done);
        if let Some(host) = &self.host {
            let total = self.bar.length().unwrap_or(0).max(1);
            (host.progress)(self.prefix, (done as f64 / total as f64).min(1.0));
        }
    }

    /// `done` more are done.
    pub fn add(&mut self, done: u64) {
        self.set(self.bar.position() + done);
    }

    /// There is so much in all.
    pub fn total(&self, total: u64) {
        self.bar.set_length(total);
    }

    /// What is being done.
    pub fn message(&self, text: String) {
        self.bar.set_message(text);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
