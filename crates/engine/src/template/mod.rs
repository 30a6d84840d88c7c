//! Chat templates: from messages to a prompt, as transformers' `apply_chat_template` does it.
//!
//! # Contents cannot steer the model
//! A message that says `<|im_end|>` must reach the model as those ten characters. So a control token is encoded as one
//! only where the *template* wrote its spelling. To know who wrote what, the template is rendered twice: once as it is,
//! and once with the caller's strings *marked*: every character that occurs in control tokens is replaced by a
//! private one (see `marks`). The spellings still found in the second rendering are the template's own.
//!
//! Roles, types and other plain identifiers are not marked, for templates compare them; they cannot spell a control
//! token. If a template looks into a marked string otherwise (`'</think>' in content`), the two renderings may differ.
//! Then the first is used if it has the same control tokens in the same order as the second, that is, if the messages
//! add none; and refused if not.

mod json;
mod marks;

use std::io::{self, Write};

use minijinja::{
    AutoEscape, Environment, Error, ErrorKind, UndefinedBehavior, escape_formatter,
    syntax::SyntaxConfig,
    value::{Kwargs, Serde, Value as JinjaValue},
};
use minijinja_contrib::pycompat::unknown_method_callback;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{EngineError, Tokenizer};
use marks::Marks;

/// The longest template.
const MAX_SOURCE: usize = 1 << 20;
/// Instructions that a template may take, and 64ths of the bytes that it may make, whatever it is given.
const FUEL: u64 = 2_000_000;
/// The longest prompt that a template may make, apart from what it is given, in bytes.
const MAX_OUTPUT: usize = 8 << 20;

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

impl TemplateInput<'_> {
    /// The caller's part of the variables.
    fn variables(&self) -> Result<Value, TemplateError> {
        let messages = serde_json::to_value(self.messages);
        let mut messages = messages.map_err(|error| TemplateError::Render(error.to_string()))?;
        // As in transformers: programs send `"content": null`, and templates would write None.
        for message in messages.as_array_mut().into_iter().flatten().filter_map(Value::as_object_mut) {
            message.retain(|_, value| !value.is_null());
        }
        let mut variables = self.extra.cloned().unwrap_or_default();
        variables.insert("messages".into(), messages);
        // None, not an empty list, as transformers has it: templates ask `tools is not none`.
        let tools = if self.tools.is_empty() { Value::Null } else { self.tools.into() };
        variables.insert("tools".into(), tools);
        variables.entry("documents").or_insert(Value::Null);
        variables.insert("add_generation_prompt".into(), self.add_generation_prompt.into());
        Ok(Value::Object(variables))
    }
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
    /// A message spells a control token, and the template looks into it, so that nobody can tell who wrote what.
    #[error(
        "a message spells the control token {0:?}, and the chat template looks into that message: remove it from the \
         message"
    )]
    Control(String),
}

/// A compiled chat template.
pub struct ChatTemplate {
    environment: Environment<'static>,
    bos: Option<String>,
    eos: Option<String>,
}

impl ChatTemplate {
    /// Compiles a template; `bos` and `eos` are the spellings of those tokens, for the variables `bos_token` and
    /// `eos_token`.
    ///
    /// # Errors
    /// [`TemplateError::Compile`].
    pub fn new(source: &str, bos: Option<&str>, eos: Option<&str>) -> Result<Self, TemplateError> {
        let compile = |error: Error| TemplateError::Compile(describe(&error));
        if source.len() > MAX_SOURCE {
            return Err(TemplateError::Compile(format!("it has {} bytes", source.len())));
        }
        let mut environment = environment().map_err(compile)?;
        environment.add_template_owned("chat", without_generation_tags(source)).map_err(compile)?;
        Ok(Self { environment, bos: bos.map(str::to_owned), eos: eos.map(str::to_owned) })
    }

    /// Renders to text, as transformers' `apply_chat_template(tokenize=False)` does.
    ///
    /// # Errors
    /// [`TemplateError::Render`].
    pub fn render(&self, input: &TemplateInput<'_>) -> Result<String, TemplateError> {
        self.render_variables(input.variables()?)
    }

