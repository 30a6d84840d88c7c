//! The result of a benchmark, as a table and as JSON.

use serde::Serialize;
use upg_compress::{peak_rss, plan::parameters};
use upg_engine::Limits;
use upg_format::{ModelConfig, TensorKind, TensorName};
use upg_pdvm::Machine;

use super::{
    Subject,
    measure::{Measured, Rate, Tests},
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
    n_prompt: usize,
    n_gen: usize,
    depth: usize,
    reps: usize,
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
}

impl Report {
    /// Sets the rates against the limits.
    pub fn new(
        subject: &Subject,
        tests: Tests,
        measured: Measured,
        limits: Option<Limits>,
        machine: &dyn Machine,
    ) -> Self {
        let info = machine.info();
        let (decode, prefill) = (measured.decode.map(|r| r.median), measured.prefill.map(|r| r.median));
        let cores = || std::thread::available_parallelism().map_or(1, usize::from);
        let work = Work::of(&subject.config, info.weight_bytes);
        Self {
            model: subject.name.clone(),
            model_bytes: subject.bytes,
            parameters: parameters(&subject.config),
            layers: subject.config.layers,
            all_layers: subject.all_layers,
            backend: info.name.to_owned(),
            detail: info.detail,
            threads: machine.options().threads.unwrap_or_else(cores),
            n_prompt: tests.prompt,
            n_gen: tests.generate,
            depth: tests.depth,
            reps: tests.reps,
            prefill_tok_s: prefill,
            prefill_spread: measured.prefill.map(|r| r.spread),
            decode_tok_s: decode,
            decode_spread: measured.decode.map(|r| r.spread),
            token_bytes: info.weight_bytes,
            decode_gb_s: decode.map(|rate| rate * info.weight_bytes as f64 / 1e9),
            read_gb_s: limits.map(|l| l.read_gb_s),
            kernel_gw_s: limits.and_then(|l| l.kernel_gw_s),
            multiply_gmac_s: limits.and_then(|l| l.multiply_gmac_s),
            percent_of_limit: decode.zip(limits).map(|(rate, l)| 100.0 * rate / work.decode_limit(&l)),
            prefill_percent_of_peak: prefill
                .zip(limits.and_then(|l| l.multiply_gmac_s))
                .map(|(rate, peak)| 100.0 * rate * work.prompt_weights as f64 / (peak * 1e9)),
            dispatches_per_token: measured.token_work.map(|work| work.dispatches),
            host_us_per_token: measured.token_work.map(|work| work.host_us),
            kv: machine.options().kv.name(),
            kv_bytes_per_token: info.kv_bytes_per_token,
            peak_rss_bytes: peak_rss(),
        }
    }

    /// llama-bench's table, and below it what it is to be compared with.
    pub fn text(&self) -> String {
        let depth = if self.depth > 0 { format!(" @ d{}", self.depth) } else { String::new() };
        let prefill = self.prefill_tok_s.zip(self.prefill_spread).map(|(median, spread)| {
            let percent = self.prefill_percent_of_peak;
            self.row(format!("pp{}{depth}", self.n_prompt), Rate { median, spread }, None, percent)
        });
        let decode = self.decode_tok_s.zip(self.decode_spread).map(|(median, spread)| {
            let test = format!("tg{}{depth}", self.n_gen);
            self.row(test, Rate { median, spread }, self.decode_gb_s, self.percent_of_limit)
        });
        let rows: Vec<_> = prefill.into_iter().chain(decode).collect();
        let header = ["model", "size", "params", "backend", "threads", "test", "t/s", "GB/s", "% of limit"];
        table(&header, &rows, 6) + "\n" + &self.context()
    }

    fn row(&self, test: String, rate: Rate, gb_s: Option<f64>, percent: Option<f64>) -> Vec<String> {
        let or_dash = |x: Option<f64>| x.map_or("-".into(), three_digits);
        vec![
            self.model.clone(),
            bytes(self.model_bytes),
            count(self.parameters),
            self.backend.clone(),
            self.threads.to_string(),
            test,
            format!("{:.2} ± {:.2}", rate.median, rate.spread),
            or_dash(gb_s),
            or_dash(percent),
        ]
    }

    fn context(&self) -> String {
        let mut lines = vec![format!("runs on: {}", self.detail)];
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
}

impl Work {
    fn of(config: &ModelConfig, decode_bytes: u64) -> Self {
        let size = |name: &TensorName| name.shape(config).iter().map(|&n| n as u64).product::<u64>();
        let matrices = TensorName::of_upg(config).into_iter().filter(|name| !name.kind().is_vector());
        let (ends, layers): (Vec<_>, Vec<_>) =
            matrices.partition(|name| matches!(name.kind(), TensorKind::Embed | TensorKind::Head));
        let prompt_weights: u64 = layers.iter().map(size).sum();
        // The embedding is looked up, one row a token; the last of the two is what the head multiplies.
        let head = ends.last().map_or(0, size);
        Self { decode_bytes, decode_weights: prompt_weights + head, prompt_weights }
    }

    /// The most tokens a second that the limits allow.
    fn decode_limit(&self, limits: &Limits) -> f64 {
        let read = limits.read_gb_s * 1e9 / self.decode_bytes as f64;
        let kernel = limits.kernel_gw_s.map(|rate| rate * 1e9 / self.decode_weights as f64);
        kernel.map_or(read, |kernel| kernel.min(read))
    }
}
