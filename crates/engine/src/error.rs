use upg_format::FormatError;
use upg_pdvm::MachineError;

use crate::{SamplingError, TemplateError, TokenizerError};

/// Why the engine cannot do what was asked. Every message ends with what to do.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The file could not be read.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// The machine failed or refused.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// The tokenizer failed.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// The chat template failed.
    #[error(transparent)]
    Template(#[from] TemplateError),
    /// The sampling options are wrong, or the logits are.
    #[error(transparent)]
    Sampling(#[from] SamplingError),
    /// `UPG_ISA` is wrong.
    #[error(transparent)]
    Isa(#[from] upg_codec::IsaError),
    /// No device of that name.
    #[error("there is no device {name:?}: known devices are {known}")]
    UnknownDevice {
        /// The name given.
        name: String,
        /// The names there are.
        known: String,
    },
    /// The prompt does not fit the context.
    #[error(
        "the prompt has {prompt} tokens but the context holds {context}: shorten the prompt, or load the model with \
         a larger context (the model allows {model})"
    )]
    PromptTooLong {
        /// Tokens of the prompt.
        prompt: usize,
        /// Tokens that a sequence may have.
        context: usize,
        /// Tokens that the model was made for.
        model: usize,
    },
    /// The context asked for is not one the model can have.
    #[error("a context of {asked} tokens was asked for but the model allows 1 to {model}: ask for less")]
    Context {
        /// The context asked for.
        asked: usize,
        /// The most the model allows.
        model: usize,
    },
    /// There is nothing to continue.
    #[error("the prompt is empty: give at least one token")]
    EmptyPrompt,
    /// An option has a value that makes no sense.
    #[error("{option} is {value}: {remedy}")]
    Option {
        /// The option's name.
        option: &'static str,
        /// Its value.
        value: String,
        /// What to do.
        remedy: &'static str,
    },
    /// A text is too short to be measured.
    #[error("the text has {tokens} tokens but one chunk takes {chunk}: give a longer text or smaller chunks")]
    ShortText {
        /// Its tokens.
        tokens: usize,
        /// Tokens of a chunk.
        chunk: usize,
    },
    /// Two models that cannot be compared.
    #[error(
        "vocabularies of {0} and {1} entries cannot be compared: give the checkpoint that the model was made from"
    )]
    Vocabularies(usize, usize),
    /// Whoever gets the logits could not take them.
    #[error("{0}")]
    Logits(String),
    /// The cancellation flag was set.
    #[error("cancelled")]
    Cancelled,
    /// The model has no chat template.
    #[error("the model has no chat template: give it a plain prompt instead of messages")]
    NoTemplate,
}
