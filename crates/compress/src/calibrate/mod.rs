//! Running a model over text while it is compressed, and measuring what compression did to it.

mod forward;
mod hessian;
mod ldlq;
mod linalg;
mod measure;
mod sensitivity;
mod walk;

pub(crate) use ldlq::values;
pub use measure::{Divergence, divergence};
pub use sensitivity::sensitivities;
pub use walk::Calibration;
pub(crate) use walk::{Outcome, Store, Walk};
