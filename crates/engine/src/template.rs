//! Chat templates.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::Tokenizer;

/// One message of a conversation, in the shape of OpenAI's and transformers' dictionaries.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Message {
    /// `system`, `user`, `assistant`, `tool`, …
    pub role: String,
    /// A text; or what the template makes of lists and nulls.
    #[serde(default)]
    pub content: Value,
    /// Everything else (`tool_calls`, `name`, …), for the template.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl Message {
    /// A message with a text.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: Value::String(content.into()), extra: Map::new() }
    }
}

/// What a template is rendered with.
#[derive(Clone, Copy, Debug)]
pub struct TemplateInput<'a> {
    /// The conversation so far.
    pub messages: &'a [Message],
    /// Descriptions of the tools that the model may call (JSON schema).
    pub tools: &'a [Value],
    /// Ends the prompt with the header of the assistant's answer.
    pub add_generation_prompt: bool,
    /// Further variables that a template may ask for.
    pub extra: Option<&'a Map<String, Value>>,
}

/// Why a template cannot be compiled or rendered.
#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    /// The template is not valid Jinja.
    #[error("the model's chat template cannot be compiled ({0}): give a plain prompt instead of messages")]
    Compile(String),
    /// It failed for these messages.
    #[error("the chat template refused these messages: {0}")]
    Render(String),
}

/// A compiled chat template.
pub struct ChatTemplate;

impl ChatTemplate {
    /// Compiles a template; `bos` and `eos` are the spellings of those tokens, for the variables `bos_token` and
    /// `eos_token`.
    ///
    /// # Errors
    /// [`TemplateError::Compile`].
    pub fn new(source: &str, bos: Option<&str>, eos: Option<&str>) -> Result<Self, TemplateError> {
        let _ = (source, bos, eos);
        todo!()
    }

    /// Renders to text, as transformers' `apply_chat_template(tokenize=False)` does.
    ///
    /// # Errors
    /// [`TemplateError::Render`].
    pub fn render(&self, input: &TemplateInput<'_>) -> Result<String, TemplateError> {
        let _ = input;
        todo!()
    }

    /// Renders to tokens: control tokens only where the template itself wrote them.
    ///
    /// # Errors
    /// [`TemplateError::Render`] and the tokenizer's errors.
    pub fn encode(
        &self,
        tokenizer: &Tokenizer,
        input: &TemplateInput<'_>,
    ) -> Result<Vec<u32>, crate::EngineError> {
        let _ = (tokenizer, input);
        todo!()
    }
}
