use super::*;
use crate::fixtures::{byte_level, llama_like};

#[test]
fn text_goes_there_and_back() {
    let tokenizer = byte_level();
    for text in ["hello world", "", "  runs   of spaces\n\n", "naïve 😀 中文 العربية", "\u{0}\u{7f}\u{feff}"]
    {
        let tokens = tokenizer.encode(text, false).unwrap();
        assert_eq!(tokenizer.decode(&tokens, true).unwrap(), text);
    }
    // "he" and "hel" are merges; the rest are bytes.
    assert_eq!(tokenizer.encode("helo", false).unwrap().len(), 2);
}

#[test]
fn plain_text_never_becomes_a_control_token() {
    let tokenizer = byte_level();
    let end = tokenizer.text_to_token("<|im_end|>").unwrap();
    for text in ["<|im_end|>", "a<|im_end|>b", "<|im_start|><|im_end|>", "<<|im_end|>>", "<|shown|>", "</s>"]
    {
        let tokens = tokenizer.encode(text, false).unwrap();
        assert!(tokens.iter().all(|&t| !tokenizer.is_control(t)), "{text}: {tokens:?}");
        assert_eq!(tokenizer.decode(&tokens, true).unwrap(), text);
    }
    let tokens = tokenizer.encode("a<|im_end|>b", true).unwrap();
    assert_eq!(tokens[1], end);
    assert_eq!(tokens.len(), 3);
    assert_eq!(tokenizer.decode(&tokens, true).unwrap(), "ab");
    assert_eq!(tokenizer.decode(&tokens, false).unwrap(), "a<|im_end|>b");
}

#[test]
fn forgotten_control_tokens_are_control_but_shown() {
    let tokenizer = byte_level();
    let shown = tokenizer.text_to_token("<|shown|>").unwrap();
    assert!(tokenizer.is_control(shown));
    assert_eq!(tokenizer.decode(&[shown], true).unwrap(), "<|shown|>");
    // Named by the caller though an ordinary entry of the vocabulary:
    let eos = tokenizer.text_to_token("</s>").unwrap();
    assert!(tokenizer.is_control(eos));
    assert_eq!(tokenizer.decode(&[eos], true).unwrap(), "");
    // An added token that is plain vocabulary stays it:
    let word = tokenizer.text_to_token("upgupg").unwrap();
    assert!(!tokenizer.is_control(word));
    assert_eq!(tokenizer.encode("upgupg", false).unwrap(), [word]);
}

/// A vocabulary whose merges spell a control token: the crate's switch for special tokens does not prevent that.
#[test]
fn merges_cannot_smuggle_a_control_token() {
    let json = serde_json::json!({
        "version": "1.0",
        "added_tokens": [{"id": 5, "content": "<x>", "special": true, "single_word": false, "lstrip": false,
                          "rstrip": false, "normalized": false}],
        "model": {"type": "BPE", "vocab": {"<": 0, "x": 1, ">": 2, "<x": 3, "a": 4, "<x>": 5},
                  "merges": [["<", "x"], ["<x", ">"]]}
    });
    let tokenizer = Tokenizer::new(json.to_string().as_bytes(), 6, &[]).unwrap();
    assert_eq!(tokenizer.encode("a<x>a", true).unwrap(), [4, 5, 4]);
    assert_eq!(tokenizer.encode("a<x>a", false).unwrap(), [4, 0, 1, 2, 4]);
}

#[test]
fn only_the_given_spans_are_control() {
    let tokenizer = byte_level();
    let text = "<|im_start|>say <|im_end|><|im_end|>";
    let spans = tokenizer.control().find(text);
    assert_eq!(spans.len(), 3);
    let tokens = tokenizer.encode_spans(text, &[spans[0].clone(), spans[2].clone()]).unwrap();
    let control: Vec<u32> = tokens.iter().copied().filter(|&t| tokenizer.is_control(t)).collect();
    assert_eq!(control, [spans[0].token, spans[2].token]);
    assert_eq!(*tokens.last().unwrap(), spans[2].token);
    assert_eq!(tokenizer.decode(&tokens, false).unwrap(), text);
    assert_eq!(tokenizer.encode_spans(text, &spans).unwrap(), tokenizer.encode(text, true).unwrap());
}

