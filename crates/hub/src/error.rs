use std::{io, path::PathBuf};

use upg_checkpoint::CheckpointError;

/// Why a model cannot be had. Each message ends with what to do.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// Not a repository's name.
    #[error("{0:?} is not a model on the hub: write OWNER/NAME, such as microsoft/phi-4")]
    Name(String),
    /// A file's name that would leave the folder, or that some system cannot store.
    #[error("{0:?} is not a name that is safe to store: do not trust this repository")]
    FileName(String),
    /// The hub's address cannot be used.
    #[error("{address:?} is not an address of a hub: {why}; set HF_ENDPOINT like https://huggingface.co")]
    Endpoint {
        /// The address.
        address: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The token cannot be used.
    #[error("the token in {place} {why}; get one at the hub's settings, under access tokens")]
    Token {
        /// Where it was found.
        place: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// `HF_HUB_OFFLINE` is set.
    #[error("HF_HUB_OFFLINE is set: unset it, or use files that are on this machine")]
    Offline,
    /// The hub has no such repository, or does not show it to this user.
    #[error(
        "{host} knows no {what}, or does not show it to you ({status}); check the name, or set HF_TOKEN where it is private"
    )]
    NotFound {
        /// The host.
        host: String,
        /// What was asked for.
        what: String,
        /// The HTTP status.
        status: u16,
    },
    /// The hub wants an agreement first.
    #[error(
        "{host} does not give {what} to you ({status}): accept its conditions at {page}, then set HF_TOKEN to a token of that account"
    )]
    Gated {
        /// The host.
        host: String,
        /// What was asked for.
        what: String,
        /// The HTTP status.
        status: u16,
        /// The page with the conditions.
        page: String,
    },
    /// Another status than success.
    #[error("{host} answers {status} to {what}{said}; try again later")]
    Status {
        /// The host.
        host: String,
        /// What was asked for.
        what: String,
        /// The HTTP status.
        status: u16,
        /// What the answer says, after a colon; or nothing.
        said: String,
    },
    /// The connection failed.
    #[error("{host}: {reason}; check the connection and try again")]
    Network {
        /// The host.
        host: String,
        /// What went wrong. Not the error's source: the remedy is to stand last.
        reason: ureq::Error,
    },
    /// The connection ended, or said nothing for too long, in the middle of a body.
    #[error("{host} sent {got} of {length} bytes of {what}: {why}; the same command goes on from there")]
    Broken {
        /// The host.
        host: String,
        /// What was asked for.
        what: String,
        /// Bytes that are here.
        got: u64,
        /// Bytes that there should be.
        length: u64,
        /// What the system said.
        why: String,
    },
    /// A redirect that is not followed.
    #[error("{host} redirects {what} {why}; do not trust this host")]
    Redirect {
        /// The host.
        host: String,
        /// What was asked for.
        what: String,
        /// Why it is not followed.
        why: &'static str,
    },
    /// An answer that is not what the protocol promises.
    #[error("{host} answers {what} with {why}; check HF_ENDPOINT, or try again later")]
    Answer {
        /// The host.
        host: String,
        /// What was asked for.
        what: String,
        /// What is wrong.
        why: String,
    },
    /// The repository has no such file.
    #[error("{repo} has no file {file:?}; it has: {known}")]
    NoFile {
        /// The repository.
        repo: String,
        /// The file.
        file: String,
        /// Files that it has.
        known: String,
    },
    /// Nothing in the repository is a model that can be read, or too much is.
    #[error("{repo} {why}")]
    Choice {
        /// The repository.
        repo: String,
        /// What is wrong, and what to do.
        why: String,
    },
    /// The hub lists no checksum.
    #[error("the hub lists no {wanted} of {file}, so it cannot be checked; {remedy}")]
    NoChecksum {
        /// The file.
        file: String,
        /// What it should list.
        wanted: &'static str,
        /// What to do.
        remedy: &'static str,
    },
    /// Not the bytes that the hub lists.
    #[error("{file} came with other bytes than the hub lists ({found}, not {expected}); try again later")]
    Mismatch {
        /// The file.
        file: String,
        /// The checksum found.
        found: String,
        /// The checksum listed.
        expected: String,
    },
    /// A file is there that is another one.
    #[error("{} is there and is not the file that the hub has: remove it, choose another folder, or pass --force", .0.display())]
    Exists(PathBuf),
    /// Another process fetches the same file.
    #[error("{} is being fetched by another process: wait for it", .0.display())]
    Busy(PathBuf),
    /// The disk is too small.
    #[error("{} has {free} bytes free and {needed} are needed: free some, or choose another disk", path.display())]
    Room {
        /// The folder.
        path: PathBuf,
        /// Bytes that are free.
        free: u64,
        /// Bytes that are needed.
        needed: u64,
    },
    /// The operating system refused.
    #[error("{}: {reason}; check the path and its permissions", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The reason. Not the error's source: the remedy is to stand last.
        reason: io::Error,
    },
    /// What was fetched is not a checkpoint.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// Asked to stop.
    #[error("stopped; the same command goes on from what is here")]
    Cancelled,
}

impl HubError {
    pub(crate) fn io(path: &std::path::Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |reason| Self::Io { path, reason }
    }
}
