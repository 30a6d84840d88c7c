//! Logits kept in a file that NumPy reads: `.npy`, 32-bit floats, `[scored tokens, vocabulary]`.

use std::{
    fs::File,
    io::{BufWriter, Write as _},
    ops::Range,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use bytemuck::cast_slice;
use upg_engine::{
    EngineError,
    eval::{MachineScorer, Scorer},
};

/// NumPy aligns the numbers to this.
const ALIGNMENT: usize = 64;

/// A file for the logits of a text.
pub struct Logits {
    path: PathBuf,
    file: BufWriter<File>,
}

impl Logits {
    /// Creates the file, for so many tokens.
    pub fn create(path: &Path, tokens: usize, vocab: usize) -> anyhow::Result<Self> {
        let create = || {
            let mut file = BufWriter::new(File::create(path)?);
            file.write_all(&header(tokens, vocab))?;
            Ok::<_, std::io::Error>(file)
        };
        let file = create().with_context(|| remedy(path))?;
        Ok(Self { path: path.to_owned(), file })
    }

    /// Finishes the file.
    pub fn finish(mut self) -> anyhow::Result<()> {
        self.file.flush().with_context(|| remedy(&self.path))
    }
}

fn remedy(path: &Path) -> String {
    format!("cannot write logits to {}: check the folder's room and permissions", path.display())
}

/// The beginning of an `.npy` file, version 1.0: <https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html>.
fn header(rows: usize, cols: usize) -> Vec<u8> {
    let mut text = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({rows}, {cols}), }}");
    let magic = b"\x93NUMPY\x01\x00";
    let before = magic.len() + size_of::<u16>();
    let length = (before + text.len() + 1).next_multiple_of(ALIGNMENT) - before;
    text += &" ".repeat(length - text.len() - 1);
    text.push('\n');
    // Two numbers of 20 digits fit.
    [magic.as_slice(), &(length as u16).to_le_bytes(), text.as_bytes()].concat()
}

/// A machine whose rows also go to a file, where there is one.
pub struct Kept<'a> {
    pub scorer: MachineScorer<'a>,
    pub logits: Option<Logits>,
}

impl Scorer for Kept<'_> {
    fn vocab(&self) -> usize {
        self.scorer.vocab()
    }

    fn begin(&mut self) -> Result<(), EngineError> {
        self.scorer.begin()
    }

    fn rows(&mut self, chunk: &[u32], range: Range<usize>, out: &mut [f32]) -> Result<(), EngineError> {
        self.scorer.rows(chunk, range, out)?;
        let Some(logits) = &mut self.logits else { return Ok(()) };
        let written = logits.file.write_all(cast_slice(out));
        written.map_err(|error| EngineError::Logits(format!("{}: {error}", remedy(&logits.path))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_aligned_and_end_in_a_line_break() {
        for (rows, cols) in [(1, 1), (4080, 49152), (1 << 40, 1 << 20)] {
            let header = header(rows, cols);
            let length = usize::from(u16::from_le_bytes([header[8], header[9]]));
            assert_eq!(header.len(), 10 + length);
            assert!(header.len().is_multiple_of(ALIGNMENT));
            assert!(header.ends_with(b"\n"));
        }
    }
}
