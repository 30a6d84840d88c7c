//! A model's text side.

use upg_format::TextConfig;

use crate::{ChatTemplate, EngineError, TemplateInput, Tokenizer, generation::Model};

/// A model's text side: what turns texts into tokens and back. It needs no machine, so threads may share it.
pub struct Language {
    tokenizer: Tokenizer,
    template: Option<ChatTemplate>,
    text: TextConfig,
}

impl Language {
    pub(crate) fn new(text: &TextConfig, tokenizer_json: &[u8], vocab: usize) -> Result<Self, EngineError> {
        let control: Vec<u32> = [text.bos, text.eos, text.pad]
            .into_iter()
            .flatten()
            .chain(text.stop_tokens.iter().copied())
            .collect();
        let tokenizer = Tokenizer::new(tokenizer_json, vocab, &control)?;
        let template = chat_template(text, &tokenizer)?;
        Ok(Self { tokenizer, template, text: text.clone() })
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// The chat template, if the model has one.
    pub fn template(&self) -> Option<&ChatTemplate> {
        self.template.as_ref()
    }

    /// Special tokens and the like.
    pub fn text(&self) -> &TextConfig {
        &self.text
    }

    /// The tokens of a plain prompt, after the model's bos where it wants one.
    ///
    /// # Errors
    /// The tokenizer's.
    pub fn prompt(&self, text: &str) -> Result<Vec<u32>, EngineError> {
        let mut tokens: Vec<u32> = self.text.bos.filter(|_| self.text.add_bos).into_iter().collect();
        tokens.extend(self.tokenizer.encode(text, false)?);
        Ok(tokens)
    }

    /// The tokens of a conversation.
    ///
    /// # Errors
    /// [`EngineError::NoTemplate`], the template's and the tokenizer's.
    pub fn chat(&self, input: &TemplateInput<'_>) -> Result<Vec<u32>, EngineError> {
        let template = self.template.as_ref().ok_or(EngineError::NoTemplate)?;
        template.encode(&self.tokenizer, input)
    }

    pub(crate) fn model(&self) -> Model<'_> {
        Model { tokenizer: &self.tokenizer, stop_tokens: &self.text.stop_tokens }
    }
}

fn chat_template(text: &TextConfig, tokenizer: &Tokenizer) -> Result<Option<ChatTemplate>, EngineError> {
    let spelling = |token: Option<u32>| token.and_then(|t| tokenizer.token_to_text(t));
    let Some(source) = &text.chat_template else { return Ok(None) };
    Ok(Some(ChatTemplate::new(source, spelling(text.bos).as_deref(), spelling(text.eos).as_deref())?))
}
