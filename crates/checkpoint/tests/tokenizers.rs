//! Tokenizers made from GGUF metadata.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use std::fs;

use common::*;
use tokenizers::Tokenizer;
use upg_checkpoint::{CheckpointError, open};

fn tokenizer(file: &GgufFile) -> Result<Tokenizer, CheckpointError> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    fs::write(&path, file.bytes()).unwrap();
    open(&path).map(|model| Tokenizer::from_bytes(model.tokenizer_json()).unwrap())
}

fn encode(tokenizer: &Tokenizer, text: &str) -> Vec<String> {
    tokenizer.encode(text, false).unwrap().get_tokens().to_vec()
}

#[test]
fn byte_level_merges_in_order() {
    let tokenizer = tokenizer(&gguf_llama()).unwrap();
    assert_eq!(encode(&tokenizer, "help he"), ["hel", "p", "Ġ", "he"]);
    assert_eq!(encode(&tokenizer, "<|im_end|>"), ["<|im_end|>"]);
}

/// The pieces that each pattern cuts, seen through a vocabulary that joins nothing.
#[test]
fn each_pre_tokenizer_cuts_as_its_model_does() {
    use tokenizers::{OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer};
    let text = "I'LL pay 12345 HTTPServer's\n\n  café!?\n";
    for (pre, pieces) in [
        ("gpt-2", "I|'|LL| pay| 12345| HTTPServer|'s|\n\n | café|!?|\n"),
        ("smollm", "I|'|LL| pay| |1|2|3|4|5| HTTPServer|'s|\n\n | café|!?|\n"),
        ("llama-bpe", "I|'LL| pay| |123|45| HTTPServer|'s|\n\n| | café|!?\n"),
        ("dbrx", "I|'LL| pay| |123|45| HTTPServer|'s|\n\n| | café|!?\n"),
        ("qwen2", "I|'LL| pay| |1|2|3|4|5| HTTPServer|'s|\n\n| | café|!?\n"),
        ("gpt-4o", "I'LL| pay| |123|45| HTTPServer's|\n\n| | café|!?\n"),
    ] {
        let mut file = gguf_llama();
        file.set("tokenizer.ggml.pre", Meta::str(pre));
        file.set("tokenizer.ggml.add_bos_token", Meta::Bool(false));
        let tokenizer = tokenizer(&file).unwrap();
        let mut cut = PreTokenizedString::from(text);
        tokenizer.get_pre_tokenizer().unwrap().pre_tokenize(&mut cut).unwrap();
        let found = cut.get_splits(OffsetReferential::Original, OffsetType::Byte);
        let found: Vec<&str> = found.iter().map(|(_, (start, end), _)| &text[*start..*end]).collect();
        assert_eq!(found.join("|"), pieces, "{pre}");
    }
}

#[test]
fn qwen2_composes_letters() {
    let mut file = gguf_llama();
    file.set("tokenizer.ggml.pre", Meta::str("qwen2"));
    let tokenizer = tokenizer(&file).unwrap();
    assert!(tokenizer.get_normalizer().is_some());
}

/// A SentencePiece vocabulary whose scores decide which letters are joined first.
fn sentencepiece() -> GgufFile {
    let mut tokens: Vec<(String, i32, f32)> =
        [("<unk>", 2), ("<s>", 3), ("</s>", 3)].map(|(token, kind)| (token.to_owned(), kind, 0.0)).into();
    tokens.extend((0..=255).map(|byte| (format!("<0x{byte:02X}>"), 6, 0.0)));
    for (token, score) in [
        ("▁", -10.0),
        ("a", -11.0),
        ("b", -12.0),
        ("c", -13.0),
        ("bc", -1.0),
        ("ab", -2.0),
        ("▁a", -3.0),
        ("▁ab", -5.0),
        ("▁abc", -0.5),
    ] {
        tokens.push((token.to_owned(), 1, score));
    }
    tokens.push(("<user>".into(), 4, 0.0));
    let mut file = gguf_llama();
    file.set("tokenizer.ggml.model", Meta::str("llama"))
        .remove("tokenizer.ggml.pre")
        .remove("tokenizer.ggml.merges")
        .set("tokenizer.ggml.tokens", Meta::Strs(tokens.iter().map(|token| token.0.clone()).collect()))
        .set("tokenizer.ggml.token_type", Meta::I32s(tokens.iter().map(|token| token.1).collect()))
        .set("tokenizer.ggml.scores", Meta::F32s(tokens.iter().map(|token| token.2).collect()));
    file
}

#[test]
fn sentencepiece_joins_by_score() {
    let tokenizer = tokenizer(&sentencepiece()).unwrap();
    // "bc" has the best score of what "▁", "a", "b", "c" can join to first, so the rest is "▁a" and then all.
    assert_eq!(encode(&tokenizer, "abc"), ["▁abc"]);
    assert_eq!(encode(&tokenizer, "ab abab"), ["▁ab", "▁ab", "ab"]);
    assert_eq!(encode(&tokenizer, "é"), ["▁", "<0xC3>", "<0xA9>"]);
    assert_eq!(encode(&tokenizer, "a<user>b</s>"), ["▁a", "<user>", "▁", "b", "</s>"]);
    for text in ["abc", "ab  abab", "é ç\n"] {
        let ids = tokenizer.encode(text, false).unwrap();
        assert_eq!(tokenizer.decode(ids.get_ids(), false).unwrap(), text);
    }
}

#[test]
fn sentencepiece_without_a_space_before() {
    let mut file = sentencepiece();
    file.set("tokenizer.ggml.add_space_prefix", Meta::Bool(false));
    let tokenizer = tokenizer(&file).unwrap();
    // "bc" has a better score than "ab".
    assert_eq!(encode(&tokenizer, "abc a"), ["a", "bc", "▁a"]);
    let ids = tokenizer.encode(" abc", false).unwrap();
    assert_eq!(tokenizer.decode(ids.get_ids(), false).unwrap(), " abc");
}

#[test]
fn what_is_not_known_is_refused_by_name() {
    for (key, value, message) in [
        ("tokenizer.ggml.model", Meta::str("t5"), "known are: gpt2, llama"),
        (
            "tokenizer.ggml.pre",
            Meta::str("tekken"),
            "pre-tokenizer \"tekken\" is not supported; known are: gpt-2",
        ),
        ("tokenizer.ggml.add_space_prefix", Meta::Bool(true), "add_space_prefix is not supported"),
        ("tokenizer.ggml.merges", Meta::strs(&["h e", "hl"]), "is not two tokens"),
        ("tokenizer.ggml.merges", Meta::strs(&["h é"]), "something that is not a token"),
        ("tokenizer.ggml.eos_token_id", Meta::U32(1000), "token 1000 is not among"),
        ("tokenizer.ggml.token_type", Meta::I32s(vec![9; byte_level_tokens().len()]), "9 is no type"),
        ("tokenizer.ggml.token_type", Meta::I32s(vec![1]), "1 token types"),
        ("tokenizer.ggml.tokens", Meta::Strs(vec!["a".into(); byte_level_tokens().len()]), "are both \"a\""),
    ] {
        let mut file = gguf_llama();
        file.set(key, value);
        let error = tokenizer(&file).unwrap_err().to_string();
        assert!(error.contains(message), "{key}: {error}");
    }
}
