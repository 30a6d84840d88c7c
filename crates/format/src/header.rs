use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{FormatError, ModelConfig};

/// What a file says about its model, besides the weights and the tokenizer.
#[derive(Clone, Debug, PartialEq)]
pub struct Header {
    /// What the model is.
    pub config: ModelConfig,
    /// How text becomes tokens and a conversation becomes text.
    pub text: TextConfig,
    /// Where the weights come from.
    pub provenance: Provenance,
}

/// How text becomes tokens and a conversation becomes text; the vocabulary itself is in `tokenizer.json`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TextConfig {
    /// The chat template (Jinja), as the checkpoint ships it.
    pub chat_template: Option<String>,
    /// The token that starts a text.
    pub bos: Option<u32>,
    /// The token that chat templates call `eos_token`.
    pub eos: Option<u32>,
    /// The token that fills up batches in training; only templates may ask for it.
    pub pad: Option<u32>,
    /// Whether encoding a prompt puts `bos` before it.
    pub add_bos: bool,
    /// Every token that ends an answer.
    pub stop_tokens: Vec<u32>,
}

/// Where the weights come from and how they were made.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Provenance {
    /// The checkpoint's files.
    pub source: Vec<SourceFile>,
    /// The program and its version that wrote the file.
    pub tool: String,
    /// The calibration text, where there was one.
    pub calibration: Option<String>,
    /// The settings of the compression, as a reader would like to see them.
    pub settings: BTreeMap<String, String>,
}

/// One file of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SourceFile {
    /// Its name, without folders.
    pub name: String,
    /// Its length in bytes.
    pub size: u64,
    /// Its BLAKE3 hash in hexadecimal, where it was computed.
    pub blake3: Option<String>,
    /// Its SHA-256 in hexadecimal, by which model hubs know it, where it was computed.
    pub sha256: Option<String>,
}

impl Header {
    /// Checks the configuration and that every special token is in the vocabulary.
    ///
    /// # Errors
    /// [`FormatError::Config`] or [`FormatError::Token`].
    pub fn validate(&self) -> Result<(), FormatError> {
        self.config.validate()?;
        let TextConfig { bos, eos, pad, stop_tokens, .. } = &self.text;
        let special = [("bos", bos), ("eos", eos), ("pad", pad)];
        let special = special.into_iter().filter_map(|(role, token)| token.map(|token| (role, token)));
        let stops = stop_tokens.iter().map(|token| ("stop token", *token));
        for (role, token) in special.chain(stops) {
            if token as usize >= self.config.vocab {
                return Err(FormatError::Token { role, token, vocab: self.config.vocab });
            }
        }
        Ok(())
    }
}