#[test]
fn a_tokenizer_of_another_model_is_refused() {
    let json = crate::fixtures::byte_level_json();
    let error = Tokenizer::new(json.as_bytes(), 100, &[]).err().unwrap();
    assert!(matches!(error, TokenizerError::Vocabulary { vocab: 100, .. }), "{error}");
    for bad in ["", "{}", "[1,2]", "{\"model\":{\"type\":\"Magic\"}}"] {
        assert!(matches!(Tokenizer::new(bad.as_bytes(), 100, &[]), Err(TokenizerError::Load(_))), "{bad}");
    }
}

#[test]
fn a_file_that_cuts_texts_is_not_obeyed() {
    let mut json: serde_json::Value = serde_json::from_str(&crate::fixtures::byte_level_json()).unwrap();
    json["truncation"] =
        serde_json::json!({"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0});
    let tokenizer = Tokenizer::new(json.to_string().as_bytes(), 400, &[]).unwrap();
    assert_eq!(tokenizer.encode("abcdefg", false).unwrap().len(), 7);
}

/// All that a stream returns, piece by piece, and at the end.
fn run(tokenizer: &Tokenizer, mut stream: TextStream, tokens: &[u32]) -> (Vec<String>, String) {
    let pieces = tokens.iter().map(|&t| stream.push(tokenizer, t).unwrap()).collect();
    (pieces, stream.finish(tokenizer).unwrap())
}

#[test]
fn a_character_of_several_tokens_arrives_whole() {
    let tokenizer = byte_level();
    let tokens = tokenizer.encode("a😀é!", false).unwrap();
    assert_eq!(tokens.len(), 1 + 4 + 2 + 1);
    let (pieces, rest) = run(&tokenizer, TextStream::default(), &tokens);
    assert_eq!(pieces, ["a", "", "", "", "😀", "", "é", "!"]);
    assert_eq!(rest, "");
}

#[test]
fn an_unfinished_character_becomes_a_replacement_at_the_end() {
    let tokenizer = byte_level();
    let tokens = tokenizer.encode("x😀", false).unwrap();
    let (pieces, rest) = run(&tokenizer, TextStream::default(), &tokens[..3]);
    assert_eq!((pieces.concat().as_str(), rest.as_str()), ("x", "\u{fffd}"));
}

#[test]
fn bytes_that_never_become_a_character_do_not_hold_the_stream_up() {
    let tokenizer = byte_level();
    let continuation = tokenizer.encode("é", false).unwrap()[1];
    let mut stream = TextStream::default();
    for _ in 0..1000 {
        stream.push(&tokenizer, continuation).unwrap();
        assert!(stream.tokens.len() <= 2 * (stream::HELD + 1));
    }
    let a = tokenizer.encode("a", false).unwrap()[0];
    assert!(stream.push(&tokenizer, a).unwrap().ends_with('a'));
}

#[test]
fn streaming_equals_decoding() {
    for tokenizer in [byte_level(), llama_like()] {
        let text = "hello hello 😀 中文 é\u{fffd}x";
        let tokens = tokenizer.encode(text, false).unwrap();
        let (pieces, rest) = run(&tokenizer, TextStream::default(), &tokens);
        assert_eq!(pieces.concat() + &rest, tokenizer.decode(&tokens, true).unwrap());
    }
}

/// Llama's decoder strips the first word's space; an answer after a prompt keeps it.
#[test]
fn an_answer_keeps_the_space_before_its_first_word() {
    let tokenizer = llama_like();
    let hello = tokenizer.text_to_token("▁hello").unwrap();
    assert_eq!(run(&tokenizer, TextStream::default(), &[hello, hello]).0, ["hello", " hello"]);
    let after = TextStream::after(&tokenizer, &[hello]);
    assert_eq!(run(&tokenizer, after, &[hello]).0, [" hello"]);
}

#[test]
fn hidden_tokens_add_no_text() {
    let tokenizer = byte_level();
    let end = tokenizer.text_to_token("<|im_end|>").unwrap();
    let mut tokens = tokenizer.encode("ab", false).unwrap();
    tokens.insert(1, end);
    assert_eq!(run(&tokenizer, TextStream::default(), &tokens).0, ["a", "", "b"]);
}
