//! `upg run`: one answer, or a chat.

use std::io::{self, IsTerminal as _, Read as _};

use anyhow::{Context as _, bail};
use clap::Args;
use serde::Serialize;
use upg_engine::{Engine, FinishReason, Generation, GenerationOptions, Message, Stats, TemplateInput};

use crate::{
    args::{DeviceArgs, ModelArg, SamplingArgs, positive},
    chat,
    exit::Interrupted,
    interrupt::Interrupt,
    printer::Printer,
    source::load,
    units::{seconds, three_digits},
};

/// The longest prompt read from standard input, in bytes.
const MAX_PROMPT: u64 = 64 << 20;

/// Answer a prompt, or chat
///
/// With PROMPT, or with text piped in, the answer goes to standard output as it is made, and speeds to standard error.
/// Without, a chat starts; /help lists what it understands.
#[derive(Args)]
#[command(after_help = "\
Examples:
  upg run model.upg \"Why is the sky blue?\"
  upg run model.upg                                    # a chat
  upg run model.upg --system \"Answer in one sentence.\" \"What is a trellis code?\"
  git diff | upg run model.upg --system \"Write a commit message.\"
  upg run model.upg --raw \"Once upon a time\" --temperature 0 --max-tokens 50
  upg run model.upg --json --seed 1 \"Name a colour.\"")]
pub struct RunArgs {
    #[command(flatten)]
    model: ModelArg,
    /// What to answer; `-` reads it from standard input
    prompt: Option<String>,
    /// Continue the prompt as it stands, without the model's chat template
    #[arg(long, conflicts_with = "system")]
    raw: bool,
    /// The system prompt
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    /// Chat, even where standard input is no terminal (one line a question)
    #[arg(long, conflicts_with_all = ["prompt", "raw", "json"])]
    chat: bool,
    /// The most tokens of an answer [default: what the context holds]
    #[arg(short = 'n', long, value_name = "N", value_parser = positive)]
    max_tokens: Option<usize>,
    /// Text that ends the answer; may be given several times
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
    /// Print JSON, once the answer is complete
    #[arg(long)]
    json: bool,
    /// Tokens that prompt and answer may have together [default: 4096, or what the model allows]
    #[arg(short, long, value_name = "N", value_parser = positive)]
    context: Option<usize>,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    device: DeviceArgs,
}

/// Answers, or chats.
pub fn run(args: RunArgs, printer: &Printer) -> anyhow::Result<()> {
    // Before loading: a mistake should not cost the time to load.
    let prompt = prompt(&args)?;
    let interrupt = printer.interrupt()?;
    let mut engine = load(&args.model.model, &args.device, args.context, printer)?;
    if engine.template().is_none() && !args.raw {
        bail!(
            "the model has no chat template, so it cannot answer questions: pass --raw to have it continue a text"
        );
    }
    let options = GenerationOptions {
        sampling: args.sampling.options(),
        max_tokens: args.max_tokens,
        stop: args.stop.clone(),
        ..GenerationOptions::default()
    };
    match prompt {
        Some(prompt) => answer(&mut engine, &prompt, &args, &options, &interrupt, printer),
        None => chat::run(engine, args.system, options, args.chat, &interrupt, printer),
    }
}

/// The prompt, from the command line or from standard input; `None`: a chat.
fn prompt(args: &RunArgs) -> anyhow::Result<Option<String>> {
    let prompt = match args.prompt.as_deref() {
        None if args.chat => return Ok(None),
        None | Some("-") if io::stdin().is_terminal() && (args.raw || args.json || args.prompt.is_some()) => {
            bail!("there is no prompt: give it on the command line, or pipe it in")
        }
        None if io::stdin().is_terminal() => return Ok(None),
        None | Some("-") => read_stdin()?,
        Some(prompt) => prompt.to_owned(),
    };
    if prompt.trim().is_empty() {
        bail!("the prompt is empty: give it on the command line, or pipe it in");
    }
    Ok(Some(prompt))
}

