//! The chat: a conversation whose history stays in the model's cache.

mod command;
mod lines;
mod settings;
mod transcript;

use std::io::{self, IsTerminal as _};

use upg_engine::{Engine, FinishReason, GenerationOptions, Message, Session, TemplateInput};

use self::{
    command::{HELP, Input},
    lines::{Lines, Typed},
};
use crate::{
    commands::run::{speeds, stream},
    exit::Interrupted,
    interrupt::Interrupt,
    printer::Printer,
};

/// Chats until the user leaves. `plain` reads lines without an editor where standard input is no terminal.
pub fn run(
    mut engine: Engine,
    system: Option<String>,
    options: GenerationOptions,
    plain: bool,
    interrupt: &Interrupt,
    printer: &Printer,
) -> anyhow::Result<()> {
    let mut lines = if plain && !io::stdin().is_terminal() { Lines::Plain } else { Lines::editor(printer)? };
    let session = engine.open()?;
    let messages = system.iter().map(|text| Message::new("system", text.as_str())).collect();
    let mut chat = Chat { engine, session, messages, options, interrupt, printer };
    printer.note("/help lists what the chat understands; Ctrl-C stops an answer, twice leaves");
    let result = chat.talk(&mut lines);
    lines.close(printer);
    result
}

struct Chat<'a> {
    engine: Engine,
    session: Session,
    messages: Vec<Message>,
    options: GenerationOptions,
    interrupt: &'a Interrupt,
    printer: &'a Printer,
}

/// Whether the chat goes on.
enum Next {
    GoOn,
    /// An answer was stopped: one more Ctrl-C leaves.
    Stopped,
    Leave,
}

impl Chat<'_> {
    fn talk(&mut self, lines: &mut Lines) -> anyhow::Result<()> {
        let mut leaving = false;
        loop {
            match lines.next()? {
                Typed::End => return Ok(()),
                Typed::Interrupted if leaving => return Err(Interrupted("left the chat".into()).into()),
                Typed::Interrupted => {
                    leaving = true;
                    self.printer.note("Ctrl-C again leaves");
                }
                Typed::Line(line) => match self.obey(&line)? {
                    Next::GoOn => leaving = false,
                    Next::Stopped => leaving = true,
                    Next::Leave => return Ok(()),
                },
            }
        }
    }

    /// Does what a line asks for. Mistakes are told and forgiven; only a closed output ends the chat.
    fn obey(&mut self, line: &str) -> anyhow::Result<Next> {
        let input = match Input::parse(line) {
            Ok(input) => input,
            Err(mistake) => {
                self.printer.note(mistake);
                return Ok(Next::GoOn);
            }
        };
        match input {
            Input::Nothing => {}
            Input::Quit => return Ok(Next::Leave),
            Input::Help => self.printer.note(HELP),
            Input::Say(text) => {
                self.messages.push(Message::new("user", text));
                return self.answer();
            }
            Input::Regen => return self.regenerate(),
            Input::System(text) => {
                self.messages = text.into_iter().map(|text| Message::new("system", text)).collect();
                self.printer.note("starting over");
            }
            Input::Clear => {
                self.messages.retain(|message| message.role == "system");
                self.printer.note("starting over");
            }
            Input::Save(path) => match transcript::save(&path, &self.messages) {
                Ok(()) => self.printer.note(format_args!("saved to {}", path.display())),
                Err(error) => self.printer.error(&error),
            },
            Input::Load(path) => match transcript::load(&path) {
                Ok(messages) => {
                    self.printer.note(format_args!("{} messages loaded", messages.len()));
                    self.messages = messages;
                }
                Err(error) => self.printer.error(&error),
            },
            Input::Set(None) => self.printer.note(settings::list(&self.options)),
            Input::Set(Some((name, value))) => {
                match settings::set(&self.options, &name, &value, self.engine.config().vocab) {
                    Ok(options) => self.options = options,
                    Err(mistake) => self.printer.note(mistake),
                }
            }
        }
        Ok(Next::GoOn)
    }

    fn regenerate(&mut self) -> anyhow::Result<Next> {
        let Some(question) = self.messages.iter().rposition(|message| message.role == "user") else {
            self.printer.note("there is no question to answer again");
            return Ok(Next::GoOn);
        };
        self.messages.truncate(question + 1);
        self.answer()
    }

    /// Answers the last message. A question that cannot be answered is taken back, so that the next one can be.
    fn answer(&mut self) -> anyhow::Result<Next> {
        self.interrupt.clear();
        let result = self.generate();
        self.interrupt.clear();
        match result {
            Ok((text, finish)) => {
                if text.is_empty() {
                    self.messages.pop();
                } else {
                    self.messages.push(Message::new("assistant", text));
                }
                Ok(if finish == Some(FinishReason::Cancelled) { Next::Stopped } else { Next::GoOn })
            }
            Err(error) if error.is::<io::Error>() => Err(error),
            Err(error) => {
                self.messages.pop();
                self.printer.error(&error);
                Ok(Next::GoOn)
            }
        }
    }

    fn generate(&mut self) -> anyhow::Result<(String, Option<FinishReason>)> {
        let messages = &self.messages;
        let input = TemplateInput { messages, tools: &[], add_generation_prompt: true, extra: None };
        let prompt = self.engine.chat(&input)?;
        let mut progress = self.printer.progress("Reading", prompt.len() as u64);
        let mut on_progress = |done: usize, _| progress.set(done as u64);
        let flag = self.interrupt.flag();
        let mut generation =
            self.engine.generate(&mut self.session, &prompt, &self.options, flag, &mut on_progress)?;
        drop(progress);
        let text = stream(&mut generation, true, self.printer)?;
        self.printer.answer("")?;
        self.printer.note(speeds(&generation.stats()));
        Ok((text, generation.finish()))
    }
}
