use super::{
    trellis::{Position, Trellis},
    vector::{Line, Vector},
};
use crate::{Bits, GROUP, Isa};

/// The forward half of a Viterbi search once round the ring from weight `first`, for as many groups at once as a
/// vector has lanes.
///
/// `slopes[i·LANES + lane]` is [`Trellis::slopes`] of weight `i`. Row `r` of `metrics`, with
/// `metrics[(r·classes + class)·LANES + lane]`, is for the paths over the first `r` weights: the metric of the best one
/// whose last state leaves the overlap `class` to the next, its lowest `K` bits replaced by that last state's own
/// lowest `K` bits. The caller fills row 0; the search fills rows 1 to [`GROUP`].
///
/// SAFETY: it may be called only where the processor has the path that [`forward`] was asked for.
pub(super) type Forward = unsafe fn(trellis: &Trellis, first: usize, slopes: &[Line], metrics: &mut [Line]);

/// The search for a code on a path, and its number of lanes.
///
/// The function may be called only where the processor has the path.
pub(super) fn forward(bits: Bits, isa: Isa) -> (Forward, usize) {
    match bits {
        Bits::B2 => select::<2>(isa),
        Bits::B3 => select::<3>(isa),
        Bits::B4 => select::<4>(isa),
        Bits::B5 => select::<5>(isa),
        Bits::B6 => select::<6>(isa),
        Bits::B8 => select::<8>(isa),
    }
}

#[cfg(target_arch = "x86_64")]
fn select<const K: usize>(isa: Isa) -> (Forward, usize) {
    use std::arch::x86_64::{__m256i, __m512i};

    // SAFETY: the caller has asked the processor for AVX2 (`Isa::available`).
    #[target_feature(enable = "avx2")]
    unsafe fn avx2<const K: usize>(t: &Trellis, first: usize, x: &[Line], m: &mut [Line]) {
        // SAFETY: this function is called only where there is AVX2.
        unsafe { search::<__m256i, K>(t, first, x, m) }
    }

    // SAFETY: the caller has asked the processor for AVX-512 F (`Isa::available`).
    #[target_feature(enable = "avx512f")]
    unsafe fn avx512<const K: usize>(t: &Trellis, first: usize, x: &[Line], m: &mut [Line]) {
        // SAFETY: this function is called only where there is AVX-512 F.
        unsafe { search::<__m512i, K>(t, first, x, m) }
    }

    match isa {
        Isa::Avx2 | Isa::AvxVnni => (avx2::<K>, <__m256i as Vector>::LANES),
        Isa::Avx512 => (avx512::<K>, <__m512i as Vector>::LANES),
        // The other paths are not this architecture's.
        Isa::Scalar | Isa::Neon | Isa::NeonDot => (search::<i32, K>, <i32 as Vector>::LANES),
    }
}

#[cfg(target_arch = "aarch64")]
fn select<const K: usize>(isa: Isa) -> (Forward, usize) {
    use std::arch::aarch64::int32x4_t;

    match isa {
        Isa::Neon | Isa::NeonDot => (search::<int32x4_t, K>, <int32x4_t as Vector>::LANES),
        _ => (search::<i32, K>, <i32 as Vector>::LANES),
    }
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn select<const K: usize>(_isa: Isa) -> (Forward, usize) {
    (search::<i32, K>, <i32 as Vector>::LANES)
}

/// [`Forward`] for any vector.
///
/// # Safety
/// The processor has the vector's instruction set.
#[inline(always)]
unsafe fn search<V: Vector, const K: usize>(
    trellis: &Trellis,
    first: usize,
    slopes: &[Line],
    metrics: &mut [Line],
) {
    let classes = 1 << (8 - K);
    // SAFETY: `V` keeps the trait's contract.
    let (slopes, metrics) = unsafe { (Line::vectors::<V>(slopes), Line::vectors_mut::<V>(metrics)) };
    for i in 0..GROUP {
        let (done, next) = metrics[i * classes..(i + 2) * classes].split_at_mut(classes);
        let weight = (first + i) % GROUP;
        // SAFETY: the caller's promise is the same.
        unsafe { advance::<V, K>(trellis, trellis.at(weight), slopes[weight], done, next) };
    }
}

/// One weight: from the best metrics by overlap before it to those after it.
///
/// A state is `overlap with the past` in its lowest `8 - K` bits and `overlap with the future` in its highest. What
/// it adds to a path splits into a part of its low nibble, a part of its high nibble and a constant
/// ([`Position`]), so the past's best metric and the low nibble's part (a *base*) are added once for all states
/// that share both, and the high nibble's part after the minimum over them. The lowest `K` bits of every sum are the
/// state's own: the minimum remembers its argument.
///
/// # Safety
/// The processor has the vector's instruction set.
#[inline(always)]
unsafe fn advance<V: Vector, const K: usize>(
    trellis: &Trellis,
    position: &Position,
    slope: V,
    done: &[V],
    next: &mut [V],
) {
    let classes = 1 << (8 - K);
    // States that share a base are those that agree in both their overlap with the past and their low nibble.
    let bases = if classes > 16 { classes } else { 16 };
    // Bases that stay in registers: they lead to the same overlap with the future.
    let held = if K < 3 { 1 << K } else { 8 };
    // SAFETY: the caller's promise is each method's.
    unsafe {
        let low: [V; 16] = nibble_parts(slope, &trellis.low, &position.low);
        let high: [V; 16] = nibble_parts(slope, &trellis.high, &position.high);
        let metric_bits = V::splat(!((1 << K) - 1));
        for start in (0..bases).step_by(held) {
            let mut base = [slope; 8];
            for (j, base) in base.iter_mut().enumerate().take(held) {
                let state = start + j;
                *base = done[state % classes].and(metric_bits).add(low[state % 16]);
            }
            for first in (start..256).step_by(bases) {
                let cross = &position.cross[first..first + held];
                let mut best = base[0].add(V::splat(cross[0]));
                for j in 1..held {
                    best = best.min(base[j].add(V::splat(cross[j])));
                }
                best = best.add(high[first / 16]);
                let seen = held < 1 << K && first % (1 << K) != 0;
                let class = first >> K;
                next[class] = if seen { best.min(next[class]) } else { best };
            }
        }
    }
}

/// For each value of a nibble: `slope · value + constant`.
///
/// # Safety
/// The processor has the vector's instruction set.
#[inline(always)]
unsafe fn nibble_parts<V: Vector>(slope: V, values: &[i32; 16], constants: &[i32; 16]) -> [V; 16] {
    let mut parts = [slope; 16];
    for n in 0..16 {
        // SAFETY: the caller's promise is each method's.
        parts[n] = unsafe { slope.mul(V::splat(values[n])).add(V::splat(constants[n])) };
    }
    parts
}
