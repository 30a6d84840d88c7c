//! What a repository is called, and what is in it.

use std::{
    fmt,
    path::{Component, Path},
    str::FromStr,
};

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;

use crate::{Digest, Hub, HubError, Watch, client::Request, digest::Hasher};

/// The most bytes of a listing; the longest real ones have a few megabytes.
const LISTING_CAP: u64 = 64 << 20;
/// The most characters of an owner's or model's name.
const NAME_CAP: usize = 96;
/// The most characters of a revision or a file's name.
const PATH_CAP: usize = 512;
/// The most files that an error lists.
const SHOWN: usize = 12;

/// What is escaped in one part of a path.
const PART: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');
/// The same for a path with several parts.
const PATH: &AsciiSet = &PART.remove(b'/');

/// A repository at a revision: `OWNER/NAME` or `OWNER/NAME@REVISION`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RepoName {
    owner: String,
    name: String,
    /// A branch, tag or commit.
    revision: String,
}

impl RepoName {
    /// The model's name without its owner's.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Another revision of the same repository.
    ///
    /// # Errors
    /// [`HubError::Name`] for what cannot be one.
    pub fn at(self, revision: &str) -> Result<Self, HubError> {
        let fits = !revision.is_empty() && revision.len() <= PATH_CAP && !revision.contains(char::is_control);
        let revision = revision.to_owned();
        if fits { Ok(Self { revision, ..self }) } else { Err(HubError::Name(revision)) }
    }

    /// Reads `OWNER/NAME`, `OWNER/NAME@REVISION`, and either with `/FILE` behind it.
    ///
    /// # Errors
    /// [`HubError::Name`].
    pub fn with_file(text: &str) -> Result<(Self, Option<&str>), HubError> {
        let second = text.match_indices('/').nth(1).map(|(at, _)| at);
        let (repo, file) = second.map_or((text, None), |at| (&text[..at], Some(&text[at + 1..])));
        Ok((repo.parse()?, file))
    }
}

impl FromStr for RepoName {
    type Err = HubError;

    fn from_str(text: &str) -> Result<Self, HubError> {
        let wrong = || HubError::Name(text.to_owned());
        let (repo, revision) = text.split_once('@').unwrap_or((text, "main"));
        let (owner, name) = repo.split_once('/').ok_or_else(wrong)?;
        let fits = |part: &str| {
            let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
            (1..=NAME_CAP).contains(&part.len())
                && part.chars().all(plain)
                && !part.starts_with(['-', '.'])
                && !part.ends_with(['-', '.'])
                && !part.contains("..")
        };
        if !fits(owner) || !fits(name) {
            return Err(wrong());
        }
        Self { owner: owner.into(), name: name.into(), revision: String::new() }.at(revision)
    }
}

impl fmt::Display for RepoName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.owner, self.name)
    }
}

/// A file of a repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoteFile {
    /// Its path in the repository; safe to join to a folder.
    pub path: String,
    /// Its length in bytes.
    pub size: u64,
    /// What its bytes hash to.
    pub digest: Digest,
}

impl RemoteFile {
    /// Whether these are its bytes.
    pub(crate) fn check(&self, bytes: &[u8]) -> Result<(), HubError> {
        let mut hasher = self.digest.hasher(self.size);
        hasher.update(bytes);
        self.check_hash(hasher)
    }

    /// Whether its bytes were hashed.
    pub(crate) fn check_hash(&self, hasher: Hasher) -> Result<(), HubError> {
        let found = hasher.finish();
        if found == self.digest {
            return Ok(());
        }
        let (found, expected) = (found.to_string(), self.digest.to_string());
        Err(HubError::Mismatch { file: self.path.clone(), found, expected })
    }
}

/// A repository at one commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Repo {
    name: RepoName,
    commit: String,
    listed: Vec<Sibling>,
}

/// What the hub says of a repository; there is more, which is not needed.
#[derive(Deserialize)]
struct Listing {
    sha: String,
    #[serde(default)]
    siblings: Vec<Sibling>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Sibling {
    rfilename: String,
    size: Option<u64>,
    /// Git's hash of the file, or of the pointer to it.
    blob_id: Option<String>,
    lfs: Option<Lfs>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
struct Lfs {
    sha256: String,
    size: u64,
}

impl Hub {
    /// Asks what a repository holds.
    ///
    /// # Errors
    /// [`HubError::NotFound`] or [`HubError::Gated`] where the hub does not show it, [`HubError::Answer`] for an answer that
    /// is none, and those of the connection.
    pub fn repo(&self, name: &RepoName, watch: &dyn Watch) -> Result<Repo, HubError> {
        let RepoName { owner, name: model, revision } = name;
        let revision_part = utf8_percent_encode(revision, PART);
        let path = format!("/api/models/{owner}/{model}/revision/{revision_part}?blobs=true");
        let what = format!("{name} at {revision}");
        let bytes = self.read(&Request { path: &path, what: &what, headers: &[] }, LISTING_CAP, watch)?;
        let wrong = |why: String| HubError::Answer { host: self.host().to_owned(), what: what.clone(), why };
        let listing: Listing =
            serde_json::from_slice(&bytes).map_err(|error| wrong(format!("what is no listing: {error}")))?;
        if listing.sha.len() != 40 || !listing.sha.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(wrong("no commit".into()));
        }
        Ok(Repo { name: name.clone(), commit: listing.sha, listed: listing.siblings })
    }
}

impl Repo {
    /// What it is called.
    pub fn name(&self) -> &RepoName {
        &self.name
    }

