//! Models from the Hugging Face hub, or from any host that speaks its protocol (`HF_ENDPOINT`).
//!
//! [`Hub::repo`] lists a repository at one commit with the lengths and checksums of its files; [`Hub::fetch`] brings a
//! file, going on where an earlier try stopped; [`stream::open`] gives a checkpoint whose shards come when they are needed.
//!
//! The hub is not trusted with anything but the checksums it lists: answers are capped, names cannot leave the folder,
//! and no file gets its name before its bytes are those listed. The token goes to the hub's own address and to no
//! other, wherever the hub redirects to.

mod address;
mod client;
mod digest;
mod error;
mod fetch;
mod part;
mod repo;
mod retry;
mod room;
mod select;
mod settings;
pub mod stream;

pub use client::Hub;
pub use digest::Digest;
pub use error::HubError;
pub use fetch::Fetched;
pub use repo::{RemoteFile, Repo, RepoName};
pub use retry::Patience;
pub use room::check_room;
pub use settings::{Settings, Token};

use std::time::Duration;

/// Who wants to know how a fetch goes, and may stop it.
pub trait Watch: Send + Sync {
    /// So many bytes of `file` are here.
    fn at(&self, _file: &RemoteFile, _bytes: u64) {}

    /// A try failed; the next one begins after `wait`.
    fn retrying(&self, _why: &HubError, _wait: Duration) {}

    /// Whether to stop.
    fn cancelled(&self) -> bool {
        false
    }
}

/// Nobody.
impl Watch for () {}
