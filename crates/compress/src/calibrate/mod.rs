//! Running a model over text while it is compressed, and measuring what compression did to it.

mod backward;
mod cost;
mod forward;
mod head;
mod hessian;
mod ldlq;
mod linalg;
mod measure;
mod sensitivity;
mod text;
mod walk;

pub(crate) use ldlq::values;
pub use measure::{Divergence, divergence};
pub use sensitivity::sensitivities;
pub use text::Calibration;
pub(crate) use walk::{Outcome, Store, Walk};
