//! Logits of a reference, kept in a file, so that comparing many models with it runs it once.
//!
//! `DIR/KEY.logits`: 8 bytes of magic, the 32 bytes of the key, the vocabulary and the number of rows (`u64`), the rows in
//! 32-bit floats, and the BLAKE3 hash of all that; little-endian. Nothing is left out and nothing rounded: the comparison is
//! the one that the reference itself would have given, bit for bit.

use std::{
    fs::{self, File},
    io::{self, BufReader, BufWriter, Read, Write as _},
    path::{Path, PathBuf},
    process,
};

use anyhow::{Context as _, ensure};

use crate::units;

/// The format, and its version.
const MAGIC: [u8; 8] = *b"UPGLOG\0\x01";

const HASH: usize = blake3::OUT_LEN;

/// Bytes before the rows.
const HEAD: usize = MAGIC.len() + HASH + 2 * size_of::<u64>();

/// The most bytes of one file: 300 chunks of 512 tokens with a vocabulary of 200,000.
const MAX_BYTES: u64 = 64 << 30;

/// What a file of logits is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kind {
    /// A hash of everything that the logits depend on.
    pub key: [u8; HASH],
    /// Entries of a row.
    pub vocab: usize,
    /// Rows.
    pub rows: usize,
}

impl Kind {
    fn path(&self, folder: &Path) -> PathBuf {
        folder.join(format!("{}.logits", blake3::Hash::from(self.key).to_hex()))
    }

    /// Bytes of the file; none where that is more than a file may have.
    fn bytes(&self) -> Option<u64> {
        let numbers = (self.rows as u64).checked_mul(self.vocab as u64)?;
        let bytes = numbers.checked_mul(4)?.checked_add((HEAD + HASH) as u64)?;
        (bytes <= MAX_BYTES).then_some(bytes)
    }

    fn head(&self) -> [u8; HEAD] {
        let parts =
            [&MAGIC[..], &self.key, &(self.vocab as u64).to_le_bytes(), &(self.rows as u64).to_le_bytes()];
        let mut head = [0; HEAD];
        head.iter_mut().zip(parts.concat()).for_each(|(to, from)| *to = from);
        head
    }
}

/// A file to read from, row after row.
pub struct Reader {
    path: PathBuf,
    file: BufReader<File>,
    hasher: blake3::Hasher,
}

impl Reader {
    /// Opens the file of this kind; `None` where the folder has none.
    ///
    /// # Errors
    /// A file that is not what its name says.
    pub fn open(folder: &Path, kind: &Kind) -> anyhow::Result<Option<Self>> {
        let path = kind.path(folder);
        let file = match File::open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file.with_context(|| unreadable(&path))?,
        };
        let length = file.metadata().with_context(|| unreadable(&path))?.len();
        ensure!(Some(length) == kind.bytes(), damaged(&path));
        let (mut file, mut head) = (BufReader::new(file), [0; HEAD]);
        file.read_exact(&mut head).with_context(|| unreadable(&path))?;
        ensure!(head == kind.head(), damaged(&path));
        let mut hasher = blake3::Hasher::new();
        hasher.update(&head);
        Ok(Some(Self { path, file, hasher }))
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The next rows.
    ///
    /// # Errors
    /// A file that ends too soon, or holds what is no logit.
    pub fn read(&mut self, out: &mut [f32]) -> anyhow::Result<()> {
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(out);
        self.file.read_exact(bytes).with_context(|| unreadable(&self.path))?;
        self.hasher.update(bytes);
        out.iter_mut().for_each(|x| *x = f32::from_bits(u32::from_le(x.to_bits())));
        ensure!(out.iter().all(|x| x.is_finite()), damaged(&self.path));
        Ok(())
    }

    /// Checks, behind the last row, that the file held what was written.
    ///
    /// # Errors
    /// It did not.
    pub fn finish(mut self) -> anyhow::Result<()> {
        let mut hash = [0; HASH];
        self.file.read_exact(&mut hash).with_context(|| unreadable(&self.path))?;
        ensure!(self.hasher.finalize() == hash, damaged(&self.path));
        Ok(())
    }
}

/// A file to write to, row after row. It has its name only when it is finished, and goes where it never is.
pub struct Writer {
    path: PathBuf,
    /// `None` once it has its name.
    part: Option<PathBuf>,
    file: BufWriter<File>,
    hasher: blake3::Hasher,
    left: u64,
}

