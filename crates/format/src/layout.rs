use std::collections::HashMap;

use upg_codec::Bits;

use crate::{
    Encoding, FormatError, Header, ModelConfig, TensorEntry, TensorName, TensorStats,
    blob::{self, BlobEntry},
    encoding::align,
    index::{Index, check_names, length_of, shape_of},
    preamble::{MAX_HEADER, Preamble},
};

/// Where everything of a file goes, known before any tensor is.
#[derive(Debug)]
pub(crate) struct Layout {
    /// The index. Its checksums and stats are placeholders until the tensors are finished.
    pub index: Index,
    /// The tokenizer as it is stored.
    pub tokenizer: Vec<u8>,
    /// Bytes of the header, with the spaces that fill it up.
    pub header_length: u64,
    /// Bytes of the file.
    pub file_length: u64,
}

impl Layout {
    /// Lays a file out: tokenizer first, then the tensors in the order of [`TensorName::of_upg`], whatever the order
    /// of `tensors`.
    pub fn new(
        header: &Header,
        tokenizer_json: &[u8],
        tensors: &[(TensorName, Encoding)],
    ) -> Result<Self, FormatError> {
        header.validate()?;
        let names: Vec<TensorName> = tensors.iter().map(|(name, _)| *name).collect();
        check_names(&header.config, &names)?;
        let plan: HashMap<TensorName, Encoding> = tensors.iter().copied().collect();
        // Complete: the names were checked.
        let ordered =
            TensorName::of_upg(&header.config).into_iter().filter_map(|name| Some((name, *plan.get(&name)?)));

        let stored = blob::deflate(tokenizer_json);
        let tokenizer = BlobEntry {
            offset: 0,
            length: stored.len() as u64,
            raw_length: tokenizer_json.len() as u64,
            checksum: *blake3::hash(&stored).as_bytes(),
        };
        tokenizer.check_sizes()?;
        let tensors = ordered.map(|(name, encoding)| blank(&header.config, name, encoding));
        let tensors = tensors.collect::<Result<_, _>>()?;
        let mut index = Index { header: header.clone(), tokenizer, tensors };
        let header_length = reserve(&index)?;
        let file_length = place(&mut index, Preamble::LENGTH as u64 + header_length)?;
        Ok(Self { index, tokenizer: stored, header_length, file_length })
    }

    /// Bytes ahead of the tensors.
    pub fn overhead(&self) -> u64 {
        self.index.tensors.first().map_or(self.file_length, |entry| entry.offset)
    }

    /// Preamble and header, once every checksum is known.
    pub fn head(&self) -> Result<Vec<u8>, FormatError> {
        let mut header = self.index.to_json()?;
        header.resize(self.header_length as usize, b' ');
        let checksum = *blake3::hash(&header).as_bytes();
        let preamble =
            Preamble { header_length: self.header_length, file_length: self.file_length, checksum };
        Ok([&preamble.to_bytes()[..], &header].concat())
    }

    /// Identifies header, tokenizer and plan: an interrupted file goes on only under the same identity.
    pub fn identity(&self) -> Result<blake3::Hash, FormatError> {
        let mut index = self.index.clone();
        for entry in &mut index.tensors {
            (entry.checksum, entry.stats) = ([0; 32], None);
        }
        // The index holds every length and offset, and the tokenizer's checksum.
        Ok(blake3::hash(&index.to_json()?))
    }
}

/// A tensor's entry, but for its place and what is known only once it is written.
fn blank(config: &ModelConfig, name: TensorName, encoding: Encoding) -> Result<TensorEntry, FormatError> {
    let shape = shape_of(config, name);
    let length = length_of(name, shape, encoding)?;
    Ok(TensorEntry { name, shape, encoding, offset: 0, length, checksum: [0; 32], stats: None })
}

/// The header's length, with all the room that its numbers can ever take: it depends neither on the encodings nor on
/// checksums and stats, so that a file's size is a sum over its tensors.
fn reserve(index: &Index) -> Result<u64, FormatError> {
    let mut widest = index.clone();
    widest.tokenizer.offset = u64::MAX;
    for entry in &mut widest.tensors {
        (entry.offset, entry.length) = (u64::MAX, u64::MAX);
        (entry.encoding, entry.stats) = (Encoding::T8(Bits::B8), Some(TensorStats::WIDEST));
    }
    let json = widest.to_json()?.len() as u64;
    let too_large = FormatError::HeaderTooLarge { length: json, cap: MAX_HEADER };
    align(json).filter(|length| *length <= MAX_HEADER).ok_or(too_large)
}

/// Gives every entry its offset, from `data_start` on. Returns the file's length.
fn place(index: &mut Index, data_start: u64) -> Result<u64, FormatError> {
    index.tokenizer.offset = data_start;
    let mut end = behind(data_start, index.tokenizer.length)?;
    for entry in &mut index.tensors {
        entry.offset = end;
        end = behind(end, entry.length)?;
    }
    Ok(end)
}

/// The first aligned byte behind an entry.
fn behind(offset: u64, length: u64) -> Result<u64, FormatError> {
    let end = offset.checked_add(length).and_then(align);
    // A capped configuration stays far below 2^64; this is for the arithmetic to be checked, not believed.
    end.ok_or(FormatError::OutOfBounds { entry: "the plan".into(), offset, file_length: u64::MAX })
}
