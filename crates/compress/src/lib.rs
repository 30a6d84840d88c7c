//! A checkpoint becomes a `.upg` file: norm gains and rotation folded in, bits allocated, weights rounded to T8.
//!
//! [`compress()`] streams: rows are read, folded ([`fold::Folded`]), rounded ([`round::round_rows`]) and written a few
//! megabytes at a time, so memory does not grow with the model. [`plan::allocate`] meets a size for the whole file
//! before the first row is read. The same checkpoint, target and options give the same bytes on any number of
//! threads, interrupted or not.

pub mod calibrate;
mod compress;
mod error;
pub mod fold;
mod hadamard;
mod kept;
mod os;
pub mod plan;
mod progress;
mod report;
pub mod round;
mod sensitivity;
mod source;
mod table;

pub use compress::{Options, compress};
pub use error::CompressError;
pub use fold::Folded;
pub use os::peak_rss;
pub use plan::{Plan, Target};
pub use progress::Progress;
pub use report::{Report, TensorReport};
pub use sensitivity::{Sensitivities, relative_error};
