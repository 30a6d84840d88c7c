use std::collections::HashSet;

use serde::{Deserialize, Serialize};

use crate::{
    Encoding, FormatError, Header, ModelConfig, Provenance, TensorName, TextConfig,
    blob::{BlobEntry, TOKENIZER},
    encoding::{ALIGNMENT, align},
};

/// Where a tensor lies in a file.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorEntry {
    /// Its name.
    pub name: TensorName,
    /// `[rows, cols]`; rows are outputs.
    pub shape: [u64; 2],
    /// How its numbers are stored.
    pub encoding: Encoding,
    /// First byte, counted from the start of the file.
    pub offset: u64,
    /// Bytes, padding behind it left out.
    pub length: u64,
    /// BLAKE3 of these bytes.
    pub checksum: [u8; 32],
    /// What the compressor measured.
    pub stats: Option<TensorStats>,
}

/// What the compressor measured of one tensor.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TensorStats {
    /// Signal to error of the stored weights against the checkpoint's, in dB; stored with two decimals.
    pub snr_db: f32,
}

impl TensorStats {
    /// The widest stats in a header: its length must be known before anything is measured.
    pub(crate) const WIDEST: Self = Self { snr_db: -9999.99 };

    /// The stats as a file holds them: two decimals, at most 9999.99 dB either way, none for what is not a number.
    pub(crate) fn rounded(self) -> Option<Self> {
        let snr_db = (self.snr_db.clamp(-9999.99, 9999.99) * 100.0).round() / 100.0;
        (!snr_db.is_nan()).then_some(Self { snr_db })
    }
}

/// The JSON header of a file.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    config: ModelConfig,
    text: TextConfig,
    provenance: Provenance,
    blobs: Vec<BlobRecord>,
    tensors: Vec<TensorRecord>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct BlobRecord {
    name: String,
    offset: u64,
    length: u64,
    raw_length: u64,
    #[serde(with = "hex")]
    checksum: [u8; 32],
}

/// A [`TensorEntry`] as it is written: its name is checked only after parsing, to give errors of its own.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct TensorRecord {
    name: String,
    shape: [u64; 2],
    encoding: Encoding,
    offset: u64,
    length: u64,
    #[serde(with = "hex")]
    checksum: [u8; 32],
    stats: Option<TensorStats>,
}

/// All that a header says, checked.
#[derive(Clone, Debug)]
pub(crate) struct Index {
    pub header: Header,
    pub tokenizer: BlobEntry,
    pub tensors: Vec<TensorEntry>,
}

impl Index {
    /// Parses a header and checks everything that can be checked without the data: the set of tensors, their shapes
    /// and lengths, and that tokenizer and tensors cover the bytes from `data_start` to `file_length` exactly.
    pub fn parse(json: &[u8], data_start: u64, file_length: u64) -> Result<Self, FormatError> {
        let document: Document = serde_json::from_slice(json)?;
        let header = Header { config: document.config, text: document.text, provenance: document.provenance };
        header.validate()?;
        let tokenizer = check_blobs(document.blobs)?;
        let tensors = check_tensors(&header.config, document.tensors)?;
        let index = Self { header, tokenizer, tensors };
        index.check_cover(data_start, file_length)?;
        Ok(index)
    }

    /// The header's JSON, without the spaces that fill it up.
    pub fn to_json(&self) -> Result<Vec<u8>, FormatError> {
        let Header { config, text, provenance } = self.header.clone();
        let BlobEntry { offset, length, raw_length, checksum } = self.tokenizer;
        let tokenizer = BlobRecord { name: TOKENIZER.into(), offset, length, raw_length, checksum };
        let tensors = self.tensors.iter().map(TensorRecord::from).collect();
        let document = Document { config, text, provenance, blobs: vec![tokenizer], tensors };
        Ok(serde_json::to_vec(&document)?)
    }

    /// Everything in the data region in the order of the file: name, offset, length.
    pub fn entries(&self) -> impl Iterator<Item = (String, u64, u64)> {
        let tokenizer = (TOKENIZER.to_owned(), self.tokenizer.offset, self.tokenizer.length);
        let tensors = self.tensors.iter().map(|t| (format!("tensor {}", t.name), t.offset, t.length));
        std::iter::once(tokenizer).chain(tensors)
    }

    /// Each entry must start at the first aligned byte behind the one before it, and the last must end the file.
    fn check_cover(&self, data_start: u64, file_length: u64) -> Result<(), FormatError> {
        let mut end = data_start;
        for (entry, offset, length) in self.entries() {
            if !offset.is_multiple_of(ALIGNMENT) {
                return Err(FormatError::Misaligned { entry, offset });
            }
            if offset < end {
                return Err(FormatError::Overlap { entry, offset, end });
            }
            if offset > end {
                return Err(FormatError::Hole { entry, offset, end });
            }
            end = match offset.checked_add(length).and_then(align) {
                Some(end) if end <= file_length => end,
                _ => return Err(FormatError::OutOfBounds { entry, offset, file_length }),
            };
        }
        if end < file_length {
            return Err(FormatError::Hole { entry: "the end of the file".into(), offset: file_length, end });
        }
        Ok(())
    }
}

