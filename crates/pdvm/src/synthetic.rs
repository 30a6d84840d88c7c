//! Synthetic weights: random T8 codes in the exact shapes of a real model, for measuring speed where the model
//! itself is not at hand, and small ones for the conformance suite.

use std::{borrow::Cow, path::Path};

use half::f16;
use upg_codec::Bits;
use upg_format::{
    Architecture, Encoding, FormatError, Header, ModelConfig, Provenance, RopeConfig, RopeScaling,
    RotationConfig, Section, TensorKind, TensorName, TextConfig, UpgWriter,
};

use crate::{Tensor, Weights, WeightsError, rotation::SplitMix64};

/// How each matrix of a synthetic model is encoded. Vectors are always f32.
pub type Plan = fn(TensorName) -> Encoding;

/// Weights made from a seed, tensor by tensor, as they are asked for: nothing is kept.
///
/// Scales are such that activations stay of order one, as in a trained model: rows of the embedding have unit
/// variance, a linear keeps the variance of its input, and the two linears that write to the residual stream are
/// weakened with depth (Radford et al. 2019). Each row's scale is off by a random factor in `0.5..1.5`, so that a
/// machine that takes another row's scale is found out.
#[derive(Clone, Debug)]
pub struct Synthetic {
    config: ModelConfig,
    plan: Plan,
    seed: u64,
}

/// A name that [`preset`] does not know.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no synthetic model is called {0:?}: use one of {names}", names = names().collect::<Vec<_>>().join(", "))]
pub struct UnknownPreset(pub String);

/// Why [`Synthetic::save`] failed.
#[derive(Debug, thiserror::Error)]
pub enum SaveError {
    /// The file.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// A tensor.
    #[error(transparent)]
    Weights(#[from] WeightsError),
}

impl Synthetic {
    /// Weights of a model of this configuration.
    pub fn new(config: ModelConfig, plan: Plan, seed: u64) -> Self {
        Self { config, plan, seed }
    }

    /// How a tensor is encoded.
    pub fn encoding(&self, name: TensorName) -> Encoding {
        if name.kind().is_vector() { Encoding::F32 } else { (self.plan)(name) }
    }

    /// Bytes of all tensors, as a `.upg` would hold them (padding left out).
    pub fn bytes(&self) -> u64 {
        let tensors = TensorName::of_upg(&self.config).into_iter();
        let length = |name: TensorName| {
            let shape = name.shape(&self.config).map(|n| n as u64);
            self.encoding(name).length(shape).unwrap_or(u64::MAX)
        };
        tensors.map(length).fold(0, u64::saturating_add)
    }

    /// Writes the model to a `.upg` file without a vocabulary; returns its length in bytes.
    ///
    /// # Errors
    /// A shape that T8 cannot store; I/O.
    pub fn save(&self, path: &Path) -> Result<u64, SaveError> {
        let plan: Vec<_> =
            TensorName::of_upg(&self.config).into_iter().map(|n| (n, self.encoding(n))).collect();
        let header = Header {
            config: self.config.clone(),
            text: TextConfig::default(),
            provenance: Provenance { tool: "synthetic".into(), ..Provenance::default() },
        };
        let mut writer = UpgWriter::create_or_resume(path, &header, b"{}", &plan)?;
        for (name, _) in plan {
            match self.tensor(name)? {
                Tensor::T8 { scales, codes, .. } => {
                    let scales: Vec<u8> = scales.iter().flat_map(|scale| scale.to_le_bytes()).collect();
                    writer.write(name, Section::Scales, 0, &scales)?;
                    writer.write(name, Section::Codes, 0, &codes)?;
                }
                Tensor::F32 { data, .. } => {
                    let data: Vec<u8> = data.iter().flat_map(|x| x.to_le_bytes()).collect();
                    writer.write(name, Section::Plain, 0, &data)?;
                }
            }
            writer.finish_tensor(name, None)?;
        }
        Ok(writer.finish()?)
    }

