//! Loading: threads fetch and repack tensors, this one copies them to the card.

use std::{
    collections::HashMap,
    sync::{
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    thread,
};

use half::f16;
use upg_codec::Bits;
use upg_format::{ModelConfig, TensorKind, TensorName};
use upg_pdvm::{MachineError, Tensor, Weights, WeightsError};

use crate::{abi, driver::Buffer, layout};

/// Tensors that are fetched at once: one on its way to the card, others being repacked.
const FETCHERS: usize = 6;

/// A T8 matrix on the card.
pub(crate) struct Matrix {
    pub bits: Bits,
    pub rows: usize,
    pub cols: usize,
    tiles: Buffer,
    scales: Buffer,
}

impl Matrix {
    /// What the kernels get; `bias` is 0 where there is none.
    pub(crate) fn abi(&self, bias: u64) -> abi::Matrix {
        abi::Matrix {
            tiles: self.tiles.at(),
            scales: self.scales.at(),
            bias,
            bits: self.bits.get() as i32,
            units: layout::units(self.rows) as i32,
        }
    }

    fn bytes(&self) -> usize {
        self.tiles.len() + self.scales.len()
    }
}

/// The embedding in a file's order: a row of it is looked up for each token.
pub(crate) struct Embedding {
    pub bits: Bits,
    pub codes: Buffer,
    pub scales: Buffer,
}

/// A model's weights on the card.
pub(crate) struct Model {
    matrices: HashMap<TensorName, Matrix>,
    vectors: HashMap<TensorName, Buffer>,
    pub embedding: Embedding,
}

/// A tensor as the card wants it.
enum Host {
    Matrix { bits: Bits, shape: [usize; 2], tiles: Vec<u8>, scales: Vec<f16> },
    Embedding { bits: Bits, codes: Vec<u8>, scales: Vec<f16>, tiles: Option<Vec<u8>>, shape: [usize; 2] },
    Vector(Vec<f32>),
}

impl Model {
    /// Brings all tensors of `weights` to the current card; `progress` is told the fraction done.
    ///
    /// # Errors
    /// The first tensor's that fails, [`MachineError::Unsupported`] for one that is not T8, or the card's.
    pub(crate) fn load(weights: &dyn Weights, progress: &mut dyn FnMut(f32)) -> Result<Self, MachineError> {
        let config = weights.config();
        let names = TensorName::of_upg(config);
        let size = |name: TensorName| name.shape(config).iter().product::<usize>() as f64;
        let total: f64 = names.iter().copied().map(size).sum();
        let (mut matrices, mut vectors, mut embedding, mut done) =
            (HashMap::new(), HashMap::new(), None, 0.0);
        let next = AtomicUsize::new(0);
        let (sender, fetched) = mpsc::sync_channel(1);
        thread::scope(|scope| {
            for _ in 0..FETCHERS {
                let (sender, names, next) = (sender.clone(), &names, &next);
                scope.spawn(move || {
                    while let Some(&name) = names.get(next.fetch_add(1, Ordering::Relaxed)) {
                        let fetched = fetch(weights, name);
                        weights.release(name);
                        // Fails where the other side has given up.
                        if sender.send((name, fetched)).is_err() {
                            return;
                        }
                    }
                });
            }
            drop(sender);
            // By value: an error drops the receiver, which stops the fetchers.
            for (name, host) in fetched {
                match host? {
                    Host::Vector(data) => {
                        vectors.insert(name, Buffer::of(&data)?);
                    }
                    Host::Matrix { bits, shape, tiles, scales } => {
                        matrices.insert(name, upload(bits, shape, &tiles, &scales)?);
                    }
                    Host::Embedding { bits, codes, scales, tiles, shape } => {
                        if let Some(tiles) = tiles {
                            matrices.insert(name, upload(bits, shape, &tiles, &scales)?);
                        }
                        let (codes, scales) = (Buffer::of_bytes(&codes)?, Buffer::of(&scales)?);
                        embedding = Some(Embedding { bits, codes, scales });
                    }
                }
                done += size(name);
                progress((done / total) as f32);
            }
            Ok::<_, MachineError>(())
        })?;
        let embedding = embedding.ok_or(WeightsError::Missing(TensorName::new(0, TensorKind::Embed)))?;
        Ok(Self { matrices, vectors, embedding })
    }

    /// A matrix.
    pub(crate) fn matrix(&self, layer: usize, kind: TensorKind) -> Result<&Matrix, MachineError> {
        let name = TensorName::new(layer, kind);
        Ok(self.matrices.get(&name).ok_or(WeightsError::Missing(name))?)
    }

    /// The address of a vector.
    pub(crate) fn vector(&self, layer: usize, kind: TensorKind) -> Result<u64, MachineError> {
        let name = TensorName::new(layer, kind);
        Ok(self.vectors.get(&name).ok_or(WeightsError::Missing(name))?.at())
    }

    /// Bytes that decoding one token reads.
    pub(crate) fn bytes(&self) -> usize {
        self.matrices.values().map(Matrix::bytes).sum()
    }

    /// The most bits of a matrix.
    pub(crate) fn most_bits(&self) -> Bits {
        self.matrices.values().map(|matrix| matrix.bits).max_by_key(|bits| bits.get()).unwrap_or(Bits::B2)
    }

    /// Bit K: some matrix has K bits.
    pub(crate) fn bits_used(&self) -> usize {
        self.matrices.values().fold(0, |used, matrix| used | 1 << matrix.bits.get())
    }
}

fn upload(
    bits: Bits,
    [rows, cols]: [usize; 2],
    tiles: &[u8],
    scales: &[f16],
) -> Result<Matrix, MachineError> {
    Ok(Matrix { bits, rows, cols, tiles: Buffer::of_bytes(tiles)?, scales: Buffer::of(scales)? })
}

fn fetch(weights: &dyn Weights, name: TensorName) -> Result<Host, MachineError> {
    let config = weights.config();
    match weights.tensor(name)?.checked(name, config)? {
        Tensor::F32 { data, .. } if name.kind().is_vector() => Ok(Host::Vector(data.into_owned())),
        Tensor::T8 { bits, rows, cols, scales, codes } if !name.kind().is_vector() => {
            let mut padded = scales.into_owned();
            padded.resize(layout::units(rows) * abi::UNIT, f16::ZERO);
            let shape = [rows, cols];
            let pack = || layout::pack(bits, rows, cols, &codes);
            Ok(if name.kind() == TensorKind::Embed {
                let tiles = config.tied_embeddings.then(pack);
                Host::Embedding { bits, tiles, codes: codes.into_owned(), scales: padded, shape }
            } else {
                Host::Matrix { bits, shape, tiles: pack(), scales: padded }
            })
        }
        _ => Err(not_t8(name)),
    }
}

fn not_t8(name: TensorName) -> MachineError {
    MachineError::Unsupported(format!(
        "tensor {name} is not compressed and the cuda machine runs compressed models only: run `upg compress` first, \
         or use --device cpu"
    ))
}

/// Refuses what the kernels cannot run.
///
/// # Errors
/// [`MachineError::Unsupported`] says what and the remedy.
pub(crate) fn check(config: &ModelConfig) -> Result<(), MachineError> {
    let refuse = |what: String| {
        Err(MachineError::Unsupported(format!(
            "the cuda machine cannot run this model: {what}; use --device cpu"
        )))
    };
    for (name, cols) in
        [("hidden", config.hidden), ("heads x head_dim", config.q_width()), ("mlp", config.mlp)]
    {
        if cols > abi::MAX_COLS {
            return refuse(format!("{name} is {cols}, more than {}", abi::MAX_COLS));
        }
    }
    if !config.head_dim.is_multiple_of(8) || config.head_dim > 256 {
        return refuse(format!("head_dim is {}, not a multiple of 8 up to 256", config.head_dim));
    }
    Ok(())
}
