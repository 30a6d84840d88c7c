//! From GGUF metadata to a `tokenizer.json` as the `tokenizers` crate reads it.

mod byte_level;
mod json;
mod sentencepiece;

use std::collections::HashMap;

use super::{
    file::Gguf,
    metadata::{field, required},
};
use crate::CheckpointError;

/// The longest token in bytes. SentencePiece's merges are found in time quadratic in it.
const TOKEN_CAP: usize = 1024;

/// What `tokenizer.ggml.token_type` says of a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum TokenKind {
    Normal,
    /// Stands for what the vocabulary cannot spell.
    Unknown,
    /// Marks turns and ends; never made from text.
    Control,
    /// Matched in text as a whole, before anything else.
    UserDefined,
    /// A hole in the vocabulary.
    Unused,
    /// A byte, spelled `<0x0A>`.
    Byte,
}

impl TokenKind {
    fn from_id(id: i64) -> Option<Self> {
        use TokenKind::*;
        Some(match id {
            1 => Normal,
            2 => Unknown,
            3 => Control,
            4 => UserDefined,
            5 => Unused,
            6 => Byte,
            _ => return None,
        })
    }
}

/// How text is cut into tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Model {
    /// `gpt2`: byte-level byte-pair encoding.
    ByteLevel(byte_level::Pre),
    /// `llama`: SentencePiece's byte-pair encoding, over characters with a fallback to bytes.
    SentencePiece,
}

/// The vocabulary of a GGUF file.
pub(super) struct Vocabulary<'a> {
    model: Model,
    tokens: Vec<&'a str>,
    kinds: Vec<TokenKind>,
    /// Token to number.
    ids: HashMap<&'a str, u32>,
}

impl<'a> Vocabulary<'a> {
    /// Reads the tokens of a model whose embedding has `rows` rows.
    pub(super) fn read(gguf: &Gguf<'a>, rows: usize) -> Result<Self, CheckpointError> {
        let metadata = &gguf.metadata;
        let model = match required("tokenizer.ggml.model", metadata.str("tokenizer.ggml.model")?)? {
            "gpt2" => {
                let pre = required("tokenizer.ggml.pre", metadata.str("tokenizer.ggml.pre")?)?;
                Model::ByteLevel(byte_level::Pre::from_name(pre)?)
            }
            "llama" => Model::SentencePiece,
            other => {
                return Err(CheckpointError::Unsupported(format!(
                    "tokenizer model {other:?} is not supported; known are: gpt2, llama"
                )));
            }
        };
        let tokens = required("tokenizer.ggml.tokens", metadata.strings("tokenizer.ggml.tokens")?)?;
        let kinds = required("tokenizer.ggml.token_type", metadata.ints("tokenizer.ggml.token_type")?)?;
        if tokens.len() > rows || tokens.len() != kinds.len() {
            let why = format!("{} tokens, {} token types and {rows} embeddings", tokens.len(), kinds.len());
            return Err(field("tokenizer.ggml.tokens", why));
        }
        let kinds = kinds.into_iter().map(|id| {
            TokenKind::from_id(id)
                .ok_or_else(|| field("tokenizer.ggml.token_type", format!("{id} is no type")))
        });
        let kinds = kinds.collect::<Result<Vec<_>, _>>()?;
        let tokens: Vec<&str> = tokens.collect();
        let mut ids = HashMap::with_capacity(tokens.len());
        for (id, token) in tokens.iter().enumerate() {
            if token.len() > TOKEN_CAP {
                let why = format!("token {id} has {} bytes, more than {TOKEN_CAP}", token.len());
                return Err(CheckpointError::Tokenizer(why));
            }
            if let Some(first) = ids.insert(*token, id as u32) {
                return Err(CheckpointError::Tokenizer(format!(
                    "tokens {first} and {id} are both {token:?}"
                )));
            }
        }
        Ok(Self { model, tokens, kinds, ids })
    }

    pub(super) fn len(&self) -> usize {
        self.tokens.len()
    }

    /// The tokens that text never yields, with their numbers.
    pub(super) fn special(&self) -> impl Iterator<Item = (&'a str, u32)> {
        self.numbered().filter(|(_, _, kind)| *kind == TokenKind::Control).map(|(token, id, _)| (token, id))
    }

    /// What llama.cpp does when `add_bos_token` is missing.
    pub(super) fn adds_bos_by_default(&self) -> bool {
        matches!(self.model, Model::SentencePiece | Model::ByteLevel(byte_level::Pre::Llama3))
    }

    fn numbered(&self) -> impl Iterator<Item = (&'a str, u32, TokenKind)> {
        let kinds = self.kinds.iter().copied();
        self.tokens.iter().zip(0u32..).zip(kinds).map(|((token, id), kind)| (*token, id, kind))
    }

    /// The whole `tokenizer.json`.
    pub(super) fn tokenizer_json(&self, gguf: &Gguf<'a>) -> Result<Vec<u8>, CheckpointError> {
        let tokenizer = match self.model {
            Model::ByteLevel(pre) => self.byte_level(gguf, pre)?,
            Model::SentencePiece => self.sentencepiece(gguf)?,
        };
        serde_json::to_vec(&tokenizer).map_err(|error| CheckpointError::Tokenizer(error.to_string()))
    }

    /// Control tokens (special) and user-defined ones (not).
    fn added_tokens(&self) -> Vec<json::AddedToken<'a>> {
        let added = self.numbered().filter_map(|(content, id, kind)| {
            let special = match kind {
                TokenKind::Control | TokenKind::Unknown => true,
                TokenKind::UserDefined => false,
                TokenKind::Normal | TokenKind::Unused | TokenKind::Byte => return None,
            };
            Some(json::AddedToken::new(id, content, special))
        });
        added.collect()
    }
}
