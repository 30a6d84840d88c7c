//! The result of a benchmark, as a table and as JSON.

use std::time::Duration;

use serde::Serialize;
use upg_compress::{peak_rss, plan::parameters};
use upg_engine::Limits;
use upg_format::{ModelConfig, TensorKind, TensorName};
use upg_pdvm::Machine;

use super::{
    Subject,
    measure::{Kind, Measured, Rate, Test, Tests},
    python::PythonTimes,
};
use crate::units::{bytes, count, table, three_digits};

/// What was measured. Rates are medians; a `_spread` is half the distance from the slowest run to the fastest.
#[derive(Serialize)]
pub struct Report {
    model: String,
    model_bytes: u64,
    parameters: u64,
    layers: usize,
    /// Layers of the whole model: where `layers` are fewer, the numbers are those of a smaller model.
    all_layers: usize,
    backend: String,
    detail: String,
    threads: usize,
    /// Seconds until the file was ready to run.
    load_s: Option<f64>,
    reps: usize,
    /// Every test.
    tests: Vec<Line>,
    /// The first prompt and the first generation of the tests, by themselves.
    n_prompt: usize,
    n_gen: usize,
    depth: usize,
    prefill_tok_s: Option<f64>,
    prefill_spread: Option<f64>,
    decode_tok_s: Option<f64>,
    decode_spread: Option<f64>,
    /// Bytes of weights that decoding a token reads.
    token_bytes: u64,
    /// Weights read while decoding.
    decode_gb_s: Option<f64>,
    /// Limit: what this device's memory delivers.
    read_gb_s: Option<f64>,
    /// Limit: what the kernel makes of weights that are in the cache.
    kernel_gw_s: Option<f64>,
    /// Limit: multiply-adds in the arithmetic of prompts.
    multiply_gmac_s: Option<f64>,
    /// Of the lower of the limits on decoding.
    percent_of_limit: Option<f64>,
    /// Of the limit on prompts.
    prefill_percent_of_peak: Option<f64>,
    /// Kernels or dispatches that a device was given for each token that was generated.
    dispatches_per_token: Option<f64>,
    /// Microseconds of this processor's time for giving a device the work of one token, waiting left out.
    host_us_per_token: Option<f64>,
    /// How keys and values are kept.
    kv: &'static str,
    kv_bytes_per_token: u64,
    peak_rss_bytes: Option<u64>,
    /// Decoding in NumPy.
    python_tok_s: Option<f64>,
}

/// A test's result.
#[derive(Clone, Serialize)]
struct Line {
    /// Such as `pp512` or `tg128 @ d4096`.
    test: String,
    tokens: usize,
    /// Tokens in the context before it.
    depth: usize,
    tok_s: f64,
    spread: f64,
    /// Weights read while decoding.
    gb_s: Option<f64>,
    /// Of the limit on prompts, or of the lower of those on decoding.
    percent_of_limit: Option<f64>,
}

impl Line {
    fn of((test, rate): (Test, Rate), work: &Work, limits: Option<&Limits>) -> Self {
        let at = if test.depth > 0 { format!(" @ d{}", test.depth) } else { String::new() };
        let (name, gb_s, limit) = match test.kind {
            Kind::Prompt => ("pp", None, limits.and_then(|limits| work.prompt_limit(limits))),
            Kind::Generation => {
                let middle = test.depth + test.tokens / 2;
                let limit = limits.map(|limits| work.decode_limit(limits, middle));
                ("tg", Some(rate.median * work.decode_bytes as f64 / 1e9), limit)
            }
        };
        Self {
            test: format!("{name}{}{at}", test.tokens),
            tokens: test.tokens,
            depth: test.depth,
            tok_s: rate.median,
            spread: rate.spread,
            gb_s,
            percent_of_limit: limit.map(|limit| 100.0 * rate.median / limit),
        }
    }
}

impl Report {
    /// Sets the rates against the limits.
    pub fn new(
        subject: &Subject,
        tests: &Tests,
        (load, measured): (Option<Duration>, Measured),
        limits: Option<Limits>,
        machine: &dyn Machine,
    ) -> Self {
        let info = machine.info();
        let cores = || std::thread::available_parallelism().map_or(1, usize::from);
        let work = Work::of(&subject.config, info.weight_bytes, info.kv_bytes_per_token);
        let line = |rate: &(Test, Rate)| Line::of(*rate, &work, limits.as_ref());
        let first = |kind| measured.rates.iter().find(|(test, _)| test.kind == kind).map(line);
        let (prefill, decode) = (first(Kind::Prompt), first(Kind::Generation));
        Self {
            model: subject.name.clone(),
            model_bytes: subject.bytes,
            parameters: parameters(&subject.config),
            layers: subject.config.layers,
            all_layers: subject.all_layers,
            backend: info.name.to_owned(),
            detail: info.detail,
            threads: machine.options().threads.unwrap_or_else(cores),
            load_s: load.map(|load| load.as_secs_f64()),
            reps: tests.reps,
            tests: measured.rates.iter().map(line).collect(),
            n_prompt: prefill.as_ref().map_or(0, |line| line.tokens),
            n_gen: decode.as_ref().map_or(0, |line| line.tokens),
            depth: prefill.as_ref().or(decode.as_ref()).map_or(0, |line| line.depth),
            prefill_tok_s: prefill.as_ref().map(|line| line.tok_s),
            prefill_spread: prefill.as_ref().map(|line| line.spread),
            decode_tok_s: decode.as_ref().map(|line| line.tok_s),
            decode_spread: decode.as_ref().map(|line| line.spread),
            token_bytes: info.weight_bytes,
            decode_gb_s: decode.as_ref().and_then(|line| line.gb_s),
            read_gb_s: limits.map(|l| l.read_gb_s),
            kernel_gw_s: limits.and_then(|l| l.kernel_gw_s),
            multiply_gmac_s: limits.and_then(|l| l.multiply_gmac_s),
            percent_of_limit: decode.and_then(|line| line.percent_of_limit),
            prefill_percent_of_peak: prefill.and_then(|line| line.percent_of_limit),
            dispatches_per_token: measured.token_work.map(|work| work.dispatches),
            host_us_per_token: measured.token_work.map(|work| work.host_us),
            kv: machine.options().kv.name(),
            kv_bytes_per_token: info.kv_bytes_per_token,
            peak_rss_bytes: peak_rss(),
            python_tok_s: None,
        }
    }

