//! Loading: threads fetch and repack tensors, this one copies them to the device.

use std::{
    collections::HashMap,
    sync::{
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    thread,
};

use upg_codec::GROUP;
use upg_format::{ModelConfig, TensorKind, TensorName};
use upg_pdvm::{MachineError, Tensor, Weights, WeightsError};

use crate::{code::Code, gpu::Gpu, layout, shaders::GEMM_TILE};

/// Tensors that are fetched at once: one on its way to the device, others being repacked.
const FETCHERS: usize = 4;

/// A matrix on the device, in parts that fit a binding.
pub(crate) struct Matrix {
    pub code: Code,
    pub rows: usize,
    pub cols: usize,
    /// Rows of each part but the last.
    pub part_rows: usize,
    pub parts: Vec<wgpu::Buffer>,
    /// One a row, in the order of the packed rows.
    pub scales: Vec<f32>,
}

impl Matrix {
    /// First row and rows of part `part`.
    pub(crate) fn part(&self, part: usize) -> (usize, usize) {
        let first = part * self.part_rows;
        (first, self.part_rows.min(self.rows - first))
    }

    fn bytes(&self) -> u64 {
        self.parts.iter().map(wgpu::Buffer::size).sum::<u64>() + 4 * self.rows as u64
    }
}

/// A model's weights on the device.
pub(crate) struct Model {
    matrices: HashMap<TensorName, Matrix>,
    vectors: HashMap<TensorName, Vec<f32>>,
}

/// A tensor as the device wants it.
enum Host {
    Matrix { code: Code, shape: [usize; 2], words: Vec<u32>, scales: Vec<f32> },
    Vector(Vec<f32>),
}

impl Model {
    /// Brings all tensors of `weights` to the device; `progress` is told the fraction done.
    ///
    /// # Errors
    /// The first tensor's that fails, or the device's.
    pub(crate) fn load(
        gpu: &Gpu,
        weights: &dyn Weights,
        progress: &mut dyn FnMut(f32),
    ) -> Result<Self, MachineError> {
        let config = weights.config();
        let names = TensorName::of_upg(config);
        let size = |name: TensorName| name.shape(config).iter().product::<usize>() as f64;
        let total: f64 = names.iter().copied().map(size).sum();
        let mut model = Self { matrices: HashMap::new(), vectors: HashMap::new() };
        let mut done = 0.0;
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
                    Host::Vector(data) => drop(model.vectors.insert(name, data)),
                    Host::Matrix { code, shape, words, scales } => {
                        let matrix = upload(gpu, name, code, shape, &words, scales)?;
                        model.matrices.insert(name, matrix);
                    }
                }
                done += size(name);
                progress((done / total) as f32);
            }
            Ok::<_, MachineError>(())
        })?;
        Ok(model)
    }

    /// A matrix.
    pub(crate) fn matrix(&self, layer: usize, kind: TensorKind) -> Result<&Matrix, MachineError> {
        let name = TensorName::new(layer, kind);
        Ok(self.matrices.get(&name).ok_or(WeightsError::Missing(name))?)
    }

    /// A vector.
    pub(crate) fn vector(&self, layer: usize, kind: TensorKind) -> Result<&[f32], MachineError> {
        let name = TensorName::new(layer, kind);
        Ok(self.vectors.get(&name).ok_or(WeightsError::Missing(name))?)
    }

    /// Bytes that decoding one token reads: all, but of an untied embedding one row.
    pub(crate) fn bytes_per_token(&self, config: &ModelConfig) -> u64 {
        let read = |(name, matrix): (&TensorName, &Matrix)| match name.kind() {
            TensorKind::Embed if !config.tied_embeddings => matrix.bytes() / matrix.rows.max(1) as u64,
            _ => matrix.bytes(),
        };
        self.matrices.iter().map(read).sum()
    }
}

/// Rows that fit a binding, a whole number of tiles.
fn part_rows(binding: u64, name: TensorName, code: Code, cols: usize) -> Result<usize, MachineError> {
    let tile = GEMM_TILE * layout::quad_words(code, cols);
    let tiles = binding / tile as u64;
    if tiles == 0 {
        return Err(MachineError::Unsupported(format!(
            "{GEMM_TILE} rows of tensor {name} have {tile} bytes, more than this adapter's {binding} \
             (max_storage_buffer_binding_size): use --device cpu"
        )));
    }
    Ok(usize::try_from(tiles).unwrap_or(usize::MAX).saturating_mul(GEMM_TILE))
}

fn upload(
    gpu: &Gpu,
    name: TensorName,
    code: Code,
    [rows, cols]: [usize; 2],
    words: &[u32],
    scales: Vec<f32>,
) -> Result<Matrix, MachineError> {
    let part_rows = part_rows(gpu.binding_bytes(), name, code, cols)?.min(rows.next_multiple_of(GEMM_TILE));
    let part_words = part_rows / 4 * layout::quad_words(code, cols);
    let label = format!("tensor {name}");
    let parts = words.chunks(part_words).map(|words| gpu.upload(&label, words)).collect::<Result<_, _>>()?;
    Ok(Matrix { code, rows, cols, part_rows, parts, scales })
}

fn fetch(weights: &dyn Weights, name: TensorName) -> Result<Host, MachineError> {
    let config = weights.config();
    let tensor = weights.tensor(name)?.checked(name, config)?;
    // Rows of q and k stand in the order of RoPE's pairs, in the cache as well.
    let turned = matches!(name.kind(), TensorKind::Q | TensorKind::K | TensorKind::QBias | TensorKind::KBias);
    let pairs = layout::rope_pairs(config.head_dim, config.rope.dim);
    let order = |row: usize| if turned { pairs(row) } else { row };
    let ordered = |data: &[f32]| (0..data.len()).map(|i| data[order(i)]).collect::<Vec<f32>>();
    let [rows, cols] = tensor.shape();
    if !name.kind().is_vector() && !cols.is_multiple_of(GROUP) {
        return Err(MachineError::Unsupported(format!(
            "tensor {name} has {cols} columns and the wgpu machine needs a multiple of {GROUP}: use --device cpu"
        )));
    }
    Ok(match tensor {
        Tensor::F32 { data, .. } if name.kind().is_vector() => Host::Vector(ordered(&data)),
        Tensor::F32 { data, .. } => {
            let words = layout::pack(Code::F32, rows, cols, bytemuck::cast_slice(&data), &order);
            Host::Matrix { code: Code::F32, shape: [rows, cols], words, scales: vec![1.0; rows] }
        }
        Tensor::T8 { bits, scales, codes, .. } => {
            let code = Code::T8(bits);
            let source: Vec<u32> = codes.as_chunks().0.iter().map(|word| u32::from_le_bytes(*word)).collect();
            let scales: Vec<f32> = scales.iter().map(|scale| scale.to_f32()).collect();
            let words = layout::pack(code, rows, cols, &source, &order);
            Host::Matrix { code, shape: [rows, cols], words, scales: ordered(&scales) }
        }
    })
}
