//! Text to tokens and back.

mod control;
mod stream;

use std::{collections::HashSet, ops::Range, sync::OnceLock};

use tokenizers::{AddedToken, Tokenizer as Inner};

pub(crate) use control::{ControlSpan, ControlTokens};
pub use stream::TextStream;

/// Why a tokenizer cannot be loaded or used.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    /// `tokenizer.json` cannot be read.
    #[error(
        "the tokenizer cannot be read ({0}): the model's tokenizer.json is damaged or of an unknown kind"
    )]
    Load(String),
    /// The tokenizer has tokens that the model has not.
    #[error(
        "the tokenizer has token {token} but the model's vocabulary has {vocab} entries: they do not belong together, \
         use the tokenizer that came with the model"
    )]
    Vocabulary {
        /// The largest token.
        token: u32,
        /// Rows of the embedding.
        vocab: usize,
    },
    /// The text cannot be encoded.
    #[error("the text cannot be encoded ({0}): remove that part of it")]
    Encode(String),
    /// The tokens cannot be decoded.
    #[error("the tokens cannot be decoded ({0}): the model's tokenizer.json is damaged")]
    Decode(String),
}

/// A model's tokenizer.
///
/// *Control tokens* steer the model: they start and end messages and texts. They are the added tokens that the
/// tokenizer calls special, those spelled `<|…|>` (some checkpoints forget to call them special), and the bos, eos and
/// stop tokens. Plain text never encodes to one, whatever it says; only [`Tokenizer::encode`] with `allow_special` and
/// a chat template's own text do.
pub struct Tokenizer {
    /// Makes control tokens out of their spellings.
    inner: Inner,
    /// Takes those spellings for text; made when first needed, for few texts have any.
    plain: OnceLock<Inner>,
    control: ControlTokens,
    /// Control tokens that are left out of decoded text. `<|…|>` that the tokenizer does not call special are shown:
    /// some are for the reader of an answer (`<|tool_call|>`).
    hidden: HashSet<u32>,
}

impl Tokenizer {
    /// Reads a `tokenizer.json` for a model whose vocabulary has `vocab` entries (padding included). `control` are
    /// tokens that count as control tokens whatever the file says of them: bos, eos, stop tokens.
    ///
    /// # Errors
    /// [`TokenizerError::Load`] and [`TokenizerError::Vocabulary`].
    pub fn new(json: &[u8], vocab: usize, control: &[u32]) -> Result<Self, TokenizerError> {
        let load = |error: tokenizers::Error| TokenizerError::Load(error.to_string());
        let mut inner = Inner::from_bytes(json).map_err(load)?;
        // A file may ask to cut long texts or to fill up short ones: that is for training.
        inner.with_truncation(None).map_err(load)?;
        inner.with_padding(None);
        if let Some(&token) = inner.get_vocab(true).values().max()
            && token as usize >= vocab
        {
            return Err(TokenizerError::Vocabulary { token, vocab });
        }
        let (control, hidden) = control_tokens(&inner, control);
        inner.add_special_tokens(control.clone().into_iter().map(|(_, token)| token)).map_err(load)?;
        Ok(Self { inner, plain: OnceLock::new(), control: ControlTokens::new(control), hidden })
    }

    /// Encodes a text, adding nothing. Control tokens' spellings in it become control tokens only if `allow_special`;
    /// otherwise they are text like any other.
    ///
    /// # Errors
    /// [`TokenizerError::Encode`].
    pub fn encode(&self, text: &str, allow_special: bool) -> Result<Vec<u32>, TokenizerError> {
        let tokens = encode(&self.inner, text)?;
        if allow_special || !tokens.iter().any(|&t| self.is_control(t)) {
            return Ok(tokens);
        }
        self.encode_plain(text)
    }

    /// Encodes a text of which just `spans` are control tokens, whatever the rest says. All spans that the tokenizer
    /// itself would find make one pass, so that innocent text is encoded just as transformers does.
    pub(crate) fn encode_spans(&self, text: &str, spans: &[ControlSpan]) -> Result<Vec<u32>, TokenizerError> {
        let tokens = encode(&self.inner, text)?;
        if tokens.iter().copied().filter(|&t| self.is_control(t)).eq(spans.iter().map(|s| s.token))
            && self.control.find(text) == spans
        {
            return Ok(tokens);
        }
        let mut tokens = Vec::new();
        let mut start = 0;
        for (i, span) in spans.iter().enumerate() {
            tokens.extend(self.encode_between(
                text,
                start..span.range.start,
                i.checked_sub(1),
                Some(i),
                spans,
            )?);
            tokens.push(span.token);
            start = span.range.end;
        }
        tokens.extend(self.encode_between(
            text,
            start..text.len(),
            spans.len().checked_sub(1),
            None,
            spans,
        )?);
        Ok(tokens)
    }

