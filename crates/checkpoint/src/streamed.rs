//! Shards that come when they are needed and go when they are finished with.

use std::{
    collections::HashMap,
    error::Error,
    ops::Range,
    path::PathBuf,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use safetensors::{SafeTensorError, tensor::Metadata};

use crate::{
    CheckpointError, Source,
    mapped::{Bytes, MappedFile},
};

/// Shards that the store may hold at a time: the one in use and the next.
const MOST_PRESENT: usize = 2;

/// How often who waits for a shard looks whether to stop.
const PATIENCE: Duration = Duration::from_millis(50);

/// A safetensors file that is elsewhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shard {
    /// Its name, without folders.
    pub name: String,
    /// Its length in bytes.
    pub size: u64,
    /// Its SHA-256.
    pub sha256: [u8; 32],
    /// Its first bytes, up to the first tensor's: the length of the JSON (u64, little-endian) and the JSON.
    pub header: Vec<u8>,
}

impl Shard {
    /// What the header says, once it is sure that the tensors cover the file.
    pub(crate) fn metadata(&self) -> Result<Metadata, SafeTensorError> {
        let (length, json) = self.header.split_first_chunk().ok_or(SafeTensorError::HeaderTooSmall)?;
        if u64::from_le_bytes(*length) != json.len() as u64 {
            return Err(SafeTensorError::InvalidHeaderLength);
        }
        let metadata: Metadata =
            serde_json::from_slice(json).map_err(SafeTensorError::InvalidHeaderDeserialization)?;
        match self.header.len().checked_add(metadata.data_len()) {
            Some(length) if length as u64 == self.size => Ok(metadata),
            _ => Err(SafeTensorError::MetadataIncompleteBuffer),
        }
    }
}

/// Where shards come from.
pub trait ShardStore: Send + Sync {
    /// Brings a shard onto this machine, whole and checked, and says where it is. Where it is there already, that is
    /// all it does.
    ///
    /// # Errors
    /// Whatever keeps it from coming; the message ends with what to do.
    fn fetch(&self, shard: usize) -> Result<PathBuf, Box<dyn Error + Send + Sync>>;

    /// Removes a shard from this machine.
    ///
    /// # Errors
    /// The operating system's.
    fn discard(&self, shard: usize) -> Result<(), Box<dyn Error + Send + Sync>>;
}

/// The shards of a checkpoint. A thread of its own fetches them, one at a time.
pub(crate) struct Streamed {
    shared: Arc<Shared>,
}

struct Shared {
    shards: Vec<Shard>,
    store: Box<dyn ShardStore>,
    cancel: Arc<AtomicBool>,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    shards: Vec<ShardState>,
    /// Vectors of shards that have been here, by shard and offset.
    vectors: HashMap<(usize, usize), Arc<[u8]>>,
    /// Counts readings, to know which shard was read last.
    clock: u64,
    fetcher_runs: bool,
    /// Nobody will read any more.
    closed: bool,
}

#[derive(Default)]
struct ShardState {
    presence: Presence,
    /// Somebody waits for it.
    wanted: bool,
    /// It could not be fetched ahead of time.
    not_ahead: bool,
    last_read: u64,
    /// Offsets of the matrices that will still be read.
    matrices: Vec<usize>,
    /// Where its vectors are.
    vectors: Vec<Range<usize>>,
}

#[derive(Default)]
enum Presence {
    #[default]
    Absent,
    Coming,
    Here(Arc<MappedFile>),
    Failed(Arc<dyn Error + Send + Sync>),
}

impl Streamed {
    pub(crate) fn new(shards: Vec<Shard>, store: Box<dyn ShardStore>, cancel: Arc<AtomicBool>) -> Self {
        let states = shards.iter().map(|_| ShardState::default()).collect();
        let state = Mutex::new(State { shards: states, ..State::default() });
        Self { shared: Arc::new(Shared { shards, store, cancel, state, changed: Condvar::new() }) }
    }

    /// See [`crate::Checkpoint::sources`].
    pub(crate) fn sources(&self) -> Vec<Source> {
        let remote = |shard: &Shard| Source::Remote {
            name: shard.name.clone(),
            size: shard.size,
            sha256: shard.sha256,
        };
        self.shared.shards.iter().map(remote).collect()
    }

    /// See [`crate::files::Files::will_read`].
    pub(crate) fn will_read(&self, shard: usize, bytes: Range<usize>, is_vector: bool) {
        let shard = &mut self.shared.state().shards[shard];
        if is_vector {
            shard.vectors.push(bytes);
        } else {
            shard.matrices.push(bytes.start);
        }
    }

    /// See [`crate::files::Files::finished`].
    pub(crate) fn finished(&self, shard: usize, bytes: &Range<usize>) {
        self.shared.state().shards[shard].matrices.retain(|offset| *offset != bytes.start);
        // A shard that is finished with makes room for the next.
        self.shared.changed.notify_all();
    }

