//! Numbers to and from Python.

use numpy::{PyArray1, PyArray2, PyArrayMethods as _};
use pyo3::{
    exceptions::{PyMemoryError, PyTypeError, PyValueError},
    prelude::*,
    types::{PyBytes, PyString},
};
use serde_json::Value;

use crate::error::PromptError;

/// Token ids: any iterable of whole numbers from 0 up, a list or a NumPy array.
pub struct Tokens(pub Vec<u32>);

impl<'py> FromPyObject<'_, 'py> for Tokens {
    type Error = PyErr;

    fn extract(obj: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        if obj.is_instance_of::<PyString>() || obj.is_instance_of::<PyBytes>() {
            return Err(PyTypeError::new_err("tokens are whole numbers: encode the text first"));
        }
        let number = |item: PyResult<Bound<'py, PyAny>>| {
            let item = item?;
            item.extract::<u32>().map_err(|error| match error.is_instance_of::<PyTypeError>(obj.py()) {
                true => error,
                false => PromptError::new_err(format!("{item} is no token: tokens count from 0")),
            })
        };
        Ok(Self(obj.try_iter()?.map(number).collect::<PyResult<_>>()?))
    }
}

/// A zeroed buffer for `rows` rows of `cols` numbers, or `MemoryError`.
pub fn buffer(rows: usize, cols: usize) -> PyResult<Vec<f32>> {
    let mut numbers = Vec::new();
    let len = rows.checked_mul(cols);
    match len.map(|len| (len, numbers.try_reserve_exact(len))) {
        Some((len, Ok(()))) => numbers.resize(len, 0.0),
        _ => {
            return Err(PyMemoryError::new_err(format!(
                "no room for {rows} rows of {cols} numbers: give fewer tokens at once"
            )));
        }
    }
    Ok(numbers)
}

/// The buffer itself as a NumPy array, `[rows, cols]`: nothing is copied.
pub fn matrix(
    py: Python<'_>,
    numbers: Vec<f32>,
    rows: usize,
    cols: usize,
) -> PyResult<Bound<'_, PyArray2<f32>>> {
    PyArray1::from_vec(py, numbers).reshape([rows, cols])
}

/// JSON as Python's own objects.
pub fn from_json<'py>(py: Python<'py>, json: &str) -> PyResult<Bound<'py, PyAny>> {
    py.import("json")?.call_method1("loads", (json,))
}

/// A Python object as JSON.
pub fn to_json(obj: &Bound<'_, PyAny>) -> PyResult<Value> {
    let text: String = obj.py().import("json")?.call_method1("dumps", (obj,))?.extract()?;
    serde_json::from_str(&text).map_err(|error| PyValueError::new_err(error.to_string()))
}