    /// Plain text between two control tokens; some of those swallow the spaces beside them.
    fn encode_between(
        &self,
        text: &str,
        range: Range<usize>,
        before: Option<usize>,
        after: Option<usize>,
        spans: &[ControlSpan],
    ) -> Result<Vec<u32>, TokenizerError> {
        let token = |i: Option<usize>| i.and_then(|i| self.control.get(spans[i].token));
        let mut text = &text[range];
        if token(before).is_some_and(|t| t.rstrip) {
            text = text.trim_start();
        }
        if token(after).is_some_and(|t| t.lstrip) {
            text = text.trim_end();
        }
        if text.is_empty() { Ok(Vec::new()) } else { self.encode(text, false) }
    }

    fn encode_plain(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        let plain = self.plain.get_or_init(|| {
            let mut plain = self.inner.clone();
            plain.set_encode_special_tokens(true);
            plain
        });
        let tokens = encode(plain, text)?;
        if !tokens.iter().any(|&t| self.is_control(t)) {
            return Ok(tokens);
        }
        // A vocabulary may reach a control token by merges alone: spell it in halves then.
        let mut spelled = Vec::with_capacity(tokens.len() + 2);
        for token in tokens {
            match self.control.get(token) {
                None => spelled.push(token),
                Some(control) => {
                    for half in halves(&control.content) {
                        spelled.extend(encode(plain, half)?);
                    }
                }
            }
        }
        match spelled.iter().find(|&&t| self.is_control(t)) {
            Some(token) => Err(TokenizerError::Encode(format!("it spells control token {token}"))),
            None => Ok(spelled),
        }
    }

    /// Decodes tokens. Control tokens are left out if `skip_special`; bytes that are not UTF-8 become U+FFFD.
    ///
    /// # Errors
    /// [`TokenizerError::Decode`].
    pub fn decode(&self, tokens: &[u32], skip_special: bool) -> Result<String, TokenizerError> {
        let shown: Vec<u32>;
        let tokens = if skip_special {
            shown = tokens.iter().copied().filter(|t| !self.hidden.contains(t)).collect();
            &shown
        } else {
            tokens
        };
        self.inner.decode(tokens, false).map_err(|error| TokenizerError::Decode(error.to_string()))
    }

    /// The spelling of a token in the vocabulary (byte-level alphabet and all), if there is such a token.
    pub fn token_to_text(&self, token: u32) -> Option<String> {
        self.inner.id_to_token(token)
    }

    /// The token of that spelling.
    pub fn text_to_token(&self, text: &str) -> Option<u32> {
        self.inner.token_to_id(text)
    }

    /// Whether a token is a control token: never the encoding of plain text.
    pub fn is_control(&self, token: u32) -> bool {
        self.control.get(token).is_some()
    }

    /// The control tokens and their spellings.
    pub(crate) fn control(&self) -> &ControlTokens {
        &self.control
    }

    /// Whether decoded text leaves it out.
    pub(crate) fn is_hidden(&self, token: u32) -> bool {
        self.hidden.contains(&token)
    }
}

fn encode(tokenizer: &Inner, text: &str) -> Result<Vec<u32>, TokenizerError> {
    let encoding = tokenizer.encode_fast(text, false);
    let encoding = encoding.map_err(|error| TokenizerError::Encode(error.to_string()))?;
    Ok(encoding.get_ids().to_vec())
}

/// The control tokens, as added tokens to be, and those that decoded text leaves out.
fn control_tokens(inner: &Inner, named: &[u32]) -> (Vec<(u32, AddedToken)>, HashSet<u32>) {
    let named: HashSet<u32> = named.iter().copied().collect();
    let added = inner.get_added_tokens_decoder();
    let looks_so = |text: &str| text.len() > 4 && text.starts_with("<|") && text.ends_with("|>");
    let mut control: Vec<(u32, AddedToken)> = Vec::new();
    let mut hidden = HashSet::new();
    for (&id, token) in &added {
        if token.content.is_empty() {
            continue;
        }
        if token.special || named.contains(&id) {
            hidden.insert(id);
        }
        if token.special || named.contains(&id) || looks_so(&token.content) {
            control.push((id, token.clone().special(true)));
        }
    }
    // Some vocabularies have bos and eos among their ordinary entries. One that is ordinary text (a line feed that ends
    // answers, say) stays so.
    for &id in named.iter().filter(|id| !added.contains_key(id)) {
        let bracketed = |t: &String| t.len() > 2 && t.starts_with(['<', '[']) && t.ends_with(['>', ']']);
        if let Some(text) = inner.id_to_token(id).filter(bracketed) {
            hidden.insert(id);
            control.push((id, AddedToken::from(text, true)));
        }
    }
    control.sort_by_key(|(id, _)| *id);
    (control, hidden)
}

/// A text cut in two near the middle, between characters.
fn halves(text: &str) -> [&str; 2] {
    let middle = text.char_indices().map(|(i, _)| i).nth(text.chars().count() / 2).unwrap_or(0);
    let (a, b) = text.split_at(middle);
    [a, b]
}

#[cfg(test)]
mod tests;
