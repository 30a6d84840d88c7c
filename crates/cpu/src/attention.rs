//! Grouped-query attention with online softmax (Dao et al. 2022), split at the pages of the KV cache.
//!
//! A page gives every query head a *partial*: the largest score, the sum of exponentials and the weighted sum of
//! values. Partials are merged in ascending order of pages whether one thread computes all pages of a head or several
//! threads share them, so the bits are the same.

use std::ops::Range;

use upg_pdvm::PAGE_TOKENS;

use crate::{
    kv::{Element, WIDE},
    math::{LANES, exp, sum},
    per_isa::per_isa,
};

/// Numbers of a partial before its values: the largest score and the sum of exponentials.
const HEADER: usize = 2;

/// Numbers of a partial of a head of `padded` dimensions.
pub(crate) const fn partial_len(padded: usize) -> usize {
    HEADER + padded
}

/// The tokens of page `page` of a sequence that a token at `position` sees.
pub(crate) fn visible(page: usize, position: usize, window: Option<usize>) -> Range<usize> {
    let first = window.map_or(0, |window| (position + 1).saturating_sub(window));
    let start = page * PAGE_TOKENS;
    first.saturating_sub(start).min(PAGE_TOKENS)..(position + 1).saturating_sub(start).min(PAGE_TOKENS)
}

/// The pages of a sequence that a token at `position` sees.
pub(crate) fn pages(position: usize, window: Option<usize>) -> Range<usize> {
    let first = window.map_or(0, |window| (position + 1).saturating_sub(window));
    first / PAGE_TOKENS..position / PAGE_TOKENS + 1
}

per_isa! {
    /// The partials of one page for query heads `queries` (`dim` numbers each) that share keys `[dim][PAGE_TOKENS]`
    /// and values `[PAGE_TOKENS][padded]`, of which they see the tokens `visible` (not empty). `partials` holds
    /// [`partial_len`] numbers a head.
    pub(crate) fn attend_page<T: Element>(
        queries: &[f32],
        dim: usize,
        keys: &[T],
        values: &[T],
        visible: Range<usize>,
        partials: &mut [f32],
    ) {
        let len = partial_len(dim.next_multiple_of(WIDE));
        let mut heads = queries.len() / dim;
        let (mut queries, mut partials) = (queries, partials);
        while heads > 0 {
            let count = match heads {
                4.. => 4,
                2.. => 2,
                _ => 1,
            };
            let (q, rest) = queries.split_at(count * dim);
            let (p, others) = partials.split_at_mut(count * len);
            match count {
                4 => attend_heads::<T, 4>(q, dim, keys, values, visible.clone(), p),
                2 => attend_heads::<T, 2>(q, dim, keys, values, visible.clone(), p),
                _ => attend_heads::<T, 1>(q, dim, keys, values, visible.clone(), p),
            }
            (queries, partials, heads) = (rest, others, heads - count);
        }
    }

    /// Merges the partials of a later page into those of the earlier ones, head by head.
    pub(crate) fn merge(partials: &mut [f32], later: &[f32], len: usize) {
        for (a, b) in partials.chunks_exact_mut(len).zip(later.chunks_exact(len)) {
            let largest = a[0].max(b[0]);
            let (scale_a, scale_b) = (exp(a[0] - largest), exp(b[0] - largest));
            a[0] = largest;
            for (a, b) in a[1..].iter_mut().zip(&b[1..]) {
                *a = *a * scale_a + *b * scale_b;
            }
        }
    }

    /// Divides by the sum of exponentials: a partial of all pages becomes attention's output, `dim` numbers a head.
    pub(crate) fn finish(partials: &[f32], len: usize, dim: usize, out: &mut [f32]) {
        for (partial, out) in partials.chunks_exact(len).zip(out.chunks_exact_mut(dim)) {
            let inverse = 1.0 / partial[1];
            for (value, out) in partial[HEADER..].iter().zip(out) {
                *out = value * inverse;
            }
        }
    }
}

