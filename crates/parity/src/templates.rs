//! Chat templates against transformers' `apply_chat_template`.

use std::{fmt, fs, path::Path};

use anyhow::{Context, Result};
use serde::Deserialize;
use serde_json::{Map, Value};
use upg_engine::{ChatTemplate, Message, TemplateInput};

use crate::golden;

/// What `golden/templates.py` writes for a template.
#[derive(Deserialize)]
struct Golden {
    bos: Option<String>,
    eos: Option<String>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    name: String,
    messages: Vec<Message>,
    tools: Option<Vec<Value>>,
    variables: Map<String, Value>,
    add_generation_prompt: bool,
    /// `None`: transformers refuses the messages.
    text: Option<String>,
}

/// How many cases of one template come out as transformers' do.
pub struct Outcome {
    /// The template, a file in `golden/templates`.
    pub template: String,
    /// Cases byte-equal, or refused on both sides.
    pub passed: usize,
    /// What differs, for people.
    pub failures: Vec<String>,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:<16} {:>7}/{}", self.template, self.passed, self.passed + self.failures.len())?;
        self.failures.iter().try_for_each(|failure| write!(f, "\n  {failure}"))
    }
}

/// The templates, by name.
///
/// # Errors
/// If the folder cannot be listed.
pub fn names() -> Result<Vec<String>> {
    let files = golden::folder().join("templates").read_dir().context("golden/templates cannot be listed")?;
    let mut names = Vec::new();
    for file in files {
        let name = golden::name(&file?.path());
        names.extend(name.strip_suffix(".jinja").map(str::to_owned));
    }
    names.sort();
    Ok(names)
}

/// Renders all cases of a template.
///
/// # Errors
/// If the template or its golden file cannot be read or compiled.
pub fn compare(name: &str) -> Result<Outcome> {
    let folder = golden::folder().join("templates");
    let source = fs::read_to_string(folder.join(format!("{name}.jinja")))?;
    let golden = read(&folder.join(format!("{name}.json")))?;
    let template = ChatTemplate::new(&source, golden.bos.as_deref(), golden.eos.as_deref())?;
    let failures: Vec<String> = golden.cases.iter().filter_map(|case| difference(&template, case)).collect();
    Ok(Outcome { template: name.to_owned(), passed: golden.cases.len() - failures.len(), failures })
}

fn read(path: &Path) -> Result<Golden> {
    let json = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(serde_json::from_slice(&json)?)
}

fn difference(template: &ChatTemplate, case: &Case) -> Option<String> {
    let found = template.render(&TemplateInput {
        messages: &case.messages,
        tools: case.tools.as_deref().unwrap_or_default(),
        add_generation_prompt: case.add_generation_prompt,
        extra: Some(&case.variables),
    });
    match (found, &case.text) {
        (Err(_), None) => None,
        (Ok(found), Some(expected)) if found == *expected => None,
        (found, expected) => {
            let found = found.map_err(|error| error.to_string());
            Some(format!("{}: {found:?} is not {expected:?}", case.name))
        }
    }
}
