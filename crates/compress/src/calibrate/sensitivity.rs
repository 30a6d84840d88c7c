//! What rounding each tensor alone does to the model's output, measured.

use upg_codec::Bits;
use upg_format::{TensorKind, TensorName};

use super::{
    forward::{Activations, Forward, Head, Layer, MATRICES, decoded},
    ldlq::values,
    measure::{Divergence, compare, second_halves, whole_sequences},
    walk::Calibration,
};
use crate::{CompressError, Folded, Sensitivities, relative_error, round::round_rows};

/// The code that every tensor is rounded to, one at a time.
const PROBE: Bits = Bits::B3;

/// Measures every matrix's [`Sensitivities`]: the mean KL divergence that rounding it alone to 3 bits causes, over the
/// second halves of the text's sequences, per unit of relative error.
///
/// A residual stream for each matrix leaves the unrounded model's at the matrix's layer, and all streams pass a layer
/// together: each layer is loaded once, and seven times as many streams as layers are held, `[tokens, hidden]` each.
/// `progress` gets the fraction done. Uses the current rayon pool.
///
/// # Errors
/// Text shorter than a sequence; weights that cannot be read or rounded.
pub fn sensitivities(
    folded: &Folded<'_>,
    text: &Calibration,
    progress: &dyn Fn(f64),
) -> Result<Sensitivities, CompressError> {
    let forward = Forward::new(folded.config(), text.ctx);
    let tokens = whole_sequences(&text.tokens, text.ctx, forward.config.vocab)?;
    let mut probe = Probe { folded, forward, x: Vec::new(), streams: Vec::new() };
    probe.embed(tokens)?;
    let layers = folded.config().layers;
    for index in 0..layers {
        probe.layer(index)?;
        // The streams so far pass each layer.
        progress(((index + 1) as f64 / (layers + 1) as f64).powi(2));
    }
    probe.finish()
}

/// The streams on their way.
struct Probe<'a> {
    folded: &'a Folded<'a>,
    forward: Forward,
    /// Of the unrounded model.
    x: Activations,
    /// Of the models in which one tensor is rounded.
    streams: Vec<(TensorName, Activations)>,
}

impl Probe<'_> {
    fn embed(&mut self, tokens: &[u32]) -> Result<(), CompressError> {
        let name = TensorName::global(TensorKind::Embed);
        let mut embedding = decoded(self.folded, name)?;
        self.x = self.forward.embed(&embedding, tokens);
        // A tied embedding is also the head, which does most of its harm; that is measured at the end.
        if !self.forward.config.tied_embeddings {
            rounded(name, &mut embedding, self.forward.config.hidden)?;
            self.streams.push((name, self.forward.embed(&embedding, tokens)));
        }
        Ok(())
    }

    fn layer(&mut self, index: usize) -> Result<(), CompressError> {
        let mut layer = Layer::load(self.folded, index)?;
        self.streams.iter_mut().for_each(|(_, x)| self.forward.layer(&layer, x));
        for kind in MATRICES {
            let name = TensorName::new(index, kind);
            let kept = layer.matrix(kind).to_vec();
            rounded(name, layer.matrix_mut(kind), name.shape(&self.forward.config)[1])?;
            let mut x = self.x.clone();
            self.forward.layer(&layer, &mut x);
            self.streams.push((name, x));
            *layer.matrix_mut(kind) = kept;
        }
        self.forward.layer(&layer, &mut self.x);
        Ok(())
    }

    fn finish(mut self) -> Result<Sensitivities, CompressError> {
        let hidden = self.forward.config.hidden;
        let head = Head::load(self.folded)?;
        let input =
            |head: &Head, x: &[f32]| head.input(&self.forward, &second_halves(x, self.forward.ctx, hidden));
        let truth = input(&head, &self.x);
        let harm = |kl: Divergence| kl.mean() / relative_error(PROBE);
        let mut found: Vec<(TensorName, f64)> = Vec::new();
        for (name, x) in std::mem::take(&mut self.streams) {
            found.push((name, harm(compare((&head, &truth), (&head, &input(&head, &x)), hidden))));
        }
        let kind = if self.forward.config.tied_embeddings { TensorKind::Embed } else { TensorKind::Head };
        let mut other = Head::load(self.folded)?;
        rounded(TensorName::global(kind), other.matrix_mut(), hidden)?;
        found.push((TensorName::global(kind), harm(compare((&head, &truth), (&other, &truth), hidden))));
        Ok(Sensitivities::measured(found))
    }
}

/// Rounds a matrix to [`PROBE`], in place.
fn rounded(name: TensorName, w: &mut [f32], cols: usize) -> Result<(), CompressError> {
    let row_bytes = cols / upg_codec::GROUP * PROBE.group_bytes();
    // As many rows at a time as keep all threads busy: an embedding's codes need not be held whole.
    for (chunk, w) in w.chunks_mut(4096 * cols).enumerate() {
        let rows = w.len() / cols;
        let (mut scales, mut codes) = (vec![half::f16::ZERO; rows], vec![0; rows * row_bytes]);
        round_rows(PROBE, w, cols, &mut scales, &mut codes)
            .map_err(|row| CompressError::TooLarge { name, row: chunk * 4096 + row.0 })?;
        w.copy_from_slice(&values(PROBE, &scales, &codes, cols));
    }
    Ok(())
}
