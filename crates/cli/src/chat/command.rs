//! What a line typed into the chat asks for.

use std::path::PathBuf;

/// The list that /help prints.
pub const HELP: &str = "\
/help              this list
/system [TEXT]     set the system prompt and start over; without TEXT, remove it
/clear             start over
/save FILE         write the conversation to FILE (JSON)
/load FILE         go on with the conversation in FILE
/regen             answer the last question again
/set [NAME VALUE]  change an option of sampling; without NAME, list them
/quit              leave (so do Ctrl-D, and Ctrl-C twice)

Ctrl-C stops an answer. A line that ends with a backslash goes on in the next one.";

/// One line of the chat.
#[derive(Debug, PartialEq, Eq)]
pub enum Input {
    /// Something to answer.
    Say(String),
    /// An empty line.
    Nothing,
    Help,
    System(Option<String>),
    Clear,
    Save(PathBuf),
    Load(PathBuf),
    Regen,
    /// Name and value, or neither.
    Set(Option<(String, String)>),
    Quit,
}

impl Input {
    /// Reads a line. Only a line that starts with a slash and a letter is a command: `/* C */` is something to say.
    pub fn parse(line: &str) -> Result<Self, String> {
        let line = line.trim();
        let is_command =
            line.strip_prefix('/').is_some_and(|rest| rest.starts_with(|c: char| c.is_alphabetic()));
        if !is_command {
            return Ok(if line.is_empty() { Self::Nothing } else { Self::Say(line.to_owned()) });
        }
        let (name, argument) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        let argument = argument.trim();
        let given = (!argument.is_empty()).then_some(argument);
        let plain = |input| match given {
            None => Ok(input),
            Some(_) => Err(format!("{name} takes nothing after it; see /help")),
        };
        let file = || given.map(PathBuf::from).ok_or_else(|| format!("say which file: {name} FILE"));
        match name {
            "/help" => plain(Self::Help),
            "/system" => Ok(Self::System(given.map(str::to_owned))),
            "/clear" => plain(Self::Clear),
            "/save" => file().map(Self::Save),
            "/load" => file().map(Self::Load),
            "/regen" => plain(Self::Regen),
            "/set" => Self::parse_set(given),
            "/quit" | "/exit" => plain(Self::Quit),
            _ => Err(format!("there is no {name}; see /help")),
        }
    }

    fn parse_set(given: Option<&str>) -> Result<Self, String> {
        let Some(given) = given else { return Ok(Self::Set(None)) };
        let separator = |c: char| c.is_whitespace() || c == '=';
        let (name, value) = given.split_once(separator).unwrap_or((given, ""));
        let value = value.trim_matches(separator);
        if value.is_empty() {
            return Err(format!("say which value: /set {name} VALUE"));
        }
        Ok(Self::Set(Some((name.to_owned(), value.to_owned()))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_understood() {
        let parse = |line| Input::parse(line).unwrap();
        assert_eq!(parse("  hello "), Input::Say("hello".into()));
        assert_eq!(parse("/* a comment */"), Input::Say("/* a comment */".into()));
        assert_eq!(parse(" "), Input::Nothing);
        assert_eq!(parse("/system"), Input::System(None));
        assert_eq!(parse("/system Be brief."), Input::System(Some("Be brief.".into())));
        assert_eq!(parse("/save a b.json"), Input::Save("a b.json".into()));
        assert_eq!(parse("/set"), Input::Set(None));
        assert_eq!(parse("/set top_p = 0.9"), Input::Set(Some(("top_p".into(), "0.9".into()))));
        assert_eq!(parse("/quit"), Input::Quit);
    }

    #[test]
    fn mistakes_are_explained() {
        for line in ["/nonsense", "/save", "/load", "/clear now", "/set top_k"] {
            assert!(Input::parse(line).is_err(), "{line}");
        }
    }
}
