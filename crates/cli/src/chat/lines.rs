//! Where the chat's lines come from: an editor with history on a terminal, plain lines elsewhere.

use std::{
    io::{self, BufRead as _, Read as _},
    path::PathBuf,
};

use anyhow::{Context as _, bail};
use rustyline::{DefaultEditor, error::ReadlineError};

use crate::printer::Printer;

const PROMPT: &str = "> ";
const CONTINUATION: &str = ". ";
/// The longest line read from a pipe, in bytes.
const MAX_LINE: u64 = 64 << 20;

/// What the user did at the prompt.
pub enum Typed {
    Line(String),
    /// Ctrl-C.
    Interrupted,
    /// Ctrl-D, or the end of the input.
    End,
}

/// A source of lines.
pub enum Lines {
    Editor { editor: Box<DefaultEditor>, history: Option<PathBuf> },
    Plain,
}

impl Lines {
    /// An editor with the history of earlier chats.
    pub fn editor(printer: &Printer) -> anyhow::Result<Self> {
        let mut editor = Box::new(DefaultEditor::new().context("cannot edit lines on this terminal")?);
        let history = history_file();
        if let Some(path) = history.as_ref().filter(|path| path.exists())
            && let Err(error) = editor.load_history(path)
        {
            printer.warn(format_args!("the history in {} cannot be read: {error}", path.display()));
        }
        Ok(Self::Editor { editor, history })
    }

    /// The next line; lines that end with a backslash are joined with those after them.
    pub fn next(&mut self) -> anyhow::Result<Typed> {
        let mut text = String::new();
        loop {
            let prompt = if text.is_empty() { PROMPT } else { CONTINUATION };
            match self.read(prompt)? {
                Typed::Line(line) => match line.strip_suffix('\\') {
                    Some(begun) => text = text + begun + "\n",
                    None => {
                        text += &line;
                        self.remember(&text);
                        return Ok(Typed::Line(text));
                    }
                },
                Typed::End if !text.is_empty() => return Ok(Typed::Line(text)),
                other => return Ok(other),
            }
        }
    }

    fn read(&mut self, prompt: &str) -> anyhow::Result<Typed> {
        let Self::Editor { editor, .. } = self else { return read_plain() };
        match editor.readline(prompt) {
            Ok(line) => Ok(Typed::Line(line)),
            Err(ReadlineError::Interrupted) => Ok(Typed::Interrupted),
            Err(ReadlineError::Eof) => Ok(Typed::End),
            Err(error) => Err(error).context("cannot read from the terminal"),
        }
    }

    fn remember(&mut self, text: &str) {
        if let Self::Editor { editor, .. } = self {
            // A line that is not remembered is no reason to stop.
            let _ = editor.add_history_entry(text);
        }
    }

    /// Writes the history, for the next chat.
    pub fn close(self, printer: &Printer) {
        let Self::Editor { mut editor, history: Some(path) } = self else { return };
        let saved = path.parent().map_or(Ok(()), std::fs::create_dir_all);
        let saved = saved.map_err(ReadlineError::from).and_then(|()| editor.save_history(&path));
        if let Err(error) = saved {
            printer.warn(format_args!("the history cannot be written to {}: {error}", path.display()));
        }
    }
}

fn read_plain() -> anyhow::Result<Typed> {
    let mut line = String::new();
    let read = io::stdin().lock().take(MAX_LINE).read_line(&mut line);
    match read.context("cannot read from standard input: it must be UTF-8 text")? as u64 {
        0 => Ok(Typed::End),
        MAX_LINE => bail!("a line of over {} MiB on standard input: shorten it", MAX_LINE >> 20),
        _ => Ok(Typed::Line(line.trim_end_matches(['\n', '\r']).to_owned())),
    }
}

/// `$XDG_STATE_HOME/upg/history`, or where the system keeps such files; `None` where it has no place for them.
fn history_file() -> Option<PathBuf> {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let home = || Some(variable("HOME")?.join(".local/state"));
    let folder = variable("XDG_STATE_HOME").or_else(|| variable("LOCALAPPDATA")).or_else(home)?;
    Some(folder.join("upg").join("history"))
}
