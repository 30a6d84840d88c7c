//! The checkpoint to compress: on this machine, or on the hub.

use std::{
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::Context as _;
use upg_checkpoint::{Checkpoint, Source};
use upg_compress::{Target, plan::parameters};
use upg_hub::{RepoName, check_room, stream};

use crate::{
    hub::{Extent, Shown, connect},
    interrupt::Interrupt,
    printer::Printer,
};

/// Begins the names of models on the hub.
const SCHEME: &str = "hf:";

/// The working folder beside OUT, for what comes from the hub.
pub struct Working(Option<PathBuf>);

impl Working {
    /// Whether there is none: the checkpoint is on this machine.
    pub fn is_local(&self) -> bool {
        self.0.is_none()
    }

    /// Removes it: all is done.
    pub fn remove(self) -> anyhow::Result<()> {
        let Some(folder) = self.0 else { return Ok(()) };
        fs::remove_dir_all(&folder).with_context(|| format!("cannot remove {}: remove it", folder.display()))
    }
}

/// Opens `source`. `target` is what the output may take, where that is known.
pub fn open(
    source: &Path,
    output: &Path,
    target: Option<Target>,
    printer: &Printer,
    interrupt: &Interrupt,
) -> anyhow::Result<(Box<dyn Checkpoint>, Working)> {
    let Some(model) = source.to_str().and_then(|source| source.strip_prefix(SCHEME)) else {
        return Ok((upg_checkpoint::open(source)?, Working(None)));
    };
    let (name, file) = RepoName::with_file(model)?;
    let hub = connect()?;
    let bar = printer.bytes_progress("Fetching", 0);
    let watch = Arc::new(Shown::new(bar, Extent::Each, printer.notes(), Arc::clone(interrupt.flag())));
    let repo = hub.repo(&name, &*watch)?;
    printer.note(format_args!("{name} at {}", repo.commit()));
    let folder = beside(output, ".part.hub");
    let cancel = Arc::clone(interrupt.flag());
    let checkpoint = stream::open(Arc::new(hub), repo, file, &folder, watch, cancel)?;
    // An interrupted run has taken its room already.
    if !beside(output, ".part").exists() {
        let target = target.map_or(Ok(0), |target| target.budget(parameters(checkpoint.config())))?;
        check_room(&folder, target.saturating_add(two_largest(checkpoint.as_ref())))?;
    }
    Ok((checkpoint, Working(Some(folder))))
}

/// Bytes of the two largest shards: as many are here at a time.
fn two_largest(checkpoint: &dyn Checkpoint) -> u64 {
    let remote = |source: Source| match source {
        Source::Remote { size, .. } => Some(size),
        Source::File(_) => None,
    };
    let mut sizes: Vec<u64> = checkpoint.sources().into_iter().filter_map(remote).collect();
    sizes.sort_unstable_by(|a, b| b.cmp(a));
    sizes.iter().take(2).fold(0, |sum, size| sum.saturating_add(*size))
}

fn beside(output: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(output);
    name.push(suffix);
    name.into()
}
