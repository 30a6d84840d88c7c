//! Running a model over text while it is compressed, and measuring what compression did to it.

mod backward;
mod clock;
mod cost;
mod feedback;
mod forward;
mod head;
mod heads;
mod hessian;
mod ldlq;
mod linalg;
mod measure;
mod output;
mod sensitivity;
mod text;
mod walk;

pub(crate) use clock::{Clock, Phase};
pub(crate) use hessian::Factor;
pub(crate) use ldlq::{Rounded, round, round_nearest, values};
pub use measure::{Divergence, divergence};
pub(crate) use output::Outputs;
pub use sensitivity::sensitivities;
pub use text::Calibration;
pub(crate) use walk::{Outcome, Store, Walk};