    /// Bytes of a shard, waiting for it where it is not here.
    pub(crate) fn read(&self, shard: usize, bytes: &Range<usize>) -> Result<Bytes, CheckpointError> {
        let mut state = self.shared.state();
        let mut waited = false;
        loop {
            if self.shared.cancel.load(Ordering::Relaxed) {
                return Err(CheckpointError::Cancelled);
            }
            if let Some(kept) = state.vectors.get(&(shard, bytes.start)) {
                let kept = Bytes::Kept(Arc::clone(kept));
                state.shards[shard].wanted = false;
                return Ok(kept);
            }
            state.clock += 1;
            let now = state.clock;
            let this = &mut state.shards[shard];
            match &this.presence {
                Presence::Here(file) => {
                    let file = Arc::clone(file);
                    (this.last_read, this.wanted) = (now, false);
                    return Ok(Bytes::Mapped(file, bytes.clone()));
                }
                // Whoever waited is told of the failure; whoever asks later has it tried again.
                Presence::Failed(source) if waited => {
                    let shard = self.shared.shards[shard].name.clone();
                    return Err(CheckpointError::Fetch { shard, source: Arc::clone(source) });
                }
                Presence::Failed(_) => (this.presence, this.wanted) = (Presence::Absent, true),
                Presence::Absent | Presence::Coming => this.wanted = true,
            }
            self.start_fetcher(&mut state);
            self.shared.changed.notify_all();
            state = self.shared.wait(state);
            waited = true;
        }
    }

    /// Starts the thread on the first reading: by then it is known which tensors an earlier run has finished.
    fn start_fetcher(&self, state: &mut State) {
        if !std::mem::replace(&mut state.fetcher_runs, true) {
            let shared = Arc::clone(&self.shared);
            thread::spawn(move || shared.fetch_all());
        }
    }
}

impl Drop for Streamed {
    fn drop(&mut self) {
        self.shared.state().closed = true;
        self.shared.changed.notify_all();
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing here is left half done by a panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a change, but not for long.
    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed.wait_timeout(state, PATIENCE).unwrap_or_else(PoisonError::into_inner).0
    }

    /// The fetcher: brings the shard that somebody waits for, or else the next one while there is room.
    fn fetch_all(&self) {
        let mut state = self.state();
        // What an earlier run has left and nobody needs.
        (0..self.shards.len()).for_each(|i| {
            if state.shards[i].matrices.is_empty() && !state.shards[i].wanted {
                self.discard(&mut state, i);
            }
        });
        while !state.closed && !self.cancel.load(Ordering::Relaxed) {
            self.drop_finished(&mut state);
            let Some(next) = state.next() else {
                state = self.wait(state);
                continue;
            };
            if let Some(oldest) = state.to_make_room() {
                self.discard(&mut state, oldest);
            }
            state.shards[next].presence = Presence::Coming;
            drop(state);
            let fetched = self.fetch(next);
            state = self.state();
            self.arrived(&mut state, next, fetched);
            self.changed.notify_all();
        }
        state.fetcher_runs = false;
    }

    fn fetch(&self, shard: usize) -> Result<MappedFile, Arc<dyn Error + Send + Sync>> {
        let path = self.store.fetch(shard).map_err(Arc::from)?;
        let file =
            MappedFile::open(&path).map_err(|error| Arc::new(error) as Arc<dyn Error + Send + Sync>)?;
        let Shard { name, size, header, .. } = &self.shards[shard];
        match file.bytes().len() as u64 == *size && file.bytes().starts_with(header) {
            true => Ok(file),
            false => Err(Arc::new(CheckpointError::Changed(name.clone()))),
        }
    }

    fn arrived(
        &self,
        state: &mut State,
        index: usize,
        fetched: Result<MappedFile, Arc<dyn Error + Send + Sync>>,
    ) {
        let shard = &mut state.shards[index];
        match fetched {
            Ok(file) => {
                for bytes in &shard.vectors {
                    let kept = Arc::from(&file.bytes()[bytes.clone()]);
                    state.vectors.insert((index, bytes.start), kept);
                }
                shard.presence = Presence::Here(Arc::new(file));
            }
            Err(error) if shard.wanted => shard.presence = Presence::Failed(error),
            // Nobody has asked yet: whoever does has it tried again.
            Err(_) => (shard.presence, shard.not_ahead) = (Presence::Absent, true),
        }
    }

    fn drop_finished(&self, state: &mut State) {
        for index in 0..state.shards.len() {
            let ShardState { presence, matrices, wanted, .. } = &state.shards[index];
            if matches!(presence, Presence::Here(_)) && matrices.is_empty() && !wanted {
                self.discard(state, index);
            }
        }
    }

    fn discard(&self, state: &mut State, shard: usize) {
        // Unmapped first: not every system removes a mapped file.
        state.shards[shard].presence = Presence::Absent;
        if let Err(error) = self.store.discard(shard) {
            state.shards[shard].presence = Presence::Failed(error.into());
        }
    }
}

impl State {
    /// The shard to fetch next: one that is waited for; or, where there is room, the first that will be needed.
    fn next(&self) -> Option<usize> {
        let absent = |shard: &ShardState| matches!(shard.presence, Presence::Absent);
        let wanted = self.shards.iter().position(|shard| shard.wanted && absent(shard));
        wanted.or_else(|| {
            let needed = |shard: &ShardState| absent(shard) && !shard.matrices.is_empty() && !shard.not_ahead;
            (self.present().count() < MOST_PRESENT).then(|| self.shards.iter().position(needed))?
        })
    }

    fn present(&self) -> impl Iterator<Item = usize> {
        let here = |i: &usize| matches!(self.shards[*i].presence, Presence::Here(_));
        (0..self.shards.len()).filter(here)
    }

    /// The shard that must go before another may come: the one read longest ago.
    fn to_make_room(&self) -> Option<usize> {
        let full = self.present().count() >= MOST_PRESENT;
        let oldest = self.present().min_by_key(|i| (self.shards[*i].wanted, self.shards[*i].last_read));
        oldest.filter(|_| full)
    }
}
