use std::ops::Range;

use upg_format::{ModelConfig, TensorName, TextConfig};

use crate::{Checkpoint, CheckpointError, Source, tensors::Tensors};

/// A checkpoint of either kind, once its description is read.
pub(crate) struct Loaded {
    pub config: ModelConfig,
    pub text: TextConfig,
    pub tokenizer_json: Vec<u8>,
    pub tensors: Tensors,
    pub description: String,
}

impl Checkpoint for Loaded {
    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn text(&self) -> &TextConfig {
        &self.text
    }

    fn tokenizer_json(&self) -> &[u8] {
        &self.tokenizer_json
    }

    fn sources(&self) -> Vec<Source> {
        self.tensors.files().sources()
    }

    fn read_rows(
        &self,
        name: TensorName,
        rows: Range<usize>,
        out: &mut [f32],
    ) -> Result<(), CheckpointError> {
        self.tensors.read_rows(name, rows, out)
    }

    fn file_of(&self, name: TensorName) -> usize {
        self.tensors.file_of(name)
    }

    fn finished(&self, name: TensorName) {
        self.tensors.finished(name);
    }

    fn describe(&self) -> String {
        self.description.clone()
    }
}
