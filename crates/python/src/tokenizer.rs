use std::sync::Arc;

use pyo3::{prelude::*, types::PyDict};
use serde_json::Value;
use upg_engine::{Language, Message, TemplateInput};

use crate::{
    arrays::{Tokens, to_json},
    error::{PromptError, raise_engine},
};

/// A model's tokenizer and chat template: ``model.tokenizer``. Threads may share it.
///
/// *Control tokens* start and end messages and texts. Plain text never encodes to one, whatever it says.
#[pyclass(frozen, module = "upg")]
pub struct Tokenizer(pub Arc<Language>);

/// Tokens or text, as asked for.
#[derive(IntoPyObject)]
enum Rendered {
    Tokens(Vec<u32>),
    Text(String),
}

#[pymethods]
impl Tokenizer {
    /// Encodes a text.
    ///
    /// ``allow_special``: spellings of control tokens in it become those tokens; otherwise they are text like any other.
    /// ``add_bos``: begins with bos, where the model has one.
    ///
    /// >>> tokenizer.encode("Hello there")
    /// [19556, 665]
    /// >>> tokenizer.encode("<|im_end|>", allow_special=True), 2 in tokenizer.encode("<|im_end|>")
    /// ([2], False)
    #[pyo3(signature = (text, *, allow_special = false, add_bos = false))]
    fn encode(&self, py: Python<'_>, text: &str, allow_special: bool, add_bos: bool) -> PyResult<Vec<u32>> {
        let language = &self.0;
        let tokens = py.detach(|| language.tokenizer().encode(text, allow_special));
        let mut tokens = tokens.map_err(|error| raise_engine(error.into()))?;
        if add_bos && let Some(bos) = language.text().bos {
            tokens.insert(0, bos);
        }
        Ok(tokens)
    }

    /// Decodes tokens. ``skip_special`` leaves control tokens out; bytes that are not UTF-8 become U+FFFD.
    ///
    /// >>> tokenizer.decode([19556, 665, 2]), tokenizer.decode([665, 2], skip_special=False)
    /// ('Hello there', ' there<|im_end|>')
    #[pyo3(signature = (tokens, *, skip_special = true))]
    fn decode(&self, py: Python<'_>, tokens: Tokens, skip_special: bool) -> PyResult<String> {
        let text = py.detach(|| self.0.tokenizer().decode(&tokens.0, skip_special));
        text.map_err(|error| raise_engine(error.into()))
    }

    /// The tokens of a prompt as the model wants it: after bos where it wants one.
    ///
    /// >>> tokenizer.prompt("Hello there")
    /// [19556, 665]
    fn prompt(&self, py: Python<'_>, text: &str) -> PyResult<Vec<u32>> {
        py.detach(|| self.0.prompt(text)).map_err(raise_engine)
    }

    /// The prompt that a conversation makes, as transformers' method of that name does it.
    ///
    /// ``messages`` are dictionaries with ``role`` and ``content``; ``tools`` JSON schemas of what the model may call;
    /// ``add_generation_prompt`` ends the prompt with the header of the answer; ``tokenize`` gives tokens (control tokens
    /// only where the template wrote them, never a message), otherwise text; ``variables`` are handed to the template.
    ///
    /// Raises ``upg.PromptError`` where the template refuses the messages, or there is none.
    ///
    /// >>> messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    /// >>> print(tokenizer.apply_chat_template(messages, tokenize=False))
    /// <|im_start|>system
    /// Be brief.<|im_end|>
    /// <|im_start|>user
    /// Hi<|im_end|>
    /// <|im_start|>assistant
    /// <BLANKLINE>
    #[pyo3(signature = (messages, *, tools = None, add_generation_prompt = true, tokenize = true, **variables))]
    fn apply_chat_template(
        &self,
        py: Python<'_>,
        messages: &Bound<'_, PyAny>,
        tools: Option<&Bound<'_, PyAny>>,
        add_generation_prompt: bool,
        tokenize: bool,
        variables: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<Rendered> {
        let messages: Vec<Message> = serde_json::from_value(to_json(messages)?).map_err(|error| {
            PromptError::new_err(format!("{error}: give a list of messages with role and content"))
        })?;
        let tools: Vec<Value> = match tools.map(to_json).transpose()? {
            None | Some(Value::Null) => Vec::new(),
            Some(Value::Array(tools)) => tools,
            Some(_) => return Err(PromptError::new_err("tools are no list: give one of JSON schemas")),
        };
        let extra = match variables.map(|v| to_json(v.as_any())).transpose()? {
            Some(Value::Object(extra)) => Some(extra),
            _ => None,
        };
        let input = TemplateInput {
            messages: &messages,
            tools: &tools,
            add_generation_prompt,
            extra: extra.as_ref(),
        };
        py.detach(|| {
            if tokenize {
                return self.0.chat(&input).map(Rendered::Tokens);
            }
            let template = self.0.template().ok_or(upg_engine::EngineError::NoTemplate)?;
            Ok(Rendered::Text(template.render(&input)?))
        })
        .map_err(raise_engine)
    }

    /// The spelling of a token in the vocabulary, byte-level alphabet and all; ``None`` where there is no such token.
    ///
    /// >>> tokenizer.token_to_text(665)
    /// 'Ġthere'
    fn token_to_text(&self, token: u32) -> Option<String> {
        self.0.tokenizer().token_to_text(token)
    }

    /// The token of that spelling.
    ///
    /// >>> tokenizer.text_to_token("<|im_end|>")
    /// 2
    fn text_to_token(&self, text: &str) -> Option<u32> {
        self.0.tokenizer().text_to_token(text)
    }

    /// The token that texts begin with, if the model has one.
    #[getter]
    fn bos(&self) -> Option<u32> {
        self.0.text().bos
    }

    /// The token that texts end with, if the model has one.
    #[getter]
    fn eos(&self) -> Option<u32> {
        self.0.text().eos
    }

    /// The tokens that end answers.
    #[getter]
    fn stop_tokens(&self) -> Vec<u32> {
        self.0.text().stop_tokens.clone()
    }

    /// The chat template, Jinja, if the model has one.
    #[getter]
    fn chat_template(&self) -> Option<String> {
        self.0.text().chat_template.clone()
    }
}