    /// Sets decoding against what Python takes.
    pub fn compare(&mut self, python: PythonTimes) {
        self.python_tok_s = Some(python.tok_s(self.layers));
    }

    /// llama-bench's table, and below it what it is to be compared with.
    pub fn text(&self) -> String {
        let rows: Vec<_> = self.tests.iter().map(|line| self.row(line)).collect();
        let header = ["model", "size", "params", "backend", "threads", "test", "t/s", "GB/s", "% of limit"];
        table(&header, &rows, 6) + "\n" + &self.context()
    }

    fn row(&self, line: &Line) -> Vec<String> {
        let or_dash = |x: Option<f64>| x.map_or("-".into(), three_digits);
        vec![
            self.model.clone(),
            bytes(self.model_bytes),
            count(self.parameters),
            self.backend.clone(),
            self.threads.to_string(),
            line.test.clone(),
            format!("{:.2} ± {:.2}", line.tok_s, line.spread),
            or_dash(line.gb_s),
            or_dash(line.percent_of_limit),
        ]
    }

    fn context(&self) -> String {
        let ready = self.load_s.map_or(String::new(), |s| format!("; ready after {} s", three_digits(s)));
        let mut lines = vec![format!("runs on: {}{ready}", self.detail)];
        let limits = [
            self.read_gb_s.map(|x| format!("memory read {} GB/s", three_digits(x))),
            self.kernel_gw_s.map(|x| format!("T8 kernel in cache {} G weights/s", three_digits(x))),
            self.multiply_gmac_s.map(|x| format!("multiply {} G multiply-adds/s", three_digits(x))),
        ];
        let limits: Vec<_> = limits.into_iter().flatten().collect();
        if !limits.is_empty() {
            lines.push(format!("limits measured here: {}", limits.join(", ")));
        }
        lines.push(format!(
            "a token reads {} of weights and {} of keys and values ({}) for each token before it",
            bytes(self.token_bytes),
            bytes(self.kv_bytes_per_token),
            self.kv
        ));
        if let (Some(dispatches), Some(us)) = (self.dispatches_per_token, self.host_us_per_token) {
            lines.push(format!(
                "the device is given {dispatches:.0} dispatches a token, for {} µs of this processor's time",
                three_digits(us)
            ));
        }
        lines.push(format!("t/s: median of {} runs ± half their range; GB/s: weights alone", self.reps));
        if self.layers < self.all_layers {
            lines.push(format!(
                "this is a model of {} layers: the whole one, of {}, is slower",
                self.layers, self.all_layers
            ));
        }
        if let Some(peak) = self.peak_rss_bytes {
            lines.push(format!("peak memory: {}", bytes(peak)));
        }
        if let Some(python) = self.python_tok_s {
            let times = self
                .decode_tok_s
                .map(|rate| format!(": this is {} times as fast", three_digits(rate / python)));
            lines.push(format!(
                "in Python (NumPy; a layer and the head timed, the rest computed) {python:.3e} tok/s{}",
                times.unwrap_or_default()
            ));
        }
        lines.join("\n")
    }
}

/// What a token costs.
struct Work {
    /// Bytes of weights that decoding reads.
    decode_bytes: u64,
    /// Weights that decoding multiplies: all matrices, the head (or tied embedding) once.
    decode_weights: u64,
    /// Weights that a token inside a prompt multiplies: no head.
    prompt_weights: u64,
    /// Bytes of keys and values that a token reads for each one before it.
    kv_bytes: u64,
}

impl Work {
    fn of(config: &ModelConfig, decode_bytes: u64, kv_bytes: u64) -> Self {
        let size = |name: &TensorName| name.shape(config).iter().map(|&n| n as u64).product::<u64>();
        let matrices = TensorName::of_upg(config).into_iter().filter(|name| !name.kind().is_vector());
        let (ends, layers): (Vec<_>, Vec<_>) =
            matrices.partition(|name| matches!(name.kind(), TensorKind::Embed | TensorKind::Head));
        let prompt_weights: u64 = layers.iter().map(size).sum();
        // The embedding is looked up, one row a token; the last of the two is what the head multiplies.
        let head = ends.last().map_or(0, size);
        Self { decode_bytes, decode_weights: prompt_weights + head, prompt_weights, kv_bytes }
    }

    /// The most tokens a second that the limits allow with `before` tokens in the context.
    fn decode_limit(&self, limits: &Limits, before: usize) -> f64 {
        let read = |bytes: f64| bytes / (limits.read_gb_s * 1e9);
        let kernel = limits.kernel_gw_s.map_or(0.0, |rate| self.decode_weights as f64 / (rate * 1e9));
        let context = read(self.kv_bytes as f64 * before as f64);
        1.0 / (read(self.decode_bytes as f64).max(kernel) + context)
    }

    /// The most tokens of a prompt a second, attention left out.
    fn prompt_limit(&self, limits: &Limits) -> Option<f64> {
        limits.multiply_gmac_s.map(|peak| peak * 1e9 / self.prompt_weights as f64)
    }
}
