use std::path::Path;

use upg_format::{FormatError, ModelConfig, TensorName, UpgFile};

use crate::{Tensor, Weights, WeightsError};

/// The weights of a `.upg` file, in place.
#[derive(Debug)]
pub struct UpgWeights {
    file: UpgFile,
}

impl UpgWeights {
    /// Opens a file; reads no tensor.
    ///
    /// # Errors
    /// See [`UpgFile::open`].
    pub fn open(path: &Path) -> Result<Self, FormatError> {
        Ok(Self::new(UpgFile::open(path)?))
    }

    /// The weights of an open file.
    pub fn new(file: UpgFile) -> Self {
        Self { file }
    }

    /// The file.
    pub fn file(&self) -> &UpgFile {
        &self.file
    }
}

impl Weights for UpgWeights {
    fn config(&self) -> &ModelConfig {
        &self.file.header().config
    }

    fn tensor(&self, _name: TensorName) -> Result<Tensor<'_>, WeightsError> {
        todo!()
    }
}