    /// Renders to tokens: control tokens only where the template itself wrote them.
    ///
    /// # Errors
    /// [`TemplateError`] and the tokenizer's errors.
    pub fn encode(&self, tokenizer: &Tokenizer, input: &TemplateInput<'_>) -> Result<Vec<u32>, EngineError> {
        let variables = input.variables()?;
        let marks = Marks::new(tokenizer.control());
        let marked = self.render_variables(marks.mark(&variables))?;
        let text = self.render_variables(variables)?;
        let (unmarked, written) = marks.undo(&marked);
        if unmarked == text {
            return Ok(tokenizer.encode_spans(&text, &written)?);
        }
        let found = tokenizer.control().find(&text);
        let mut tokens = written.iter().map(|span| span.token);
        match found.iter().find(|span| tokens.next() != Some(span.token)) {
            None if tokens.next().is_none() => Ok(tokenizer.encode_spans(&text, &found)?),
            span => {
                let spelling = span.map_or("", |span| &text[span.range.clone()]);
                Err(TemplateError::Control(spelling.to_owned()).into())
            }
        }
    }

    fn render_variables(&self, variables: Value) -> Result<String, TemplateError> {
        let failed = |error: Error| TemplateError::Render(describe(&error));
        let size = size(&variables);
        let Value::Object(mut variables) = variables else { return Ok(String::new()) };
        for (name, token) in [("bos_token", &self.bos), ("eos_token", &self.eos)] {
            if let Some(token) = token {
                variables.insert(name.into(), token.clone().into());
            }
        }
        let template = self.environment.get_template("chat").map_err(failed)?;
        let mut output = Capped { bytes: Vec::new(), room: MAX_OUTPUT.saturating_add(2 * size) };
        template.render_captured_to(JinjaValue::from(Serde(&variables)), &mut output).map_err(failed)?;
        String::from_utf8(output.bytes).map_err(|error| TemplateError::Render(error.to_string()))
    }
}

/// Jinja as transformers sets it up.
fn environment() -> Result<Environment<'static>, Error> {
    let mut environment = Environment::new();
    environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_undefined_behavior(UndefinedBehavior::Lenient);
    environment.set_unknown_method_callback(unknown_method_callback);
    environment.set_fuel(Some(FUEL));
    // Python's names.
    environment.set_formatter(|out, state, value| match bool::try_from(value.clone()) {
        _ if value.is_none() => Ok(out.write_str("None")?),
        Ok(value) => Ok(out.write_str(if value { "True" } else { "False" })?),
        Err(_) => escape_formatter(out, state, value),
    });
    environment.add_filter("tojson", json::to_json);
    environment.add_function("raise_exception", |message: String| -> Result<String, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, message))
    });
    environment.add_function("strftime_now", strftime_now);
    Ok(environment)
}

/// Replaces `{% generation %}` … `{% endgeneration %}`, with which transformers marks the assistant's tokens for training,
/// by a condition that always holds.
fn without_generation_tags(source: &str) -> String {
    let mut pieces = source.split("{%");
    let mut out = pieces.next().unwrap_or_default().to_owned();
    for piece in pieces {
        out.push_str("{%");
        let (tag, rest) = piece.split_at(piece.find("%}").unwrap_or(0));
        match tag.trim_matches(['-', '+']).trim() {
            "generation" => out.push_str(&tag.replace("generation", "if true")),
            "endgeneration" => out.push_str(&tag.replace("endgeneration", "endif")),
            _ => out.push_str(tag),
        }
        out.push_str(rest);
    }
    out
}

/// The local time, formatted as Python's `datetime.now().strftime` does.
fn strftime_now(format: &str, kwargs: Kwargs) -> Result<String, Error> {
    kwargs.assert_all_used()?;
    jiff::fmt::strtime::format(format, &jiff::Zoned::now())
        .map_err(|error| Error::new(ErrorKind::InvalidOperation, error.to_string()))
}

/// An error and what caused it, in one line.
fn describe(error: &Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

/// Bytes of all strings.
fn size(value: &Value) -> usize {
    match value {
        Value::String(text) => text.len(),
        Value::Array(values) => values.iter().map(size).sum(),
        Value::Object(values) => values.iter().map(|(key, value)| key.len() + size(value)).sum(),
        _ => 8,
    }
}

/// A buffer that refuses to grow past its room.
struct Capped {
    bytes: Vec<u8>,
    room: usize,
}

impl Write for Capped {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.bytes.len().saturating_add(bytes.len()) > self.room {
            return Err(io::Error::other(format!("the prompt is longer than {} bytes", self.room)));
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests;
