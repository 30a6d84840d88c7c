//! Which encoding each tensor gets so that the whole file has the size asked for.

use std::{collections::BTreeMap, fmt};

use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{Error as _, MapAccess, Visitor},
};
use upg_codec::Bits;
use upg_format::{Encoding, ModelConfig, TensorName};

use crate::{CompressError, Sensitivities, relative_error};

/// How large the file may be, tokenizer and all.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Target {
    /// This many times smaller than all parameters in fp32.
    Ratio(f64),
    /// Bits a weight, averaged over all parameters.
    Bits(f64),
    /// Bytes.
    Size(u64),
}

impl Target {
    /// The bytes that a model of `parameters` parameters may take.
    ///
    /// # Errors
    /// [`CompressError::TargetNotPositive`].
    pub fn budget(self, parameters: u64) -> Result<u64, CompressError> {
        let bytes = match self {
            Target::Ratio(ratio) => 4.0 * parameters as f64 / ratio,
            Target::Bits(bits) => parameters as f64 * bits / 8.0,
            Target::Size(bytes) => return Ok(bytes),
        };
        let positive = bytes.is_finite() && bytes > 0.0;
        if positive { Ok(bytes as u64) } else { Err(CompressError::TargetNotPositive(self)) }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::Ratio(ratio) => write!(f, "ratio {ratio}"),
            Target::Bits(bits) => write!(f, "{bits} bits a weight"),
            Target::Size(bytes) => write!(f, "{bytes} bytes"),
        }
    }
}

/// One tensor of a plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlannedTensor {
    /// Its name.
    pub name: TensorName,
    /// `[rows, cols]`.
    pub shape: [usize; 2],
    /// How it will be stored.
    pub encoding: Encoding,
}

impl PlannedTensor {
    /// Its number of weights.
    pub fn weights(&self) -> u64 {
        self.shape[0] as u64 * self.shape[1] as u64
    }

    /// Bytes it takes in the file, padding included.
    pub fn bytes(&self) -> u64 {
        stored(self.shape, self.encoding)
    }
}

/// Bytes of a tensor. The configuration caps every dimension, and [`Plan::new`] has checked that T8 stores the shape.
fn stored([rows, cols]: [usize; 2], encoding: Encoding) -> u64 {
    encoding.stored_length([rows as u64, cols as u64]).unwrap_or(u64::MAX)
}

/// How each tensor of a file is stored. Its JSON form is an object from names to encodings, in the file's order; that
/// is also what [`Plan::from_json`] takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    tensors: Vec<PlannedTensor>,
    overhead: u64,
    parameters: u64,
}

impl Plan {
    /// A plan that stores each tensor as `encoding` says. `overhead` is what the file holds besides tensors (see
    /// [`upg_format::UpgWriter::overhead`]).
    ///
    /// # Errors
    /// [`CompressError::Plan`] where T8 cannot store a shape.
    pub fn new(
        config: &ModelConfig,
        overhead: u64,
        encoding: impl Fn(TensorName) -> Encoding,
    ) -> Result<Self, CompressError> {
        let tensors = TensorName::of_upg(config).into_iter().map(|name| {
            let planned = PlannedTensor { name, shape: name.shape(config), encoding: encoding(name) };
            let [rows, cols] = planned.shape.map(|n| n as u64);
            match planned.encoding.length([rows, cols]) {
                Some(_) => Ok(planned),
                None => Err(CompressError::Plan(format!(
                    "{name} is [{rows}, {cols}], which {} cannot store",
                    planned.encoding
                ))),
            }
        });
        Ok(Self { tensors: tensors.collect::<Result<_, _>>()?, overhead, parameters: parameters(config) })
    }

    /// Reads the plan that [`Plan::to_json`] wrote, perhaps edited since.
    ///
    /// # Errors
    /// [`CompressError::Plan`] where it is no JSON object of encodings, names a tensor twice, or its tensors are not just
    /// those of the model.
    pub fn from_json(json: &str, config: &ModelConfig, overhead: u64) -> Result<Self, CompressError> {
        let Unique(encodings) = serde_json::from_str(json)
            .map_err(|e| CompressError::Plan(format!("the plan is not one: {e}")))?;
        let names = TensorName::of_upg(config);
        if let Some(missing) = names.iter().find(|name| !encodings.contains_key(&name.to_string())) {
            return Err(CompressError::Plan(format!("the plan lacks {missing}")));
        }
        if let Some(odd) = encodings.keys().find(|key| !names.iter().any(|name| name.to_string() == **key)) {
            return Err(CompressError::Plan(format!("the plan has {odd:?}, which the model lacks")));
        }
        Self::new(config, overhead, |name| encodings[&name.to_string()])
    }

    /// The plan as indented JSON.
    pub fn to_json(&self) -> String {
        // Keys are strings and values encodings: nothing in it can fail to serialise.
        serde_json::to_string_pretty(self).unwrap_or_default()
    }

    /// The tensors, in the file's order.
    pub fn tensors(&self) -> &[PlannedTensor] {
        &self.tensors
    }

