//! Rounding the matrix that makes logits with feedback.

use upg_format::{Encoding, TensorKind, TensorName};

use super::{
    clock::Clock,
    feedback::{Candidate, Choice, Inputs, sampled},
    forward::{Activations, Forward},
    head::Head,
    hessian::Factor,
    measure::run,
    text::{Calibration, HELD_OUT},
};
use crate::{CompressError, Folded, Progress};

/// Sequences that a head which is also the embedding is rounded by, at most: the whole model runs over them once more.
const TIED_SEQUENCES: usize = 2 * HELD_OUT;

/// What the matrix that makes logits is applied to.
pub(crate) struct Outputs {
    /// `[tokens, hidden]`: tokens to learn from, then those held out.
    x: Activations,
    learning: usize,
}

impl Outputs {
    /// From the final residual stream, `[tokens, hidden]`, of a model whose head is its own.
    pub(super) fn new(forward: &Forward, stream: &[f32], learning: usize) -> Self {
        Self { x: forward.normed(stream), learning }
    }

    /// Of the uncompressed model: embeddings are rounded before any layer, so a head that is one cannot see the compressed
    /// layers.
    pub(crate) fn tied(folded: &Folded<'_>, text: &Calibration) -> Result<Self, CompressError> {
        let text = text.start(TIED_SEQUENCES);
        let (tokens, learning) = text.split(folded.config())?;
        let forward = Forward::new(folded.config(), text.ctx);
        let stream = run(&forward, folded, &tokens)?;
        Ok(Self { x: Head::load(folded)?.input(&forward, &stream), learning })
    }

    /// The factor by which errors of the matrix `name` are passed on when it is rounded to `encoding`; none where that is not
    /// worth it.
    pub(crate) fn factor(
        &self,
        folded: &Folded<'_>,
        name: TensorName,
        encoding: Encoding,
        progress: &dyn Progress,
        clock: &Clock,
    ) -> Result<Option<Factor>, CompressError> {
        let Encoding::T8(bits) = encoding else { return Ok(None) };
        let is_read = name.kind() == TensorKind::Embed;
        if !self.x.iter().all(|x| x.is_finite()) {
            // Where it is the embedding, the layers come later: one of them will be named.
            return if is_read { Ok(None) } else { Err(CompressError::Activations(name)) };
        }
        let [rows, width] = name.shape(folded.config());
        let indices: Vec<usize> = sampled(rows).collect();
        let mut samples = vec![0.0; indices.len() * width];
        for (row, sample) in indices.into_iter().zip(samples.chunks_exact_mut(width)) {
            folded.rows(name, row..row + 1, sample)?;
        }
        let inputs = Inputs { x: &self.x, width, learning: self.learning };
        let mut choice =
            Choice::new(&[Candidate { name, bits, rows: samples, is_read }], inputs, progress, clock);
        Ok(choice.factor(name, inputs, progress, clock))
    }
}
