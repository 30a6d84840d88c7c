use std::{
    path::PathBuf,
    sync::{Arc, atomic::AtomicBool},
};

use numpy::{PyArray1, PyArray2};
use parking_lot::{Mutex, MutexGuard};
use pyo3::{exceptions::PyRuntimeError, prelude::*};
use upg_engine::{EngineError, EngineOptions};
use upg_pdvm::{KvKind, kv_kind::UnknownKvKind};

use crate::{
    arrays::{Tokens, buffer, from_json, matrix},
    error::{ClosedError, OptionError, raise, raise_engine},
    generation::{Generation, RawCompletion, raw_completion},
    options::Options,
    seats::{Seats, Use},
    tokenizer::Tokenizer,
    watch::watched,
};

/// A model on a device.
#[pyclass(frozen, module = "upg._upg")]
pub struct Engine {
    shared: Arc<Shared>,
    language: Arc<upg_engine::Language>,
    config: String,
    info: String,
    vocab: usize,
}

/// What an engine and its generations share.
pub struct Shared {
    /// `None` once closed.
    engine: Mutex<Option<upg_engine::Engine>>,
    pub seats: Arc<Seats>,
    /// Threads do not survive a fork.
    process: u32,
}

impl Shared {
    /// Uses the engine, alone. Callers that wait get their turn in order, so that generations share the machine fairly.
    pub fn with<T>(
        &self,
        work: impl FnOnce(&mut upg_engine::Engine) -> Result<T, EngineError>,
    ) -> PyResult<T> {
        if std::process::id() != self.process {
            return Err(PyRuntimeError::new_err(
                "the model was loaded before a fork: load it in this process, or start processes with 'spawn'",
            ));
        }
        let mut guard = self.engine.lock();
        let Some(engine) = guard.as_mut() else {
            return Err(ClosedError::new_err("the model is closed: load it again"));
        };
        let result = work(engine);
        MutexGuard::unlock_fair(guard);
        result.map_err(raise_engine)
    }

    /// [`Shared::with`] for work that takes a while, on a sequence that it opens by itself.
    fn alone<T: Send>(
        &self,
        py: Python<'_>,
        work: impl FnOnce(&mut upg_engine::Engine, &AtomicBool) -> Result<T, EngineError> + Send,
    ) -> PyResult<T> {
        let mut seat = self.seats.take(py, Use::Call, &[])?;
        let cancel = AtomicBool::new(false);
        let session = seat.session.take();
        watched(py, &cancel, &mut |()| Ok(()), |_events| {
            self.with(|engine| {
                // Sequences that nobody uses are worth less than those that the work needs.
                session.into_iter().chain(self.seats.drain()).for_each(|session| engine.close(session));
                work(engine, &cancel)
            })
        })?
    }
}