impl Writer {
    /// Begins a file of this kind, and the folder where there is none.
    ///
    /// # Errors
    /// More than a file may have; a folder that cannot be written to.
    pub fn create(folder: &Path, kind: &Kind) -> anyhow::Result<Self> {
        let most = units::bytes(MAX_BYTES);
        let bytes = kind.bytes();
        let bytes = bytes.with_context(|| {
            format!(
                "these are more than {most} of logits: measure fewer --chunks, or leave --reference-cache out"
            )
        })?;
        let path = kind.path(folder);
        // Two commands may write the same file: the last one's is kept, which is the same.
        let part = path.with_extension(format!("{}.part", process::id()));
        let create = || {
            fs::create_dir_all(folder)?;
            File::create(&part)
        };
        let file = BufWriter::new(create().with_context(|| unwritable(&path))?);
        let left = bytes - HASH as u64;
        let mut writer = Self { path, part: Some(part), file, hasher: blake3::Hasher::new(), left };
        writer.write(&kind.head())?;
        Ok(writer)
    }

    /// Appends rows.
    ///
    /// # Errors
    /// The operating system's.
    pub fn rows(&mut self, rows: &[f32]) -> anyhow::Result<()> {
        if cfg!(target_endian = "little") {
            return self.write(bytemuck::cast_slice(rows));
        }
        rows.iter().try_for_each(|x| self.write(&x.to_le_bytes()))
    }

    fn write(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        self.left = self.left.saturating_sub(bytes.len() as u64);
        self.hasher.update(bytes);
        self.file.write_all(bytes).with_context(|| unwritable(&self.path))
    }

    /// Gives the file its name.
    ///
    /// # Errors
    /// Rows that are missing, or the operating system's.
    pub fn finish(mut self) -> anyhow::Result<()> {
        ensure!(self.left == 0, "{} rows are missing: please report this as a bug", self.path.display());
        let hash = *self.hasher.finalize().as_bytes();
        let Some(part) = &self.part else { return Ok(()) };
        let mut name = || {
            self.file.write_all(&hash)?;
            self.file.flush()?;
            self.file.get_ref().sync_all()?;
            fs::rename(part, &self.path)
        };
        name().with_context(|| unwritable(&self.path))?;
        self.part = None;
        Ok(())
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if let Some(part) = &self.part {
            // One that stays is of no use to anybody, nor in anybody's way.
            let _ = fs::remove_file(part);
        }
    }
}

fn unreadable(path: &Path) -> String {
    format!("cannot read the reference's logits {}: remove the file, and they are made anew", path.display())
}

fn damaged(path: &Path) -> String {
    format!("{} does not hold the reference's logits: remove it, and they are made anew", path.display())
}

fn unwritable(path: &Path) -> String {
    format!("cannot write the reference's logits {}: check the folder's room and permissions", path.display())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

    use super::*;

    const KIND: Kind = Kind { key: [7; HASH], vocab: 3, rows: 2 };

    const ROWS: [f32; 6] = [1.0, -2.5, 1e-30, 3.0, 0.0, -1e30];

    fn written(folder: &Path) -> PathBuf {
        let mut writer = Writer::create(folder, &KIND).unwrap();
        ROWS.chunks(3).for_each(|row| writer.rows(row).unwrap());
        writer.finish().unwrap();
        KIND.path(folder)
    }

    fn read(folder: &Path) -> anyhow::Result<Option<Vec<f32>>> {
        let Some(mut reader) = Reader::open(folder, &KIND)? else { return Ok(None) };
        let mut rows = vec![0.0; 6];
        rows.chunks_mut(3).try_for_each(|row| reader.read(row))?;
        reader.finish()?;
        Ok(Some(rows))
    }

    #[test]
    fn what_is_read_is_what_was_written() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().join("new");
        assert_eq!(read(&folder).unwrap(), None);
        written(&folder);
        assert_eq!(read(&folder).unwrap().unwrap(), ROWS);
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
    }

    #[test]
    fn an_unfinished_file_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let mut writer = Writer::create(folder.path(), &KIND).unwrap();
        writer.rows(&ROWS[..3]).unwrap();
        assert!(writer.finish().is_err());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn every_damage_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let path = written(folder.path());
        let whole = fs::read(&path).unwrap();
        for at in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 0x40;
            fs::write(&path, damaged).unwrap();
            assert!(read(folder.path()).is_err(), "byte {at}");
        }
        for length in [0, 7, HEAD, whole.len() - 1, whole.len() + 1] {
            let mut cut = whole.clone();
            cut.resize(length, 0);
            fs::write(&path, cut).unwrap();
            assert!(read(folder.path()).is_err(), "{length} bytes");
        }
    }

    #[test]
    fn not_a_number_is_no_logit() {
        let folder = tempfile::tempdir().unwrap();
        let mut writer = Writer::create(folder.path(), &KIND).unwrap();
        writer.rows(&[0.0, f32::NAN, 0.0, 0.0, 0.0, 0.0]).unwrap();
        writer.finish().unwrap();
        assert!(read(folder.path()).is_err());
    }

    #[test]
    fn more_than_a_file_may_have_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        for (vocab, rows) in [(usize::MAX, usize::MAX), (200_000, 1 << 20)] {
            assert!(Writer::create(folder.path(), &Kind { vocab, rows, ..KIND }).is_err());
        }
    }
}
