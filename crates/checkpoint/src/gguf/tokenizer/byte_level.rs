//! `tokenizer.ggml.model = gpt2`: byte-pair encoding over bytes (Radford et al. 2019). What differs between models is
//! how text is cut into pieces first, which `tokenizer.ggml.pre` names.

use serde_json::{Value, json};

use super::{
    Vocabulary,
    json::{Bpe, Tokenizer, Vocab},
};
use crate::{
    CheckpointError,
    gguf::{
        file::Gguf,
        metadata::{field, required},
    },
};

/// Ways to cut text into pieces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pre {
    /// GPT-2's pattern, which is built into the byte-level pre-tokenizer.
    Gpt2,
    /// Every digit a piece, then GPT-2's pattern.
    Smollm,
    /// Llama 3's: cl100k's pattern, and pieces that are tokens are kept whole.
    Llama3,
    /// cl100k's pattern: Phi-4, DBRX.
    Cl100k,
    /// cl100k's pattern with single digits, after Unicode's NFC.
    Qwen2,
    /// o200k's pattern: Phi-4-mini.
    O200k,
}

/// What llama.cpp calls them.
const NAMES: [(&str, Pre); 15] = [
    ("gpt-2", Pre::Gpt2),
    ("default", Pre::Gpt2),
    ("smollm", Pre::Smollm),
    ("llama-bpe", Pre::Llama3),
    ("llama3", Pre::Llama3),
    ("llama-v3", Pre::Llama3),
    ("dbrx", Pre::Cl100k),
    ("phi-4", Pre::Cl100k),
    ("qwen2", Pre::Qwen2),
    ("deepseek-r1-qwen", Pre::Qwen2),
    ("gpt-4o", Pre::O200k),
    ("phi-2", Pre::Gpt2),
    ("olmo", Pre::Gpt2),
    ("jais", Pre::Gpt2),
    ("mpt", Pre::Gpt2),
];

/// cl100k's pattern but for numbers, which `$digits` matches.
macro_rules! cl100k {
    ($digits:literal) => {
        concat!(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|",
            $digits,
            r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        )
    };
}

const O200K: &str = concat!(
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|",
    r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);

impl Pre {
    pub(super) fn from_name(name: &str) -> Result<Self, CheckpointError> {
        NAMES.iter().find(|known| known.0 == name).map(|known| known.1).ok_or_else(|| {
            let known = NAMES.map(|known| known.0).join(", ");
            CheckpointError::Unsupported(format!(
                "pre-tokenizer {name:?} is not supported; known are: {known}"
            ))
        })
    }

    fn normalizer(self) -> Value {
        if self == Pre::Qwen2 { json!({ "type": "NFC" }) } else { Value::Null }
    }

    fn pre_tokenizer(self) -> Value {
        let byte_level = |use_regex: bool| json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex });
        let pattern = match self {
            Pre::Gpt2 => return byte_level(true),
            Pre::Smollm => {
                let digits = json!({ "type": "Digits", "individual_digits": true });
                return json!({ "type": "Sequence", "pretokenizers": [digits, byte_level(true)] });
            }
            Pre::Llama3 | Pre::Cl100k => cl100k!(r"\p{N}{1,3}"),
            Pre::Qwen2 => cl100k!(r"\p{N}"),
            Pre::O200k => O200K,
        };
        let split = json!({
            "type": "Split", "pattern": { "Regex": pattern }, "behavior": "Isolated", "invert": false
        });
        json!({ "type": "Sequence", "pretokenizers": [split, byte_level(false)] })
    }
}

impl<'a> Vocabulary<'a> {
    pub(super) fn byte_level(&self, gguf: &Gguf<'a>, pre: Pre) -> Result<Tokenizer<'a>, CheckpointError> {
        let metadata = &gguf.metadata;
        if metadata.bool("tokenizer.ggml.add_space_prefix")? == Some(true) {
            return Err(CheckpointError::Unsupported(
                "tokenizer.ggml.add_space_prefix is not supported with byte-level tokens".into(),
            ));
        }
        let merges = required("tokenizer.ggml.merges", metadata.strings("tokenizer.ggml.merges")?)?;
        let merges = merges.map(|merge| self.merge(merge)).collect::<Result<_, _>>()?;
        let model = Bpe {
            ignore_merges: pre == Pre::Llama3,
            vocab: Vocab(self.tokens.clone()),
            merges,
            ..Bpe::default()
        };
        let decoder =
            json!({ "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true });
        let stages = [pre.normalizer(), pre.pre_tokenizer(), decoder];
        Ok(Tokenizer::new(self.added_tokens(), stages, model))
    }

    /// Parses `left right`, both of them and what they join to being tokens.
    fn merge(&self, merge: &'a str) -> Result<(&'a str, &'a str), CheckpointError> {
        let fail = |why: &str| field("tokenizer.ggml.merges", format!("{merge:?} {why}"));
        let (left, right) = merge.split_once(' ').ok_or_else(|| fail("is not two tokens"))?;
        let joined = [left, right].concat();
        let known = [left, right, &joined].into_iter().all(|token| self.ids.contains_key(token));
        if known { Ok((left, right)) } else { Err(fail("joins to or from something that is not a token")) }
    }
}
