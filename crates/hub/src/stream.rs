//! Compressing from the hub: a checkpoint whose shards come when they are needed.

use std::{
    error::Error,
    fs,
    path::{Path, PathBuf},
    sync::{Arc, atomic::AtomicBool},
};

use upg_checkpoint::{Checkpoint, Shard, ShardStore};

use crate::{
    Digest, Hub, HubError, RemoteFile, Repo, Watch, check_room,
    select::{Model, model, side_files},
};

/// Read of each shard first: nearly always more than its header.
const BEGINNING: u64 = 256 << 10;
/// The most bytes of a shard's header; the safetensors library has the same limit.
const HEADER_CAP: u64 = 100_000_000;
/// In the working folder: which repository and commit it belongs to.
const MARK: &str = "source";

/// Opens a repository's checkpoint, or one of its GGUF files, in the working folder `folder`, which is the caller's to
/// remove once all is done.
///
/// Of safetensors only the small files and the headers are fetched now, and at most two shards are in the folder at a
/// time. A GGUF file is fetched whole. Called again after an interruption, with the same folder, nothing that is still
/// there is fetched again. Once `cancel` is true, fetching stops.
///
/// # Errors
/// Those of [`Hub::repo`] and [`Hub::fetch`]; [`HubError::Choice`]; [`HubError::Room`]; and what is wrong with the checkpoint.
pub fn open(
    hub: Arc<Hub>,
    repo: Repo,
    file: Option<&str>,
    folder: &Path,
    watch: Arc<dyn Watch>,
    cancel: Arc<AtomicBool>,
) -> Result<Box<dyn Checkpoint>, HubError> {
    prepare(&repo, folder)?;
    let chosen = match file {
        Some(path) => Model::File(path.to_owned()),
        None => model(&repo)?,
    };
    let sharded = match chosen {
        Model::File(path) => return open_file(&hub, &repo, &path, folder, &*watch),
        Model::Folder { sharded } => sharded,
    };
    for file in side_files(&repo, sharded)? {
        hub.fetch(&repo, &file, folder, true, &*watch)?.publish()?;
    }
    let files = hub.shards(&repo, sharded, &*watch)?;
    check_room(folder, two_largest(&files, folder))?;
    let shards: Vec<Shard> =
        files.iter().map(|file| promised(&hub, &repo, file, &*watch)).collect::<Result<_, _>>()?;
    let store = Store { hub, repo, files, folder: folder.to_owned(), watch };
    Ok(upg_checkpoint::open_streamed(folder, shards, Box::new(store), cancel)?)
}

/// Makes the folder one of this commit: whatever else is in it was left by another model.
fn prepare(repo: &Repo, folder: &Path) -> Result<(), HubError> {
    let mark = format!("{} {}\n", repo.name(), repo.commit());
    let path = folder.join(MARK);
    if fs::read(&path).is_ok_and(|found| found == mark.as_bytes()) {
        return Ok(());
    }
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(HubError::io(folder)(error));
        }
        _ => {}
    }
    fs::create_dir_all(folder).map_err(HubError::io(folder))?;
    fs::write(&path, mark).map_err(HubError::io(&path))
}

fn open_file(
    hub: &Hub,
    repo: &Repo,
    path: &str,
    folder: &Path,
    watch: &dyn Watch,
) -> Result<Box<dyn Checkpoint>, HubError> {
    if !path.to_ascii_lowercase().ends_with(".gguf") {
        let why = format!(
            "has {path}, which cannot be compressed: name a .gguf file, or a repository with safetensors"
        );
        return Err(HubError::Choice { repo: repo.name().to_string(), why });
    }
    let file = repo.file(path)?;
    check_room(folder, file.missing(folder))?;
    let here = hub.fetch(repo, &file, folder, true, watch)?.publish()?;
    Ok(upg_checkpoint::open(&here)?)
}

/// What the two largest shards still need on the disk.
fn two_largest(files: &[RemoteFile], folder: &Path) -> u64 {
    let mut sizes: Vec<u64> = files.iter().map(|file| file.missing(folder)).collect();
    sizes.sort_unstable_by(|a, b| b.cmp(a));
    sizes.iter().take(2).fold(0, |sum, size| sum.saturating_add(*size))
}

/// A shard by its header.
fn promised(hub: &Hub, repo: &Repo, file: &RemoteFile, watch: &dyn Watch) -> Result<Shard, HubError> {
    let Digest::Sha256(sha256) = file.digest else {
        let (file, remedy) = (file.path.clone(), "use `upg pull`, then compress the folder");
        return Err(HubError::NoChecksum { file, wanted: "SHA-256", remedy });
    };
    let mut header = hub.beginning(repo, file, BEGINNING, watch)?;
    let wrong = || HubError::Answer {
        host: hub.host().to_owned(),
        what: file.path.clone(),
        why: "no safetensors file".into(),
    };
    let length = u64::from_le_bytes(*header.first_chunk().ok_or_else(wrong)?);
    let length = length.checked_add(8).filter(|n| *n <= HEADER_CAP.min(file.size)).ok_or_else(wrong)?;
    if length > header.len() as u64 {
        header = hub.beginning(repo, file, length, watch)?;
    }
    header.truncate(length as usize);
    Ok(Shard { name: file.path.clone(), size: file.size, sha256, header })
}

/// Shards of a repository, in a folder.
struct Store {
    hub: Arc<Hub>,
    repo: Repo,
    files: Vec<RemoteFile>,
    folder: PathBuf,
    watch: Arc<dyn Watch>,
}

impl ShardStore for Store {
    fn fetch(&self, shard: usize) -> Result<PathBuf, Box<dyn Error + Send + Sync>> {
        let file = &self.files[shard];
        Ok(self.hub.fetch(&self.repo, file, &self.folder, true, &*self.watch)?.publish()?)
    }

    fn discard(&self, shard: usize) -> Result<(), Box<dyn Error + Send + Sync>> {
        match fs::remove_file(self.folder.join(&self.files[shard].path)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
            _ => Ok(()),
        }
    }
}
