//! Rotary position embedding (Su et al. 2021), the one definition that all machines use.
//!
//! Pair `i` of a head turns by the angle `position · f[i]`. As in transformers, the frequencies are f32 and so is the
//! angle, which matters past a few thousand tokens: a model was trained with the rounded angles. What transformers
//! computes in f32 on the way is computed in f64 here and rounded once:
//!
//! - `f[i] = theta^(-2i / dim)`, in f64, scaled as [`RopeScaling`] says, rounded to f32;
//! - the angle is the f32 product of the position and `f[i]`;
//! - cosine and sine are taken in f64, times LongRoPE's attention factor, rounded to f32.
//!
//! # LongRoPE
//! The factors of *all* positions of a sequence follow from the sequence's length: the short ones up to the original
//! context, the long ones past it. Keys are cached turned, so those of a sequence that crosses the line, either way,
//! are of no use: attention between keys of one kind and queries of the other is noise. Nobody who keeps them is told
//! so. Hence one rule, which is also that of transformers' `generate`: **a sequence that crosses is computed anew from
//! its first token**, once. [`Machine::rope_switches`](crate::Machine::rope_switches) says when; the engine's sessions do
//! it. A prompt run in chunks has the factors of the whole from its first chunk on: see
//! [`KvPages::expect`](crate::KvPages::expect). A machine itself never looks back; it turns each batch by the length that
//! [`BatchRow::rope_length`](crate::BatchRow::rope_length) gives.

use std::f64::consts::TAU;

use upg_format::{ModelConfig, RopeConfig, RopeScaling};

/// The frequencies of a model's rotary embedding.
#[derive(Clone, Debug)]
pub struct RopeTable {
    frequencies: Vec<f32>,
    long: Option<Long>,
    attention_factor: f64,
}

/// LongRoPE's other frequencies (Ding et al. 2024).
#[derive(Clone, Debug)]
struct Long {
    /// Sequences with more tokens than this use them.
    original_context: usize,
    frequencies: Vec<f32>,
}

impl RopeTable {
    /// The table of a model.
    ///
    /// # Panics
    /// If LongRoPE has fewer factors than pairs: [`ModelConfig::validate`] refuses that.
    pub fn new(config: &ModelConfig) -> Self {
        let rope = &config.rope;
        let plain = |frequencies| Self { frequencies, long: None, attention_factor: 1.0 };
        match &rope.scaling {
            RopeScaling::None => plain(scaled(rope, |_, f| f)),
            RopeScaling::Linear { factor } => plain(scaled(rope, |_, f| f / f64::from(*factor))),
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } => {
                let (factor, low) = (f64::from(*factor), f64::from(*low_freq_factor));
                let span = f64::from(*high_freq_factor) - low;
                plain(scaled(rope, |_, f| {
                    // Turns in the trained context: below `low` divide the frequency, above `low + span` keep it.
                    let turns = *original_context as f64 * f / TAU;
                    let keep = ((turns - low) / span).clamp(0.0, 1.0);
                    keep * f + (1.0 - keep) * f / factor
                }))
            }
            RopeScaling::LongRope { short_factor, long_factor, original_context, attention_factor } => Self {
                frequencies: scaled(rope, |i, f| f / f64::from(short_factor[i])),
                long: Some(Long {
                    original_context: *original_context,
                    frequencies: scaled(rope, |i, f| f / f64::from(long_factor[i])),
                }),
                attention_factor: f64::from(*attention_factor),
            },
        }
    }

    /// Pairs of dimensions that turn: `rope.dim / 2`.
    pub fn pairs(&self) -> usize {
        self.frequencies.len()
    }

    /// The frequencies for a sequence of `length` tokens, in radians a token, [`RopeTable::pairs`] of them.
    pub fn frequencies(&self, length: usize) -> &[f32] {
        match &self.long {
            Some(long) if length > long.original_context => &long.frequencies,
            _ => &self.frequencies,
        }
    }

    /// Cosines and sines of one position in a sequence of `length` tokens (see [`crate::BatchRow::rope_length`]),
    /// attention factor included, [`RopeTable::pairs`] each.
    pub fn fill(&self, position: usize, length: usize, cos: &mut [f32], sin: &mut [f32]) {
        for ((f, cos), sin) in self.frequencies(length).iter().zip(cos).zip(sin) {
            let (s, c) = f64::from(position as f32 * f).sin_cos();
            *cos = (c * self.attention_factor) as f32;
            *sin = (s * self.attention_factor) as f32;
        }
    }
}

