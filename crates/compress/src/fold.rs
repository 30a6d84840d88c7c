//! Folding norm gains and rotations into the weights, as `upg_pdvm::rotation` defines them.

use std::{borrow::Cow, ops::Range};

use rayon::prelude::*;
use upg_checkpoint::Checkpoint;
use upg_format::{ModelConfig, RotationConfig, TensorKind, TensorName};
use upg_pdvm::{
    Tensor, Weights, WeightsError,
    rotation::{Rotation, block, hadamard},
};

use crate::{CompressError, hadamard::hadamard_rows};

/// Rows that one task reads and folds at a time: enough work to be worth a task, little enough to share out.
const TASK_ROWS: usize = 16;

/// What is folded into a matrix's columns: the side of its input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Input {
    /// Nothing.
    Plain,
    /// The residual stream: the gain of the norm before it (where there is one), then R.
    Residual(Option<TensorKind>),
    /// Values: a Hadamard per head.
    Heads,
    /// The MLP's hidden activations: their signs and Hadamard.
    Mlp,
}

/// What is folded into a matrix's rows: the side of its output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Output {
    /// Nothing.
    Plain,
    /// The residual stream: R.
    Residual,
    /// Values: a Hadamard per head.
    Heads,
    /// The signs of the MLP's rotation; its Hadamard cannot pass the product with the gate and stays at run time.
    MlpSigns,
}

/// The whole of folding, in one table.
fn sides(kind: TensorKind) -> (Input, Output) {
    use TensorKind::*;
    match kind {
        Embed => (Input::Residual(None), Output::Plain),
        Q | K => (Input::Residual(Some(AttnNorm)), Output::Plain),
        V => (Input::Residual(Some(AttnNorm)), Output::Heads),
        O => (Input::Heads, Output::Residual),
        Gate => (Input::Residual(Some(MlpNorm)), Output::Plain),
        Up => (Input::Residual(Some(MlpNorm)), Output::MlpSigns),
        Down => (Input::Mlp, Output::Residual),
        Head => (Input::Residual(Some(FinalNorm)), Output::Plain),
        // A bias is one row whose columns are its matrix's outputs.
        VBias => (Input::Heads, Output::Plain),
        QBias | KBias | AttnNorm | MlpNorm | FinalNorm => (Input::Plain, Output::Plain),
    }
}

/// A checkpoint with norm gains folded into the matrices that follow them and the rotation of
/// [`upg_pdvm::rotation`] folded into all of them, computed row by row as it is asked for.
///
/// The tensors are those of [`TensorName::of_upg`]. As [`Weights`] it gives f32 tensors, so an uncompressed
/// checkpoint runs through the very program that a compressed one runs through.
pub struct Folded<'a> {
    checkpoint: &'a dyn Checkpoint,
    config: ModelConfig,
    rotations: Option<Rotations>,
}

struct Rotations {
    residual: Rotation,
    mlp: Rotation,
}

impl<'a> Folded<'a> {
    /// Folds `checkpoint`; with `rotation: None` only the norms' gains are folded.
    pub fn new(checkpoint: &'a dyn Checkpoint, rotation: Option<RotationConfig>) -> Self {
        let config = ModelConfig { rotation, ..checkpoint.config().clone() };
        let rotations = rotation.map(|RotationConfig { seed }| Rotations {
            residual: Rotation::residual(config.hidden, seed),
            mlp: Rotation::mlp(config.mlp, seed),
        });
        Self { checkpoint, config, rotations }
    }

    /// The configuration of the folded model.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// See [`Checkpoint::file_of`].
    pub(crate) fn file_of(&self, name: TensorName) -> usize {
        self.checkpoint.file_of(name)
    }

    /// See [`Checkpoint::finished`].
    pub(crate) fn finished(&self, name: TensorName) {
        self.checkpoint.finished(name);
    }

    /// The rows that must be asked for together: a rotation of the output side mixes the rows of a block. Divides the
    /// tensor's number of rows.
    pub fn row_step(&self, name: TensorName) -> usize {
        match sides(name.kind()).1 {
            _ if self.rotations.is_none() => 1,
            Output::Plain | Output::MlpSigns => 1,
            Output::Residual => block(self.config.hidden),
            Output::Heads => block(self.config.head_dim),
        }
    }

