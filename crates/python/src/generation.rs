use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use parking_lot::Mutex;
use pyo3::prelude::*;
use upg_engine::{Answer, Completion, FinishReason, Piece, Stats, Step};

use crate::{
    engine::Shared,
    options::Options,
    seats::{Seat, Use},
    watch::watched,
};

/// A token: its id, its log-probability, the likeliest tokens.
type RawToken = (u32, Option<f32>, Vec<(u32, f32)>);
/// A piece: its text, its tokens.
type RawPiece = (String, Vec<RawToken>);
/// Prompt tokens, of them cached, generated; seconds of prefill, to the first token, of decoding; bytes a token reads.
type RawStats = (usize, usize, usize, f64, f64, f64, u64);
/// Text, tokens, why it ended, seed, stats.
pub type RawCompletion = (String, Vec<RawToken>, &'static str, u64, RawStats);

/// An answer under way.
#[pyclass(frozen, module = "upg._upg")]
pub struct Generation {
    shared: Arc<Shared>,
    /// Stops it.
    cancel: AtomicBool,
    state: Mutex<State>,
}

struct State {
    answer: Answer,
    /// `None` once it has ended.
    seat: Option<Seat>,
}

impl Generation {
    /// Runs the prompt.
    pub fn start(
        py: Python<'_>,
        shared: Arc<Shared>,
        prompt: &[u32],
        options: &Options,
        wanted: Use,
    ) -> PyResult<Self> {
        let mut seat = shared.seats.take(py, wanted, prompt)?;
        let cancel = AtomicBool::new(false);
        let answer = watched(py, &cancel, &mut |()| Ok(()), |_events| {
            shared.with(|engine| {
                let session = match &mut seat.session {
                    Some(session) => session,
                    none => none.insert(engine.open()?),
                };
                engine.start(session, prompt, &options.0, &cancel, &mut |_, _| ())
            })
        })??;
        let state = Mutex::new(State { answer, seat: Some(seat) });
        Ok(Self { shared, cancel, state })
    }

    /// One token more.
    fn step(&self) -> PyResult<Next> {
        let mut state = self.state.lock();
        let State { answer, seat } = &mut *state;
        let Some(session) = seat.as_mut().and_then(|seat| seat.session.as_mut()) else {
            return Ok(Next::End);
        };
        let ended = answer.finish().is_some();
        let piece = self.shared.with(|engine| engine.advance(session, answer, &self.cancel));
        if piece.is_err() || (ended && matches!(piece, Ok(None))) {
            *seat = None;
        }
        Ok(match piece? {
            Some(piece) => Next::Piece(piece),
            None if ended => Next::End,
            None => Next::Nothing,
        })
    }
}

/// What a token brought.
enum Next {
    Piece(Piece),
    /// There is nothing to show yet.
    Nothing,
    End,
}

#[pymethods]
impl Generation {
    fn __iter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __next__(&self, py: Python<'_>) -> PyResult<Option<RawPiece>> {
        loop {
            let step = py.detach(|| self.step())?;
            if let Err(error) = py.check_signals() {
                self.close(py);
                return Err(error);
            }
            match step {
                Next::Piece(piece) => return Ok(Some((piece.text, raw_tokens(piece.tokens)))),
                Next::End => return Ok(None),
                Next::Nothing => (),
            }
        }
    }

    /// Asks it to end at the next token, from any thread.
    fn cancel(&self) {
        self.cancel.store(true, Ordering::Relaxed);
    }

    /// Ends it and gives its sequence back.
    fn close(&self, py: Python<'_>) {
        self.cancel();
        py.detach(|| self.state.lock().seat = None);
    }

    #[getter]
    fn finish_reason(&self, py: Python<'_>) -> Option<&'static str> {
        py.detach(|| self.state.lock().answer.finish()).map(finish_name)
    }

    #[getter]
    fn seed(&self, py: Python<'_>) -> u64 {
        py.detach(|| self.state.lock().answer.seed())
    }

    fn stats(&self, py: Python<'_>) -> RawStats {
        raw_stats(py.detach(|| self.state.lock().answer.stats()))
    }
}

fn finish_name(finish: FinishReason) -> &'static str {
    match finish {
        FinishReason::Stop => "stop",
        FinishReason::Length => "length",
        FinishReason::Cancelled => "cancelled",
    }
}

fn raw_tokens(tokens: Vec<Step>) -> Vec<RawToken> {
    tokens.into_iter().map(|step| (step.token, step.logprob, step.top)).collect()
}

fn raw_stats(stats: Stats) -> RawStats {
    (
        stats.prompt_tokens,
        stats.cached_tokens,
        stats.generated_tokens,
        stats.prefill.as_secs_f64(),
        stats.first_token.as_secs_f64(),
        stats.decode.as_secs_f64(),
        stats.weight_bytes,
    )
}

/// A whole answer as Python gets it.
pub fn raw_completion(answer: Completion) -> RawCompletion {
    let Completion { text, tokens, finish, seed, stats } = answer;
    (text, raw_tokens(tokens), finish_name(finish), seed, raw_stats(stats))
}
