//! What the kernels of a batch read, field for field as in `kernels/batch.cuh` and `kernels/gemm.cuh`.

use cudarc::driver::sys::CUdeviceptr;

use crate::abi::{MAX_MATRICES, Matrix, Model};

/// A batch of tokens and its buffers.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct Batch {
    pub model: Model,
    pub rows: CUdeviceptr,
    pub tiles: CUdeviceptr,
    pub rope: CUdeviceptr,
    pub pages: CUdeviceptr,
    pub cache: CUdeviceptr,
    pub tables: CUdeviceptr,
    pub embed_codes: CUdeviceptr,
    pub embed_scales: CUdeviceptr,
    pub x: CUdeviceptr,
    pub part: CUdeviceptr,
    pub q: CUdeviceptr,
    pub a: CUdeviceptr,
    pub layers: i32,
    pub tokens: i32,
    pub page_list: i32,
    pub embed_bits: i32,
    pub a_ld: i32,
}

/// A linear's input.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct Prepare {
    /// 0: the input is gate and up's.
    pub x: CUdeviceptr,
    pub part: CUdeviceptr,
    /// 0: every row.
    pub pick: CUdeviceptr,
    /// 0 where the head is not tied.
    pub gain: CUdeviceptr,
    pub out: CUdeviceptr,
    pub step: CUdeviceptr,
    pub splits: i32,
    pub tokens: i32,
    pub cols: i32,
    pub ld: i32,
    pub norm: i32,
    pub hadamard: i32,
    pub eps: f32,
}

/// A linear.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct Gemm {
    pub matrix: [Matrix; MAX_MATRICES],
    pub x: CUdeviceptr,
    /// 0: activations are as they are.
    pub step: CUdeviceptr,
    pub out: CUdeviceptr,
    pub tables: CUdeviceptr,
    pub matrices: i32,
    pub cols: i32,
    pub ld: i32,
    pub rows: i32,
    pub tokens: i32,
    pub splits: i32,
}

/// Biases of q, k and v; 0 where there are none.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct Biases(pub [CUdeviceptr; 3]);

/// The definitions that make the kernels check these sizes.
pub(crate) fn defines() -> [(&'static str, usize); 3] {
    [
        ("ABI_BATCH", size_of::<Batch>()),
        ("ABI_PREPARE", size_of::<Prepare>()),
        ("ABI_GEMM", size_of::<Gemm>()),
    ]
}
