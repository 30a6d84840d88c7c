//! The two checksums that the hub lists: SHA-256 of large files, git's SHA-1 of small ones.

use std::fmt;

use sha1::Sha1;
use sha2::{Digest as _, Sha256};

/// What a file's bytes must hash to.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Digest {
    /// SHA-256 of the bytes.
    Sha256([u8; 32]),
    /// SHA-1 of `blob LENGTH\0` and the bytes, as git names files.
    Git([u8; 20]),
}

impl Digest {
    pub(crate) fn sha256(hex: &str) -> Option<Self> {
        parse(hex).map(Self::Sha256)
    }

    pub(crate) fn git(hex: &str) -> Option<Self> {
        parse(hex).map(Self::Git)
    }

    /// The hash in lowercase hexadecimal.
    pub fn hex(&self) -> String {
        let bytes: &[u8] = match self {
            Self::Sha256(bytes) => bytes,
            Self::Git(bytes) => bytes,
        };
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Starts to hash a file of `length` bytes in the same way.
    pub(crate) fn hasher(&self, length: u64) -> Hasher {
        match self {
            Self::Sha256(_) => Hasher::Sha256(Sha256::new()),
            Self::Git(_) => Hasher::Git(Sha1::new_with_prefix(format!("blob {length}\0"))),
        }
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self {
            Self::Sha256(_) => "sha256",
            Self::Git(_) => "git sha1",
        };
        write!(f, "{kind} {}", self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A hash that is being computed.
#[derive(Clone, Debug)]
pub(crate) enum Hasher {
    Sha256(Sha256),
    Git(Sha1),
}

impl Hasher {
    pub(crate) fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hasher) => hasher.update(bytes),
            Self::Git(hasher) => hasher.update(bytes),
        }
    }

    pub(crate) fn finish(self) -> Digest {
        match self {
            Self::Sha256(hasher) => Digest::Sha256(hasher.finalize().into()),
            Self::Git(hasher) => Digest::Git(hasher.finalize().into()),
        }
    }
}

fn parse<const N: usize>(hex: &str) -> Option<[u8; N]> {
    if hex.len() != 2 * N || !hex.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    let mut bytes = [0; N];
    for (i, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&hex[2 * i..2 * i + 2], 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `git hash-object` and `sha256sum` of a file that says `hello` and a line end.
    #[test]
    fn hashes_are_those_of_git_and_of_sha256sum() {
        for expected in [
            Digest::git("ce013625030ba8dba906f756967f9e9ca394464a").unwrap(),
            Digest::sha256("5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03").unwrap(),
        ] {
            let mut hasher = expected.hasher(6);
            hasher.update(b"hel");
            hasher.update(b"lo\n");
            assert_eq!(hasher.finish(), expected);
        }
    }

    #[test]
    fn what_is_no_hash_is_refused() {
        for wrong in [
            "",
            "ce01",
            "xe013625030ba8dba906f756967f9e9ca394464a",
            "é013625030ba8dba906f756967f9e9ca394464a",
        ] {
            assert_eq!(Digest::git(wrong), None, "{wrong}");
        }
    }
}