    /// A generator of its own for each tensor: tensors do not depend on the order in which they are asked for.
    fn random(&self, name: TensorName) -> SplitMix64 {
        let tensor = (name.layer().unwrap_or(0) as u64) << 8 | name.kind() as u64;
        SplitMix64(SplitMix64(self.seed ^ tensor.wrapping_mul(0x9e37_79b9_7f4a_7c15)).next())
    }

    /// The standard deviation of a tensor's weights.
    fn deviation(&self, name: TensorName) -> f32 {
        let cols = name.shape(&self.config)[1] as f32;
        match name.kind() {
            TensorKind::Embed if !self.config.tied_embeddings => 1.0,
            TensorKind::O | TensorKind::Down => 1.0 / (cols * 2.0 * self.config.layers as f32).sqrt(),
            _ => 1.0 / cols.sqrt(),
        }
    }
}

impl Weights for Synthetic {
    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn tensor(&self, name: TensorName) -> Result<Tensor<'_>, WeightsError> {
        let [rows, cols] = name.shape(&self.config);
        let mut random = self.random(name);
        if name.kind().is_vector() {
            // Gains around 1, biases around 0.
            let center = if name.kind() == TensorKind::FinalNorm { 1.0 } else { 0.0 };
            let data: Vec<f32> = (0..cols).map(|_| center + 0.5 * uniform(&mut random)).collect();
            return Ok(Tensor::F32 { rows, cols, data: data.into() });
        }
        let deviation = self.deviation(name);
        match self.encoding(name) {
            Encoding::T8(bits) => {
                let row_bytes = bits.row_bytes(cols).ok_or_else(|| WeightsError::Source {
                    name,
                    source: format!("{cols} columns are no multiple of 32: choose other widths").into(),
                })?;
                let unit = deviation / value_deviation(bits);
                let scales = (0..rows).map(|_| f16::from_f32(unit * (1.0 + 0.5 * uniform(&mut random))));
                let scales: Cow<'_, [f16]> = scales.collect();
                let codes = random_bytes(&mut random, rows * row_bytes).into();
                Ok(Tensor::T8 { bits, rows, cols, scales, codes })
            }
            Encoding::F32 | Encoding::F16 => {
                // A uniform variable in -1..1 has deviation 1/sqrt(3).
                let scale = deviation * 3f32.sqrt();
                let data: Vec<f32> = (0..rows * cols).map(|_| scale * uniform(&mut random)).collect();
                Ok(Tensor::F32 { rows, cols, data: data.into() })
            }
        }
    }
}

/// The standard deviation of a code's values over uniformly random states, in table units.
fn value_deviation(bits: Bits) -> f32 {
    let square = |state: u8| f32::from(bits.table().value(state)).powi(2);
    ((0..=255).map(square).sum::<f32>() / 256.0).sqrt()
}

/// Uniform in `-1..1`, a multiple of 2^-23.
fn uniform(random: &mut SplitMix64) -> f32 {
    (random.next() >> 40) as f32 / (1u32 << 23) as f32 - 1.0
}

fn random_bytes(random: &mut SplitMix64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    let (words, rest) = bytes.as_chunks_mut::<8>();
    for word in words {
        *word = random.next().to_le_bytes();
    }
    let last = random.next().to_le_bytes();
    rest.copy_from_slice(&last[..rest.len()]);
    bytes
}

/// The plan of a model compressed 10:1: embedding and head at 4 bits a weight, the rest at 3.
pub fn ten_to_one(name: TensorName) -> Encoding {
    match name.kind() {
        TensorKind::Embed | TensorKind::Head => Encoding::T8(Bits::B4),
        _ => Encoding::T8(Bits::B3),
    }
}

