//! A conversation in a file, for /save and /load.

use std::{
    fs::File,
    io::{Read as _, Write as _},
    path::Path,
};

use anyhow::{Context as _, bail};
use serde::{Deserialize, Serialize};
use upg_engine::Message;

/// The largest file that /load reads, in bytes.
const MAX_FILE: u64 = 64 << 20;

#[derive(Serialize, Deserialize)]
struct Transcript {
    messages: Vec<Message>,
}

/// Writes a conversation.
pub fn save(path: &Path, messages: &[Message]) -> anyhow::Result<()> {
    let transcript = Transcript { messages: messages.to_vec() };
    let mut text = serde_json::to_vec_pretty(&transcript)?;
    text.push(b'\n');
    let write = || File::create(path)?.write_all(&text);
    write().with_context(|| format!("cannot write {}: choose another file", path.display()))
}

/// Reads a conversation.
pub fn load(path: &Path) -> anyhow::Result<Vec<Message>> {
    let mut text = Vec::new();
    let mut read = || File::open(path)?.take(MAX_FILE + 1).read_to_end(&mut text);
    read().with_context(|| format!("cannot read {}: check the path", path.display()))?;
    if text.len() as u64 > MAX_FILE {
        bail!("{} is larger than {} MiB: it is no conversation", path.display(), MAX_FILE >> 20);
    }
    let transcript: Transcript = serde_json::from_slice(&text)
        .with_context(|| format!("{} is no conversation that /save wrote", path.display()))?;
    Ok(transcript.messages)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_saved_is_loaded() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("chat.json");
        let messages = [Message::new("user", "hi \u{1F600}"), Message::new("assistant", "hello")];
        save(&path, &messages).unwrap();
        assert_eq!(load(&path).unwrap(), messages);
    }

    #[test]
    fn other_files_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("chat.json");
        assert!(load(&path).unwrap_err().to_string().contains("check the path"));
        std::fs::write(&path, b"[1, 2").unwrap();
        assert!(load(&path).unwrap_err().to_string().contains("no conversation"));
    }
}