    /// Writes the folded rows `rows` of a tensor of [`TensorName::of_upg`] to `out`, row after row.
    ///
    /// # Errors
    /// Where the checkpoint cannot be read or holds a number that is not finite.
    ///
    /// # Panics
    /// If `rows` does not start and end at multiples of [`Folded::row_step`], or `out` has another length.
    pub fn rows(&self, name: TensorName, rows: Range<usize>, out: &mut [f32]) -> Result<(), CompressError> {
        let (step, [_, cols]) = (self.row_step(name), name.shape(&self.config));
        assert!(
            rows.start.is_multiple_of(step) && rows.end.is_multiple_of(step),
            "{name}: {rows:?} are not whole blocks of {step}"
        );
        assert_eq!(out.len(), rows.len() * cols, "{name}: room for {rows:?}");
        let (input, output) = sides(name.kind());
        let gain = match input {
            Input::Residual(Some(norm)) => Some(self.gain(TensorName::new(name.layer().unwrap_or(0), norm))?),
            _ => None,
        };
        out.par_chunks_mut(TASK_ROWS * cols).enumerate().try_for_each(|(task, part)| {
            let first = rows.start + task * TASK_ROWS;
            self.read(name, first, cols, part)?;
            part.chunks_exact_mut(cols).for_each(|row| self.fold_row(input, gain.as_deref(), row));
            Ok::<_, CompressError>(())
        })?;
        self.fold_outputs(output, rows.start, cols, out);
        Ok(())
    }

    fn gain(&self, norm: TensorName) -> Result<Vec<f32>, CompressError> {
        let mut gain = vec![0.0; self.config.hidden];
        self.read(norm, 0, self.config.hidden, &mut gain)?;
        Ok(gain)
    }

    /// Rows of the checkpoint as they are, from `first` on; refuses what is not finite.
    fn read(
        &self,
        name: TensorName,
        first: usize,
        cols: usize,
        out: &mut [f32],
    ) -> Result<(), CompressError> {
        self.checkpoint.read_rows(name, first..first + out.len() / cols, out)?;
        match out.iter().position(|x| !x.is_finite()) {
            None => Ok(()),
            Some(at) => Err(CompressError::NotFinite { name, row: first + at / cols, value: out[at] }),
        }
    }

    fn fold_row(&self, input: Input, gain: Option<&[f32]>, row: &mut [f32]) {
        for (x, gain) in row.iter_mut().zip(gain.unwrap_or_default()) {
            *x *= gain;
        }
        let Some(rotations) = &self.rotations else { return };
        match input {
            Input::Plain => {}
            Input::Residual(_) => rotations.residual.apply(row),
            Input::Heads => hadamard(row, block(self.config.head_dim)),
            Input::Mlp => rotations.mlp.apply(row),
        }
    }

    fn fold_outputs(&self, output: Output, first: usize, cols: usize, out: &mut [f32]) {
        let Some(rotations) = &self.rotations else { return };
        match output {
            Output::Plain => {}
            Output::MlpSigns => flip_rows(out, cols, &rotations.mlp.signs()[first..]),
            Output::Residual => {
                flip_rows(out, cols, &rotations.residual.signs()[first..]);
                hadamard_rows(out, cols, block(self.config.hidden));
            }
            Output::Heads => hadamard_rows(out, cols, block(self.config.head_dim)),
        }
    }
}

fn flip_rows(x: &mut [f32], cols: usize, signs: &[f32]) {
    x.par_chunks_mut(cols).zip(signs).for_each(|(row, sign)| row.iter_mut().for_each(|x| *x *= sign));
}

impl Weights for Folded<'_> {
    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn tensor(&self, name: TensorName) -> Result<Tensor<'_>, WeightsError> {
        if !TensorName::of_upg(&self.config).contains(&name) {
            return Err(WeightsError::Missing(name));
        }
        let [rows, cols] = name.shape(&self.config);
        let mut data = vec![0.0; rows * cols];
        self.rows(name, 0..rows, &mut data).map_err(|e| WeightsError::Source { name, source: e.into() })?;
        Ok(Tensor::F32 { rows, cols, data: Cow::Owned(data) })
    }
}
