//! Errors as exceptions: their types are Python's own (`python/upg/_errors.py`), chosen here.

use pyo3::{exceptions::PyKeyboardInterrupt, import_exception, prelude::*};
use upg_checkpoint::CheckpointError;
use upg_cli::{Interrupted, NoSuchModel, UsageError};
use upg_compress::CompressError;
use upg_engine::{EngineError, SamplingError, TemplateError, TokenizerError};
use upg_format::FormatError;
use upg_pdvm::{KvError, MachineError};

import_exception!(upg._errors, UpgError);
import_exception!(upg._errors, ModelError);
import_exception!(upg._errors, ModelNotFoundError);
import_exception!(upg._errors, OptionError);
import_exception!(upg._errors, PromptError);
import_exception!(upg._errors, DeviceError);
import_exception!(upg._errors, BusyError);
import_exception!(upg._errors, ClosedError);

/// The exception for an error: its type by what is in the chain of causes, its message all of them.
pub fn raise(error: &anyhow::Error) -> PyErr {
    let text = message(error);
    let causes = || error.chain();
    if causes().any(|e| e.is::<Interrupted>()) {
        return PyKeyboardInterrupt::new_err(text);
    }
    if causes().any(|e| e.is::<UsageError>()) {
        return OptionError::new_err(text);
    }
    if causes().any(|e| e.is::<NoSuchModel>()) {
        return ModelNotFoundError::new_err(text);
    }
    if let Some(error) = causes().find_map(|e| e.downcast_ref::<EngineError>()) {
        return engine(error, text);
    }
    if let Some(error) = causes().find_map(|e| e.downcast_ref::<CompressError>()) {
        return compress(error, text);
    }
    if causes().any(|e| e.is::<FormatError>() || e.is::<CheckpointError>()) {
        return ModelError::new_err(text);
    }
    UpgError::new_err(text)
}

/// [`raise`] for the engine's own errors.
pub fn raise_engine(error: EngineError) -> PyErr {
    raise(&error.into())
}

/// The causes from the outermost in. Errors that pass their cause's text on are not told twice.
fn message(error: &anyhow::Error) -> String {
    let mut text = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !text.ends_with(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

fn engine(error: &EngineError, text: String) -> PyErr {
    match error {
        EngineError::Machine(MachineError::Kv(KvError::TooManySequences(_))) => BusyError::new_err(text),
        EngineError::Machine(MachineError::Weights(_) | MachineError::NoNumbers)
        | EngineError::Format(_)
        | EngineError::Tokenizer(TokenizerError::Load(_) | TokenizerError::Vocabulary { .. })
        | EngineError::Template(TemplateError::Compile(_))
        | EngineError::Sampling(SamplingError::Logit { .. }) => ModelError::new_err(text),
        EngineError::Machine(MachineError::Kv(_) | MachineError::Token { .. })
        | EngineError::Tokenizer(_)
        | EngineError::Template(_)
        | EngineError::PromptTooLong { .. }
        | EngineError::EmptyPrompt
        | EngineError::ShortText { .. }
        | EngineError::NoTemplate => PromptError::new_err(text),
        EngineError::Machine(_) | EngineError::Logits(_) => DeviceError::new_err(text),
        EngineError::Cancelled => PyKeyboardInterrupt::new_err(text),
        EngineError::Sampling(_)
        | EngineError::Isa(_)
        | EngineError::UnknownDevice { .. }
        | EngineError::Context { .. }
        | EngineError::Vocabularies(..)
        | EngineError::Option { .. } => OptionError::new_err(text),
    }
}

fn compress(error: &CompressError, text: String) -> PyErr {
    match error {
        CompressError::TargetNotPositive(_)
        | CompressError::TargetTooSmall { .. }
        | CompressError::Text(_)
        | CompressError::Plan(_) => OptionError::new_err(text),
        _ => ModelError::new_err(text),
    }
}
