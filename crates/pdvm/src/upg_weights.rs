use std::{borrow::Cow, path::Path};

use upg_format::{Encoding, FormatError, ModelConfig, TensorData, TensorEntry, TensorName, UpgFile};

use crate::{Tensor, Weights, WeightsError};

/// The weights of a `.upg` file. T8 and f32 tensors are read in place; f16 vectors are widened.
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

    fn tensor(&self, name: TensorName) -> Result<Tensor<'_>, WeightsError> {
        let (entry, data) = self.file.tensor(name).ok_or(WeightsError::Missing(name))?;
        tensor(entry, data)?.checked(name, self.config())
    }

    fn release(&self, name: TensorName) {
        self.file.release(name);
    }
}

fn tensor<'a>(entry: &TensorEntry, data: TensorData<'a>) -> Result<Tensor<'a>, WeightsError> {
    // Sizes past the address space saturate, and then fail the check against the configuration.
    let [rows, cols] = entry.shape.map(|n| usize::try_from(n).unwrap_or(usize::MAX));
    match (data, entry.encoding) {
        (TensorData::T8 { scales, codes }, Encoding::T8(bits)) => {
            Ok(Tensor::T8 { bits, rows, cols, scales: scales.into(), codes: codes.into() })
        }
        (TensorData::T8 { .. }, encoding) => {
            let source =
                format!("its entry says {encoding} but it holds T8 codes; please report this as a bug");
            Err(WeightsError::Source { name: entry.name, source: source.into() })
        }
        (TensorData::F32(data), _) => Ok(Tensor::F32 { rows, cols, data: data.into() }),
        (TensorData::F16(data), _) => {
            let data = Cow::Owned(data.iter().map(|x| x.to_f32()).collect());
            Ok(Tensor::F32 { rows, cols, data })
        }
    }
}
