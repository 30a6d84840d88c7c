//! Shards that come when they are needed: the same numbers, two files at most, nothing fetched that is not needed.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use std::{
    error::Error,
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use common::*;
use upg_checkpoint::{
    Checkpoint, CheckpointError, INDEX_FILE, SIDE_FILES, Shard, ShardStore, open, open_streamed, shard_names,
};
use upg_format::{TensorKind, TensorName};

/// A folder that plays the hub, and the folder that shards come to.
struct Store {
    hub: PathBuf,
    here: PathBuf,
    names: Vec<String>,
    log: Arc<Log>,
}

#[derive(Default)]
struct Log {
    fetched: Mutex<Vec<usize>>,
    /// The most files that were here at a time.
    most: Mutex<usize>,
    refuse: AtomicBool,
    damage: AtomicBool,
}

impl ShardStore for Store {
    fn fetch(&self, shard: usize) -> Result<PathBuf, Box<dyn Error + Send + Sync>> {
        if self.log.refuse.load(Ordering::Relaxed) {
            return Err("the hub is away; try later".into());
        }
        self.log.fetched.lock().unwrap().push(shard);
        let mut bytes = fs::read(self.hub.join(&self.names[shard]))?;
        if self.log.damage.load(Ordering::Relaxed) {
            bytes[20] ^= 1;
        }
        let path = self.here.join(&self.names[shard]);
        fs::write(&path, bytes)?;
        let files = fs::read_dir(&self.here)?.filter(|e| has_weights(&e.as_ref().unwrap().path())).count();
        let mut most = self.log.most.lock().unwrap();
        *most = files.max(*most);
        Ok(path)
    }

    fn discard(&self, shard: usize) -> Result<(), Box<dyn Error + Send + Sync>> {
        match fs::remove_file(self.here.join(&self.names[shard])) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
            _ => Ok(()),
        }
    }
}

fn has_weights(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "safetensors")
}

struct Setup {
    _folder: tempfile::TempDir,
    hub: PathBuf,
    here: PathBuf,
    log: Arc<Log>,
    cancel: Arc<AtomicBool>,
}

impl Setup {
    /// A model in `count` shards, tensors in transformers' order: the norms of a layer behind its matrices.
    fn new(count: usize) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (hub, here) = (folder.path().join("hub"), folder.path().join("here"));
        fs::create_dir(&here).unwrap();
        let mut tensors = llama_tensors();
        tensors.sort_by_key(|(name, ..)| {
            let layer = name.split('.').nth(2).and_then(|part| part.parse().ok());
            (layer.unwrap_or(if name.contains("embed") { 0 } else { 99 }), name.contains("norm"))
        });
        write_shards_of(&hub, &config_json("LlamaForCausalLM"), &tensors, count);
        for name in SIDE_FILES.into_iter().chain([INDEX_FILE]) {
            // Not all of them are there.
            let _ = fs::copy(hub.join(name), here.join(name));
        }
        Self { _folder: folder, hub, here, log: Arc::default(), cancel: Arc::default() }
    }

    fn shards(&self) -> Vec<Shard> {
        let shard = |name: String| {
            let bytes = fs::read(self.hub.join(&name)).unwrap();
            let header = 8 + u64::from_le_bytes(*bytes.first_chunk().unwrap()) as usize;
            Shard { name, size: bytes.len() as u64, sha256: [0; 32], header: bytes[..header].to_vec() }
        };
        let index = self.hub.join(INDEX_FILE);
        shard_names(&index, &fs::read(&index).unwrap()).unwrap().into_iter().map(shard).collect()
    }

    fn open(&self) -> Result<Box<dyn Checkpoint>, CheckpointError> {
        self.open_with(self.shards())
    }

    fn open_with(&self, shards: Vec<Shard>) -> Result<Box<dyn Checkpoint>, CheckpointError> {
        let names = shards.iter().map(|shard| shard.name.clone()).collect();
        let (hub, here) = (self.hub.clone(), self.here.clone());
        let store = Store { hub, here, names, log: Arc::clone(&self.log) };
        open_streamed(&self.here, shards, Box::new(store), Arc::clone(&self.cancel))
    }

    fn fetched(&self) -> Vec<usize> {
        self.log.fetched.lock().unwrap().clone()
    }
}

fn read(checkpoint: &dyn Checkpoint, name: TensorName) -> Result<Vec<f32>, CheckpointError> {
    let [rows, cols] = name.shape(checkpoint.config());
    let mut numbers = vec![0.0; rows * cols];
    checkpoint.read_rows(name, 0..rows, &mut numbers).map(|()| numbers)
}

/// The matrices in the order of the files, with the gains that folding asks for.
fn matrices(checkpoint: &dyn Checkpoint) -> Vec<TensorName> {
    let names = TensorName::of_checkpoint(checkpoint.config()).into_iter();
    let mut names: Vec<_> = names.filter(|name| !name.kind().is_vector()).collect();
    names.sort_by_key(|name| checkpoint.file_of(*name));
    names
}