    /// The tensors as [`upg_format::UpgWriter`] takes them.
    pub fn encodings(&self) -> Vec<(TensorName, Encoding)> {
        self.tensors.iter().map(|t| (t.name, t.encoding)).collect()
    }

    /// Bytes of the file besides its tensors.
    pub fn overhead(&self) -> u64 {
        self.overhead
    }

    /// Bytes of the whole file.
    pub fn file_bytes(&self) -> u64 {
        self.overhead + self.tensors.iter().map(PlannedTensor::bytes).sum::<u64>()
    }

    /// Parameters of the checkpoint, those that are folded away included.
    pub fn parameters(&self) -> u64 {
        self.parameters
    }

    /// Times that the file is smaller than all parameters in fp32.
    pub fn ratio(&self) -> f64 {
        4.0 * self.parameters as f64 / self.file_bytes() as f64
    }

    /// Bits of the whole file a parameter.
    pub fn bits_per_weight(&self) -> f64 {
        8.0 * self.file_bytes() as f64 / self.parameters as f64
    }
}

/// Encodings by name. A name that comes twice is an error: serde's maps would keep the last without a word.
struct Unique(BTreeMap<String, Encoding>);

impl<'de> Deserialize<'de> for Unique {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;

        impl<'de> Visitor<'de> for Entries {
            type Value = Unique;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object from tensor names to encodings")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Unique, A::Error> {
                let mut encodings = BTreeMap::new();
                while let Some((name, encoding)) = map.next_entry::<String, Encoding>()? {
                    if encodings.contains_key(&name) {
                        return Err(A::Error::custom(format!("{name:?} comes twice")));
                    }
                    encodings.insert(name, encoding);
                }
                Ok(Unique(encodings))
            }
        }

        deserializer.deserialize_map(Entries)
    }
}

impl Serialize for Plan {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.tensors.iter().map(|t| (t.name.to_string(), t.encoding)))
    }
}

/// Parameters of a checkpoint of this configuration: every number of it, tied embeddings counted once.
pub fn parameters(config: &ModelConfig) -> u64 {
    let size = |name: TensorName| name.shape(config).iter().map(|&n| n as u64).product::<u64>();
    TensorName::of_checkpoint(config).into_iter().map(size).sum()
}

/// Chooses the bits of each matrix so that the file is as large as `target` allows and no larger. Vectors stay f32.
///
/// Starts from the fewest bits everywhere and again and again gives one tensor its next code: the one that takes
/// away the most harm a byte among those that still fit. Harm is convex in a tensor's bits, so until the first
/// tensor no longer fits this is the optimum (Shoham and Gersho 1988); what remains is filled in the same order.
///
/// # Errors
/// [`CompressError::TargetTooSmall`] names the smallest file there is.
pub fn allocate(
    config: &ModelConfig,
    sensitivities: &Sensitivities,
    target: Target,
    overhead: u64,
) -> Result<Plan, CompressError> {
    let smallest = |name: TensorName| match name.kind().is_vector() {
        true => Encoding::F32,
        false => Encoding::T8(Bits::ALL[0]),
    };
    let mut plan = Plan::new(config, overhead, smallest)?;
    let budget = target.budget(plan.parameters)?;
    let mut room = budget.checked_sub(plan.file_bytes()).ok_or_else(|| too_small(target, budget, &plan))?;
    while let Some((index, step)) = best_step(&plan.tensors, sensitivities, room) {
        plan.tensors[index].encoding = Encoding::T8(step.to);
        room -= step.bytes;
    }
    Ok(plan)
}

fn too_small(target: Target, budget: u64, smallest: &Plan) -> CompressError {
    CompressError::TargetTooSmall {
        target,
        budget,
        smallest: smallest.file_bytes(),
        ratio: (smallest.ratio() * 100.0).floor() / 100.0,
        bits: (smallest.bits_per_weight() * 1000.0).ceil() / 1000.0,
    }
}

/// One tensor's next code.
struct Step {
    to: Bits,
    bytes: u64,
    /// Harm taken away per byte.
    gain: f64,
}

/// The step that gains most a byte among those that fit; the first tensor wins a tie.
fn best_step(tensors: &[PlannedTensor], sensitivities: &Sensitivities, room: u64) -> Option<(usize, Step)> {
    let steps = tensors.iter().enumerate().filter_map(|(i, t)| Some((i, next_step(t, sensitivities)?)));
    let fitting = steps.filter(|(_, step)| step.bytes <= room);
    fitting.reduce(|best, next| if next.1.gain > best.1.gain { next } else { best })
}

fn next_step(tensor: &PlannedTensor, sensitivities: &Sensitivities) -> Option<Step> {
    let Encoding::T8(bits) = tensor.encoding else { return None };
    let to = Bits::ALL.into_iter().find(|next| *next > bits)?;
    let bytes = stored(tensor.shape, Encoding::T8(to)) - tensor.bytes();
    let harm = sensitivities.of(tensor.name) * (relative_error(bits) - relative_error(to));
    Some(Step { to, bytes, gain: harm / bytes as f64 })
}
