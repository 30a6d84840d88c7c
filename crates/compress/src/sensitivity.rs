use std::collections::BTreeMap;

use upg_codec::Bits;
use upg_format::{ModelConfig, TensorKind, TensorName};

/// Error power of T8 on Gaussian data, relative to the data's. Rotated weights are close to Gaussian, so these hold
/// for every tensor before anything is measured.
pub fn relative_error(bits: Bits) -> f64 {
    let snr_db: f64 = match bits {
        Bits::B2 => 10.8,
        Bits::B3 => 16.55,
        Bits::B4 => 22.25,
        Bits::B5 => 27.65,
        Bits::B6 => 32.5,
        Bits::B8 => 40.15,
    };
    10_f64.powf(-snr_db / 10.0)
}

/// How much harm a relative error of a tensor does to the model: the harm of rounding tensor `t` to K bits is
/// `sensitivity(t) · relative_error(K)`, in units that only have to be the same for all tensors.
#[derive(Clone, Debug)]
pub struct Sensitivities(BTreeMap<TensorName, f64>);

impl Sensitivities {
    /// Sensitivities that were measured; tensors that are missing count as harmless.
    pub fn measured(harm: impl IntoIterator<Item = (TensorName, f64)>) -> Self {
        Self(harm.into_iter().collect())
    }

    /// What experience says where nothing was measured: a tensor's share of the weights, times what its place is
    /// known to be worth.
    pub fn prior(config: &ModelConfig) -> Self {
        let harm = |name: TensorName| {
            let [rows, cols] = name.shape(config);
            (rows * cols) as f64 * worth(name, config.layers)
        };
        Self(TensorName::of_upg(config).into_iter().map(|name| (name, harm(name))).collect())
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = (TensorName, f64)> + '_ {
        self.0.iter().map(|(name, harm)| (*name, *harm))
    }

    /// The sensitivity of one tensor.
    pub fn of(&self, name: TensorName) -> f64 {
        self.0.get(&name).copied().unwrap_or(0.0)
    }
}

/// What a tensor's place is worth, relative to a gate in the middle of the model. Another bit divides the error by
/// about 3.5, so a factor of 3.5 is what buys a bit.
fn worth(name: TensorName, layers: usize) -> f64 {
    use TensorKind::*;
    let kind = match name.kind() {
        // Nothing downstream averages their errors out.
        Embed | Head => 4.0,
        // Few weights that every query head of a group shares.
        V | K => 2.0,
        // They write to the residual stream.
        O | Down => 1.5,
        _ => 1.0,
    };
    // The MLPs of the first layers make the massive activations; their errors ruin whole tokens.
    let early = name.layer().is_some_and(|layer| layer * 8 < layers);
    match name.kind() {
        Gate | Up | Down if early => kind * 6.0,
        _ => kind,
    }
}
