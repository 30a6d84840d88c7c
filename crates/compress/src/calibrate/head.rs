//! What makes logits of the residual stream.

use rayon::prelude::*;
use upg_format::{TensorKind, TensorName};
use upg_pdvm::{Weights, rotation::Rotation};

use super::{
    forward::{Activations, Forward, decoded},
    linalg::{Into, View, ViewMut, multiply},
};
use crate::CompressError;

/// What makes logits of the residual stream.
pub(crate) struct Head {
    /// `[vocab, hidden]`.
    matrix: Vec<f32>,
    /// With tied embeddings, the final norm's gain and the rotation round it.
    gain: Option<(Vec<f32>, Option<Rotation>)>,
}

impl Head {
    pub(crate) fn load(weights: &dyn Weights) -> Result<Self, CompressError> {
        let config = weights.config();
        let tensor = |kind| decoded(weights, TensorName::global(kind));
        if !config.tied_embeddings {
            return Ok(Self { matrix: tensor(TensorKind::Head)?, gain: None });
        }
        let rotation = config.rotation.map(|r| Rotation::residual(config.hidden, r.seed));
        Ok(Self {
            matrix: tensor(TensorKind::Embed)?,
            gain: Some((tensor(TensorKind::FinalNorm)?, rotation)),
        })
    }

    /// The head's input: the normed stream, with the gain where the matrix does not hold it.
    pub(crate) fn input(&self, forward: &Forward, x: &[f32]) -> Activations {
        let mut normed = forward.normed(x);
        self.gain(&mut normed);
        normed
    }

    /// Applies the gain, in place; a symmetric matrix, so that it is its own backward pass.
    fn gain(&self, normed: &mut [f32]) {
        let Some((gain, rotation)) = &self.gain else { return };
        normed.par_chunks_mut(gain.len()).for_each(|x| {
            rotation.iter().for_each(|r| r.undo(x));
            x.iter_mut().zip(gain).for_each(|(x, gain)| *x *= gain);
            rotation.iter().for_each(|r| r.apply(x));
        });
    }

    /// From gradients with respect to logits, `[tokens, vocab]`, to those with respect to the residual stream `x` before
    /// the last norm.
    pub(crate) fn back(&self, forward: &Forward, x: &[f32], logits: &[f32]) -> Activations {
        let hidden = forward.config.hidden;
        let mut gradient = vec![0.0; x.len()];
        let (g, w) = (View::rows(logits, self.vocab(hidden)), View::rows(&self.matrix, hidden));
        multiply(ViewMut::rows(&mut gradient, hidden), Into::Fresh, g, w);
        self.gain(&mut gradient);
        forward.norm_back(x, &mut gradient);
        gradient
    }

    /// The matrix, `[vocab, hidden]`.
    pub(crate) fn matrix(&self) -> &[f32] {
        &self.matrix
    }

    /// Rows of logits.
    pub(crate) fn vocab(&self, hidden: usize) -> usize {
        self.matrix.len() / hidden
    }

    /// Logits of some tokens, `[tokens, vocab]`, from the head's input, on this thread.
    pub(crate) fn logits(&self, input: &[f32], hidden: usize) -> Vec<f32> {
        let mut logits = vec![0.0; input.len() / hidden * self.vocab(hidden)];
        let (x, w) = (View::rows(input, hidden), View::rows(&self.matrix, hidden));
        multiply(ViewMut::rows(&mut logits, self.vocab(hidden)), Into::Fresh, x, w.t());
        logits
    }
}
