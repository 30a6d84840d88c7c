//! `tokenizer.ggml.model = llama`: SentencePiece's byte-pair encoding (Kudo & Richardson 2018). It has no list of
//! merges but scores: of two neighbours, those are joined whose joint token has the highest. transformers converts
//! scores to an ordered list of merges; so does this file, in the same order.

use std::cmp::Reverse;

use serde_json::{Value, json};

use super::{
    TokenKind, Vocabulary,
    json::{AddedToken, Bpe, Tokenizer, Vocab},
};
use crate::{
    CheckpointError,
    gguf::{
        file::Gguf,
        metadata::{field, required},
    },
};

/// What SentencePiece writes for a space.
const SPACE: &str = "\u{2581}";

impl<'a> Vocabulary<'a> {
    pub(super) fn sentencepiece(&self, gguf: &Gguf<'a>) -> Result<Tokenizer<'a>, CheckpointError> {
        let metadata = &gguf.metadata;
        if metadata.bool("tokenizer.ggml.remove_extra_whitespaces")? == Some(true) {
            return Err(CheckpointError::Unsupported(
                "tokenizer.ggml.remove_extra_whitespaces is not supported".into(),
            ));
        }
        let scores = required("tokenizer.ggml.scores", metadata.floats("tokenizer.ggml.scores")?)?;
        if scores.len() != self.len() {
            let why = format!("{} scores for {} tokens", scores.len(), self.len());
            return Err(field("tokenizer.ggml.scores", why));
        }
        if let Some(score) = scores.iter().find(|score| score.is_nan()) {
            return Err(field("tokenizer.ggml.scores", format!("a score is {score}")));
        }
        let model = Bpe {
            unk_token: self
                .numbered()
                .find(|(_, _, kind)| *kind == TokenKind::Unknown)
                .map(|(token, ..)| token),
            fuse_unk: true,
            byte_fallback: true,
            vocab: Vocab(self.tokens.clone()),
            merges: self.merges_by_score(&scores),
            ..Bpe::default()
        };
        let prefix = metadata.bool("tokenizer.ggml.add_space_prefix")?.unwrap_or(true);
        let stages = [normalizer(prefix), Value::Null, decoder(prefix)];
        let mut added = self.added_tokens();
        if metadata.str("general.architecture")? == Some("phi3") {
            added.iter_mut().for_each(strip_as_phi3);
        }
        Ok(Tokenizer::new(added, stages, model))
    }

    /// Every way to make a token of two others: highest score of the result first; of the same score, longest left
    /// part first, then longest right part, then by the tokens' numbers.
    fn merges_by_score(&self, scores: &[f32]) -> Vec<(&'a str, &'a str)> {
        let mut merges = Vec::new();
        for ((token, id, kind), score) in self.numbered().zip(scores) {
            // Text is never joined to a control token or to the name of a byte.
            if !matches!(kind, TokenKind::Normal | TokenKind::UserDefined) {
                continue;
            }
            for (at, _) in token.char_indices().skip(1) {
                let (left, right) = token.split_at(at);
                if let (Some(l), Some(r)) = (self.ids.get(left), self.ids.get(right)) {
                    merges.push((*score, left, right, (id, *l, *r)));
                }
            }
        }
        let len = |part: &str| part.chars().count();
        merges.sort_by(|a, b| {
            let key = |m: &(f32, &str, &str, (u32, u32, u32))| (Reverse((len(m.1), len(m.2))), m.3);
            b.0.total_cmp(&a.0).then_with(|| key(a).cmp(&key(b)))
        });
        merges.into_iter().map(|(_, left, right, _)| (left, right)).collect()
    }
}

/// Spaces become the mark, and one comes before the text where the model was trained so.
fn normalizer(prefix: bool) -> Value {
    let replace = json!({ "type": "Replace", "pattern": { "String": " " }, "content": SPACE });
    if prefix {
        json!({ "type": "Sequence", "normalizers": [{ "type": "Prepend", "prepend": SPACE }, replace] })
    } else {
        replace
    }
}

/// Undoes [`normalizer`].
fn decoder(prefix: bool) -> Value {
    let mut decoders = vec![
        json!({ "type": "Replace", "pattern": { "String": SPACE }, "content": " " }),
        json!({ "type": "ByteFallback" }),
        json!({ "type": "Fuse" }),
    ];
    if prefix {
        decoders.push(json!({ "type": "Strip", "content": " ", "start": 1, "stop": 0 }));
    }
    json!({ "type": "Sequence", "decoders": decoders })
}

/// Phi-3's marks of turns swallow the white space after them; GGUF has no place to say so.
fn strip_as_phi3(token: &mut AddedToken<'_>) {
    token.rstrip = !matches!(token.content, "<unk>" | "<s>" | "<|endoftext|>");
}