/// [`attend_page`] for `Q` heads, whose sums all stay in registers.
#[inline(always)]
fn attend_heads<T: Element, const Q: usize>(
    queries: &[f32],
    dim: usize,
    keys: &[T],
    values: &[T],
    visible: Range<usize>,
    partials: &mut [f32],
) {
    let mut weights = [[0.0f32; PAGE_TOKENS]; Q];
    scores::<T, Q>(queries, dim, keys, &visible, &mut weights);
    let len = partials.len() / Q;
    for (weights, partial) in weights.iter_mut().zip(partials.chunks_exact_mut(len)) {
        (partial[0], partial[1]) = exponentials(weights, &visible, 1.0 / (dim as f32).sqrt());
    }
    weighted_values::<T, Q>(&weights, values, &visible, partials, len);
}

/// `q · k` of the vectors of tokens that overlap `visible`.
#[inline(always)]
fn scores<T: Element, const Q: usize>(
    queries: &[f32],
    dim: usize,
    keys: &[T],
    visible: &Range<usize>,
    scores: &mut [[f32; PAGE_TOKENS]; Q],
) {
    let (keys, _) = keys.as_chunks::<WIDE>();
    for block in visible.start / WIDE..visible.end.div_ceil(WIDE) {
        let mut sums = [[0.0f32; WIDE]; Q];
        let column = keys[block..].iter().step_by(PAGE_TOKENS / WIDE);
        for (d, key) in column.take(dim).enumerate() {
            let key = T::widen(key);
            for (h, sums) in sums.iter_mut().enumerate() {
                let q = queries[h * dim + d];
                for (sum, key) in sums.iter_mut().zip(&key) {
                    *sum += q * key;
                }
            }
        }
        for (scores, sums) in scores.iter_mut().zip(&sums) {
            scores[block * WIDE..][..WIDE].copy_from_slice(sums);
        }
    }
}

/// Turns scores into exponentials (zero outside `visible`); returns the largest scaled score and their sum.
#[inline(always)]
fn exponentials(weights: &mut [f32; PAGE_TOKENS], visible: &Range<usize>, scale: f32) -> (f32, f32) {
    let largest = weights[visible.clone()].iter().fold(f32::NEG_INFINITY, |a, &b| if b > a { b } else { a });
    let mut lanes = [0.0f32; LANES];
    let (chunks, _) = weights.as_chunks_mut::<LANES>();
    for (i, chunk) in chunks.iter_mut().enumerate() {
        for (j, (weight, lane)) in chunk.iter_mut().zip(&mut lanes).enumerate() {
            let seen = visible.contains(&(i * LANES + j));
            *weight = if seen { exp((*weight - largest) * scale) } else { 0.0 };
            *lane += *weight;
        }
    }
    (largest * scale, sum(lanes))
}

/// `Σ weight · value` into the partials.
#[inline(always)]
fn weighted_values<T: Element, const Q: usize>(
    weights: &[[f32; PAGE_TOKENS]; Q],
    values: &[T],
    visible: &Range<usize>,
    partials: &mut [f32],
    len: usize,
) {
    let blocks = (len - HEADER) / WIDE;
    let (values, _) = values.as_chunks::<WIDE>();
    for block in 0..blocks {
        let mut sums = [[0.0f32; WIDE]; Q];
        for token in visible.clone() {
            let value = T::widen(&values[token * blocks + block]);
            for (sums, weights) in sums.iter_mut().zip(weights) {
                let weight = weights[token];
                for (sum, value) in sums.iter_mut().zip(&value) {
                    *sum += weight * value;
                }
            }
        }
        for (partial, sums) in partials.chunks_exact_mut(len).zip(&sums) {
            partial[HEADER + block * WIDE..][..WIDE].copy_from_slice(sums);
        }
    }
}

#[cfg(test)]
mod tests {
    use half::f16;
    use upg_codec::Isa;

    use super::*;

