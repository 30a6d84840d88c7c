use std::{io, path::PathBuf};

use upg_checkpoint::CheckpointError;
use upg_format::{FormatError, TensorName};
use upg_pdvm::WeightsError;

use crate::Target;

/// Why a checkpoint could not be compressed. Every message ends with what to do.
#[derive(Debug, thiserror::Error)]
pub enum CompressError {
    /// The checkpoint could not be read.
    #[error(transparent)]
    Checkpoint(CheckpointError),
    /// Weights could not be read for a forward pass.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// Text that a forward pass cannot run on.
    #[error("{0}")]
    Text(String),
    /// The file could not be written.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// A source file could not be hashed.
    #[error("cannot read {}: {source}; check that it is still there and readable", path.display())]
    Source {
        /// The file.
        path: PathBuf,
        /// The operating system's reason.
        source: io::Error,
    },
    /// The plan of an unfinished file could not be kept.
    #[error("cannot write {}: {source}; check the folder's room and permissions", path.display())]
    Kept {
        /// The file.
        path: PathBuf,
        /// The operating system's reason.
        source: io::Error,
    },
    /// Too little memory was allowed.
    #[error("calibration of this model needs about {} MiB; allow as much with --memory, or pass --calibrate none", .0 >> 20)]
    Memory(u64),
    /// The checkpoint holds an infinity or NaN.
    #[error("row {row} of {name} holds {value}: the checkpoint is damaged; fetch it again")]
    NotFinite {
        /// The tensor.
        name: TensorName,
        /// The first row that holds one.
        row: usize,
        /// The number.
        value: f32,
    },
    /// Calibration text makes the model overflow.
    #[error(
        "the inputs of {0} are not finite on the calibration text; check the checkpoint, or calibrate on other text"
    )]
    Activations(TensorName),
    /// A row's numbers are too large for its scale, an `f16`, or for an `f16` tensor.
    #[error("row {row} of {name} is too large for f16 scales; plan this tensor as f32")]
    TooLarge {
        /// The tensor.
        name: TensorName,
        /// The row, as folded.
        row: usize,
    },
    /// A target that is not a positive number.
    #[error("{0} is not a size; give a positive number")]
    TargetNotPositive(Target),
    /// No plan is that small.
    #[error(
        "{target} means {budget} bytes, but the smallest file of this model has {smallest}; ask for at most \
         --ratio {ratio:.2} or at least --bits {bits:.3}"
    )]
    TargetTooSmall {
        /// What was asked for.
        target: Target,
        /// Its bytes.
        budget: u64,
        /// Bytes of the smallest file.
        smallest: u64,
        /// The smallest file's ratio to fp32, rounded down so that it can be had.
        ratio: f64,
        /// The smallest file's bits a weight, rounded up so that they can be had.
        bits: f64,
    },
    /// A plan that does not fit the model.
    #[error("{0}; start from the plan that `upg compress` prints for this model")]
    Plan(String),
    /// Asked to stop.
    #[error("stopped; the same command goes on from the tensors that are finished")]
    Cancelled,
}

impl From<CheckpointError> for CompressError {
    fn from(error: CheckpointError) -> Self {
        match error {
            CheckpointError::Cancelled => Self::Cancelled,
            error => Self::Checkpoint(error),
        }
    }
}
