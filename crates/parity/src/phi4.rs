//! Phi-4's `tokenizer.json`, made from the ranks that tiktoken ships: cl100k's vocabulary with special tokens of its own.

use std::collections::HashMap;

use anyhow::{Context, Result};
use serde_json::{Map, Value, json};
use tiktoken_rs::CoreBPE;

/// Rows of Phi-4's embedding: the ranks, and 96 special tokens.
pub const VOCAB: usize = 100_352;
/// Tokens that cl100k makes by merging bytes.
const RANKS: u32 = 100_256;

/// What cuts a text into the pieces inside of which bytes are merged, as Phi-4's file has it.
const PIECES: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// The special tokens, by number: those of cl100k and of chats, and dummies between and behind them.
pub fn specials() -> Vec<(u32, String)> {
    let mut dummies = 0..;
    let special = |id| {
        let name = match id {
            100_257 => "endoftext",
            100_258 => "fim_prefix",
            100_259 => "fim_middle",
            100_260 => "fim_suffix",
            100_264 => "im_start",
            100_265 => "im_end",
            100_266 => "im_sep",
            100_276 => "endofprompt",
            _ => return (id, format!("<|dummy_{}|>", dummies.next().unwrap_or(0))),
        };
        (id, format!("<|{name}|>"))
    };
    (RANKS..VOCAB as u32).map(special).collect()
}

/// The file.
///
/// # Errors
/// If the ranks are not what they are known to be.
pub fn tokenizer_json(cl100k: &CoreBPE) -> Result<Vec<u8>> {
    let tokens: Vec<Vec<u8>> =
        (0..RANKS).map(|rank| Ok(cl100k.decode_bytes(&[rank])?)).collect::<Result<_>>()?;
    let ranks: HashMap<&[u8], usize> = tokens.iter().map(Vec::as_slice).zip(0..).collect();
    let alphabet = byte_alphabet();
    let spell = |bytes: &[u8]| bytes.iter().map(|b| alphabet[usize::from(*b)]).collect::<String>();
    let vocab: Map<String, Value> = tokens.iter().zip(0..).map(|(t, rank)| (spell(t), json!(rank))).collect();
    let merges = tokens.iter().enumerate().filter(|(_, token)| token.len() > 1).map(|(rank, token)| {
        let (a, b) =
            last_merge(token, rank, &ranks).with_context(|| format!("no merge makes token {rank}"))?;
        Ok(json!([spell(a), spell(b)]))
    });
    let merges: Vec<Value> = merges.collect::<Result<_>>()?;
    let added = specials().into_iter().map(|(id, content)| {
        json!({"id": id, "content": content, "special": true, "single_word": false, "lstrip": false,
               "rstrip": false, "normalized": false})
    });
    let byte_level =
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
    let split = json!({"type": "Split", "pattern": {"Regex": PIECES}, "behavior": "Removed", "invert": true});
    let file = json!({
        "version": "1.0",
        "added_tokens": added.collect::<Vec<_>>(),
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
        "decoder": byte_level,
        "model": {"type": "BPE", "vocab": vocab, "merges": merges},
    });
    Ok(serde_json::to_vec(&file)?)
}

/// The two tokens that are merged into `token`: what is left of it when only tokens below its own rank are merged, the
/// lowest first.
fn last_merge<'a>(
    token: &'a [u8],
    rank: usize,
    ranks: &HashMap<&[u8], usize>,
) -> Option<(&'a [u8], &'a [u8])> {
    // Where the parts begin, and the end.
    let mut cuts: Vec<usize> = (0..=token.len()).collect();
    while cuts.len() > 3 {
        let merged = |i: usize| ranks.get(&token[cuts[i - 1]..cuts[i + 1]]).copied().filter(|r| *r < rank);
        let (_, best) = (1..cuts.len() - 1).filter_map(|i| Some((merged(i)?, i))).min()?;
        cuts.remove(best);
    }
    Some(token.split_at(*cuts.get(1)?))
}

/// GPT-2's byte alphabet: printable bytes stand for themselves, the others for characters from U+0100 on.
fn byte_alphabet() -> Vec<char> {
    let printable = |b: &u32| matches!(b, 33..=126 | 161..=172 | 174..=255);
    let mut others = 256..;
    let character = |b: u32| if printable(&b) { Some(b) } else { others.next() };
    (0..256).filter_map(character).filter_map(char::from_u32).collect()
}
