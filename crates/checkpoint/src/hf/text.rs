//! From the tokenizer's files to [`TextConfig`].

use std::path::Path;

use serde::Deserialize;
use upg_format::TextConfig;

use super::{
    config::{OneOrMore, RawConfig},
    side_files::{self, CONFIG_CAP, TOKENIZER_CAP},
};
use crate::{CheckpointError, stops::stop_tokens};

/// `generation_config.json`.
#[derive(Default, Deserialize)]
struct Generation {
    eos_token_id: Option<OneOrMore>,
}

/// `tokenizer_config.json` and `special_tokens_map.json`.
#[derive(Default, Deserialize)]
struct TokenizerConfig {
    chat_template: Option<ChatTemplate>,
    add_bos_token: Option<bool>,
    bos_token: Option<Token>,
    eos_token: Option<Token>,
    pad_token: Option<Token>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum ChatTemplate {
    One(String),
    Named(Vec<NamedTemplate>),
}

#[derive(Deserialize)]
struct NamedTemplate {
    name: String,
    template: String,
}

/// A token by its text.
#[derive(Deserialize)]
#[serde(untagged)]
enum Token {
    Plain(String),
    Described { content: String },
}

impl Token {
    fn text(&self) -> &str {
        match self {
            Token::Plain(text) | Token::Described { content: text } => text,
        }
    }
}

/// What is needed of `tokenizer.json`; the `tokenizers` crate reads the rest.
#[derive(Deserialize)]
struct Vocabulary {
    added_tokens: Vec<AddedToken>,
    post_processor: Option<serde_json::Value>,
}

#[derive(Deserialize)]
struct AddedToken {
    id: u32,
    content: String,
    special: bool,
}

impl Vocabulary {
    fn id(&self, text: &str) -> Option<u32> {
        self.added_tokens.iter().find(|token| token.content == text).map(|token| token.id)
    }

    fn special(&self) -> impl Iterator<Item = (&str, u32)> {
        self.added_tokens.iter().filter(|token| token.special).map(|token| (&*token.content, token.id))
    }

    /// Whether the post-processor, a template such as `<s> $A`, starts with the special token `bos`.
    fn starts_with(&self, bos: &str) -> bool {
        let is_template = |value: &&serde_json::Value| value["type"] == "TemplateProcessing";
        let Some(post) = &self.post_processor else { return false };
        let parts = post["processors"].as_array().map_or(std::slice::from_ref(post), Vec::as_slice);
        parts.iter().find(is_template).is_some_and(|part| part["single"][0]["SpecialToken"]["id"] == bos)
    }
}

/// Reads chat template and special tokens, and returns them with `tokenizer.json`.
pub(super) fn read(
    folder: &Path,
    config: &RawConfig,
    vocab: usize,
) -> Result<(TextConfig, Vec<u8>), CheckpointError> {
    let path = folder.join("tokenizer.json");
    let Some(json) = side_files::read_optional(&path, TOKENIZER_CAP)? else {
        let why = "it has no tokenizer.json; download it, or save the tokenizer with transformers".to_owned();
        return Err(CheckpointError::NotACheckpoint { path: folder.to_owned(), why });
    };
    let vocabulary: Vocabulary = side_files::parse(&path, &json)?;
    let generation: Generation =
        side_files::parse_optional(&folder.join("generation_config.json"))?.unwrap_or_default();
    let named: TokenizerConfig =
        side_files::parse_optional(&folder.join("tokenizer_config.json"))?.unwrap_or_default();
    let map: TokenizerConfig =
        side_files::parse_optional(&folder.join("special_tokens_map.json"))?.unwrap_or_default();

    let bos = token(&vocabulary, "bos_token", named.bos_token.as_ref().or(map.bos_token.as_ref()))?;
    let eos = token(&vocabulary, "eos_token", named.eos_token.as_ref().or(map.eos_token.as_ref()))?;
    let pad = token(&vocabulary, "pad_token", named.pad_token.as_ref().or(map.pad_token.as_ref()))?;
    let listed = [config.eos_token_id.as_ref(), generation.eos_token_id.as_ref()];
    let listed = || listed.into_iter().flatten().flat_map(OneOrMore::as_slice).copied();

    let bos_text = named.bos_token.as_ref().or(map.bos_token.as_ref()).map(Token::text);
    let add_bos =
        named.add_bos_token.unwrap_or_else(|| bos_text.is_some_and(|bos| vocabulary.starts_with(bos)));
    let text = TextConfig {
        chat_template: chat_template(folder, named.chat_template)?,
        // The model's own number counts only where the tokenizer's files do not speak of special tokens at all.
        bos: if bos.is_none() && eos.is_none() { config.bos_token_id } else { bos },
        eos: eos.or_else(|| listed().next()),
        pad,
        add_bos,
        stop_tokens: stop_tokens(listed().chain(eos), vocabulary.special()),
    };
    check(&text, vocab)?;
    Ok((text, json))
}

/// The number of a token that a side file names by its text.
fn token(
    vocabulary: &Vocabulary,
    field: &str,
    token: Option<&Token>,
) -> Result<Option<u32>, CheckpointError> {
    let Some(text) = token.map(Token::text) else { return Ok(None) };
    vocabulary.id(text).map(Some).ok_or_else(|| CheckpointError::Field {
        field: format!("tokenizer_config.json: {field}"),
        why: format!("{text:?} is not among the added tokens of tokenizer.json; download both again"),
    })
}

/// `chat_template.jinja`, or else the template of the tokenizer's configuration, as transformers chooses.
fn chat_template(folder: &Path, named: Option<ChatTemplate>) -> Result<Option<String>, CheckpointError> {
    let path = folder.join("chat_template.jinja");
    if let Some(bytes) = side_files::read_optional(&path, CONFIG_CAP)? {
        let template = String::from_utf8(bytes).map_err(|_| CheckpointError::Field {
            field: "chat_template.jinja".into(),
            why: "it is not UTF-8; download it again".into(),
        })?;
        return Ok(Some(template));
    }
    match named {
        None => Ok(None),
        Some(ChatTemplate::One(template)) => Ok(Some(template)),
        Some(ChatTemplate::Named(templates)) => {
            let names = templates.iter().map(|named| &*named.name).collect::<Vec<_>>().join(", ");
            let default = templates.into_iter().find(|named| named.name == "default");
            default.map(|named| Some(named.template)).ok_or_else(|| CheckpointError::Field {
                field: "tokenizer_config.json: chat_template".into(),
                why: format!("none is called default; there are: {names}"),
            })
        }
    }
}

/// Every token must have a row in the embedding, and prompts that start with a token need one.
fn check(text: &TextConfig, vocab: usize) -> Result<(), CheckpointError> {
    let tokens = text.bos.iter().chain(&text.eos).chain(&text.pad).chain(&text.stop_tokens);
    if let Some(token) = tokens.into_iter().find(|token| **token as usize >= vocab) {
        let why = format!("token {token} has no embedding: there are {vocab}");
        return Err(CheckpointError::Field { field: "special tokens".into(), why });
    }
    if text.add_bos && text.bos.is_none() {
        let why = "it is missing, but add_bos_token asks for it".to_owned();
        return Err(CheckpointError::Field { field: "tokenizer_config.json: bos_token".into(), why });
    }
    Ok(())
}