#[pymethods]
impl Engine {
    #[new]
    #[pyo3(signature = (
        path, *, device = "auto", threads = None, context = None, kv = None,
        sequences = EngineOptions::default().sequences, max_batch = EngineOptions::default().max_batch,
        progress = None,
    ))]
    #[allow(clippy::too_many_arguments, reason = "they are keywords in Python")]
    fn new(
        py: Python<'_>,
        path: PathBuf,
        device: &str,
        threads: Option<usize>,
        context: Option<usize>,
        kv: Option<&str>,
        sequences: usize,
        max_batch: usize,
        progress: Option<Bound<'_, PyAny>>,
    ) -> PyResult<Self> {
        let kv = kv.map(kv_kind).transpose()?;
        let device = device.to_owned();
        let options = EngineOptions { device, threads, context, kv, sequences, max_batch };
        let mut hear = |done: f32| match &progress {
            Some(progress) => progress.call1((done,)).map(drop),
            None => Ok(()),
        };
        let engine = watched(py, &AtomicBool::new(false), &mut hear, |events| {
            upg_cli::load_engine(&path, &options, &mut |done| {
                // Nobody hears any more: the caller has gone.
                let _ = events.send(done);
            })
        })?;
        let engine = engine.map_err(|error| raise(&error))?;
        Ok(Self::wrap(engine))
    }

    /// The model's configuration, as in the file's header.
    fn config<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        from_json(py, &self.config)
    }

    /// What the machine is.
    fn info<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        from_json(py, &self.info)
    }

    #[getter]
    fn tokenizer(&self) -> Tokenizer {
        Tokenizer(Arc::clone(&self.language))
    }

    /// Runs a prompt. `stream`: the sequence is held until the generation ends or is closed.
    #[pyo3(signature = (tokens, options, *, stream))]
    fn start(&self, py: Python<'_>, tokens: Tokens, options: &Options, stream: bool) -> PyResult<Generation> {
        let wanted = if stream { Use::Stream } else { Use::Call };
        Generation::start(py, Arc::clone(&self.shared), &tokens.0, options, wanted)
    }

    /// Continues several prompts in lock-step.
    fn batch(&self, py: Python<'_>, prompts: Vec<Tokens>, options: &Options) -> PyResult<Vec<RawCompletion>> {
        let prompts: Vec<Vec<u32>> = prompts.into_iter().map(|tokens| tokens.0).collect();
        let answers = self.shared.alone(py, |engine, cancel| {
            engine.generate_batch(&prompts, &options.0, cancel, &mut |_, _| ())
        })?;
        Ok(answers.into_iter().map(raw_completion).collect())
    }

    /// Logits after each token, `[tokens, vocab]`.
    fn logits<'py>(&self, py: Python<'py>, tokens: Tokens) -> PyResult<Bound<'py, PyArray2<f32>>> {
        let (rows, cols) = (tokens.0.len(), self.vocab);
        let mut numbers = buffer(rows, cols)?;
        self.shared.alone(py, |engine, cancel| engine.logits(&tokens.0, &mut numbers, cancel))?;
        matrix(py, numbers, rows, cols)
    }

    /// Natural log-probability of each token but the first, `[tokens - 1]`.
    fn score<'py>(&self, py: Python<'py>, tokens: Tokens) -> PyResult<Bound<'py, PyArray1<f32>>> {
        let scores = self.shared.alone(py, |engine, cancel| engine.log_probabilities(&tokens.0, cancel))?;
        Ok(PyArray1::from_vec(py, scores))
    }

    /// Frees the model's memory, once the step under way is done.
    fn close(&self, py: Python<'_>) {
        py.detach(|| drop(self.shared.engine.lock().take()));
    }

    #[getter]
    fn closed(&self, py: Python<'_>) -> bool {
        py.detach(|| self.shared.engine.lock().is_none())
    }
}

impl Engine {
    fn wrap(engine: upg_engine::Engine) -> Self {
        let info = engine.machine().info();
        let options = engine.machine().options().clone();
        let cores = || std::thread::available_parallelism().map_or(1, usize::from);
        let told = serde_json::json!({
            "device": info.name,
            "detail": info.detail,
            "threads": options.threads.unwrap_or_else(cores),
            "context": options.context,
            "sequences": options.sequences,
            "max_batch": options.max_batch,
            "kv": options.kv.name(),
            "weight_bytes": info.weight_bytes,
            "kv_bytes_per_token": info.kv_bytes_per_token,
            "parameters": upg_compress::plan::parameters(engine.config()),
        });
        Self {
            language: Arc::clone(engine.language()),
            config: serde_json::to_value(engine.config()).unwrap_or_default().to_string(),
            info: told.to_string(),
            vocab: engine.config().vocab,
            shared: Arc::new(Shared {
                seats: Seats::new(options.sequences),
                engine: Mutex::new(Some(engine)),
                process: std::process::id(),
            }),
        }
    }
}

fn kv_kind(name: &str) -> PyResult<KvKind> {
    name.parse().map_err(|error: UnknownKvKind| OptionError::new_err(error.to_string()))
}
