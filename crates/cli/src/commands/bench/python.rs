//! The baseline: the same decoding in plain NumPy, timed by `python/baseline/journey.py`.

use std::{path::Path, process::Command};

use anyhow::{Context as _, bail, ensure};
use serde::Deserialize;

/// Where the baseline is in UPG's source folder.
const SCRIPT: &str = "python/baseline/journey.py";

/// What decoding one token of Phi-4's shapes takes in Python.
#[derive(Clone, Copy, Deserialize)]
pub struct PythonTimes {
    layer_ms: f64,
    head_ms: f64,
}

impl PythonTimes {
    /// Times a layer and the head, each `reps` times.
    ///
    /// # Errors
    /// Where the source folder, Python or NumPy is missing.
    pub fn measure(reps: usize) -> anyhow::Result<Self> {
        ensure!(
            Path::new(SCRIPT).is_file(),
            "{SCRIPT} is not here: --against-python works in UPG's source folder alone"
        );
        let python = if cfg!(windows) { "python" } else { "python3" };
        let output = Command::new(python)
            .args([SCRIPT, "--only-python", "--reps", &reps.to_string()])
            .output()
            .with_context(|| format!("cannot run {python}: install Python 3.10 or newer with NumPy"))?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            bail!("{SCRIPT} failed: {}", said.lines().last().unwrap_or("it said nothing").trim());
        }
        serde_json::from_slice(&output.stdout).with_context(|| format!("what {SCRIPT} printed is no timing"))
    }

    /// Tokens a second of a model of `layers` layers.
    pub fn tok_s(self, layers: usize) -> f64 {
        1000.0 / (layers as f64 * self.layer_ms + self.head_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_all_layers_and_the_head() {
        let times: PythonTimes =
            serde_json::from_str(r#"{"layer_ms": 100, "head_ms": 200, "how": ""}"#).unwrap();
        assert_eq!(times.tok_s(8), 1.0);
    }
}