fn read_stdin() -> anyhow::Result<String> {
    let mut text = String::new();
    let read = io::stdin().lock().take(MAX_PROMPT + 1).read_to_string(&mut text);
    let read = read.context("cannot read the prompt from standard input: it must be UTF-8 text")?;
    if read as u64 > MAX_PROMPT {
        bail!("the prompt on standard input is longer than {} MiB: shorten it", MAX_PROMPT >> 20);
    }
    Ok(text)
}

/// One answer, whole.
#[derive(Serialize)]
struct Answer {
    text: String,
    finish_reason: &'static str,
    seed: u64,
    prompt_tokens: usize,
    tokens: usize,
    first_token_s: f64,
    prefill_tok_s: f64,
    decode_tok_s: f64,
    decode_gb_s: f64,
}

fn answer(
    engine: &mut Engine,
    prompt: &str,
    args: &RunArgs,
    options: &GenerationOptions,
    interrupt: &Interrupt,
    printer: &Printer,
) -> anyhow::Result<()> {
    let tokens = if args.raw {
        engine.prompt(prompt)?
    } else {
        let system = args.system.iter().map(|text| Message::new("system", text.as_str()));
        let messages: Vec<Message> = system.chain([Message::new("user", prompt)]).collect();
        engine.chat(&TemplateInput {
            messages: &messages,
            tools: &[],
            add_generation_prompt: true,
            extra: None,
        })?
    };
    let mut session = engine.open()?;
    let mut progress = printer.progress("Reading", tokens.len() as u64);
    let mut on_progress = |done: usize, _| progress.set(done as u64);
    let mut generation =
        engine.generate(&mut session, &tokens, options, interrupt.flag(), &mut on_progress)?;
    drop(progress);
    let text = stream(&mut generation, !args.json, printer)?;
    let (stats, finish) = (generation.stats(), generation.finish());
    if args.json {
        printer.json(&Answer {
            text,
            finish_reason: finish_name(finish),
            seed: generation.seed(),
            prompt_tokens: stats.prompt_tokens,
            tokens: stats.generated_tokens,
            first_token_s: stats.first_token.as_secs_f64(),
            prefill_tok_s: stats.prefill_rate(),
            decode_tok_s: stats.decode_rate(),
            decode_gb_s: stats.decode_gb_per_second(),
        })?;
    } else {
        printer.answer("")?;
    }
    printer.note(speeds(&stats));
    printer.detail(format_args!("seed {}, ended by: {}", generation.seed(), finish_name(finish)));
    if finish == Some(FinishReason::Cancelled) {
        return Err(Interrupted("interrupted: the answer is not complete".into()).into());
    }
    Ok(())
}

/// Prints an answer as it is made; returns all of it.
pub fn stream(generation: &mut Generation<'_>, show: bool, printer: &Printer) -> anyhow::Result<String> {
    let mut text = String::new();
    for piece in generation {
        let piece = piece?;
        if show {
            printer.piece(&piece.text)?;
        }
        text.push_str(&piece.text);
    }
    Ok(text)
}

fn finish_name(finish: Option<FinishReason>) -> &'static str {
    match finish {
        Some(FinishReason::Stop) => "stop",
        Some(FinishReason::Length) => "length",
        Some(FinishReason::Cancelled) => "cancelled",
        None => "none",
    }
}

/// The line of speeds below an answer.
pub fn speeds(stats: &Stats) -> String {
    let first = seconds(stats.first_token.as_secs_f64());
    let cached = match stats.cached_tokens {
        0 => String::new(),
        n => format!(", {n} of them kept from before"),
    };
    format!(
        "{} tokens, {} tok/s, {} GB/s of weights; first token after {first} (prompt: {} tokens{cached}, {} tok/s)",
        stats.generated_tokens,
        three_digits(stats.decode_rate()),
        three_digits(stats.decode_gb_per_second()),
        stats.prompt_tokens,
        three_digits(stats.prefill_rate()),
    )
}
