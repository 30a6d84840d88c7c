//! From the tensors that a checkpoint stores to the tensors of a model: names, slices of fused ones, order of rows.

use std::{
    collections::{BTreeMap, HashMap},
    ops::Range,
};

use upg_format::{ModelConfig, TensorName};

use crate::{
    CheckpointError,
    dtype::DType,
    files::Files,
    names::{self, Dialect, RowOrder},
};

/// A tensor as it was found.
#[derive(Clone, Debug)]
pub(crate) struct Found {
    /// Index of its file.
    pub file: usize,
    /// Its bytes in the file.
    pub bytes: Range<usize>,
    pub dtype: DType,
    /// Row-major, outermost first.
    pub shape: Vec<usize>,
}

/// A tensor of the model: some rows of a tensor that was found.
struct Placed {
    file: usize,
    /// Its bytes in the file.
    bytes: Range<usize>,
    dtype: DType,
    shape: [usize; 2],
    row_bytes: usize,
    order: RowOrder,
}

/// All tensors of a model, in the files that hold them.
pub(crate) struct Tensors {
    files: Files,
    placed: HashMap<TensorName, Placed>,
    main_dtype: DType,
}

impl Tensors {
    /// Finds every tensor of the model and checks its shape. A stored tensor that the model does not have is an error:
    /// it would mean that the model computes something that this program does not.
    pub(crate) fn place(
        config: &ModelConfig,
        dialect: Dialect,
        files: Files,
        found: &BTreeMap<String, Found>,
    ) -> Result<Self, CheckpointError> {
        let mut placed = HashMap::new();
        let mut left: BTreeMap<&str, &Found> = found.iter().map(|(name, found)| (&**name, found)).collect();
        for name in TensorName::of_checkpoint(config) {
            let part = names::part(dialect, config, name);
            let Some(source) = found.get(&part.stored) else {
                let why = format!("it is missing; it holds {name}");
                return Err(CheckpointError::Tensor { name: part.stored, why });
            };
            left.remove(&*part.stored);
            placed.insert(name, Placed::new(&part, name.shape(config), source)?);
        }
        if let Some(name) = left.keys().find(|name| !names::carries_no_weights(dialect, config, name)) {
            let why =
                format!("a {} model has no such tensor as this program knows it", names::family(config));
            return Err(CheckpointError::Tensor { name: (*name).to_owned(), why });
        }
        for (name, placed) in &placed {
            files.will_read(placed.file, placed.bytes.clone(), name.kind().is_vector());
        }
        Ok(Self { files, placed, main_dtype: main_dtype(found) })
    }

    pub(crate) fn files(&self) -> &Files {
        &self.files
    }

    /// See [`crate::Checkpoint::file_of`].
    pub(crate) fn file_of(&self, name: TensorName) -> usize {
        self.placed.get(&name).map_or(0, |placed| placed.file)
    }

    /// See [`crate::Checkpoint::finished`].
    pub(crate) fn finished(&self, name: TensorName) {
        if let Some(placed) = self.placed.get(&name) {
            self.files.finished(placed.file, &placed.bytes);
        }
    }

    /// The type that most bytes have.
    pub(crate) fn main_dtype(&self) -> DType {
        self.main_dtype
    }

    /// See [`crate::Checkpoint::read_rows`].
    pub(crate) fn read_rows(
        &self,
        name: TensorName,
        rows: Range<usize>,
        out: &mut [f32],
    ) -> Result<(), CheckpointError> {
        let placed = self.placed.get(&name);
        let shape = placed.map_or([0, 0], |placed| placed.shape);
        match placed {
            Some(placed)
                if rows.start <= rows.end
                    && rows.end <= shape[0]
                    && rows.len().checked_mul(shape[1]) == Some(out.len()) =>
            {
                let bytes = self.files.read(placed.file, &placed.bytes)?;
                placed.read_rows(&bytes, rows.clone(), out);
                bytes.release(placed.stored(rows));
                Ok(())
            }
            _ => Err(CheckpointError::Rows { name, rows, shape, out: out.len() }),
        }
    }
}

impl Placed {
    fn new(part: &names::Part, shape: [usize; 2], source: &Found) -> Result<Self, CheckpointError> {
        let fail = |why: String| Err(CheckpointError::Tensor { name: part.stored.clone(), why });
        let expected = [part.stored_rows, shape[1]];
        if as_matrix(&source.shape) != Some(expected) {
            return fail(format!("its shape is {:?}, where {expected:?} is expected", source.shape));
        }
        let Some(row_bytes) = source.dtype.bytes(shape[1]) else {
            return fail(format!(
                "a row of {} is no whole number of {} blocks",
                shape[1],
                source.dtype.name()
            ));
        };
        if row_bytes.checked_mul(part.stored_rows) != Some(source.bytes.len()) {
            return fail(format!("{} bytes cannot hold {expected:?} numbers", source.bytes.len()));
        }
        let start = source.bytes.start + part.first_row * row_bytes;
        Ok(Self {
            file: source.file,
            bytes: start..start + shape[0] * row_bytes,
            dtype: source.dtype,
            shape,
            row_bytes,
            order: part.order,
        })
    }

    /// The bytes of rows, counted as they are stored, from the tensor's first on.
    fn stored(&self, rows: Range<usize>) -> Range<usize> {
        rows.start * self.row_bytes..rows.end * self.row_bytes
    }

    /// `bytes` are the tensor's, `rows` are rows of it, and `out` has room for just them.
    fn read_rows(&self, bytes: &[u8], rows: Range<usize>, out: &mut [f32]) {
        let stored = |rows| &bytes[self.stored(rows)];
        let [height, width] = self.shape;
        match self.order {
            RowOrder::HalfSplit => self.dtype.to_f32(stored(rows), out),
            RowOrder::Interleaved { .. } if height == 1 && !rows.is_empty() => {
                // A bias: what are rows of the matrix are numbers of the vector.
                let mut numbers = vec![0.0; width];
                self.dtype.to_f32(stored(rows), &mut numbers);
                for (i, out) in out.iter_mut().enumerate() {
                    *out = numbers[self.order.stored(i)];
                }
            }
            RowOrder::Interleaved { .. } => {
                for (row, out) in rows.zip(out.chunks_exact_mut(width)) {
                    let row = self.order.stored(row);
                    self.dtype.to_f32(stored(row..row + 1), out);
                }
            }
        }
    }
}

/// `[rows, cols]` of a shape with at most two dimensions that are not 1.
fn as_matrix(shape: &[usize]) -> Option<[usize; 2]> {
    match *shape {
        [cols] => Some([1, cols]),
        [ref ones @ .., rows, cols] => ones.iter().all(|n| *n == 1).then_some([rows, cols]),
        [] => None,
    }
}

fn main_dtype(found: &BTreeMap<String, Found>) -> DType {
    let mut bytes = BTreeMap::new();
    for found in found.values() {
        *bytes.entry(found.dtype).or_insert(0) += found.bytes.len();
    }
    bytes.into_iter().max_by_key(|(_, bytes)| *bytes).map_or(DType::F32, |(dtype, _)| dtype)
}