type Preset = (&'static str, fn() -> ModelConfig);

/// Name and configuration of each known model.
const PRESETS: [Preset; 2] = [("phi-4", phi4), ("smollm2-135m", smollm2_135m)];

/// The names that [`preset`] knows.
pub fn names() -> impl Iterator<Item = &'static str> {
    PRESETS.into_iter().map(|(name, _)| name)
}

/// The configuration of that name.
///
/// # Errors
/// [`UnknownPreset`] lists the known names.
pub fn preset(name: &str) -> Result<ModelConfig, UnknownPreset> {
    let found = PRESETS.into_iter().find(|(known, _)| *known == name);
    found.map(|(_, config)| config()).ok_or_else(|| UnknownPreset(name.to_owned()))
}

/// Microsoft Phi-4: 14.66 billion weights.
pub fn phi4() -> ModelConfig {
    ModelConfig {
        architecture: Architecture::Phi3,
        hidden: 5120,
        layers: 40,
        heads: 40,
        kv_heads: 10,
        head_dim: 128,
        mlp: 17920,
        vocab: 100_352,
        context: 16_384,
        norm_eps: 1e-5,
        rope: RopeConfig { dim: 128, theta: 250_000.0, scaling: RopeScaling::None },
        sliding_window: None,
        tied_embeddings: false,
        qkv_bias: false,
        rotation: Some(RotationConfig { seed: 0 }),
    }
}

/// SmolLM2-135M.
pub fn smollm2_135m() -> ModelConfig {
    ModelConfig {
        architecture: Architecture::Llama,
        hidden: 576,
        layers: 30,
        heads: 9,
        kv_heads: 3,
        head_dim: 64,
        mlp: 1536,
        vocab: 49_152,
        context: 8192,
        norm_eps: 1e-5,
        rope: RopeConfig { dim: 64, theta: 100_000.0, scaling: RopeScaling::None },
        sliding_window: None,
        tied_embeddings: true,
        qkv_bias: false,
        rotation: Some(RotationConfig { seed: 0 }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn presets_are_valid_and_of_the_known_size() {
        let weights = |config: &ModelConfig| {
            let shapes = TensorName::of_upg(config).into_iter().map(|name| name.shape(config));
            shapes.map(|[rows, cols]| rows * cols).sum::<usize>()
        };
        for name in names() {
            preset(name).unwrap().validate().unwrap();
        }
        // The published counts without the folded norm gains (81 of 5120), resp. with one of 61 of 576.
        assert_eq!(weights(&phi4()), 14_659_507_200 - 81 * 5120);
        assert_eq!(weights(&smollm2_135m()), 134_515_008 - 60 * 576);
    }

    #[test]
    fn phi4_at_ten_to_one_is_five_and_a_half_gigabytes() {
        let bytes = Synthetic::new(phi4(), ten_to_one, 0).bytes();
        assert!((5.5e9..5.7e9).contains(&(bytes as f64)), "{bytes} bytes");
    }

    #[test]
    fn an_unknown_preset_names_the_known_ones() {
        let message = preset("phi-5").unwrap_err().to_string();
        assert_eq!(message, r#"no synthetic model is called "phi-5": use one of phi-4, smollm2-135m"#);
    }

    #[test]
    fn tensors_repeat_and_differ_from_each_other() {
        let synthetic = Synthetic::new(smollm2_135m(), ten_to_one, 5);
        let codes = |layer, kind| match synthetic.tensor(TensorName::new(layer, kind)).unwrap() {
            Tensor::T8 { bits, codes, scales, .. } => {
                assert_eq!(bits, Bits::B3);
                assert!(scales.iter().all(|s| s.is_normal() && s.to_f32() > 0.0));
                codes.into_owned()
            }
            Tensor::F32 { .. } => panic!("a matrix that is not T8"),
        };
        assert_eq!(codes(0, TensorKind::K), codes(0, TensorKind::K));
        assert_ne!(codes(0, TensorKind::K), codes(0, TensorKind::V));
        assert_ne!(codes(0, TensorKind::K), codes(1, TensorKind::K));
    }
}
