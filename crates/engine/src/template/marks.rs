use std::collections::BTreeSet;

use serde_json::{Map, Value};

use crate::tokenizer::{ControlSpan, ControlTokens};

/// Private-use characters of the last plane: icon fonts use the other two ranges.
const FIRST: u32 = 0x10_0000;
/// The longest string that counts as an identifier.
const MAX_IDENTIFIER: usize = 64;

/// A substitution of characters that makes the caller's strings tell-tale.
///
/// Every character of a control token's spelling is replaced by a private one, but for white space (templates trim) and
/// what JSON escapes. A spelling in the result is then one of which the caller wrote none of these characters.
pub(super) struct Marks<'a> {
    control: &'a ControlTokens,
    /// `alphabet[i]` is replaced by the character `FIRST + i`. Sorted.
    alphabet: Vec<char>,
}

impl<'a> Marks<'a> {
    pub(super) fn new(control: &'a ControlTokens) -> Self {
        let kept = |c: &char| c.is_whitespace() || c.is_control() || matches!(c, '"' | '\\');
        let alphabet: BTreeSet<char> =
            control.spellings().flat_map(str::chars).filter(|c| !kept(c)).collect();
        // One plane of private characters is more than the characters of any vocabulary's control tokens.
        Self { control, alphabet: alphabet.into_iter().take(0xfffe).collect() }
    }

    /// Marks every string and key in a value, but for identifiers.
    pub(super) fn mark(&self, value: &Value) -> Value {
        match value {
            Value::String(text) => Value::String(self.mark_text(text)),
            Value::Array(values) => Value::Array(values.iter().map(|value| self.mark(value)).collect()),
            Value::Object(map) => {
                let marked = map.iter().map(|(key, value)| (self.mark_text(key), self.mark(value)));
                Value::Object(marked.collect::<Map<_, _>>())
            }
            other => other.clone(),
        }
    }

    fn mark_text(&self, text: &str) -> String {
        let identifier = text.len() <= MAX_IDENTIFIER
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
        if identifier && self.control.find(text).is_empty() {
            return text.to_owned();
        }
        let private = |i: usize| char::from_u32(FIRST + i as u32);
        text.chars().map(|c| self.alphabet.binary_search(&c).ok().and_then(private).unwrap_or(c)).collect()
    }

    /// Undoes the marks; returns where the template itself wrote control tokens, in bytes of the text returned.
    pub(super) fn undo(&self, marked: &str) -> (String, Vec<ControlSpan>) {
        let mut text = String::with_capacity(marked.len());
        let mut spans = Vec::new();
        let mut done = 0;
        for span in self.control.find(marked) {
            self.undo_text(&marked[done..span.range.start], &mut text);
            let start = text.len();
            text.push_str(&marked[span.range.clone()]);
            spans.push(ControlSpan { range: start..text.len(), token: span.token });
            done = span.range.end;
        }
        self.undo_text(&marked[done..], &mut text);
        (text, spans)
    }

    fn undo_text(&self, marked: &str, text: &mut String) {
        let original = |c: char| {
            let index = (c as u32).checked_sub(FIRST)?;
            self.alphabet.get(index as usize).copied()
        };
        text.extend(marked.chars().map(|c| original(c).unwrap_or(c)));
    }
}
