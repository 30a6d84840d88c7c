//! The command line, apart from what belongs to one command alone.

use clap::{ArgAction, Args, ColorChoice, Parser, Subcommand, ValueHint};
use std::path::PathBuf;
use upg_engine::SamplingOptions;
use upg_pdvm::KvKind;

use crate::commands;

const AFTER_HELP: &str = "\
Examples:
  upg compress model.gguf -o model.upg --ratio 10   # a tenth of the model's size in 32-bit floats
  upg compress hf:microsoft/phi-4 -o phi-4.upg      # from the Hugging Face hub, shard by shard
  upg run model.upg \"Why is the sky blue?\"          # one answer
  upg run model.upg                                 # a chat
  upg bench --synthetic phi-4                       # how fast would Phi-4 decode here?

Exit codes:
  0    success
  1    an error; the last line says what to do next
  2    the command line is wrong
  130  interrupted (Ctrl-C)

Environment:
  UPG_ISA  forces an instruction set: scalar, avx2, avx-vnni, avx512, neon or neon-dot
           (default: the best there is)";

/// Compress language models to about 3 bits a weight, and run them as fast as memory can be read.
#[derive(Parser)]
#[command(name = "upg", version, after_help = AFTER_HELP, max_term_width = 100, disable_help_subcommand = true)]
pub struct Cli {
    #[command(flatten)]
    pub output: OutputArgs,
    #[command(subcommand)]
    pub command: Command,
}

/// What to do: one file a command, in `commands/`.
#[derive(Subcommand)]
pub enum Command {
    Compress(commands::compress::CompressArgs),
    Pull(commands::pull::PullArgs),
    Run(commands::run::RunArgs),
    Inspect(commands::inspect::InspectArgs),
    Bench(commands::bench::BenchArgs),
    Eval(commands::eval::EvalArgs),
    Devices(commands::devices::DevicesArgs),
    Completions(commands::completions::CompletionsArgs),
}

/// How much is said, for every command. Answers go to standard output, all else to standard error.
#[derive(Args)]
#[command(next_help_heading = "Output")]
pub struct OutputArgs {
    /// Say nothing but the answer and errors
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub quiet: bool,
    /// Say more
    #[arg(short, long, global = true, action = ArgAction::SetTrue)]
    pub verbose: bool,
    /// No progress bars (there are none anyway where standard error is no terminal)
    #[arg(long, global = true)]
    pub no_progress: bool,
    /// When to use colours
    #[arg(long, global = true, value_name = "WHEN", default_value = "auto")]
    pub color: ColorChoice,
}

/// Where a model runs.
#[derive(Args, Clone)]
#[command(next_help_heading = "Device")]
pub struct DeviceArgs {
    /// The device, as `upg devices` lists them; auto: the first of them
    #[arg(long, default_value = "auto")]
    pub device: String,
    /// Threads of the CPU [default: one a core]
    #[arg(long, value_name = "N", value_parser = positive)]
    pub threads: Option<usize>,
    /// How keys and values are kept: f16, q8 (8 bits; on the CPU and with CUDA), q4 (4 bits) or f32 (both on the CPU) [default: the device's usual kind]
    #[arg(long, value_name = "KIND")]
    pub kv: Option<KvKind>,
}

/// How the next token is chosen.
#[derive(Args, Clone)]
#[command(next_help_heading = "Sampling")]
pub struct SamplingArgs {
    /// Divides the logits; 0 always takes the likeliest token
    #[arg(long, value_name = "T", default_value_t = SamplingOptions::default().temperature)]
    pub temperature: f32,
    /// Only the K likeliest tokens; 0: all
    #[arg(long, value_name = "K", default_value_t = SamplingOptions::default().top_k)]
    pub top_k: usize,
    /// Only the likeliest tokens that together have probability P; 1: all
    #[arg(long, value_name = "P", default_value_t = SamplingOptions::default().top_p)]
    pub top_p: f32,
    /// Only tokens at least P times as likely as the likeliest; 0: all
    #[arg(long, value_name = "P", default_value_t = SamplingOptions::default().min_p)]
    pub min_p: f32,
    /// Divides the logits of tokens seen before; 1: off
    #[arg(long, value_name = "X", default_value_t = SamplingOptions::default().repetition_penalty)]
    pub repetition_penalty: f32,
    /// Taken from the logits of tokens already answered; 0: off
    #[arg(long, value_name = "X", default_value_t = SamplingOptions::default().presence_penalty, allow_negative_numbers = true)]
    pub presence_penalty: f32,
    /// Taken from the logits of a token for each time it was answered; 0: off
    #[arg(long, value_name = "X", default_value_t = SamplingOptions::default().frequency_penalty, allow_negative_numbers = true)]
    pub frequency_penalty: f32,
    /// How many tokens back the penalties look
    #[arg(long, value_name = "N", default_value_t = SamplingOptions::default().penalty_window)]
    pub penalty_window: usize,
    /// Seed: the same one gives the same answer [default: a new one each time]
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
}

impl SamplingArgs {
    /// The engine's options.
    pub fn options(&self) -> SamplingOptions {
        SamplingOptions {
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            repetition_penalty: self.repetition_penalty,
            presence_penalty: self.presence_penalty,
            frequency_penalty: self.frequency_penalty,
            penalty_window: self.penalty_window,
            seed: self.seed,
            logprobs: None,
        }
    }
}

/// A model: a `.upg` file, a GGUF file, or a Hugging Face folder.
#[derive(Args, Clone)]
pub struct ModelArg {
    /// A .upg file, or an uncompressed checkpoint (GGUF file or Hugging Face folder)
    #[arg(value_name = "MODEL", value_hint = ValueHint::AnyPath)]
    pub model: PathBuf,
}

/// A whole number of at least 1.
pub fn positive(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("it must be at least 1".into()),
        Ok(n) => Ok(n),
        Err(error) => Err(format!("{error}")),
    }
}
