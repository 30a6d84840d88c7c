//! Bringing a file: whole, checked, and from where an earlier try stopped.

use std::{
    fs,
    io::Read as _,
    path::{Path, PathBuf},
};

use ureq::http::{StatusCode, header};

use crate::{
    Digest, Hub, HubError, RemoteFile, Repo, Watch,
    client::{Answer, Request},
    part::{CHUNK, Part, is_same},
    retry::{Failure, retry},
};

/// A connection that brings less than this before it breaks counts as a failed try.
const PROGRESS: u64 = 1 << 20;

/// A file that is here, with the bytes that the hub lists.
#[derive(Debug)]
pub struct Fetched {
    path: PathBuf,
    target: PathBuf,
    came: bool,
}

impl Fetched {
    /// Where its bytes are until it is published.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where it will be once it is published.
    pub fn target(&self) -> &Path {
        &self.target
    }

    /// Whether it had to be fetched; otherwise it was there.
    pub fn came(&self) -> bool {
        self.came
    }

    /// Gives it its name, at once and whole, and says where it is.
    ///
    /// # Errors
    /// [`HubError::Io`].
    pub fn publish(self) -> Result<PathBuf, HubError> {
        if self.path != self.target {
            fs::rename(&self.path, &self.target).map_err(HubError::io(&self.target))?;
        }
        Ok(self.target)
    }

    /// Removes it again.
    ///
    /// # Errors
    /// [`HubError::Io`].
    pub fn discard(self) -> Result<(), HubError> {
        fs::remove_file(&self.path).map_err(HubError::io(&self.path))
    }
}

impl Hub {
    /// Brings a file into `folder`, under its path in the repository. What is there and right is not fetched again; what is
    /// there and something else is only replaced where `replace` says so.
    ///
    /// # Errors
    /// [`HubError::Exists`], [`HubError::Mismatch`], [`HubError::Busy`], and those of the connection and the disk. What has
    /// come stays for the next call.
    pub fn fetch(
        &self,
        repo: &Repo,
        file: &RemoteFile,
        folder: &Path,
        replace: bool,
        watch: &dyn Watch,
    ) -> Result<Fetched, HubError> {
        let target = folder.join(&file.path);
        let mut tick = |bytes| {
            watch.at(file, bytes);
            if watch.cancelled() { Err(HubError::Cancelled) } else { Ok(()) }
        };
        if target.exists() {
            if is_same(&target, file, &mut tick)? {
                return Ok(Fetched { path: target.clone(), target, came: false });
            } else if !replace {
                return Err(HubError::Exists(target));
            }
        }
        if let Some(parent) = target.parent() {
            fs::create_dir_all(parent).map_err(HubError::io(parent))?;
        }
        let mut part = Part::open(file, &target, &mut tick)?;
        let resumed = part.length() > 0;
        self.complete(repo, file, &mut part, watch)?;
        if let Err(mismatch) = part.check() {
            // What an earlier run left may be to blame; bytes of this run are not fetched twice.
            if !resumed {
                part.remove()?;
                return Err(mismatch);
            }
            watch.retrying(&mismatch, std::time::Duration::ZERO);
            part.restart()?;
            self.complete(repo, file, &mut part, watch)?;
            if let Err(mismatch) = part.check() {
                part.remove()?;
                return Err(mismatch);
            }
        }
        Ok(Fetched { path: part.close()?, target, came: true })
    }

    /// The first `length` bytes of a file, unchecked.
    pub(crate) fn beginning(
        &self,
        repo: &Repo,
        file: &RemoteFile,
        length: u64,
        watch: &dyn Watch,
    ) -> Result<Vec<u8>, HubError> {
        let length = length.min(file.size);
        if length == 0 {
            return Ok(Vec::new());
        }
        let path = repo.resolve(file);
        let headers = [(header::RANGE, format!("bytes=0-{}", length - 1))];
        let request = Request { path: &path, what: &file.path, headers: &headers };
        retry(&self.patience, watch, || {
            let attempt = || {
                let answer = self.get(&request)?;
                held_to(&answer, file)?;
                if answer.response.status() == StatusCode::PARTIAL_CONTENT {
                    covers(&answer, file, 0)?;
                }
                let (mut bytes, host) = (Vec::new(), answer.host);
                let read = answer.response.into_body().into_reader().take(length).read_to_end(&mut bytes);
                let why = read.err().map_or("the connection ended".to_owned(), |error| error.to_string());
                if bytes.len() as u64 == length {
                    return Ok(bytes);
                }
                Err(Failure::Passing(broken(host, file, bytes.len() as u64, why), None))
            };
            attempt().map_err(|failure| (failure, false))
        })
    }