    fn wave(n: usize, f: f32) -> Vec<f32> {
        (0..n).map(|i| (i as f32 * f).sin()).collect()
    }

    /// Keys and values of `pages` pages, as the cache holds them.
    fn cache(pages: usize, dim: usize) -> Vec<(Vec<f16>, Vec<f16>)> {
        let narrow = |x: Vec<f32>| x.into_iter().map(f16::from_f32).collect::<Vec<_>>();
        let padded = dim.next_multiple_of(WIDE);
        (0..pages)
            .map(|p| {
                let f = 0.13 + p as f32 * 0.01;
                (narrow(wave(dim * PAGE_TOKENS, f)), narrow(wave(padded * PAGE_TOKENS, f * 3.0)))
            })
            .collect()
    }

    fn attend(isa: Isa, heads: usize, dim: usize, position: usize, window: Option<usize>) -> Vec<f32> {
        let queries = wave(heads * dim, 0.71);
        let len = partial_len(dim.next_multiple_of(WIDE));
        let (mut all, mut one) = (vec![0.0; heads * len], vec![0.0; heads * len]);
        let cache = cache(position / PAGE_TOKENS + 1, dim);
        for page in pages(position, window) {
            let (k, v) = &cache[page];
            let first = page == pages(position, window).start;
            let to = if first { &mut all } else { &mut one };
            attend_page(isa, &queries, dim, k, v, visible(page, position, window), to);
            if !first {
                merge(isa, &mut all, &one, len);
            }
        }
        let mut out = vec![0.0; heads * dim];
        finish(isa, &all, len, dim, &mut out);
        out
    }

    /// Softmax in f64, by the definition.
    fn plain(heads: usize, dim: usize, position: usize, window: Option<usize>) -> Vec<f64> {
        let queries = wave(heads * dim, 0.71);
        let cache = cache(position / PAGE_TOKENS + 1, dim);
        let padded = dim.next_multiple_of(WIDE);
        let first = window.map_or(0, |w| (position + 1).saturating_sub(w));
        let at = |t: usize, d: usize| cache[t / PAGE_TOKENS].0[d * PAGE_TOKENS + t % PAGE_TOKENS].to_f64();
        let value = |t: usize, d: usize| cache[t / PAGE_TOKENS].1[t % PAGE_TOKENS * padded + d].to_f64();
        let mut out = vec![];
        for q in queries.chunks(dim) {
            let score = |t| (0..dim).map(|d| f64::from(q[d]) * at(t, d)).sum::<f64>() / (dim as f64).sqrt();
            let weights: Vec<f64> = (first..=position).map(|t| score(t).exp()).collect();
            let total: f64 = weights.iter().sum();
            let mix = |d| weights.iter().zip(first..).map(|(w, t)| w * value(t, d)).sum::<f64>() / total;
            out.extend((0..dim).map(mix));
        }
        out
    }

    #[test]
    fn agrees_with_the_definition_and_across_isas() {
        for (heads, dim, position, window) in [
            (1, 8, 0, None),
            (3, 64, 127, None),
            (4, 20, 300, None),
            (7, 16, 140, Some(100)),
            (2, 32, 500, Some(5)),
        ] {
            let scalar = attend(Isa::Scalar, heads, dim, position, window);
            for (found, expected) in scalar.iter().zip(plain(heads, dim, position, window)) {
                assert!((f64::from(*found) - expected).abs() < 1e-5, "{found} is not {expected}");
            }
            for isa in Isa::available() {
                let found = attend(isa, heads, dim, position, window);
                let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
                assert_eq!(bits(&found), bits(&scalar), "{}", isa.name());
            }
        }
    }

    #[test]
    fn a_window_s_pages_and_tokens() {
        assert_eq!(pages(300, Some(100)), 1..3);
        assert_eq!(visible(1, 300, Some(100)), 73..128);
        assert_eq!(visible(2, 300, Some(100)), 0..45);
        assert_eq!((pages(127, None), visible(0, 127, None)), (0..1, 0..128));
    }
}
