//! `upg pull`: a model from the hub to a folder.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::Context as _;
use clap::{Args, ValueHint};
use serde_json::json;
use upg_format::UpgFile;
use upg_hub::{Digest, Fetched, Hub, HubError, RemoteFile, Repo, RepoName, check_room};

use crate::{
    exit::Interrupted,
    hub::{Extent, Shown, connect},
    interrupt::Interrupt,
    printer::Printer,
    units::bytes,
};

/// Fetch a model from the Hugging Face hub
///
/// Fetches what upg reads of a model: its only .upg file; or the safetensors with configuration and tokenizer; or its only
/// .gguf file. Every file is checked against the hub's checksum, and a .upg file against its own, before it gets its
/// name. The same command goes on where it stopped, and fetches nothing twice.
#[derive(Args)]
#[command(after_help = "\
Examples:
  upg pull microsoft/phi-4                          # to the folder phi-4
  upg pull microsoft/phi-4@main -o models/phi-4
  upg pull unsloth/phi-4-GGUF --file phi-4-Q8_0.gguf

Environment:
  HF_ENDPOINT    another hub, such as a mirror
  HF_TOKEN       the token for private and gated models (or a file: HF_TOKEN_PATH, HF_HOME/token)
  HTTPS_PROXY    the proxy to go through")]
pub struct PullArgs {
    /// The model: OWNER/NAME, with a branch, tag or commit OWNER/NAME@REVISION
    #[arg(value_name = "MODEL")]
    model: String,
    /// Only this file; may be given several times
    #[arg(long, value_name = "FILE")]
    file: Vec<String>,
    /// The folder to write to [default: NAME]
    #[arg(short, long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    output: Option<PathBuf>,
    /// Replace files that differ from the hub's
    #[arg(short, long)]
    force: bool,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

/// Fetches.
pub fn run(args: PullArgs, printer: &Printer) -> anyhow::Result<()> {
    let name: RepoName = args.model.strip_prefix("hf:").unwrap_or(&args.model).parse()?;
    let hub = connect()?;
    let interrupt = printer.interrupt()?;
    let folder = args.output.clone().unwrap_or_else(|| name.name().into());
    match pull(&hub, &name, &folder, &args, printer, &interrupt) {
        Err(_) if interrupt.raised() => Err(Interrupted(HubError::Cancelled.to_string()).into()),
        result => result.with_context(|| format!("cannot pull {name}")),
    }
}

fn pull(
    hub: &Hub,
    name: &RepoName,
    folder: &Path,
    args: &PullArgs,
    printer: &Printer,
    interrupt: &Interrupt,
) -> anyhow::Result<()> {
    let watch = |bar| Shown::new(bar, Extent::All, printer.notes(), Arc::clone(interrupt.flag()));
    let asking = watch(printer.bytes_progress("Asking", 0));
    let repo = hub.repo(name, &asking)?;
    let files: Vec<RemoteFile> = match &*args.file {
        [] => hub.model_files(&repo, &asking)?,
        chosen => chosen.iter().map(|path| repo.file(path)).collect::<Result<_, _>>()?,
    };
    drop(asking);
    let total = files.iter().map(|file| file.size).fold(0, u64::saturating_add);
    printer.note(format_args!("{name} at {}: {} files, {}", repo.commit(), files.len(), bytes(total)));
    check_room(folder, files.iter().map(|file| file.missing(folder)).fold(0, u64::saturating_add))?;
    let watch = watch(printer.bytes_progress("Fetching", total));
    let mut report = Vec::new();
    for file in &files {
        let fetched = hub.fetch(&repo, file, folder, args.force, &watch)?;
        report.push(json!({
            "path": folder.join(&file.path),
            "bytes": file.size,
            (digest_kind(file)): file.digest.hex(),
            "fetched": fetched.came(),
        }));
        let path = verified(fetched, printer)?.publish()?;
        printer.detail(format_args!("{}: {}", path.display(), file.digest));
    }
    drop(watch);
    if args.json {
        let (repo, commit) = (name.to_string(), repo.commit());
        return printer.json(&json!({ "repo": repo, "commit": commit, "folder": folder, "files": report }));
    }
    printer.note(done(&repo, folder, &files));
    Ok(())
}

/// Holds a `.upg` file to its own checksums; removes one that does not pass.
fn verified(fetched: Fetched, printer: &Printer) -> anyhow::Result<Fetched> {
    let target = fetched.target().to_owned();
    if target.extension().is_none_or(|extension| extension != "upg") {
        return Ok(fetched);
    }
    let verify = || {
        let file = UpgFile::open(fetched.path())?;
        let mut progress = printer.bytes_progress("Verifying", file.data_len());
        file.verify(&mut |bytes| progress.add(bytes))
    };
    if let Err(error) = verify() {
        if fetched.came() {
            fetched.discard()?;
        }
        let context = format!("{} came as the hub has it, but is damaged: tell its owner", target.display());
        return Err(anyhow::Error::new(error).context(context));
    }
    Ok(fetched)
}

fn digest_kind(file: &RemoteFile) -> &'static str {
    match file.digest {
        Digest::Sha256(_) => "sha256",
        Digest::Git(_) => "git_sha1",
    }
}

/// What to do with it.
fn done(repo: &Repo, folder: &Path, files: &[RemoteFile]) -> String {
    let folder_text = folder.display();
    match files {
        [only] if only.path.ends_with(".upg") => {
            let path = folder.join(&only.path);
            format!("run it: upg run {}", path.display())
        }
        [only] if only.path.ends_with(".gguf") => {
            let path = folder.join(&only.path);
            format!("compress it: upg compress {} -o {}.upg", path.display(), repo.name().name())
        }
        files if files.iter().any(|file| file.path == "config.json") => {
            format!("compress it: upg compress {folder_text} -o {}.upg", repo.name().name())
        }
        _ => format!("it is in {folder_text}"),
    }
}
