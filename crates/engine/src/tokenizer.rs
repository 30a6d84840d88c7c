//! Text to tokens and back.

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
        "the tokenizer has token {token} but the model's vocabulary has {vocab} entries: they do not belong together"
    )]
    Vocabulary {
        /// The largest token.
        token: u32,
        /// Rows of the embedding.
        vocab: usize,
    },
    /// The text cannot be encoded.
    #[error("the text cannot be encoded: {0}")]
    Encode(String),
    /// The tokens cannot be decoded.
    #[error("the tokens cannot be decoded: {0}")]
    Decode(String),
}

/// A model's tokenizer.
pub struct Tokenizer;

impl Tokenizer {
    /// Reads a `tokenizer.json` for a model whose vocabulary has `vocab` entries (padding included). `control` are
    /// tokens that count as control tokens whatever the file says of them: bos, eos, stop tokens.
    ///
    /// # Errors
    /// See [`TokenizerError`].
    pub fn new(json: &[u8], vocab: usize, control: &[u32]) -> Result<Self, TokenizerError> {
        let _ = (json, vocab, control);
        todo!()
    }

    /// Encodes a text, adding nothing. Control tokens' spellings in it become control tokens only if `allow_special`;
    /// otherwise they are text like any other.
    ///
    /// # Errors
    /// [`TokenizerError::Encode`].
    pub fn encode(&self, text: &str, allow_special: bool) -> Result<Vec<u32>, TokenizerError> {
        let _ = (text, allow_special);
        todo!()
    }

    /// Decodes tokens. Control tokens are left out if `skip_special`; bytes that are not UTF-8 become U+FFFD.
    ///
    /// # Errors
    /// [`TokenizerError::Decode`].
    pub fn decode(&self, tokens: &[u32], skip_special: bool) -> Result<String, TokenizerError> {
        let _ = (tokens, skip_special);
        todo!()
    }

    /// The spelling of a token in the vocabulary (byte-level alphabet and all), if there is such a token.
    pub fn token_to_text(&self, token: u32) -> Option<String> {
        let _ = token;
        todo!()
    }

    /// The token of that spelling.
    pub fn text_to_token(&self, text: &str) -> Option<u32> {
        let _ = text;
        todo!()
    }

    /// Whether a token is a control token: never the encoding of plain text.
    pub fn is_control(&self, token: u32) -> bool {
        let _ = token;
        todo!()
    }
}

/// Decodes tokens one by one; what it returns never ends inside a character.
#[derive(Default)]
pub struct TextStream;

impl TextStream {
    /// Adds a token; returns the text that is now complete (often all of it, sometimes nothing).
    ///
    /// # Errors
    /// [`TokenizerError::Decode`].
    pub fn push(&mut self, tokenizer: &Tokenizer, token: u32) -> Result<String, TokenizerError> {
        let _ = (tokenizer, token);
        todo!()
    }

    /// The text still held back, at the end: an unfinished character becomes U+FFFD.
    ///
    /// # Errors
    /// [`TokenizerError::Decode`].
    pub fn finish(&mut self, tokenizer: &Tokenizer) -> Result<String, TokenizerError> {
        let _ = tokenizer;
        todo!()
    }
}
