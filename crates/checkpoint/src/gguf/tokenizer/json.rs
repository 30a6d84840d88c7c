//! The parts of `tokenizer.json` that are written here.

use serde::{Serialize, Serializer};
use serde_json::Value;

/// A whole `tokenizer.json`.
#[derive(Serialize)]
pub(super) struct Tokenizer<'a> {
    version: &'static str,
    truncation: (),
    padding: (),
    added_tokens: Vec<AddedToken<'a>>,
    normalizer: Value,
    pre_tokenizer: Value,
    /// Left out: the engine itself puts the first token before a prompt.
    post_processor: (),
    decoder: Value,
    model: Bpe<'a>,
}

impl<'a> Tokenizer<'a> {
    pub(super) fn new(
        added_tokens: Vec<AddedToken<'a>>,
        [normalizer, pre_tokenizer, decoder]: [Value; 3],
        model: Bpe<'a>,
    ) -> Self {
        Self {
            version: "1.0",
            truncation: (),
            padding: (),
            added_tokens,
            normalizer,
            pre_tokenizer,
            post_processor: (),
            decoder,
            model,
        }
    }
}

/// A token that is matched before the text is cut.
#[derive(Serialize)]
pub(super) struct AddedToken<'a> {
    id: u32,
    pub(super) content: &'a str,
    single_word: bool,
    lstrip: bool,
    /// Whether white space after it is dropped.
    pub(super) rstrip: bool,
    normalized: bool,
    special: bool,
}

impl<'a> AddedToken<'a> {
    pub(super) fn new(id: u32, content: &'a str, special: bool) -> Self {
        Self { id, content, single_word: false, lstrip: false, rstrip: false, normalized: false, special }
    }
}

/// Byte-pair encoding.
#[derive(Default, Serialize)]
#[serde(tag = "type", rename = "BPE")]
pub(super) struct Bpe<'a> {
    pub(super) dropout: (),
    pub(super) unk_token: Option<&'a str>,
    pub(super) continuing_subword_prefix: (),
    pub(super) end_of_word_suffix: (),
    pub(super) fuse_unk: bool,
    pub(super) byte_fallback: bool,
    /// A piece that is a token as it stands is not put together from smaller ones.
    pub(super) ignore_merges: bool,
    pub(super) vocab: Vocab<'a>,
    /// What is joined, the most urgent pair first.
    pub(super) merges: Vec<(&'a str, &'a str)>,
}

/// Tokens in the order of their numbers, written as an object from token to number.
#[derive(Default)]
pub(super) struct Vocab<'a>(pub(super) Vec<&'a str>);

impl Serialize for Vocab<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().zip(0u32..))
    }
}
