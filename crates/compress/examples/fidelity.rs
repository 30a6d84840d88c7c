//! Experiments in fidelity: compress with each step of calibration apart, and measure the weights alone.
//!
//!     cargo run --release -p upg-compress --example fidelity -- sensitivities SRC TEXT OUT.json
//!     cargo run --release -p upg-compress --example fidelity -- compress SRC TEXT OUT.upg --bits 4.25
//!     cargo run --release -p upg-compress --example fidelity -- measure SRC TEXT FILE.upg...

use std::{collections::BTreeMap, fs, path::PathBuf, sync::atomic::AtomicBool, time::Instant};

use anyhow::{Context as _, anyhow};
use clap::{Args, Parser};
use tokenizers::Tokenizer;
use upg_checkpoint::Checkpoint;
use upg_compress::{
    Folded, Options, Progress, Sensitivities, Target,
    calibrate::{Calibration, divergence, sensitivities},
    compress,
};
use upg_format::{RotationConfig, TensorName, UpgFile};
use upg_pdvm::{UpgWeights, Weights};

/// Experiments in fidelity.
#[derive(Parser)]
enum Command {
    /// Print how far compressed models are from their checkpoint, on text that calibrated none of them.
    Measure {
        #[command(flatten)]
        text: Text,
        /// Files made of the checkpoint.
        #[arg(required = true)]
        files: Vec<PathBuf>,
    },
    /// Measure what rounding each tensor alone does, for `compress --sensitivities`.
    Sensitivities {
        #[command(flatten)]
        text: Text,
        /// JSON to write.
        out: PathBuf,
    },
    /// Compress.
    Compress {
        #[command(flatten)]
        text: Text,
        /// The file to write.
        out: PathBuf,
        /// Bits a weight, the whole file counted.
        #[arg(long)]
        bits: f64,
        /// Allocate by these measurements instead of by experience.
        #[arg(long)]
        sensitivities: Option<PathBuf>,
        /// Round to the nearest code; the text is not used.
        #[arg(long)]
        nearest: bool,
    },
}

/// A model and tokens to run through it.
#[derive(Args)]
struct Text {
    /// The checkpoint.
    source: PathBuf,
    /// The text; or `OUT.part.text`, where `upg compress -o OUT` has written one.
    text: PathBuf,
    /// Tokens a sequence.
    #[arg(long, default_value_t = 512)]
    ctx: usize,
    /// Sequences.
    #[arg(long, default_value_t = 16)]
    sequences: usize,
}

/// What `upg compress` keeps of a text that the model wrote, `OUT.part.text`.
#[derive(serde::Deserialize)]
struct Kept {
    tokens: Vec<u32>,
}

impl Text {
    fn open(&self) -> anyhow::Result<(Box<dyn Checkpoint>, Calibration)> {
        let checkpoint = upg_checkpoint::open(&self.source)?;
        let tokenizer = Tokenizer::from_bytes(checkpoint.tokenizer_json()).map_err(|e| anyhow!(e))?;
        let text = fs::read_to_string(&self.text).context("cannot read the text")?;
        let wanted = self.ctx * self.sequences;
        if let Ok(kept) = serde_json::from_str::<Kept>(&text) {
            let tokens = kept.tokens.into_iter().take(wanted).collect();
            return Ok((
                checkpoint,
                Calibration { tokens, ctx: self.ctx, source: "written by the model".into() },
            ));
        }
        // Tokenizing takes long, and few tokens have more than eight characters.
        let text: String = text.chars().take(8 * wanted).collect();
        let encoding = tokenizer.encode(text, false).map_err(|e| anyhow!(e))?;
        let tokens = encoding.get_ids().iter().copied().take(wanted).collect();
        let source = self.text.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Ok((checkpoint, Calibration { tokens, ctx: self.ctx, source }))
    }
}

fn main() -> anyhow::Result<()> {
    let start = Instant::now();
    match Command::parse() {
        Command::Measure { text, files } => measure(&text, &files)?,
        Command::Sensitivities { text, out } => {
            let (checkpoint, tokens) = text.open()?;
            let folded = Folded::new(checkpoint.as_ref(), Some(RotationConfig { seed: 0 }));
            let found = sensitivities(&folded, &tokens, &Printed, &AtomicBool::new(false))?;
            let json: BTreeMap<String, f64> =
                found.iter().map(|(name, harm)| (name.to_string(), harm)).collect();
            fs::write(out, serde_json::to_string_pretty(&json)?)?;
        }
        Command::Compress { text, out, bits, sensitivities, nearest } => {
            let (checkpoint, calibration) = text.open()?;
            let sensitivities = sensitivities.map(read_sensitivities).transpose()?;
            let calibration = (!nearest).then_some(calibration);
            let options = Options { calibration, sensitivities, ..Options::default() };
            let cancel = AtomicBool::new(false);
            compress(checkpoint.as_ref(), &out, Target::Bits(bits), &options, &Printed, &cancel)?;
        }
    }
    eprintln!("{:.0} s", start.elapsed().as_secs_f64());
    Ok(())
}

fn read_sensitivities(path: PathBuf) -> anyhow::Result<Sensitivities> {
    let harm: BTreeMap<String, f64> = serde_json::from_str(&fs::read_to_string(path)?)?;
    let parsed = harm.iter().map(|(name, harm)| Ok((name.parse::<TensorName>()?, *harm)));
    Ok(Sensitivities::measured(parsed.collect::<anyhow::Result<Vec<_>>>()?))
}

fn measure(text: &Text, files: &[PathBuf]) -> anyhow::Result<()> {
    let (checkpoint, text) = text.open()?;
    let open = |path: &PathBuf| anyhow::Ok(UpgWeights::new(UpgFile::open(path)?));
    let opened = files.iter().map(open).collect::<Result<Vec<_>, _>>()?;
    let models: Vec<&dyn Weights> = opened.iter().map(|file| file as &dyn Weights).collect();
    let found = divergence(&Folded::new(checkpoint.as_ref(), None), &models, &text.tokens, text.ctx)?;
    println!("| file | bytes | mean KL | ± | median | 99 % | 99.9 % | same top token |");
    println!("|---|---|---|---|---|---|---|---|");
    for (path, kl) in files.iter().zip(found) {
        println!(
            "| {} | {} | {:.4} | {:.4} | {:.4} | {:.3} | {:.3} | {:.1} % |",
            path.file_stem().unwrap_or_default().to_string_lossy(),
            path.metadata()?.len(),
            kl.mean(),
            kl.error(),
            kl.percentile(0.5),
            kl.percentile(0.99),
            kl.percentile(0.999),
            100.0 * kl.top1(),
        );
    }
    Ok(())
}

/// Prints what calibration chose.
struct Printed;

impl Progress for Printed {
    fn message(&self, text: &str) {
        eprintln!("{text}");
    }

    fn calibrated(&self, name: TensorName, damping: Option<f64>, relative: f64) {
        let damping = damping.map_or("no feedback".to_owned(), |d| format!("damping {d}"));
        eprintln!("{name}: {damping}, held-out error {relative:.3}");
    }
}