    /// The commit that the revision meant when it was asked for, in hexadecimal.
    pub fn commit(&self) -> &str {
        &self.commit
    }

    /// The paths of all files, as the hub gives them: not safe to join to a folder.
    pub fn paths(&self) -> impl Iterator<Item = &str> {
        self.listed.iter().map(|file| &*file.rfilename)
    }

    /// Whether there is such a file.
    pub fn has(&self, path: &str) -> bool {
        self.paths().any(|known| known == path)
    }

    /// A file that can be fetched and checked.
    ///
    /// # Errors
    /// [`HubError::NoFile`], [`HubError::FileName`] for a name that leaves the folder, [`HubError::NoChecksum`].
    pub fn file(&self, path: &str) -> Result<RemoteFile, HubError> {
        let Some(listed) = self.listed.iter().find(|file| file.rfilename == path) else {
            let mut known: Vec<&str> = self.paths().take(SHOWN).collect();
            if self.listed.len() > SHOWN {
                known.push("…");
            }
            let (repo, file) = (self.name.to_string(), path.to_owned());
            return Err(HubError::NoFile { repo, file, known: known.join(", ") });
        };
        if !is_safe(path) {
            return Err(HubError::FileName(path.to_owned()));
        }
        let found = match listed {
            Sibling { lfs: Some(lfs), .. } => Digest::sha256(&lfs.sha256).map(|digest| (lfs.size, digest)),
            Sibling { size: Some(size), blob_id: Some(id), .. } => {
                Digest::git(id).map(|digest| (*size, digest))
            }
            _ => None,
        };
        let Some((size, digest)) = found else {
            let remedy = "use a hub that does";
            return Err(HubError::NoChecksum {
                file: path.to_owned(),
                wanted: "length and checksum",
                remedy,
            });
        };
        Ok(RemoteFile { path: path.to_owned(), size, digest })
    }

    /// The path of a request for a file.
    pub(crate) fn resolve(&self, file: &RemoteFile) -> String {
        let RepoName { owner, name, .. } = &self.name;
        format!("/{owner}/{name}/resolve/{}/{}", self.commit, utf8_percent_encode(&file.path, PATH))
    }
}

/// Whether a path stays in the folder that it is joined to, on every system.
fn is_safe(path: &str) -> bool {
    let plain = |part: &str| {
        !matches!(part, "" | "." | "..")
            && !part.contains(['\\', ':', '<', '>', '"', '|', '?', '*'])
            && !part.contains(char::is_control)
            && !part.ends_with([' ', '.'])
    };
    path.len() <= PATH_CAP
        && path.split('/').all(plain)
        && Path::new(path).components().all(|part| matches!(part, Component::Normal(_)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read() {
        let repo: RepoName = "microsoft/phi-4".parse().unwrap();
        assert_eq!((repo.to_string().as_str(), repo.revision.as_str()), ("microsoft/phi-4", "main"));
        let (repo, file) = RepoName::with_file("a/b.c@v1.0/gguf/x.gguf").unwrap();
        assert_eq!((repo.name(), repo.revision.as_str(), file), ("b.c", "v1.0", Some("gguf/x.gguf")));
        assert_eq!(repo.at("refs/pr/1").unwrap().revision, "refs/pr/1");
        for wrong in [
            "", "phi-4", "/phi-4", "a/", "a b/c", "../x", "a/..", "a/b@", "-a/b", "a/b?x=1", "a/b#c", "é/b",
            "a/b@\n",
        ] {
            assert!(wrong.parse::<RepoName>().is_err(), "{wrong:?}");
        }
        assert!("a/b".parse::<RepoName>().unwrap().at("").is_err());
    }

    #[test]
    fn names_that_leave_the_folder_are_refused() {
        for safe in ["config.json", "gguf/model.Q4_0.gguf", "a b/é.txt", "..a", ".gitattributes"] {
            assert!(is_safe(safe), "{safe}");
        }
        let long = "x".repeat(PATH_CAP + 1);
        for wrong in [
            "",
            "..",
            "../x",
            "a/../b",
            "/etc/passwd",
            "a//b",
            "a/",
            "C:\\x",
            "C:x",
            "a\\b",
            "a\0",
            "a\nb",
            "x.",
            &long,
        ] {
            assert!(!is_safe(wrong), "{wrong:?}");
        }
    }
}
