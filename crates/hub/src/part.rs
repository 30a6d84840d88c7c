//! A file on its way: what is here of it, and the hash of that.

use std::{
    fs::{self, File, TryLockError},
    io::{Read as _, Seek as _, SeekFrom, Write as _},
    path::{Path, PathBuf},
};

use crate::{HubError, RemoteFile, digest::Hasher};

/// Bytes read or written at a time.
pub(crate) const CHUNK: usize = 256 << 10;

/// Characters of the checksum in a part's name: a part of another version is another part.
const TAG: usize = 12;

/// `FILE.CHECKSUM.part`, locked for as long as this lives. It goes on where an earlier one stopped.
#[derive(Debug)]
pub(crate) struct Part<'a> {
    remote: &'a RemoteFile,
    path: PathBuf,
    file: File,
    length: u64,
    hasher: Hasher,
}

impl<'a> Part<'a> {
    /// Opens the part of the file that will be `target`, and hashes what is there. `tick` hears how far that is.
    pub(crate) fn open(
        remote: &'a RemoteFile,
        target: &Path,
        tick: &mut dyn FnMut(u64) -> Result<(), HubError>,
    ) -> Result<Self, HubError> {
        let path = part_path(remote, target);
        let file = File::options().read(true).write(true).create(true).truncate(false).open(&path);
        let file = file.map_err(HubError::io(&path))?;
        match file.try_lock() {
            // Where it is gone, another process finished between opening and locking.
            Ok(()) if path.exists() => {}
            Ok(()) | Err(TryLockError::WouldBlock) => return Err(HubError::Busy(target.to_owned())),
            Err(TryLockError::Error(reason)) => return Err(HubError::Io { path, reason }),
        }
        let there = file.metadata().map_err(HubError::io(&path))?.len();
        let hasher = remote.digest.hasher(remote.size);
        let mut part = Self { remote, path, file, length: 0, hasher };
        if there > remote.size {
            part.restart()?;
        }
        part.hash(tick)?;
        Ok(part)
    }

    /// Bytes that are here.
    pub(crate) fn length(&self) -> u64 {
        self.length
    }

    /// Bytes that are missing.
    pub(crate) fn missing(&self) -> u64 {
        self.remote.size - self.length
    }

    /// Adds bytes; there may not be more than are missing.
    pub(crate) fn append(&mut self, bytes: &[u8]) -> Result<(), HubError> {
        self.file.write_all(bytes).map_err(HubError::io(&self.path))?;
        self.hasher.update(bytes);
        self.length += bytes.len() as u64;
        Ok(())
    }

    /// Forgets what is here.
    pub(crate) fn restart(&mut self) -> Result<(), HubError> {
        let emptied = self.file.set_len(0).and_then(|()| self.file.seek(SeekFrom::Start(0)));
        emptied.map_err(HubError::io(&self.path))?;
        self.length = 0;
        self.hasher = self.remote.digest.hasher(self.remote.size);
        Ok(())
    }

    /// Whether the bytes, all here, are those that the hub lists.
    ///
    /// # Errors
    /// [`HubError::Mismatch`].
    pub(crate) fn check(&self) -> Result<(), HubError> {
        self.remote.check_hash(self.hasher.clone())
    }

    /// Makes the bytes survive a power cut, and lets go of the lock. Says where they are.
    pub(crate) fn close(self) -> Result<PathBuf, HubError> {
        self.file.sync_all().map_err(HubError::io(&self.path))?;
        Ok(self.path)
    }

    /// Removes it.
    pub(crate) fn remove(self) -> Result<(), HubError> {
        fs::remove_file(&self.path).map_err(HubError::io(&self.path))
    }

    fn hash(&mut self, tick: &mut dyn FnMut(u64) -> Result<(), HubError>) -> Result<(), HubError> {
        (self.hasher, self.length) = hash(&mut self.file, &self.path, self.remote, tick)?;
        Ok(())
    }
}

fn part_path(remote: &RemoteFile, target: &Path) -> PathBuf {
    let mut name = target.as_os_str().to_owned();
    name.push(format!(".{}.part", &remote.digest.hex()[..TAG]));
    name.into()
}

impl RemoteFile {
    /// Bytes that the disk of `folder` still has to take for it, going by the lengths of what is there.
    pub fn missing(&self, folder: &Path) -> u64 {
        let target = folder.join(&self.path);
        let length = |path: &Path| path.metadata().map_or(0, |metadata| metadata.len());
        match length(&target) == self.size {
            true => 0,
            false => self.size.saturating_sub(length(&part_path(self, &target))),
        }
    }
}

/// Whether the file at `path` has the bytes that the hub lists.
pub(crate) fn is_same(
    path: &Path,
    remote: &RemoteFile,
    tick: &mut dyn FnMut(u64) -> Result<(), HubError>,
) -> Result<bool, HubError> {
    let mut file = File::open(path).map_err(HubError::io(path))?;
    let metadata = file.metadata().map_err(HubError::io(path))?;
    if !metadata.is_file() || metadata.len() != remote.size {
        return Ok(false);
    }
    let (hasher, _) = hash(&mut file, path, remote, tick)?;
    Ok(remote.check_hash(hasher).is_ok())
}

/// Hashes a file from its beginning to its end, and says how long it is.
fn hash(
    file: &mut File,
    path: &Path,
    remote: &RemoteFile,
    tick: &mut dyn FnMut(u64) -> Result<(), HubError>,
) -> Result<(Hasher, u64), HubError> {
    let (mut hasher, mut length) = (remote.digest.hasher(remote.size), 0);
    let mut chunk = vec![0; CHUNK];
    loop {
        tick(length)?;
        match file.read(&mut chunk).map_err(HubError::io(path))? {
            0 => return Ok((hasher, length)),
            read => {
                hasher.update(&chunk[..read]);
                length += read as u64;
            }
        }
    }
}
