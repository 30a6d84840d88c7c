use std::{collections::BTreeMap, ops::Range};

use tokenizers::AddedToken;

/// Where a text spells a control token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ControlSpan {
    /// Bytes of the text.
    pub(crate) range: Range<usize>,
    /// The token.
    pub(crate) token: u32,
}

/// The control tokens and how they are spelled.
#[derive(Clone, Debug)]
pub(crate) struct ControlTokens {
    by_token: BTreeMap<u32, AddedToken>,
    /// By first byte of the spelling; the longest first.
    by_byte: BTreeMap<u8, Vec<u32>>,
}

impl ControlTokens {
    /// No spelling is empty.
    pub(crate) fn new(tokens: Vec<(u32, AddedToken)>) -> Self {
        let by_token: BTreeMap<u32, AddedToken> = tokens.into_iter().collect();
        let mut by_byte: BTreeMap<u8, Vec<u32>> = BTreeMap::new();
        for (&id, token) in &by_token {
            if let Some(&first) = token.content.as_bytes().first() {
                by_byte.entry(first).or_default().push(id);
            }
        }
        for ids in by_byte.values_mut() {
            ids.sort_by_key(|id| std::cmp::Reverse(by_token[id].content.len()));
        }
        Self { by_token, by_byte }
    }

    /// The token's spelling and how it treats the spaces beside it, if it is a control token.
    pub(crate) fn get(&self, token: u32) -> Option<&AddedToken> {
        self.by_token.get(&token)
    }

    /// Every spelling of a control token in the text: leftmost first, the longest of several.
    pub(crate) fn find(&self, text: &str) -> Vec<ControlSpan> {
        let bytes = text.as_bytes();
        let mut spans = Vec::new();
        let mut at = 0;
        while at < bytes.len() {
            let spelled = |id: &&u32| bytes[at..].starts_with(self.by_token[id].content.as_bytes());
            match self.by_byte.get(&bytes[at]).and_then(|ids| ids.iter().find(spelled)) {
                None => at += 1,
                Some(&token) => {
                    let end = at + self.by_token[&token].content.len();
                    spans.push(ControlSpan { range: at..end, token });
                    at = end;
                }
            }
        }
        spans
    }

    /// The spellings.
    pub(crate) fn spellings(&self) -> impl Iterator<Item = &str> {
        self.by_token.values().map(|token| token.content.as_str())
    }
}
