use std::fmt::Write as _;

use anyhow::Context as _;
use serde::Serialize;
use upg_checkpoint::Checkpoint;
use upg_compress::plan::parameters;
use upg_format::{
    Encoding, ModelConfig, Provenance, TensorEntry, TensorKind, TensorName, TextConfig, UpgFile,
};

use crate::{
    source::files_len,
    units::{bytes, count, table},
};

/// What `upg inspect` says of a `.upg`.
#[derive(Serialize)]
pub struct UpgReport {
    format: &'static str,
    config: ModelConfig,
    text: TextConfig,
    provenance: Provenance,
    parameters: u64,
    file_bytes: u64,
    fp32_bytes: u64,
    /// Size in 32-bit floats over the file's size.
    ratio: f64,
    /// Of the whole file, over all parameters.
    bits_per_weight: f64,
    /// Whether every checksum was checked, and found right.
    verified: bool,
    tensors: Vec<TensorReport>,
}

/// One tensor of a `.upg`.
#[derive(Serialize)]
struct TensorReport {
    name: String,
    #[serde(skip)]
    kind: TensorKind,
    shape: [u64; 2],
    encoding: Encoding,
    bytes: u64,
    bits_per_weight: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    snr_db: Option<f32>,
}

impl TensorReport {
    fn new(entry: &TensorEntry) -> Self {
        let shape = entry.shape;
        Self {
            name: entry.name.to_string(),
            kind: entry.name.kind(),
            shape,
            encoding: entry.encoding,
            bytes: entry.length,
            bits_per_weight: bits(entry.length, shape[0] * shape[1]),
            snr_db: entry.stats.map(|stats| stats.snr_db),
        }
    }

    fn weights(&self) -> u64 {
        self.shape[0] * self.shape[1]
    }

    fn row(&self) -> Vec<String> {
        vec![
            self.name.clone(),
            self.encoding.to_string(),
            format!("{} x {}", self.shape[0], self.shape[1]),
            bytes(self.bytes),
            format!("{:.2}", self.bits_per_weight),
            self.snr_db.map_or("-".into(), |db| format!("{db:.2}")),
        ]
    }
}

impl UpgReport {
    /// Gathers the report; `verified` says that the checksums have been checked.
    pub fn new(file: &UpgFile, verified: bool) -> anyhow::Result<Self> {
        let header = file.header();
        let parameters = parameters(&header.config);
        let file_bytes = file.file_len();
        let fp32_bytes = parameters.checked_mul(4).context("the model is too large to count")?;
        Ok(Self {
            format: "upg",
            config: header.config.clone(),
            text: header.text.clone(),
            provenance: header.provenance.clone(),
            parameters,
            file_bytes,
            fp32_bytes,
            ratio: fp32_bytes as f64 / file_bytes as f64,
            bits_per_weight: bits(file_bytes, parameters),
            verified,
            tensors: file.tensors().iter().map(TensorReport::new).collect(),
        })
    }

    /// The report for people.
    pub fn text(&self, all_tensors: bool) -> String {
        let mut text = config_text(&self.config, self.parameters);
        field(
            &mut text,
            "file",
            &format!(
                "{} ({:.3} bits a weight, everything counted)",
                bytes(self.file_bytes),
                self.bits_per_weight
            ),
        );
        let fp32 = bytes(self.fp32_bytes);
        field(&mut text, "against fp32", &format!("{:.2}:1 (fp32: {fp32})", self.ratio));
        let verified =
            if self.verified { "every byte is as it was written" } else { "not checked (--verify)" };
        field(&mut text, "checksums", verified);
        text += &provenance_text(&self.provenance);
        text.push('\n');
        text += &self.kinds_table();
        if all_tensors {
            let rows: Vec<_> = self.tensors.iter().map(TensorReport::row).collect();
            text.push('\n');
            text += &table(&["tensor", "code", "shape", "size", "bits a weight", "SNR dB"], &rows, 2);
        }
        text.truncate(text.trim_end().len());
        text
    }

    /// The tensors of one kind together: a line a kind, in the order of the file.
    fn kinds_table(&self) -> String {
        let mut kinds: Vec<TensorKind> = Vec::new();
        for tensor in &self.tensors {
            if !kinds.contains(&tensor.kind) {
                kinds.push(tensor.kind);
            }
        }
        let rows: Vec<_> = kinds.into_iter().map(|kind| self.kind_row(kind)).collect();
        table(&["kind", "codes", "tensors", "weights", "size", "bits a weight", "SNR dB"], &rows, 2)
    }

