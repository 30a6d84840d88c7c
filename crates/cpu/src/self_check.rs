//! A path's kernels against the plain ones, on the processor at hand.
//!
//! Tests run the paths of the machine that they run on, and no machine has them all. So each load checks the path that
//! it is about to use, which takes milliseconds: a processor on which a kernel is wrong is refused, never trusted.

use half::f16;
use upg_codec::{Bits, Isa};
use upg_pdvm::{MachineError, Tensor, rotation::SplitMix64};

use crate::{
    activations::Activations,
    kernels::{self, KernelScratch},
    layout::Layout,
    matrix::Matrix,
    memory::Arena,
};

/// Rows and columns that leave every layout's last tile partly empty.
const SHAPE: [usize; 2] = [21, 11 * 32];

/// Holds every product of a path (each code; as many tokens as kernels of their own are for, and more) to the scalar path's bits.
///
/// # Errors
/// [`MachineError::Device`] where they differ.
pub(crate) fn check(isa: Isa) -> Result<(), MachineError> {
    for bits in Bits::ALL {
        for tokens in [1, 2, 3, 4, 5, 7] {
            if product(isa, bits, tokens)? != product(Isa::Scalar, bits, tokens)? {
                return Err(MachineError::Device(format!(
                    "the {} kernels give wrong products on this processor ({} bits, {tokens} tokens): set UPG_ISA to \
                     another path ({}) and report it",
                    isa.name(),
                    bits.get(),
                    Isa::available().iter().map(|isa| isa.name()).collect::<Vec<_>>().join(", ")
                )));
            }
        }
    }
    Ok(())
}

/// The bits of a fixed random matrix times fixed random vectors.
fn product(isa: Isa, bits: Bits, tokens: usize) -> Result<Vec<u32>, MachineError> {
    let [rows, cols] = SHAPE;
    let mut random = SplitMix64(bits.get() as u64);
    let codes: Vec<u8> = (0..rows * cols * bits.get() / 8).map(|_| random.next() as u8).collect();
    let scales: Vec<f16> = (0..rows).map(|_| f16::from_f32((1 + random.next() % 100) as f32)).collect();
    let tensor = Tensor::T8 { bits, rows, cols, scales: scales.into(), codes: codes.into() };
    let layout = Layout::of(isa);
    let Matrix::T8(matrix) = Matrix::load(&tensor, layout, &Arena::default())? else {
        return Ok(Vec::new());
    };
    let vectors: Vec<f32> = (0..tokens * cols).map(|_| random.next() as i32 as f32).collect();
    let mut activations = Activations::new(isa, cols, tokens);
    let activations = activations.set(vectors.chunks_exact(cols));
    let mut y = vec![0.0; tokens * rows];
    kernels::multiply(isa, &matrix, 0..rows, activations, &mut y, &mut KernelScratch::new(cols, tokens));
    Ok(y.into_iter().map(f32::to_bits).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn available_paths_pass_on_products_that_are_not_trivial() {
        for isa in Isa::available() {
            check(isa).unwrap();
        }
        let product = product(Isa::Scalar, Bits::B3, 3).unwrap();
        assert_eq!(product.len(), 3 * SHAPE[0]);
        assert!(product.iter().all(|bits| *bits & 0x7fff_ffff != 0));
    }
}
