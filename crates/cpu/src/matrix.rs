use std::ops::Range;

use half::f16;
use upg_codec::{Bits, GROUP, Isa, decode_group};
use upg_pdvm::{MachineError, Tensor};

use crate::{
    activations::Integers,
    kernels::{self, KernelScratch},
    layout::Layout,
    memory::{Arena, Region},
};

/// Activations of some tokens, in the two forms that matrices want.
#[derive(Clone, Copy)]
pub(crate) struct Input<'a> {
    /// Vectors of the matrix's columns, one after the other.
    pub x: &'a [f32],
    /// The same vectors in integers; only T8 matrices read them.
    pub integers: Integers<'a>,
}

/// A matrix, `[rows = outputs, cols = inputs]`.
pub(crate) enum Matrix {
    /// In T8.
    T8(T8),
    /// In f32: an uncompressed checkpoint's.
    Dense(Dense),
}

/// A T8 matrix in the layout of its kernel.
pub(crate) struct T8 {
    pub bits: Bits,
    pub layout: Layout,
    pub rows: usize,
    pub cols: usize,
    /// One a row.
    pub scales: Vec<f32>,
    pub codes: Region,
}

/// An f32 matrix, row after row.
pub(crate) struct Dense {
    rows: usize,
    cols: usize,
    data: Region,
}

impl Matrix {
    /// Copies a tensor into `arena`, in the order that `layout` asks for.
    ///
    /// # Errors
    /// Where memory runs out, or the tensor's parts do not fit its shape.
    pub(crate) fn load(tensor: &Tensor<'_>, layout: Layout, arena: &Arena) -> Result<Self, MachineError> {
        match tensor {
            Tensor::T8 { bits, rows, cols, scales, codes } => {
                let fits = bits.row_bytes(*cols).and_then(|row| row.checked_mul(*rows)) == Some(codes.len());
                check(fits && scales.len() == *rows, tensor)?;
                let (bits, cols) = (*bits, *cols);
                let mut place = arena.take(layout.bytes(bits, *rows, cols))?;
                layout.pack(bits, cols, codes, &mut place);
                let scales = scales.iter().copied().map(f16::to_f32).collect();
                Ok(Matrix::T8(T8 { bits, layout, rows: *rows, cols, scales, codes: place.freeze() }))
            }
            Tensor::F32 { rows, cols, data } => {
                check(rows.checked_mul(*cols) == Some(data.len()), tensor)?;
                let mut place = arena.take(size_of_val(&data[..]))?;
                for (place, x) in place.chunks_exact_mut(size_of::<f32>()).zip(data.iter()) {
                    place.copy_from_slice(&x.to_ne_bytes());
                }
                Ok(Matrix::Dense(Dense { rows: *rows, cols: *cols, data: place.freeze() }))
            }
        }
    }

    /// Rows: the width of its output.
    pub(crate) fn rows(&self) -> usize {
        match self {
            Matrix::T8(m) => m.rows,
            Matrix::Dense(m) => m.rows,
        }
    }

    /// Bytes that a product reads.
    pub(crate) fn bytes(&self) -> usize {
        match self {
            Matrix::T8(m) => m.codes.len() + size_of_val(&m.scales[..]),
            Matrix::Dense(m) => m.data.len(),
        }
    }

    /// `y[t, r - rows.start] = (W x_t)[r]` for each token `t` and each `r` of `rows`. A T8 matrix wants `rows` to
    /// start at a multiple of its layout's [`Layout::tile_rows`], and to end at one or at the last row.
    pub(crate) fn multiply(
        &self,
        isa: Isa,
        rows: Range<usize>,
        input: Input<'_>,
        y: &mut [f32],
        scratch: &mut KernelScratch,
    ) {
        match self {
            Matrix::T8(m) => kernels::multiply(isa, m, rows, input.integers, y, scratch),
            Matrix::Dense(m) => m.multiply(rows, input.x, y),
        }
    }

    /// One row, in f32.
    pub(crate) fn row(&self, row: usize, to: &mut [f32]) {
        match self {
            Matrix::T8(m) => m.row(row, to),
            Matrix::Dense(m) => to.copy_from_slice(&m.data()[row * m.cols..][..m.cols]),
        }
    }
}

fn check(fits: bool, tensor: &Tensor<'_>) -> Result<(), MachineError> {
    let [rows, cols] = tensor.shape();
    if fits {
        return Ok(());
    }
    Err(MachineError::Unsupported(format!(
        "a tensor of {rows} x {cols} has the wrong number of bytes: verify the model file and fetch it anew"
    )))
}

impl T8 {
    fn row(&self, row: usize, to: &mut [f32]) {
        let mut codes = [0; GROUP / 8 * 8];
        let codes = &mut codes[..self.bits.group_bytes()];
        let mut values = [0; GROUP];
        let (groups, _) = to.as_chunks_mut::<GROUP>();
        for (group, to) in groups.iter_mut().enumerate() {
            self.layout.group(self.bits, self.cols, &self.codes, (row, group), codes);
            decode_group(self.bits, codes, &mut values);
            for (to, &value) in to.iter_mut().zip(&values) {
                *to = f32::from(value) * self.scales[row];
            }
        }
    }
}

impl Dense {
    fn data(&self) -> &[f32] {
        // SAFETY: the region is aligned to a cache line, was filled with whole f32 by `Matrix::load`, and any bits
        // make an f32.
        unsafe { std::slice::from_raw_parts(self.data.as_ptr().cast(), self.rows * self.cols) }
    }

    /// Through the `gemm` crate, one thread: each caller has rows of its own.
    fn multiply(&self, rows: Range<usize>, x: &[f32], y: &mut [f32]) {
        let (cols, width) = (self.cols, rows.len());
        let tokens = x.len() / cols;
        let w = &self.data()[rows.start * cols..rows.end * cols];
        let (x, y) = (&x[..tokens * cols], &mut y[..tokens * width]);
        // SAFETY: the three matrices are those of `y = x wᵀ`: [tokens, width], [tokens, cols] and, transposed by its
        // strides, [width, cols]; the slices above have just these lengths, and `y` overlaps neither other.
        unsafe {
            gemm::gemm(
                tokens,
                width,
                cols,
                y.as_mut_ptr(),
                1,
                width as isize,
                false,
                x.as_ptr(),
                1,
                cols as isize,
                w.as_ptr(),
                cols as isize,
                1,
                0.0,
                1.0,
                false,
                false,
                false,
                gemm::Parallelism::None,
            );
        }
    }
}
