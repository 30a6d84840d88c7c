//! How a compression shows itself.

use std::{
    path::PathBuf,
    sync::{Mutex, MutexGuard, PoisonError},
};

use anyhow::Context as _;
use upg_compress::{Plan, Progress};
use upg_format::{Encoding, TensorName};

use crate::{
    printer::{self, Printer},
    units::{bytes, count, table},
};

/// Steps of the bar that measuring gets.
const PERMILLE: u64 = 1000;

/// Prints the plan, then a progress bar.
pub struct Shown<'a> {
    printer: &'a Printer,
    save_plan: Option<PathBuf>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    measuring: Option<printer::Progress>,
    bar: Option<printer::Progress>,
    /// Why the plan could not be saved.
    error: Option<anyhow::Error>,
}

impl<'a> Shown<'a> {
    /// Writes the plan to `save_plan`, where given, before anything else is written.
    pub fn new(printer: &'a Printer, save_plan: Option<PathBuf>) -> Self {
        Self { printer, save_plan, state: Mutex::default() }
    }

    /// Removes the bar; tells whether the plan could be saved.
    pub fn close(self) -> anyhow::Result<()> {
        let state = self.state.into_inner().unwrap_or_else(PoisonError::into_inner);
        state.error.map_or(Ok(()), Err)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing here is left half done by a panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Progress for Shown<'_> {
    fn planned(&self, plan: &Plan, memory: u64) {
        self.printer.note(plan_text(plan, memory));
        let weights = plan.tensors().iter().map(|tensor| tensor.weights()).sum();
        let mut state = self.state();
        state.measuring = None;
        state.bar = Some(self.printer.progress("Compressing", weights));
        if let Some(path) = &self.save_plan {
            let saved = std::fs::write(path, plan.to_json() + "\n");
            let saved = saved
                .with_context(|| format!("cannot write the plan to {}: choose another file", path.display()));
            state.error = saved.err();
        }
    }

    fn message(&self, text: &str) {
        self.printer.detail(text);
    }

    fn measuring(&self, done: f64) {
        let mut state = self.state();
        let bar = state.measuring.get_or_insert_with(|| self.printer.progress("Measuring", PERMILLE));
        bar.set((done * PERMILLE as f64) as u64);
    }

    fn calibrated(&self, name: TensorName, damping: Option<f64>, relative: f64) {
        let how = damping.map_or("no feedback".to_owned(), |damping| format!("damping {damping}"));
        self.printer.detail(format_args!(
            "{name}: {how}, error on text held out {relative:.3} of the nearest code's"
        ));
    }

    fn started(&self, name: TensorName, encoding: Encoding, _weights: u64) {
        if let Some(bar) = &self.state().bar {
            bar.message(format!("{name} {encoding}"));
        }
    }

    fn advanced(&self, weights: u64) {
        if let Some(bar) = &mut self.state().bar {
            bar.add(weights);
        }
    }

    fn finished(&self, name: TensorName, snr_db: Option<f32>) {
        if let Some(snr_db) = snr_db {
            self.printer.detail(format_args!("{name}: {snr_db:.2} dB"));
        }
    }
}

/// What will be written: a line for each code.
fn plan_text(plan: &Plan, memory: u64) -> String {
    let mut codes: Vec<(Encoding, usize, u64, u64)> = Vec::new();
    for tensor in plan.tensors() {
        let (weights, size) = (tensor.weights(), tensor.bytes());
        match codes.iter_mut().find(|(code, ..)| *code == tensor.encoding) {
            Some((_, n, w, s)) => (*n, *w, *s) = (*n + 1, *w + weights, *s + size),
            None => codes.push((tensor.encoding, 1, weights, size)),
        }
    }
    codes.sort_by_key(|(code, ..)| code.to_string());
    let mut rows: Vec<Vec<String>> = codes
        .into_iter()
        .map(|(code, n, weights, size)| vec![code.to_string(), n.to_string(), count(weights), bytes(size)])
        .collect();
    rows.push(vec!["all else".into(), "-".into(), "-".into(), bytes(plan.overhead())]);
    format!(
        "plan: {}, {:.2}:1 against fp32, {:.3} bits a weight; about {} of memory\n{}",
        bytes(plan.file_bytes()),
        plan.ratio(),
        plan.bits_per_weight(),
        bytes(memory),
        table(&["code", "tensors", "weights", "size"], &rows, 1).trim_end()
    )
}
