use serde::Deserialize;
use serde_json::{Deserializer, Map, Value};

/// What an answer must do.
#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Check {
    /// Hold all of these, upper and lower case alike.
    Says(Vec<String>),
    /// Have this as its last whole number.
    Number(i64),
    /// Hold a JSON object, the first of which has just these members.
    Json(Map<String, Value>),
}

impl Check {
    /// Whether the answer does.
    pub(super) fn passes(&self, answer: &str) -> bool {
        match self {
            Self::Says(parts) => {
                let answer = answer.to_lowercase();
                parts.iter().all(|part| answer.contains(&part.to_lowercase()))
            }
            Self::Number(number) => last_number(answer) == Some(*number),
            Self::Json(object) => first_object(answer).as_ref() == Some(object),
        }
    }
}

/// The last whole number of a text; commas between its digits count for nothing.
fn last_number(text: &str) -> Option<i64> {
    let text = text.replace(',', "");
    let end = text.rfind(|c: char| c.is_ascii_digit())? + 1;
    let start = text[..end]
        .rfind(|c: char| !c.is_ascii_digit())
        .map_or(0, |at| at + text[at..].chars().next().map_or(1, char::len_utf8));
    let negative = text[..start].ends_with('-');
    let number: i64 = text[start..end].parse().ok()?;
    Some(if negative { -number } else { number })
}

/// The first JSON object in a text, whatever stands around it.
fn first_object(text: &str) -> Option<Map<String, Value>> {
    let starts = text.match_indices('{').map(|(at, _)| at);
    let mut objects = starts.filter_map(|at| Deserializer::from_str(&text[at..]).into_iter().next()?.ok());
    objects.next()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

    use super::*;

    fn check(json: &str) -> Check {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn words_are_found_in_any_case() {
        let check = check(r#"{"says": ["Ada", "lisbon"]}"#);
        assert!(check.passes("ADA of Lisbon"));
        assert!(!check.passes("Ada"));
    }

    #[test]
    fn the_last_number_counts() {
        let check = check(r#"{"number": 42}"#);
        for right in ["42", "17 + 25 = 42.", "**42**", "→42"] {
            assert!(check.passes(right), "{right}");
        }
        for wrong in ["", "no", "42 or 43", "-42", "99999999999999999999942"] {
            assert!(!check.passes(wrong), "{wrong}");
        }
        assert_eq!(last_number("1,024 bytes"), Some(1024));
    }

    #[test]
    fn json_may_stand_in_a_fence_and_must_be_whole() {
        let check = check(r#"{"json": {"name": "Ada", "age": 36}}"#);
        assert!(check.passes("```json\n{\"age\": 36, \"name\": \"Ada\"}\n```"));
        assert!(check.passes("{Ada}: {\"age\":36,\"name\":\"Ada\"}"));
        for wrong in
            ["{\"name\": \"Ada\"}", "{\"name\": \"Ada\", \"age\": 36", "{\"name\": \"Ada\", \"age\": \"36\"}"]
        {
            assert!(!check.passes(wrong), "{wrong}");
        }
    }
}
