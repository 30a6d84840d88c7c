//! Small fixed tasks, answered greedily: behaviour beside averages.

mod check;

use std::path::Path;

use anyhow::{Context as _, ensure};
use serde::{Deserialize, Serialize};
use upg_engine::{Engine, GenerationOptions, Message, SamplingOptions, TemplateInput};

use self::check::Check;
use super::EvalArgs;
use crate::{args::DeviceArgs, interrupt::Interrupt, printer::Printer, source::load, units::table};

const TASKS: &str = include_str!("tasks.json");

/// Tokens of an answer, at most.
const ANSWER: usize = 64;

/// One task.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Task {
    name: String,
    /// What the user says, turn by turn; the model's own answers stand between.
    turns: Vec<String>,
    /// What the last answer must do.
    check: Check,
}

/// What a model made of a task.
#[derive(Serialize)]
struct Answer {
    passed: bool,
    /// The last answer.
    answer: String,
}

/// What came of all tasks.
#[derive(Serialize)]
struct Report<'a> {
    model: &'a Path,
    against: Option<&'a Path>,
    device: String,
    against_device: Option<String>,
    /// Tasks done, of how many.
    passed: usize,
    against_passed: Option<usize>,
    of: usize,
    /// Tasks that both answer with the same words.
    same_answers: Option<usize>,
    tasks: Vec<Row>,
}

#[derive(Serialize)]
struct Row {
    task: String,
    #[serde(flatten)]
    own: Answer,
    against: Option<Answer>,
}

/// Asks, checks and prints.
pub fn run(args: &EvalArgs, interrupt: &Interrupt, printer: &Printer) -> anyhow::Result<()> {
    let tasks: Vec<Task> = serde_json::from_str(TASKS)?;
    // One model after the other: they need not fit together.
    let (device, own) = answers(&args.model.model, &args.device, &tasks, interrupt, printer)?;
    let against = args.against.as_deref();
    let theirs =
        against.map(|path| answers(path, &args.against_device(), &tasks, interrupt, printer)).transpose()?;
    let (against_device, theirs) = theirs.unzip();
    let mut theirs = theirs.into_iter().flatten();
    let rows = tasks.into_iter().zip(own);
    let tasks: Vec<Row> =
        rows.map(|(task, own)| Row { task: task.name, own, against: theirs.next() }).collect();
    let both = |is: fn(&Row, &Answer) -> bool| {
        against.map(|_| {
            tasks.iter().filter(|row| row.against.as_ref().is_some_and(|other| is(row, other))).count()
        })
    };
    let report = Report {
        model: &args.model.model,
        against,
        device,
        against_device,
        passed: tasks.iter().filter(|row| row.own.passed).count(),
        against_passed: both(|_, other| other.passed),
        of: tasks.len(),
        same_answers: both(|row, other| row.own.answer == other.answer),
        tasks,
    };
    if args.json { printer.json(&report) } else { Ok(printer.answer(report.markdown())?) }
}

/// The device, and what the model answers.
fn answers(
    path: &Path,
    device: &DeviceArgs,
    tasks: &[Task],
    interrupt: &Interrupt,
    printer: &Printer,
) -> anyhow::Result<(String, Vec<Answer>)> {
    let mut engine = load(path, device, None, printer)?;
    ensure!(
        engine.template().is_some(),
        "{} has no chat template, so it cannot be asked: measure it on a text instead (--text)",
        path.display()
    );
    let mut progress = printer.progress("Asking", tasks.len() as u64);
    let mut found = Vec::new();
    for task in tasks {
        let answer = ask(&mut engine, &task.turns, interrupt)
            .with_context(|| format!("{} cannot answer \"{}\"", path.display(), task.name))?;
        ensure!(!interrupt.raised(), "interrupted");
        found.push(Answer { passed: task.check.passes(&answer), answer });
        progress.add(1);
    }
    Ok((engine.machine().info().name.to_owned(), found))
}

/// The last answer of a conversation.
fn ask(engine: &mut Engine, turns: &[String], interrupt: &Interrupt) -> anyhow::Result<String> {
    let options = GenerationOptions {
        sampling: SamplingOptions { temperature: 0.0, seed: Some(0), ..SamplingOptions::default() },
        max_tokens: Some(ANSWER),
        ..GenerationOptions::default()
    };
    let (mut session, mut messages, mut last) = (engine.open()?, Vec::new(), String::new());
    for turn in turns {
        messages.push(Message::new("user", turn.as_str()));
        let input =
            TemplateInput { messages: &messages, tools: &[], add_generation_prompt: true, extra: None };
        let prompt = engine.chat(&input)?;
        let answer = engine.generate(&mut session, &prompt, &options, interrupt.flag(), &mut |_, _| ())?;
        last = answer.complete()?.text;
        messages.push(Message::new("assistant", last.as_str()));
    }
    engine.close(session);
    Ok(last)
}

impl Report<'_> {
    /// A row for each task under a line that says how it was asked.
    fn markdown(&self) -> String {
        let word = |passed: bool| if passed { "pass" } else { "fail" }.to_owned();
        let rows: Vec<Vec<String>> = self
            .tasks
            .iter()
            .map(|row| {
                let against = row.against.iter().map(|other| word(other.passed));
                [row.task.clone(), word(row.own.passed)].into_iter().chain(against).collect()
            })
            .collect();
        let [model, against] =
            [Some(self.model), self.against].map(|path| path.map(|path| path.display().to_string()));
        let header: Vec<&str> =
            ["task"].into_iter().chain(model.as_deref()).chain(against.as_deref()).collect();
        let against = match (self.against_passed, self.same_answers, &against) {
            (Some(passed), Some(same), Some(path)) => format!("; {path} {passed}, {same} answers the same"),
            _ => String::new(),
        };
        format!(
            "{} tasks on {}, likeliest tokens: {} done{against}\n\n{}",
            self.of,
            self.device,
            self.passed,
            table(&header, &rows, header.len()).trim_end()
        )
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

    use super::*;

    #[test]
    fn the_tasks_are_well_formed_and_named_apart() {
        let tasks: Vec<Task> = serde_json::from_str(TASKS).unwrap();
        let mut names: Vec<&str> = tasks.iter().map(|task| task.name.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), tasks.len());
        assert!(tasks.iter().all(|task| !task.turns.is_empty()));
        for kind in ["conversation", "copying", "arithmetic", "JSON"] {
            assert!(names.iter().any(|name| name.starts_with(kind)), "{kind}");
        }
    }

    #[test]
    fn the_table_has_a_column_for_each_model() {
        let answer = |passed| Answer { passed, answer: "yes".into() };
        let row = |against| Row { task: "copying: a word".into(), own: answer(true), against };
        for (other, columns) in [(None, 2), (Some(answer(false)), 3)] {
            let report = Report {
                model: Path::new("m.upg"),
                against: other.is_some().then_some(Path::new("m.gguf")),
                device: "cpu".into(),
                against_device: None,
                passed: 1,
                against_passed: other.is_some().then_some(0),
                of: 1,
                same_answers: other.is_some().then_some(1),
                tasks: vec![row(other)],
            };
            let text = report.markdown();
            assert!(text.lines().skip(2).all(|line| line.matches('|').count() == columns + 1), "{text}");
        }
    }
}