    fn kind_row(&self, kind: TensorKind) -> Vec<String> {
        let tensors: Vec<&TensorReport> = self.tensors.iter().filter(|t| t.kind == kind).collect();
        let weights = tensors.iter().map(|t| t.weights()).sum();
        let size = tensors.iter().map(|t| t.bytes).sum();
        let snr = tensors.iter().filter_map(|t| t.snr_db);
        let (low, high) = snr.fold((f32::INFINITY, f32::NEG_INFINITY), |(l, h), db| (l.min(db), h.max(db)));
        vec![
            kind_name(kind),
            codes(&tensors),
            tensors.len().to_string(),
            count(weights),
            bytes(size),
            format!("{:.2}", bits(size, weights)),
            if low > high { "-".into() } else { format!("{low:.1} to {high:.1}") },
        ]
    }
}

/// `t8-3`, or `28 x t8-3, 2 x t8-4` where tensors of one kind differ.
fn codes(tensors: &[&TensorReport]) -> String {
    let mut counts: Vec<(String, usize)> = Vec::new();
    for tensor in tensors {
        let code = tensor.encoding.to_string();
        match counts.iter_mut().find(|(known, _)| *known == code) {
            Some((_, n)) => *n += 1,
            None => counts.push((code, 1)),
        }
    }
    counts.sort();
    match counts.as_slice() {
        [(code, _)] => code.clone(),
        several => several.iter().map(|(code, n)| format!("{n} x {code}")).collect::<Vec<_>>().join(", "),
    }
}

/// What `upg inspect` says of a checkpoint.
#[derive(Serialize)]
pub struct CheckpointReport {
    format: String,
    config: ModelConfig,
    text: TextConfig,
    parameters: u64,
    file_bytes: u64,
    fp32_bytes: u64,
    #[serde(skip)]
    tensors: Vec<TensorName>,
}

impl CheckpointReport {
    /// Gathers the report.
    pub fn new(checkpoint: &dyn Checkpoint) -> anyhow::Result<Self> {
        let config = checkpoint.config();
        let parameters = parameters(config);
        Ok(Self {
            format: checkpoint.describe(),
            config: config.clone(),
            text: checkpoint.text().clone(),
            parameters,
            file_bytes: files_len(&checkpoint.sources())?,
            fp32_bytes: parameters.checked_mul(4).context("the model is too large to count")?,
            tensors: TensorName::of_checkpoint(config),
        })
    }

    /// The report for people.
    pub fn text(&self, all_tensors: bool) -> String {
        let mut text = String::new();
        field(&mut text, "checkpoint", &self.format);
        text += &config_text(&self.config, self.parameters);
        field(&mut text, "files", &bytes(self.file_bytes));
        field(&mut text, "in fp32", &bytes(self.fp32_bytes));
        if all_tensors {
            let row = |name: &TensorName| {
                let [rows, cols] = name.shape(&self.config);
                vec![name.to_string(), format!("{rows} x {cols}")]
            };
            text.push('\n');
            text += &table(&["tensor", "shape"], &self.tensors.iter().map(row).collect::<Vec<_>>(), 1);
        }
        text.truncate(text.trim_end().len());
        text
    }
}

fn bits(bytes: u64, weights: u64) -> f64 {
    bytes as f64 * 8.0 / weights as f64
}

fn kind_name(kind: TensorKind) -> String {
    let name = TensorName::global(kind).to_string();
    name.rsplit('.').next().unwrap_or_default().to_owned()
}

fn field(text: &mut String, name: &str, value: &str) {
    // Writing to a String cannot fail.
    let _ = writeln!(text, "{name:<13} {value}");
}

fn config_text(config: &ModelConfig, parameters: u64) -> String {
    let mut text = String::new();
    let ModelConfig { layers, hidden, mlp, heads, kv_heads, head_dim, vocab, context, .. } = config;
    field(&mut text, "model", &format!("{:?}, {} parameters", config.architecture, count(parameters)));
    field(&mut text, "layers", &format!("{layers}, {hidden} wide, MLP {mlp} wide"));
    field(
        &mut text,
        "attention",
        &format!("{heads} query heads on {kv_heads} key/value heads, {head_dim} wide"),
    );
    let tied = if config.tied_embeddings { "the head is the embedding" } else { "separate head" };
    field(&mut text, "vocabulary", &format!("{vocab} tokens, {tied}"));
    field(&mut text, "context", &format!("{context} tokens"));
    text
}

fn provenance_text(provenance: &Provenance) -> String {
    let mut text = String::new();
    for source in &provenance.source {
        let hashes = [("sha256", &source.sha256), ("blake3", &source.blake3)];
        let hash: String =
            hashes.iter().filter_map(|(kind, hash)| Some(format!(", {kind} {}", hash.as_ref()?))).collect();
        field(&mut text, "made from", &format!("{} ({}{hash})", source.name, bytes(source.size)));
    }
    field(&mut text, "made by", &provenance.tool);
    field(&mut text, "calibration", provenance.calibration.as_deref().unwrap_or("none"));
    for (name, value) in &provenance.settings {
        field(&mut text, name, value);
    }
    text
}
