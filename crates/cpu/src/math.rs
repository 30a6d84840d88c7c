//! Floating-point arithmetic with a fixed order of operations: the same bits on every instruction set.

use crate::per_isa::per_isa;

/// Independent sums of a long reduction, joined as a tree at its end.
pub(crate) const LANES: usize = 16;

per_isa! {
    /// `y = x / sqrt(mean(x²) + eps)`: RMSNorm (Zhang and Sennrich 2019) with its gain folded away.
    pub(crate) fn norm(x: &[f32], y: &mut [f32], eps: f32) {
        let mut lanes = [0.0f32; LANES];
        let (chunks, rest) = x.as_chunks::<LANES>();
        for chunk in chunks {
            for (lane, x) in lanes.iter_mut().zip(chunk) {
                *lane += x * x;
            }
        }
        for (lane, x) in lanes.iter_mut().zip(rest) {
            *lane += x * x;
        }
        let scale = 1.0 / (sum(lanes) / x.len() as f32 + eps).sqrt();
        for (x, y) in x.iter().zip(y) {
            *y = x * scale;
        }
    }

    /// `y = silu(gate) · up`, with `silu(g) = g / (1 + exp(-g))`.
    pub(crate) fn swiglu(gate: &[f32], up: &[f32], y: &mut [f32]) {
        for ((gate, up), y) in gate.iter().zip(up).zip(y) {
            *y = gate / (1.0 + exp(-gate)) * up;
        }
    }

    /// `x += y`.
    pub(crate) fn add(x: &mut [f32], y: &[f32]) {
        for (x, y) in x.iter_mut().zip(y) {
            *x += y;
        }
    }

    /// The block-Hadamard transform of [`upg_pdvm::rotation`], with the same bits: the butterflies of neighbours are
    /// done eight numbers at a time, which the compiler does not see in the plain definition.
    pub(crate) fn hadamard(x: &mut [f32], block: usize) {
        if block < 8 {
            return upg_pdvm::rotation::hadamard(x, block);
        }
        let norm = 1.0 / (block as f32).sqrt();
        for x in x.chunks_exact_mut(block) {
            let (eights, _) = x.as_chunks_mut::<8>();
            for eight in eights {
                *eight = butterflies::<4>(butterflies::<2>(butterflies::<1>(*eight)));
            }
            let mut half = 8;
            while half < block {
                for pair in x.chunks_exact_mut(2 * half) {
                    let (a, b) = pair.split_at_mut(half);
                    for (a, b) in a.iter_mut().zip(b) {
                        (*a, *b) = (*a + *b, *a - *b);
                    }
                }
                half *= 2;
            }
            for x in x {
                *x *= norm;
            }
        }
    }
}

/// The butterflies of numbers `HALF` apart.
#[inline(always)]
fn butterflies<const HALF: usize>(x: [f32; 8]) -> [f32; 8] {
    let (mut sums, mut differences, mut result) = ([0.0; 8], [0.0; 8], [0.0; 8]);
    for i in 0..8 {
        sums[i] = x[i & !HALF] + x[i | HALF];
        differences[i] = x[i & !HALF] - x[i | HALF];
    }
    for i in 0..8 {
        result[i] = if i & HALF == 0 { sums[i] } else { differences[i] };
    }
    result
}

/// The lanes' sum, as a tree.
#[inline(always)]
pub(crate) fn sum(mut lanes: [f32; LANES]) -> f32 {
    let mut half = LANES / 2;
    while half > 0 {
        let (low, high) = lanes.split_at_mut(half);
        for (low, high) in low.iter_mut().zip(high) {
            *low += *high;
        }
        half /= 2;
    }
    lanes[0]
}

/// `exp(x)` to 2 units in the last place, in operations that vectorise: 2^n by its exponent bits and a polynomial
/// (Cody and Waite's reduction; coefficients of the Taylor series, ample for |r| <= ln(2)/2). Below -87.3 it gives 0,
/// above 88 the value of 88.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    // Adding and subtracting 1.5·2^23 rounds to an integer, ties to even, without a library call.
    const ROUND: f32 = 12_582_912.0;
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let clamped = x.clamp(-87.3, 88.0);
    let shifted = clamped * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = clamped - n * LN2_HIGH - n * LN2_LOW;
    let mut p = 1.0 / 5040.0;
    for coefficient in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        p = p * r + coefficient;
    }
    // The integer also stands in the low bits of the sum.
    let power = f32::from_bits((shifted.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127)) << 23);
    if x < -87.3 { 0.0 } else { p * power }
}

#[cfg(test)]
mod tests {
    use upg_codec::Isa;

    use super::*;

    #[test]
    fn exp_is_close_to_the_library_s() {
        for i in -8730..8800 {
            let x = i as f32 * 0.01;
            let (found, expected) = (exp(x), f64::from(x).exp());
            assert!(((f64::from(found) - expected) / expected).abs() < 3e-7, "exp({x}) = {found}");
        }
        assert_eq!((exp(0.0), exp(-1000.0), exp(f32::NEG_INFINITY)), (1.0, 0.0, 0.0));
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn hadamard_has_the_definition_s_bits() {
        for block in [1, 2, 4, 8, 16, 512] {
            let x: Vec<f32> = (0..3 * block).map(|i| (i as f32 * 0.77).sin()).collect();
            let mut expected = x.clone();
            upg_pdvm::rotation::hadamard(&mut expected, block);
            for isa in Isa::available() {
                let mut found = x.clone();
                hadamard(isa, &mut found, block);
                let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
                assert_eq!(bits(&found), bits(&expected), "{} on {block}", isa.name());
            }
        }
    }

    #[test]
    fn every_isa_gives_the_same_bits() {
        for len in [1, 15, 32, 100, 576] {
            let x: Vec<f32> = (0..len).map(|i| (i as f32 * 0.7).sin() * 3.0).collect();
            let u: Vec<f32> = (0..len).map(|i| (i as f32 * 1.3).cos()).collect();
            let run = |isa| {
                let (mut n, mut s) = (vec![0.0; len], vec![0.0; len]);
                norm(isa, &x, &mut n, 1e-5);
                swiglu(isa, &n, &u, &mut s);
                add(isa, &mut s, &x);
                hadamard(isa, &mut s, upg_pdvm::rotation::block(len));
                s.iter().map(|s| s.to_bits()).collect::<Vec<_>>()
            };
            for isa in Isa::available() {
                assert_eq!(run(isa), run(Isa::Scalar), "{} on {len}", isa.name());
            }
        }
    }
}