#[test]
fn all_tensors_come_through_two_files_and_each_file_comes_once() {
    // A layer is in no more than two of them.
    for count in [1, 2, 3, 4] {
        let setup = Setup::new(count);
        let (streamed, local) = (setup.open().unwrap(), open(&setup.hub).unwrap());
        assert_eq!(streamed.describe(), local.describe());
        assert_eq!(streamed.config(), local.config());
        assert_eq!(setup.fetched(), [0; 0], "opening needs no shard");
        for name in matrices(&*local) {
            let norms = name
                .layer()
                .map(|layer| [TensorKind::AttnNorm, TensorKind::MlpNorm].map(|k| TensorName::new(layer, k)));
            for norm in norms.into_iter().flatten() {
                assert_eq!(read(&*streamed, norm).unwrap(), read(&*local, norm).unwrap());
            }
            assert_eq!(read(&*streamed, name).unwrap(), read(&*local, name).unwrap(), "{name}");
            streamed.finished(name);
            streamed.finished(name);
        }
        let fetched = setup.fetched();
        let mut once = fetched.clone();
        once.sort_unstable();
        assert_eq!(once, (0..count).collect::<Vec<_>>(), "fetched {fetched:?}");
        assert!(*setup.log.most.lock().unwrap() <= 2);
    }
}

#[test]
fn what_is_finished_before_the_first_reading_is_not_fetched() {
    let setup = Setup::new(5);
    let checkpoint = setup.open().unwrap();
    let names = matrices(&*checkpoint);
    let last = *names.last().unwrap();
    names.iter().filter(|name| **name != last).for_each(|name| checkpoint.finished(*name));
    // Left by an earlier run.
    fs::write(setup.here.join("model-00001-of-00005.safetensors"), "x").unwrap();
    read(&*checkpoint, last).unwrap();
    assert_eq!(setup.fetched(), [checkpoint.file_of(last)]);
    assert!(!setup.here.join("model-00001-of-00005.safetensors").exists());
}

#[test]
fn any_order_works_within_two_files() {
    let setup = Setup::new(7);
    let (streamed, local) = (setup.open().unwrap(), open(&setup.hub).unwrap());
    let names = TensorName::of_checkpoint(local.config());
    for name in names.iter().rev().chain(&names) {
        assert_eq!(read(&*streamed, *name).unwrap(), read(&*local, *name).unwrap(), "{name}");
    }
    assert!(*setup.log.most.lock().unwrap() <= 2);
}

#[test]
fn a_failure_is_told_and_tried_again() {
    let setup = Setup::new(2);
    let checkpoint = setup.open().unwrap();
    let embed = TensorName::global(TensorKind::Embed);
    setup.log.refuse.store(true, Ordering::Relaxed);
    let error = read(&*checkpoint, embed).unwrap_err().to_string();
    assert!(error.ends_with("the hub is away; try later"), "{error}");
    setup.log.refuse.store(false, Ordering::Relaxed);
    read(&*checkpoint, embed).unwrap();
}

#[test]
fn another_file_than_promised_is_refused() {
    let setup = Setup::new(2);
    let checkpoint = setup.open().unwrap();
    setup.log.damage.store(true, Ordering::Relaxed);
    let error = read(&*checkpoint, TensorName::global(TensorKind::Embed)).unwrap_err();
    assert!(error.to_string().contains("not what its header promised"), "{error}");
}

#[test]
fn headers_that_lie_are_refused() {
    let setup = Setup::new(2);
    let lie = |change: fn(&mut Shard)| {
        let mut shards = setup.shards();
        change(&mut shards[1]);
        setup.open_with(shards).map(drop).unwrap_err().to_string()
    };
    for change in [
        (|shard| shard.size += 1) as fn(&mut Shard),
        |shard| shard.size = u64::MAX,
        |shard| shard.header.truncate(7),
        |shard| shard.header[0] ^= 1,
        |shard| shard.header[7] = 0xff,
        |shard| shard.header.truncate(shard.header.len() - 1),
    ] {
        assert!(lie(change).contains("not a sound safetensors file"), "{}", lie(change));
    }
    let mut shards = setup.shards();
    shards.pop();
    let error = setup.open_with(shards).map(drop).unwrap_err().to_string();
    assert!(error.contains("the index says"), "{error}");
}

#[test]
fn who_waits_can_be_stopped() {
    let setup = Setup::new(2);
    let checkpoint = setup.open().unwrap();
    setup.cancel.store(true, Ordering::Relaxed);
    let result = read(&*checkpoint, TensorName::global(TensorKind::Embed));
    assert!(matches!(result, Err(CheckpointError::Cancelled)), "{result:?}");
    assert_eq!(setup.fetched(), [0; 0]);
}
