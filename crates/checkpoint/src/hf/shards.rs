//! The tensors of a folder: one `model.safetensors`, or shards that an index lists.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Component, Path, PathBuf},
};

use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;

use super::side_files::{parse, read_optional};
use crate::{CheckpointError, dtype::DType, mapped::MappedFile, tensors::Found};

/// The most bytes of an index; real ones have less than a megabyte.
const INDEX_CAP: u64 = 1 << 26;
/// The most shards; each one is a file that stays open.
const SHARDS_CAP: usize = 1024;

/// `model.safetensors.index.json`.
#[derive(Deserialize)]
struct Index {
    /// Tensor to shard.
    weight_map: BTreeMap<String, String>,
}

/// Maps the folder's safetensors files and lists their tensors.
pub(super) fn find(folder: &Path) -> Result<(Vec<MappedFile>, BTreeMap<String, Found>), CheckpointError> {
    let index_path = folder.join("model.safetensors.index.json");
    let single = folder.join("model.safetensors");
    let mut files = Vec::new();
    let mut found = BTreeMap::new();
    if single.exists() {
        add(&mut files, &mut found, &single)?;
    } else if let Some(bytes) = read_optional(&index_path, INDEX_CAP)? {
        let index: Index = parse(&index_path, &bytes)?;
        for shard in shard_paths(folder, &index_path, &index)? {
            add(&mut files, &mut found, &shard)?;
        }
        compare(&index, &files, &found)?;
    } else {
        let why = "it has neither model.safetensors nor model.safetensors.index.json; download one of them (older \
                   .bin weights are not read)";
        return Err(CheckpointError::NotACheckpoint { path: folder.to_owned(), why: why.into() });
    }
    Ok((files, found))
}

/// The shards that an index names, each once. A name must be that of a file in the folder itself.
fn shard_paths(folder: &Path, index_path: &Path, index: &Index) -> Result<Vec<PathBuf>, CheckpointError> {
    let names: BTreeSet<&str> = index.weight_map.values().map(String::as_str).collect();
    if names.len() > SHARDS_CAP {
        let why = format!("its index names {} shards, more than {SHARDS_CAP}", names.len());
        return Err(CheckpointError::NotACheckpoint { path: folder.to_owned(), why });
    }
    let plain = |name: &str| {
        let mut parts = Path::new(name).components();
        let one =
            matches!((parts.next(), parts.next()), (Some(Component::Normal(part)), None) if part == name);
        one && name.ends_with(".safetensors") && !name.contains(['/', '\\', ':', '\0'])
    };
    match names.iter().find(|name| !plain(name)) {
        Some(name) => {
            Err(CheckpointError::ShardName { path: index_path.to_owned(), shard: (*name).to_owned() })
        }
        None => Ok(names.into_iter().map(|name| folder.join(name)).collect()),
    }
}

/// Maps a file and adds its tensors.
fn add(
    files: &mut Vec<MappedFile>,
    found: &mut BTreeMap<String, Found>,
    path: &Path,
) -> Result<(), CheckpointError> {
    let mapped = MappedFile::open(path)?;
    // The crate checks that the tensors cover the file without holes or overlaps, in checked arithmetic.
    let (header, metadata) = SafeTensors::read_metadata(mapped.bytes())
        .map_err(|source| CheckpointError::Safetensors { path: path.to_owned(), source })?;
    let data = size_of::<u64>() + header;
    for (name, info) in metadata.tensors() {
        let dtype = match info.dtype {
            Dtype::F32 => DType::F32,
            Dtype::F16 => DType::F16,
            Dtype::BF16 => DType::Bf16,
            other => {
                let why = format!("its type is {other}; known are: F32, F16, BF16");
                return Err(CheckpointError::Tensor { name, why });
            }
        };
        let (start, end) = info.data_offsets;
        let tensor =
            Found { file: files.len(), bytes: data + start..data + end, dtype, shape: info.shape.clone() };
        if let Some(first) = found.insert(name.clone(), tensor) {
            let first = files[first.file].path().display();
            let why = format!("both {first} and {} have it", path.display());
            return Err(CheckpointError::Tensor { name, why });
        }
    }
    files.push(mapped);
    Ok(())
}

/// Holds the index and the shards to each other.
fn compare(
    index: &Index,
    files: &[MappedFile],
    found: &BTreeMap<String, Found>,
) -> Result<(), CheckpointError> {
    let shard_of = |found: &Found| files[found.file].path().file_name();
    for (name, shard) in &index.weight_map {
        if found.get(name).and_then(shard_of) != Some(shard.as_ref()) {
            let why =
                format!("the index says that it is in {shard}, which does not have it; download both again");
            return Err(CheckpointError::Tensor { name: name.clone(), why });
        }
    }
    match found.keys().find(|name| !index.weight_map.contains_key(*name)) {
        Some(name) => {
            let why = "the index does not list it; download the index again".to_owned();
            Err(CheckpointError::Tensor { name: name.clone(), why })
        }
        None => Ok(()),
    }
}
