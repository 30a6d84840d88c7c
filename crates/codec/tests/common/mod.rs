//! What several tests share: data, and the search in its plainest form.
#![allow(dead_code)] // each test binary uses its own part

use upg_codec::{Bits, GROUP, decode_group};

/// `n` normal numbers of unit variance (SplitMix64 and Box-Muller).
pub fn gaussian(seed: u64, n: usize) -> Vec<f32> {
    let mut state = seed;
    let mut uniform = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (((z ^ z >> 31) >> 11) + 1) as f64 / (1u64 << 53) as f64
    };
    let mut normal = || (-2.0 * uniform().ln()).sqrt() * (std::f64::consts::TAU * uniform()).cos();
    (0..n).map(|_| normal() as f32).collect()
}

/// Decodes any number of groups.
pub fn decode(bits: Bits, codes: &[u8]) -> Vec<f32> {
    let mut values = Vec::new();
    for code in codes.chunks_exact(bits.group_bytes()) {
        let mut group = [0; GROUP];
        decode_group(bits, code, &mut group);
        values.extend(group.map(f32::from));
    }
    values
}

/// Signal to error in decibels, with the values scaled to fit best.
pub fn snr(x: &[f32], values: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    let signal = dot(x, x);
    10.0 * (signal / (signal - dot(x, values).powi(2) / dot(values, values))).log10()
}

/// One Viterbi search over numbers in order, from one of the `starts` to one of the `ends` (overlaps): its metric
/// and its states. The cost of a state at a position is given; ties go to the state with the lowest bits.
pub fn viterbi(
    bits: Bits,
    starts: &[usize],
    ends: &[usize],
    count: usize,
    cost: impl Fn(usize, u8) -> i64,
) -> (i64, Vec<u8>) {
    let k = bits.get();
    let classes = 256 >> k;
    let mut best: Vec<Option<i64>> = (0..classes).map(|class| starts.contains(&class).then_some(0)).collect();
    let mut choices = vec![vec![0; classes]; count];
    for (i, choices) in choices.iter_mut().enumerate() {
        let mut next: Vec<Option<i64>> = vec![None; classes];
        for state in 0..256 {
            let class = state >> k;
            let Some(before) = best[state % classes] else { continue };
            let metric = before + cost(i, state as u8);
            if next[class].is_none_or(|least| metric < least) {
                next[class] = Some(metric);
                choices[class] = state;
            }
        }
        best = next;
    }
    let lowest_bits = |class: usize| choices[count - 1][class] % (1 << k);
    let end = ends.iter().copied().filter(|class| best[*class].is_some());
    let end = end.min_by_key(|class| (best[*class], lowest_bits(*class)));
    let end = end.expect("an end within reach");
    let metric = best[end].expect("the end was reached");
    let (mut class, mut path) = (end, vec![0; count]);
    for i in (0..count).rev() {
        path[i] = choices[i][class] as u8;
        class = choices[i][class] % classes;
    }
    (metric, path)
}

/// The error of the best of all rings, by a search for each overlap at the seam.
pub fn best_ring(bits: Bits, x: &[f32; GROUP]) -> f64 {
    const SCALE: f64 = 65536.0;
    let table = bits.table();
    let cost = |i: usize, state: u8| {
        ((f64::from(x[i]) - f64::from(table.value(state))).powi(2) * SCALE).round() as i64
    };
    let seams = 0..256 >> bits.get();
    seams.map(|seam| viterbi(bits, &[seam], &[seam], GROUP, cost).0).min().expect("at least one seam") as f64
        / SCALE
}