/// The frequency of each pair, in f64 `scale`d by its index and plain value, rounded to f32.
fn scaled(rope: &RopeConfig, scale: impl Fn(usize, f64) -> f64) -> Vec<f32> {
    let plain = |i: usize| f64::from(rope.theta).powf(-((2 * i) as f64) / rope.dim as f64);
    (0..rope.dim / 2).map(|i| scale(i, plain(i)) as f32).collect()
}

/// Turns one head in place: `(head[i], head[i + pairs])` by the angle of pair `i`; dimensions past `2 · pairs` stay.
///
/// # Panics
/// If `head` is shorter than `2 · cos.len()`.
#[inline]
pub fn rotate(head: &mut [f32], cos: &[f32], sin: &[f32]) {
    let (a, b) = head[..2 * cos.len()].split_at_mut(cos.len());
    for (((a, b), cos), sin) in a.iter_mut().zip(b).zip(cos).zip(sin) {
        (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::synthetic;

    fn table(dim: usize, theta: f32, scaling: RopeScaling) -> RopeTable {
        RopeTable::new(&ModelConfig { rope: RopeConfig { dim, theta, scaling }, ..synthetic::phi4() })
    }

    #[track_caller]
    fn assert_close(found: &[f32], expected: &[f32]) {
        assert_eq!(found.len(), expected.len());
        assert!(
            found.iter().zip(expected).all(|(a, b)| (a - b).abs() <= 2e-7 * b.abs().max(1e-3)),
            "{found:?} is not {expected:?}"
        );
    }

    #[test]
    fn plain_and_linear_frequencies() {
        let plain = [1.0, 0.1, 0.01, 0.001];
        assert_close(table(8, 10_000.0, RopeScaling::None).frequencies(1), &plain);
        let linear = table(8, 10_000.0, RopeScaling::Linear { factor: 4.0 });
        assert_close(linear.frequencies(1), &plain.map(|f| f / 4.0));
    }

    /// Against `LlamaRotaryEmbedding`'s formula, written out by wavelength as there.
    #[test]
    fn llama3_keeps_high_divides_low_and_ramps_between() {
        let (factor, low, high, context) = (8.0, 1.0, 4.0, 8192);
        let scaling = RopeScaling::Llama3 {
            factor: factor as f32,
            low_freq_factor: low as f32,
            high_freq_factor: high as f32,
            original_context: context,
        };
        let mut regimes = [0; 3];
        let expected: Vec<f32> = (0..64)
            .map(|i| {
                let f = 500_000f64.powf(-(i as f64) / 64.0);
                let wavelength = TAU / f;
                if wavelength < context as f64 / high {
                    regimes[0] += 1;
                    f as f32
                } else if wavelength > context as f64 / low {
                    regimes[1] += 1;
                    (f / factor) as f32
                } else {
                    regimes[2] += 1;
                    let smooth = (context as f64 / wavelength - low) / (high - low);
                    ((1.0 - smooth) * f / factor + smooth * f) as f32
                }
            })
            .collect();
        assert!(regimes.iter().all(|&n| n > 0), "{regimes:?}");
        assert_close(table(128, 500_000.0, scaling).frequencies(1), &expected);
    }

    #[test]
    fn longrope_switches_past_the_original_context() {
        let scaling = RopeScaling::LongRope {
            short_factor: vec![1.0, 2.0],
            long_factor: vec![4.0, 8.0],
            original_context: 10,
            attention_factor: 1.5,
        };
        let table = table(4, 100.0, scaling);
        assert_close(table.frequencies(10), &[1.0, 0.05]);
        assert_close(table.frequencies(11), &[0.25, 0.0125]);
        let (mut cos, mut sin) = ([0.0; 2], [0.0; 2]);
        table.fill(3, 10, &mut cos, &mut sin);
        assert_close(&cos, &[1.5 * 3f32.cos(), 1.5 * 0.15f32.cos()]);
        assert_close(&sin, &[1.5 * 3f32.sin(), 1.5 * 0.15f32.sin()]);
    }

    #[test]
    fn rotate_turns_half_split_pairs_and_leaves_the_rest() {
        let mut head = [1.0, 2.0, 3.0, 4.0, 5.0];
        rotate(&mut head, &[0.0, 1.0], &[1.0, 0.0]);
        assert_eq!(head, [-3.0, 2.0, 1.0, 4.0, 5.0]);
    }

    #[test]
    fn angles_are_rounded_to_f32_as_in_transformers() {
        let table = table(128, 250_000.0, RopeScaling::None);
        let (mut cos, mut sin) = (vec![0.0; 64], vec![0.0; 64]);
        table.fill(16_383, 16_384, &mut cos, &mut sin);
        let angle = 16_383f32 * table.frequencies(16_384)[1];
        assert_eq!(cos[1], f64::from(angle).cos() as f32);
    }
}
