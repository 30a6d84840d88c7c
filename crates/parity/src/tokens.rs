//! Phi-4's tokens against tiktoken's.

use std::fmt;

use anyhow::Result;
use tiktoken_rs::CoreBPE;
use upg_engine::Tokenizer;
use upg_pdvm::rotation::SplitMix64;

use crate::phi4;

/// Texts of random characters.
const RANDOM_TEXTS: u64 = 400;

/// How many texts are encoded as tiktoken encodes them, and decoded to what they were.
pub struct Outcome {
    /// Texts without a difference.
    pub passed: usize,
    /// What differs, for people.
    pub failures: Vec<String>,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:<16} {:>7}/{}", "phi-4", self.passed, self.passed + self.failures.len())?;
        self.failures.iter().try_for_each(|failure| write!(f, "\n  {failure}"))
    }
}

/// Encodes the corpus both ways.
///
/// # Errors
/// If the tokenizer cannot be made.
pub fn compare() -> Result<Outcome> {
    let cl100k = tiktoken_rs::cl100k_base()?;
    let tokenizer = Tokenizer::new(&phi4::tokenizer_json(&cl100k)?, phi4::VOCAB, &[100_257, 100_265])?;
    let texts = corpus();
    let mut failures = Vec::new();
    for text in &texts {
        failures.extend(plain_difference(&tokenizer, &cl100k, text)?);
    }
    for (token, spelling) in phi4::specials() {
        failures.extend(special_difference(&tokenizer, &cl100k, token, &spelling)?);
    }
    let cases = texts.len() + phi4::specials().len();
    Ok(Outcome { passed: cases - failures.len(), failures })
}

fn plain_difference(tokenizer: &Tokenizer, cl100k: &CoreBPE, text: &str) -> Result<Option<String>> {
    let (found, expected) = (tokenizer.encode(text, false)?, cl100k.encode_ordinary(text));
    let decoded = tokenizer.decode(&found, true)?;
    let shown: String = text.chars().take(60).collect();
    Ok(if found != expected {
        let at = found.iter().zip(&expected).take_while(|(a, b)| a == b).count();
        Some(format!("{shown:?}: token {at} is {:?}, not {:?}", found.get(at), expected.get(at)))
    } else if decoded != text {
        Some(format!("{shown:?} decodes to something else"))
    } else {
        None
    })
}

/// A special token is one if asked for, and its spelling is text if not.
fn special_difference(
    tokenizer: &Tokenizer,
    cl100k: &CoreBPE,
    token: u32,
    spelling: &str,
) -> Result<Option<String>> {
    let (before, after) = ("  a\n\n ", " 123 b");
    let text = format!("{before}{spelling}{after}");
    let mut asked = cl100k.encode_ordinary(before);
    asked.push(token);
    asked.extend(cl100k.encode_ordinary(after));
    let as_text = plain_difference(tokenizer, cl100k, &text)?;
    let found = tokenizer.encode(&text, true)?;
    Ok(as_text.or_else(|| (found != asked).then(|| format!("{spelling}: {found:?} is not {asked:?}"))))
}

/// Texts of every kind, this crate's and its golden files' among them.
fn corpus() -> Vec<String> {
    let lines = include_str!("../golden/corpus.txt").lines().map(unescape);
    let whole = [
        include_str!("../golden/corpus.txt"),
        include_str!("../golden/models.py"),
        include_str!("../golden/templates/llama-3.1.jinja"),
        include_str!("../golden/templates/qwen2.5.json"),
        include_str!("logits.rs"),
        include_str!("tokens.rs"),
    ];
    let runs = (1..=24)
        .flat_map(|n| [" ", "\t", "\n", "\r\n", " \n", "0", "a", "!", "\u{a0}", "'s"].map(|s| s.repeat(n)));
    let spaced = (1..=12).map(|n| format!("if x:{}return{}\n", " ".repeat(n), "\n".repeat(n)));
    lines
        .chain(whole.map(str::to_owned))
        .chain(runs)
        .chain(spaced)
        .chain((0..RANDOM_TEXTS).map(random_text))
        .collect()
}

/// Undoes `\n`, `\r`, `\t`, `\\` and `\u{…}` of the corpus's lines. A surrogate, which no text can have, becomes what
/// decoders make of it: U+FFFD.
fn unescape(line: &str) -> String {
    let mut text = String::new();
    let mut rest = line;
    while let Some((plain, escape)) = rest.split_once('\\') {
        text.push_str(plain);
        let code = escape.strip_prefix("u{").and_then(|code| code.split_once('}'));
        if let Some((code, after)) = code {
            let character = u32::from_str_radix(code, 16).ok().and_then(char::from_u32);
            text.push(character.unwrap_or(char::REPLACEMENT_CHARACTER));
            rest = after;
        } else {
            let mut after = escape.chars();
            match after.next() {
                Some('n') => text.push('\n'),
                Some('r') => text.push('\r'),
                Some('t') => text.push('\t'),
                other => text.extend(other),
            }
            rest = after.as_str();
        }
    }
    text + rest
}

/// Up to 80 characters: half of them from what pieces are cut at, the others from all of Unicode.
fn random_text(seed: u64) -> String {
    const CUTS: [char; 24] = [
        ' ', ' ', ' ', '\n', '\r', '\t', '\'', 's', 'L', 'l', 'é', 'İ', 'ſ', '1', '²', '٣', 'Ⅷ', '!', '_',
        '\u{a0}', '\u{3000}', '\u{85}', '\u{301}', '\u{200d}',
    ];
    let mut random = SplitMix64(seed);
    let length = random.next() % 80;
    let character = |_| {
        let number = random.next();
        let planes = if number & 2 == 0 { 0x3000 } else { 0x11_0000 };
        match number & 1 {
            0 => CUTS[(number >> 8) as usize % CUTS.len()],
            _ => char::from_u32((number >> 8) as u32 % planes).unwrap_or('\u{fffd}'),
        }
    };
    (0..length).map(character).collect()
}
