use pyo3::prelude::*;
use upg_engine::{GenerationOptions, SamplingOptions};

use crate::error::raise_engine;

/// Texts that end an answer.
#[derive(FromPyObject)]
enum Stops {
    One(String),
    Several(Vec<String>),
}

/// How an answer is generated: checked once, used for any number of answers.
#[pyclass(frozen, module = "upg._upg")]
pub struct Options(pub GenerationOptions);

#[pymethods]
impl Options {
    #[new]
    #[pyo3(signature = (
        *,
        max_tokens = None,
        temperature = SamplingOptions::default().temperature,
        top_k = SamplingOptions::default().top_k,
        top_p = SamplingOptions::default().top_p,
        min_p = SamplingOptions::default().min_p,
        repetition_penalty = SamplingOptions::default().repetition_penalty,
        presence_penalty = SamplingOptions::default().presence_penalty,
        frequency_penalty = SamplingOptions::default().frequency_penalty,
        penalty_window = SamplingOptions::default().penalty_window,
        seed = None,
        logprobs = None,
        stop = Stops::Several(Vec::new()),
        ignore_stop_tokens = false,
    ))]
    #[allow(clippy::too_many_arguments, reason = "they are keywords in Python")]
    fn new(
        max_tokens: Option<usize>,
        temperature: f32,
        top_k: usize,
        top_p: f32,
        min_p: f32,
        repetition_penalty: f32,
        presence_penalty: f32,
        frequency_penalty: f32,
        penalty_window: usize,
        seed: Option<u64>,
        logprobs: Option<usize>,
        stop: Stops,
        ignore_stop_tokens: bool,
    ) -> PyResult<Self> {
        let sampling = SamplingOptions {
            temperature,
            top_k,
            top_p,
            min_p,
            repetition_penalty,
            presence_penalty,
            frequency_penalty,
            penalty_window,
            seed,
            logprobs,
        };
        let stop = match stop {
            Stops::One(text) => vec![text],
            Stops::Several(texts) => texts,
        };
        let options = GenerationOptions { sampling, max_tokens, stop, ignore_stop_tokens };
        options.validate().map_err(raise_engine)?;
        Ok(Self(options))
    }
}
