//! Memory does not grow with the model. Alone in its binary: the peak is the process's.
#![allow(clippy::unwrap_used)] // a failed helper is a failed test
#![cfg(target_os = "linux")]

mod common;

use std::{ops::Range, sync::atomic::AtomicBool};

use common::tiny;
use upg_checkpoint::{Checkpoint, CheckpointError, Source};
use upg_compress::{Options, Target, compress, peak_rss};
use upg_format::{ModelConfig, TensorName, TextConfig};

/// A checkpoint that holds nothing: its numbers are made as they are read.
struct Endless {
    config: ModelConfig,
    text: TextConfig,
}

impl Checkpoint for Endless {
    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn text(&self) -> &TextConfig {
        &self.text
    }

    fn tokenizer_json(&self) -> &[u8] {
        b"{}"
    }

    fn sources(&self) -> Vec<Source> {
        Vec::new()
    }

    fn read_rows(
        &self,
        _name: TensorName,
        rows: Range<usize>,
        out: &mut [f32],
    ) -> Result<(), CheckpointError> {
        for (i, x) in out.iter_mut().enumerate() {
            *x = ((rows.start + i) as f32 * 0.618).fract() - 0.5;
        }
        Ok(())
    }

    fn describe(&self) -> String {
        "endless".into()
    }
}

#[test]
fn a_large_tensor_needs_little_memory() {
    let folder = tempfile::tempdir().unwrap();
    // 160 MB in f32, most of it in one tensor.
    let config = ModelConfig { hidden: 1024, vocab: 38_000, ..tiny(true, false) };
    let checkpoint = Endless { config, text: TextConfig::default() };
    let out = folder.path().join("out.upg");
    let options = Options::default();
    compress(&checkpoint, &out, Target::Bits(4.1), &options, &(), &AtomicBool::new(false)).unwrap();
    let peak = peak_rss().unwrap();
    assert!(peak < 100 << 20, "{} MiB", peak >> 20);
}
