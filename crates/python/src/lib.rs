//! The native part of the Python package `upg`: what needs the engine, and nothing more. The package's own interface,
//! and the words about it, are in `python/upg`; `_upg.pyi` there describes this module and is held to it by a test.

mod arrays;
mod command;
mod engine;
mod error;
mod generation;
mod options;
mod seats;
mod tokenizer;
mod watch;

use pyo3::prelude::*;

/// The native part of upg. Use the package `upg` instead.
#[pymodule]
mod _upg {
    #[pymodule_export]
    use crate::{
        command::{call, main},
        engine::Engine,
        generation::Generation,
        options::Options,
        tokenizer::Tokenizer,
    };

    use super::*;

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        module.add("__version__", env!("CARGO_PKG_VERSION"))
    }
}
