use crate::{Tokenizer, TokenizerError};

/// Tokens of a prompt's end that an answer's text is decoded after: enough for any rule about spaces between words.
const TAIL: usize = 4;
/// Tokens that are held back for an unfinished character. A character has at most four bytes and a token at least one,
/// so text that still ends in U+FFFD after as many is not UTF-8.
pub(super) const HELD: usize = 4;

/// Decodes tokens one by one; what it returns never ends inside a character.
///
/// A token's text depends on its neighbours (bytes of one character, spaces between words), so the text that a token
/// adds is the difference between decoding the last tokens with and without it. The number of tokens that are looked
/// back on is bounded, however long the answer.
#[derive(Clone, Debug, Default)]
pub struct TextStream {
    pub(super) tokens: Vec<u32>,
    /// `tokens[..shown]` have been returned as text.
    shown: usize,
}

impl TextStream {
    /// Continues the text of a prompt: where a tokenizer strips the first word's space, the answer's is kept.
    pub fn after(tokenizer: &Tokenizer, prompt: &[u32]) -> Self {
        // Only what stands right before counts: not the text on the far side of a control token.
        let tail = prompt[prompt.len().saturating_sub(TAIL)..].iter().rev().copied();
        let mut tokens: Vec<u32> = tail.take_while(|&t| !tokenizer.is_hidden(t)).collect();
        tokens.reverse();
        Self { shown: tokens.len(), tokens }
    }

    /// Adds a token; returns the text that is now complete (often all of it, sometimes nothing).
    ///
    /// # Errors
    /// [`TokenizerError::Decode`].
    pub fn push(&mut self, tokenizer: &Tokenizer, token: u32) -> Result<String, TokenizerError> {
        if tokenizer.is_hidden(token) {
            return Ok(String::new());
        }
        self.tokens.push(token);
        let (text, whole) = self.new_text(tokenizer)?;
        if whole || self.tokens.len() - self.shown > HELD {
            self.tokens.drain(..self.shown);
            self.shown = self.tokens.len();
            return Ok(text);
        }
        Ok(String::new())
    }

    /// The text still held back, at the end: an unfinished character becomes U+FFFD.
    ///
    /// # Errors
    /// [`TokenizerError::Decode`].
    pub fn finish(&mut self, tokenizer: &Tokenizer) -> Result<String, TokenizerError> {
        let (text, _) = self.new_text(tokenizer)?;
        self.tokens.clear();
        self.shown = 0;
        Ok(text)
    }

    /// The text that the tokens not yet shown add, and whether it ends with a whole character.
    fn new_text(&self, tokenizer: &Tokenizer) -> Result<(String, bool), TokenizerError> {
        let before = tokenizer.decode(&self.tokens[..self.shown], false)?;
        let mut text = tokenizer.decode(&self.tokens, false)?;
        // A prompt may end inside a character, which then is not the same with more bytes.
        let same: usize =
            before.chars().zip(text.chars()).take_while(|(a, b)| a == b).map(|(a, _)| a.len_utf8()).sum();
        let whole = !text.ends_with(char::REPLACEMENT_CHARACTER);
        text.drain(..same);
        Ok((text, whole))
    }
}
