//! The tensors of a folder: one `model.safetensors`, or shards that an index lists.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Component, Path, PathBuf},
};

use safetensors::{Dtype, SafeTensors, tensor::Metadata};
use serde::Deserialize;

use super::side_files::{parse, read, read_optional};
use crate::{CheckpointError, Shard, dtype::DType, mapped::MappedFile, tensors::Found};

/// The name of the only file of weights, where there is one.
pub const SINGLE_FILE: &str = "model.safetensors";
/// The name of the list of shards, where there are several.
pub const INDEX_FILE: &str = "model.safetensors.index.json";

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

/// The shards that an index names, each once, in order. Each name is that of a file in the index's own folder. `path` is
/// what errors call the index.
///
/// # Errors
/// [`CheckpointError::Json`] or [`CheckpointError::ShardName`].
pub fn shard_names(path: &Path, index: &[u8]) -> Result<Vec<String>, CheckpointError> {
    names(path, &parse(path, index)?)
}

/// Maps the folder's safetensors files and lists their tensors.
pub(super) fn find(folder: &Path) -> Result<(Vec<MappedFile>, BTreeMap<String, Found>), CheckpointError> {
    let index_path = folder.join(INDEX_FILE);
    let single = folder.join(SINGLE_FILE);
    let mut files = Vec::new();
    let mut found = Listing::default();
    let mut add = |found: &mut Listing, path: &Path| {
        let file = MappedFile::open(path)?;
        // The crate checks that the tensors cover the file without holes or overlaps, in checked arithmetic.
        let (header, metadata) = SafeTensors::read_metadata(file.bytes())
            .map_err(|source| CheckpointError::Safetensors { path: path.to_owned(), source })?;
        files.push(file);
        found.add(path, size_of::<u64>() + header, &metadata)
    };
    if single.exists() {
        add(&mut found, &single)?;
    } else if let Some(bytes) = read_optional(&index_path, INDEX_CAP)? {
        let index: Index = parse(&index_path, &bytes)?;
        for shard in names(&index_path, &index)? {
            add(&mut found, &folder.join(shard))?;
        }
        found.compare(&index)?;
    } else {
        let why = "it has neither model.safetensors nor model.safetensors.index.json; download one of them (older \
                   .bin weights are not read)";
        return Err(CheckpointError::NotACheckpoint { path: folder.to_owned(), why: why.into() });
    }
    Ok((files, found.tensors))
}

/// Lists the tensors of shards that are not there yet by what their headers promise.
pub(super) fn promised(folder: &Path, shards: &[Shard]) -> Result<BTreeMap<String, Found>, CheckpointError> {
    let mut found = Listing::default();
    for shard in shards {
        let path = folder.join(&shard.name);
        let metadata =
            shard.metadata().map_err(|source| CheckpointError::Safetensors { path: path.clone(), source })?;
        found.add(&path, shard.header.len(), &metadata)?;
    }
    if !matches!(shards, [only] if only.name == SINGLE_FILE) {
        let index_path = folder.join(INDEX_FILE);
        found.compare(&parse(&index_path, &read(&index_path, INDEX_CAP)?)?)?;
    }
    Ok(found.tensors)
}

/// The shards that an index names, each once. A name must be that of a file in the folder itself.
fn names(index_path: &Path, index: &Index) -> Result<Vec<String>, CheckpointError> {
    let names: BTreeSet<&str> = index.weight_map.values().map(String::as_str).collect();
    if names.len() > SHARDS_CAP {
        let why = format!("it names {} shards, more than {SHARDS_CAP}", names.len());
        return Err(CheckpointError::NotACheckpoint { path: index_path.to_owned(), why });
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
        None => Ok(names.into_iter().map(str::to_owned).collect()),
    }
}

/// The tensors of some files.
#[derive(Default)]
struct Listing {
    files: Vec<PathBuf>,
    tensors: BTreeMap<String, Found>,
}

impl Listing {
    /// Adds a file whose tensors' bytes begin at `data`.
    fn add(&mut self, path: &Path, data: usize, metadata: &Metadata) -> Result<(), CheckpointError> {
        let file = self.files.len();
        self.files.push(path.to_owned());
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
            let tensor = Found { file, bytes: data + start..data + end, dtype, shape: info.shape.clone() };
            if let Some(first) = self.tensors.insert(name.clone(), tensor) {
                let why = format!("both {} and {} have it", self.files[first.file].display(), path.display());
                return Err(CheckpointError::Tensor { name, why });
            }
        }
        Ok(())
    }

    /// Holds the index and the shards to each other.
    fn compare(&self, index: &Index) -> Result<(), CheckpointError> {
        let shard_of = |found: &Found| self.files[found.file].file_name();
        for (name, shard) in &index.weight_map {
            if self.tensors.get(name).and_then(shard_of) != Some(shard.as_ref()) {
                let why = format!(
                    "the index says that it is in {shard}, which does not have it; download both again"
                );
                return Err(CheckpointError::Tensor { name: name.clone(), why });
            }
        }
        match self.tensors.keys().find(|name| !index.weight_map.contains_key(*name)) {
            Some(name) => {
                let why = "the index does not list it; download the index again".to_owned();
                Err(CheckpointError::Tensor { name: name.clone(), why })
            }
            None => Ok(()),
        }
    }
}