fn check_blobs(blobs: Vec<BlobRecord>) -> Result<BlobEntry, FormatError> {
    let count = blobs.len();
    let [blob] =
        <[BlobRecord; 1]>::try_from(blobs).map_err(|_| FormatError::Blobs(format!("it holds {count}")))?;
    if blob.name != TOKENIZER {
        return Err(FormatError::Blobs(format!("it holds {:?}", shortened(&blob.name))));
    }
    let BlobRecord { offset, length, raw_length, checksum, .. } = blob;
    let entry = BlobEntry { offset, length, raw_length, checksum };
    entry.check_sizes()?;
    Ok(entry)
}

fn check_tensors(config: &ModelConfig, records: Vec<TensorRecord>) -> Result<Vec<TensorEntry>, FormatError> {
    let mut names = Vec::with_capacity(records.len());
    for record in &records {
        let name = record.name.parse();
        names.push(name.map_err(|_| FormatError::UnknownTensor(shortened(&record.name)))?);
    }
    check_names(config, &names)?;
    names.into_iter().zip(records).map(|(name, record)| check_tensor(config, name, record)).collect()
}

fn check_tensor(
    config: &ModelConfig,
    name: TensorName,
    record: TensorRecord,
) -> Result<TensorEntry, FormatError> {
    let TensorRecord { shape, encoding, offset, length, checksum, stats, .. } = record;
    let expected = shape_of(config, name);
    if shape != expected {
        return Err(FormatError::Shape { name, found: shape, expected });
    }
    let expected = length_of(name, shape, encoding)?;
    if length != expected {
        return Err(FormatError::TensorLength { name, found: length, expected });
    }
    Ok(TensorEntry { name, shape, encoding, offset, length, checksum, stats })
}

/// Checks that `names` are the tensors of this configuration, each once, in any order.
pub(crate) fn check_names(config: &ModelConfig, names: &[TensorName]) -> Result<(), FormatError> {
    // Every layer has tensors: a short list is refused before the full one, which a hostile count of layers could
    // make long, is built.
    if names.len() < config.layers {
        return Err(FormatError::MissingTensors { listed: names.len(), expected: config.layers });
    }
    let expected: HashSet<TensorName> = TensorName::of_upg(config).into_iter().collect();
    let mut seen = HashSet::with_capacity(names.len());
    for name in names {
        if !expected.contains(name) {
            return Err(FormatError::UnexpectedTensor(*name));
        }
        if !seen.insert(*name) {
            return Err(FormatError::DuplicateTensor(*name));
        }
    }
    if seen.len() < expected.len() {
        return Err(FormatError::MissingTensors { listed: seen.len(), expected: expected.len() });
    }
    Ok(())
}

/// A tensor's shape, in the width that files use.
pub(crate) fn shape_of(config: &ModelConfig, name: TensorName) -> [u64; 2] {
    name.shape(config).map(|n| n as u64)
}

/// Bytes of a tensor, padding behind it left out; an error where the encoding cannot hold it.
pub(crate) fn length_of(name: TensorName, shape: [u64; 2], encoding: Encoding) -> Result<u64, FormatError> {
    let is_refused = name.kind().is_vector() && matches!(encoding, Encoding::T8(_));
    let length = if is_refused { None } else { encoding.length(shape) };
    length.ok_or(FormatError::Encoding { name, encoding })
}

/// The start of a hostile string, for an error message.
fn shortened(name: &str) -> String {
    name.chars().take(64).collect()
}

impl From<&TensorEntry> for TensorRecord {
    fn from(entry: &TensorEntry) -> Self {
        let TensorEntry { name, shape, encoding, offset, length, checksum, stats } = *entry;
        Self { name: name.to_string(), shape, encoding, offset, length, checksum, stats }
    }
}

/// A checksum as 64 lowercase hexadecimal digits.
pub(crate) mod hex {
    use std::borrow::Cow;

    use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

    pub fn serialize<S: Serializer>(hash: &[u8; 32], serializer: S) -> Result<S::Ok, S::Error> {
        blake3::Hash::from_bytes(*hash).to_hex().as_str().serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<[u8; 32], D::Error> {
        let text = Cow::<str>::deserialize(deserializer)?;
        let hash = blake3::Hash::from_hex(text.as_bytes()).map_err(D::Error::custom)?;
        if hash.to_hex().as_str() == text {
            Ok(*hash.as_bytes())
        } else {
            Err(D::Error::custom("a checksum must be lowercase"))
        }
    }
}
