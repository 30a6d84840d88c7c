//! Loading: every tensor is fetched and repacked by whichever thread is free.

use std::{
    collections::HashMap,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
};

use upg_codec::Isa;
use upg_format::{ModelConfig, TensorKind, TensorName};
use upg_pdvm::{MachineError, Tensor, Weights, WeightsError};

use crate::{layout::Layout, matrix::Matrix, memory::Arena};

/// A model's weights as the kernels want them.
pub(crate) struct Model {
    /// Embedding; also the head where embeddings are tied.
    pub embed: Matrix,
    pub layers: Vec<Layer>,
    /// Gain of the last norm, where embeddings are tied.
    pub final_norm: Option<Vec<f32>>,
    /// Head, where it is not the embedding.
    pub head: Option<Matrix>,
}

/// The weights of one layer.
pub(crate) struct Layer {
    /// Projections of queries, keys and values.
    pub qkv: [Matrix; 3],
    /// Their biases, one after the other.
    pub qkv_bias: Option<Vec<f32>>,
    pub o: Matrix,
    pub gate: Matrix,
    pub up: Matrix,
    pub down: Matrix,
}

impl Model {
    /// Loads all tensors of `weights` into `arena` with `threads` threads; `progress` is told the fraction of weights
    /// done. Beside the result, memory holds one tensor a thread, where the source computes them.
    ///
    /// # Errors
    /// The first tensor's that fails.
    pub(crate) fn load(
        weights: &dyn Weights,
        isa: Isa,
        threads: usize,
        arena: &Arena,
        progress: &mut dyn FnMut(f32),
    ) -> Result<Self, MachineError> {
        let config = weights.config();
        let mut names = TensorName::of_upg(config);
        // The two largest first, that no thread is left with one at the end.
        names.sort_by_key(|name| !matches!(name.kind(), TensorKind::Embed | TensorKind::Head));
        let size = |name: TensorName| name.shape(config).iter().product::<usize>() as f64;
        let total: f64 = names.iter().copied().map(size).sum();
        let tensors = Mutex::new(HashMap::with_capacity(names.len()));
        let next = AtomicUsize::new(0);
        let (sender, results) = mpsc::channel();
        std::thread::scope(|scope| {
            for _ in 0..threads.max(1) {
                let (sender, names, tensors, next) = (sender.clone(), &names, &tensors, &next);
                scope.spawn(move || {
                    while let Some(&name) = names.get(next.fetch_add(1, Ordering::Relaxed)) {
                        let result = load(weights, name, isa, arena).map(|loaded| {
                            weights.release(name);
                            tensors.lock().unwrap_or_else(PoisonError::into_inner).insert(name, loaded);
                        });
                        let failed = result.is_err();
                        if sender.send(result.map(|()| name)).is_err() || failed {
                            // No thread takes another tensor.
                            next.store(names.len(), Ordering::Relaxed);
                            return;
                        }
                    }
                });
            }
            drop(sender);
            let mut done = 0.0;
            for result in results {
                done += size(result?);
                progress((done / total) as f32);
            }
            Ok::<_, MachineError>(())
        })?;
        let mut tensors = Tensors(tensors.into_inner().unwrap_or_else(PoisonError::into_inner));
        tensors.model(config)
    }

    /// Bytes of weights that decoding one token reads.
    pub(crate) fn bytes(&self) -> usize {
        let layer = |l: &Layer| {
            let matrices = l.qkv.iter().chain([&l.o, &l.gate, &l.up, &l.down]);
            matrices.map(Matrix::bytes).sum::<usize>()
        };
        self.layers.iter().map(layer).sum::<usize>() + self.head().bytes()
    }

    /// The head.
    pub(crate) fn head(&self) -> &Matrix {
        self.head.as_ref().unwrap_or(&self.embed)
    }
}

/// A tensor in memory.
enum Loaded {
    Matrix(Matrix),
    Vector(Vec<f32>),
}

fn load(weights: &dyn Weights, name: TensorName, isa: Isa, arena: &Arena) -> Result<Loaded, MachineError> {
    let config = weights.config();
    let tensor = weights.tensor(name)?;
    let (found, expected) = (tensor.shape(), name.shape(config));
    if found != expected {
        return Err(WeightsError::Shape { name, found, expected }.into());
    }
    match tensor {
        Tensor::F32 { data, .. } if name.kind().is_vector() => Ok(Loaded::Vector(data.into_owned())),
        tensor => {
            // The embedding is only looked up, a row a token, unless it is the head too.
            let lookup = name.kind() == TensorKind::Embed && !config.tied_embeddings;
            let layout = if lookup { Layout::RowOrder } else { Layout::of(isa) };
            Matrix::load(&tensor, layout, arena).map(Loaded::Matrix)
        }
    }
}

/// What has been loaded, by name.
struct Tensors(HashMap<TensorName, Loaded>);

impl Tensors {
    fn model(&mut self, config: &ModelConfig) -> Result<Model, MachineError> {
        Ok(Model {
            embed: self.matrix(0, TensorKind::Embed)?,
            layers: (0..config.layers).map(|layer| self.layer(layer, config)).collect::<Result<_, _>>()?,
            final_norm: config.tied_embeddings.then(|| self.vector(0, TensorKind::FinalNorm)).transpose()?,
            head: (!config.tied_embeddings).then(|| self.matrix(0, TensorKind::Head)).transpose()?,
        })
    }

    fn layer(&mut self, layer: usize, config: &ModelConfig) -> Result<Layer, MachineError> {
        use TensorKind::{Down, Gate, K, KBias, O, Q, QBias, Up, V, VBias};
        let mut bias = None;
        if config.qkv_bias {
            let mut all = self.vector(layer, QBias)?;
            all.extend(self.vector(layer, KBias)?);
            all.extend(self.vector(layer, VBias)?);
            bias = Some(all);
        }
        Ok(Layer {
            qkv: [self.matrix(layer, Q)?, self.matrix(layer, K)?, self.matrix(layer, V)?],
            qkv_bias: bias,
            o: self.matrix(layer, O)?,
            gate: self.matrix(layer, Gate)?,
            up: self.matrix(layer, Up)?,
            down: self.matrix(layer, Down)?,
        })
    }

    fn matrix(&mut self, layer: usize, kind: TensorKind) -> Result<Matrix, MachineError> {
        let name = TensorName::new(layer, kind);
        match self.0.remove(&name) {
            Some(Loaded::Matrix(matrix)) => Ok(matrix),
            _ => Err(WeightsError::Missing(name).into()),
        }
    }

    fn vector(&mut self, layer: usize, kind: TensorKind) -> Result<Vec<f32>, MachineError> {
        let name = TensorName::new(layer, kind);
        match self.0.remove(&name) {
            Some(Loaded::Vector(vector)) => Ok(vector),
            _ => Err(WeightsError::Missing(name).into()),
        }
    }
}
