//! From GGUF metadata to [`TextConfig`].

use upg_format::TextConfig;

use super::{file::Gguf, metadata::field, tokenizer::Vocabulary};
use crate::{CheckpointError, stops::stop_tokens};

/// Keys of tokens that end an answer.
const STOP_KEYS: [&str; 3] =
    ["tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"];

impl Gguf<'_> {
    /// Chat template and special tokens.
    pub(super) fn text(&self, vocabulary: &Vocabulary<'_>) -> Result<TextConfig, CheckpointError> {
        let named = STOP_KEYS.map(|key| self.token(key, vocabulary));
        let named = named.into_iter().collect::<Result<Vec<_>, _>>()?;
        let bos = self.token("tokenizer.ggml.bos_token_id", vocabulary)?;
        let add_bos = match self.metadata.bool("tokenizer.ggml.add_bos_token")? {
            Some(add_bos) => add_bos,
            None => vocabulary.adds_bos_by_default(),
        };
        if add_bos && bos.is_none() {
            return Err(field("tokenizer.ggml.bos_token_id", "it is missing, but prompts start with it"));
        }
        Ok(TextConfig {
            chat_template: self.metadata.str("tokenizer.chat_template")?.map(str::to_owned),
            bos,
            eos: named[0],
            pad: self.token("tokenizer.ggml.padding_token_id", vocabulary)?,
            add_bos,
            stop_tokens: stop_tokens(named.into_iter().flatten(), vocabulary.special()),
        })
    }

    fn token(&self, key: &str, vocabulary: &Vocabulary<'_>) -> Result<Option<u32>, CheckpointError> {
        match self.metadata.uint(key)? {
            Some(token) if token >= vocabulary.len() => Err(field(
                key,
                format!("token {token} is not among the {} of the vocabulary", vocabulary.len()),
            )),
            token => Ok(token.map(|token| token as u32)),
        }
    }
}
