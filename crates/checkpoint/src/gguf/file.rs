//! The structure of a GGUF file: header, metadata, tensor list. Specification: ggml's `docs/gguf.md`.

use std::collections::BTreeMap;

use super::{
    GgufError,
    metadata::{Metadata, Value},
    reader::Reader,
};
use crate::{dtype::DType, tensors::Found};

/// The most tensors of a file; real ones have less than two thousand.
const TENSORS_CAP: u64 = 1 << 16;
/// The largest `general.alignment`.
const ALIGNMENT_CAP: u64 = 1 << 16;
/// Where tensors start when the metadata does not say.
const DEFAULT_ALIGNMENT: u64 = 32;
/// The fewest bytes of an entry of the tensor list: name's length, count of dimensions, one of them, type, offset.
const MIN_TENSOR_INFO: usize = 8 + 4 + 8 + 4 + 8;

/// A parsed GGUF file.
pub(super) struct Gguf<'a> {
    pub version: u32,
    pub metadata: Metadata<'a>,
    pub tensors: BTreeMap<String, Found>,
    /// The whole file.
    pub bytes: &'a [u8],
}

impl<'a> Gguf<'a> {
    pub(super) fn parse(bytes: &'a [u8]) -> Result<Self, GgufError> {
        let mut reader = Reader::new(bytes);
        if reader.take(4, "the magic")? != b"GGUF" {
            return Err(GgufError::Magic);
        }
        let version = reader.u32("the version")?;
        match version {
            2 | 3 => {}
            _ if matches!(version.swap_bytes(), 1..=3) => return Err(GgufError::BigEndian),
            _ => return Err(GgufError::Version(version)),
        }
        let tensor_count = reader.count("tensors", TENSORS_CAP, MIN_TENSOR_INFO)?;
        let key_count = reader.u64("the count of metadata keys")?;
        let metadata = Metadata::read(&mut reader, key_count)?;
        let alignment = alignment(&metadata)?;
        let infos = (0..tensor_count).map(|_| Info::read(&mut reader)).collect::<Result<Vec<_>, _>>()?;
        let data = reader.at().next_multiple_of(alignment);
        let mut tensors = BTreeMap::new();
        for info in infos {
            let found = info.locate(data, alignment, bytes.len())?;
            if tensors.insert(info.name.to_owned(), found).is_some() {
                return Err(GgufError::DuplicateTensor(info.name.to_owned()));
            }
        }
        refuse_overlaps(&tensors)?;
        Ok(Self { version, metadata, tensors, bytes })
    }
}

fn alignment(metadata: &Metadata<'_>) -> Result<usize, GgufError> {
    let alignment = match metadata.get("general.alignment") {
        None => DEFAULT_ALIGNMENT,
        Some(Value::Unsigned(alignment)) => *alignment,
        Some(_) => return Err(GgufError::Alignment("of another type".into())),
    };
    if !alignment.is_power_of_two() || alignment > ALIGNMENT_CAP {
        return Err(GgufError::Alignment(alignment.to_string()));
    }
    Ok(alignment as usize)
}

/// An entry of the tensor list.
struct Info<'a> {
    name: &'a str,
    /// Innermost first, as GGUF has them; the first `len` count.
    dims: [u64; 4],
    len: usize,
    dtype: u32,
    /// From the start of the data.
    offset: u64,
}

impl<'a> Info<'a> {
    fn read(reader: &mut Reader<'a>) -> Result<Self, GgufError> {
        const WHAT: &str = "the tensor list";
        let name = reader.string()?;
        let len = reader.u32(WHAT)?;
        if len > 4 {
            return Err(GgufError::TooMany { what: "dimensions of a tensor", count: len.into(), cap: 4 });
        }
        let len = len as usize;
        let mut dims = [1; 4];
        for dim in &mut dims[..len] {
            *dim = reader.u64(WHAT)?;
        }
        Ok(Self { name, dims, len, dtype: reader.u32(WHAT)?, offset: reader.u64(WHAT)? })
    }

    /// Checks the entry against the file, whose data starts at `data`.
    fn locate(&self, data: usize, alignment: usize, file_len: usize) -> Result<Found, GgufError> {
        let name = || self.name.to_owned();
        let dtype = DType::from_ggml(self.dtype).map_err(|found| GgufError::DType {
            name: name(),
            found,
            known: DType::known(),
        })?;
        let dims = &self.dims[..self.len];
        let shape: Option<Vec<usize>> = dims.iter().rev().map(|dim| usize::try_from(*dim).ok()).collect();
        let shape = shape.filter(|shape| !shape.is_empty() && !shape.contains(&0));
        let numbers =
            shape.as_ref().and_then(|shape| shape.iter().try_fold(1usize, |n, dim| n.checked_mul(*dim)));
        let (Some(shape), Some(numbers)) = (shape, numbers) else {
            return Err(GgufError::Dimensions { name: name(), dims: dims.to_vec() });
        };
        let cols = shape[shape.len() - 1];
        if cols % dtype.block_len() != 0 {
            return Err(GgufError::Blocks { name: name(), cols, dtype: dtype.name() });
        }
        if !self.offset.is_multiple_of(alignment as u64) {
            return Err(GgufError::Misaligned { name: name(), offset: self.offset, alignment });
        }
        let end = || {
            let start = data.checked_add(usize::try_from(self.offset).ok()?)?;
            let end = start.checked_add(dtype.bytes(numbers)?)?;
            (end <= file_len).then_some(start..end)
        };
        let bytes = end().ok_or_else(|| GgufError::Outside { name: name(), length: file_len })?;
        Ok(Found { file: 0, bytes, dtype, shape })
    }
}

fn refuse_overlaps(tensors: &BTreeMap<String, Found>) -> Result<(), GgufError> {
    let mut by_start: Vec<_> = tensors.iter().collect();
    by_start.sort_by_key(|(_, found)| found.bytes.start);
    match by_start.windows(2).find(|pair| pair[0].1.bytes.end > pair[1].1.bytes.start) {
        Some(pair) => Err(GgufError::Overlap(pair[0].0.clone(), pair[1].0.clone())),
        None => Ok(()),
    }
}