    /// Fetches what a part lacks.
    fn complete(
        &self,
        repo: &Repo,
        file: &RemoteFile,
        part: &mut Part<'_>,
        watch: &dyn Watch,
    ) -> Result<(), HubError> {
        let path = repo.resolve(file);
        let mut etag = None;
        let mut furthest = part.length();
        retry(&self.patience, watch, || {
            let result = self.try_complete(&path, file, part, &mut etag, watch);
            let moved = part.length() >= furthest.saturating_add(PROGRESS);
            furthest = furthest.max(part.length());
            result.map_err(|failure| (failure, moved))
        })
    }

    /// One connection's worth.
    fn try_complete(
        &self,
        path: &str,
        file: &RemoteFile,
        part: &mut Part<'_>,
        etag: &mut Option<String>,
        watch: &dyn Watch,
    ) -> Result<(), Failure> {
        if part.missing() == 0 {
            return Ok(());
        }
        let mut headers = Vec::new();
        if part.length() > 0 {
            headers.push((header::RANGE, format!("bytes={}-", part.length())));
            // Where it is another file by now, all of it comes.
            headers.extend(etag.iter().map(|etag| (header::IF_RANGE, etag.clone())));
        }
        let answer = match self.get(&Request { path, what: &file.path, headers: &headers }) {
            Err(Failure::Lasting(HubError::Status { host, what, status: 416, said })) => {
                part.restart()?;
                return Err(Failure::Passing(HubError::Status { host, what, status: 416, said }, None));
            }
            answer => answer?,
        };
        held_to(&answer, file)?;
        match answer.response.status() {
            StatusCode::PARTIAL_CONTENT => covers(&answer, file, part.length())?,
            StatusCode::OK if part.length() > 0 => part.restart()?,
            StatusCode::OK => {}
            status => return Err(wrong(&answer, file, format!("status {status}")).into()),
        }
        let length = answer.header(header::CONTENT_LENGTH);
        if let Some(length) = length.filter(|length| length.parse() != Ok(part.missing())) {
            let why = format!("{length} bytes where {} are missing", part.missing());
            return Err(wrong(&answer, file, why).into());
        }
        // Weak ones do not say that the bytes are the same.
        *etag = answer.header(header::ETAG).filter(|etag| !etag.starts_with("W/")).map(str::to_owned);
        receive(answer, file, part, watch)
    }
}

/// Reads a body into a part, to the end and not a byte further.
fn receive(answer: Answer, file: &RemoteFile, part: &mut Part<'_>, watch: &dyn Watch) -> Result<(), Failure> {
    let Answer { response, host, .. } = answer;
    let mut body = response.into_body().into_reader();
    let mut chunk = vec![0; CHUNK];
    loop {
        watch.at(file, part.length());
        if watch.cancelled() {
            return Err(HubError::Cancelled.into());
        }
        let read = match body.read(&mut chunk) {
            Ok(0) if part.missing() == 0 => return Ok(()),
            Ok(0) => Err("the connection ended".to_owned()),
            Ok(read) => Ok(read),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(error) => Err(error.to_string()),
        };
        match read {
            Ok(read) if read as u64 > part.missing() => {
                let why = format!("more than the {} bytes that it lists", file.size);
                part.restart()?;
                return Err(HubError::Answer { host, what: file.path.clone(), why }.into());
            }
            Ok(read) => part.append(&chunk[..read])?,
            Err(why) => return Err(Failure::Passing(broken(host, file, part.length(), why), None)),
        }
    }
}

/// Refuses an answer that the hub itself says is another file than it listed.
fn held_to(answer: &Answer, file: &RemoteFile) -> Result<(), HubError> {
    match (&answer.linked_etag, file.digest) {
        (Some(etag), Digest::Sha256(_))
            if Digest::sha256(etag).is_some_and(|linked| linked != file.digest) =>
        {
            Err(wrong(answer, file, "another file than it lists".into()))
        }
        _ => Ok(()),
    }
}

/// Refuses a part that is not the rest from `start` on.
fn covers(answer: &Answer, file: &RemoteFile, start: u64) -> Result<(), HubError> {
    let range = answer.header(header::CONTENT_RANGE).unwrap_or_default().to_owned();
    let parsed = range.strip_prefix("bytes ").and_then(|range| {
        let (span, length) = range.split_once('/')?;
        let (first, _last) = span.split_once('-')?;
        Some((first.parse::<u64>().ok()?, length.parse::<u64>().ok()?))
    });
    match parsed {
        Some(found) if found == (start, file.size) => Ok(()),
        _ => Err(wrong(
            answer,
            file,
            format!("the part {range:?} where the rest from {start} on was asked for"),
        )),
    }
}

fn wrong(answer: &Answer, file: &RemoteFile, why: String) -> HubError {
    HubError::Answer { host: answer.host.clone(), what: file.path.clone(), why }
}

fn broken(host: String, file: &RemoteFile, got: u64, why: String) -> HubError {
    HubError::Broken { host, what: file.path.clone(), got, length: file.size, why }
}
