//! Every path against the scalar one, over odd shapes.

use half::f16;
use proptest::prelude::*;
use upg_codec::Bits;
use upg_pdvm::{Tensor, rotation::SplitMix64};

use super::*;
use crate::{activations::Activations, matrix::Matrix, memory::Arena};

/// A random matrix in the layout of `isa`.
fn matrix(layout: Layout, bits: Bits, rows: usize, cols: usize, seed: u64) -> Matrix {
    let mut random = SplitMix64(seed);
    let scales: Vec<f16> = (0..rows).map(|_| f16::from_f32((random.next() % 100) as f32 * 1e-3)).collect();
    let codes: Vec<u8> = (0..rows * bits.row_bytes(cols).unwrap()).map(|_| random.next() as u8).collect();
    let tensor = Tensor::T8 { bits, rows, cols, scales: scales.into(), codes: codes.into() };
    Matrix::load(&tensor, layout, &Arena::default()).unwrap()
}

/// The bits of the product of a random matrix with `tokens` random vectors, rows from `skip` tiles on.
fn product(
    isa: Isa,
    bits: Bits,
    [rows, cols, tokens, skip]: [usize; 4],
    extreme: bool,
    seed: u64,
) -> Vec<u32> {
    let layout = Layout::of(isa);
    let Matrix::T8(matrix) = matrix(layout, bits, rows, cols, seed) else { unreachable!() };
    let mut random = SplitMix64(!seed);
    let mut value = || {
        if extreme { 1.0 } else { (random.next() as i32) as f32 / (1 << (random.next() % 8)) as f32 }
    };
    let vectors: Vec<f32> = (0..tokens * cols).map(|_| value()).collect();
    let mut activations = Activations::new(isa, cols, tokens);
    let activations = activations.set(vectors.chunks_exact(cols));
    let mut y = vec![0.0; tokens * (rows - skip)];
    multiply(isa, &matrix, skip..rows, activations, &mut y, &mut KernelScratch::new(cols, tokens));
    y.into_iter().map(f32::to_bits).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn every_path_gives_the_scalar_one_s_bits(
        rows in 1usize..70,
        groups in 1usize..40,
        tokens in 1usize..20,
        bits in 0usize..6,
        skip in 0usize..3,
        extreme: bool,
        seed: u64,
    ) {
        let bits = Bits::ALL[bits];
        for isa in Isa::available() {
            // What is skipped is a multiple of every layout's tile.
            let skip = (16 * skip).min((rows - 1) / 16 * 16);
            let shape = [rows, groups * 32, tokens, skip];
            prop_assert_eq!(
                product(isa, bits, shape, extreme, seed),
                product(Isa::Scalar, bits, shape, extreme, seed),
                "{} with {:?}", isa.name(), shape
            );
        }
    }
}

/// As wide as a model may be: sums leave 32 bits.
#[test]
fn the_widest_rows_do_not_overflow() {
    for bits in Bits::ALL {
        for isa in Isa::available() {
            for tokens in [1, 5] {
                let shape = [3, 1 << 18, tokens, 0];
                assert!(product(isa, bits, shape, true, 1) == product(Isa::Scalar, bits, shape, true, 1));
            }
        }
    }
}
