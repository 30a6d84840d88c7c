//! Grouped-query attention with online softmax (Dao et al. 2022), split at the pages of the KV cache.
//!
//! A page gives every query head a *partial*: the largest score, the sum of exponentials and the weighted sum of
//! values. Partials are merged in ascending order of pages whether one thread computes all pages of a head or several
//! threads share them, so the bits are the same.

use std::{hint::black_box, ops::Range};

use upg_pdvm::PAGE_TOKENS;

use crate::{
    kv::{Page, WIDE},
    kv_kinds::{BLOCK, Kind, widen},
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
    /// The partials of one page for query heads `queries` (`dim` numbers each) that share its keys and values, of which
    /// they see the tokens `visible` (not empty). `partials` holds [`partial_len`] numbers a head.
    pub(crate) fn attend_page<K: Kind>(
        queries: &[f32],
        dim: usize,
        page: &Page<'_, K>,
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
                4 => attend_heads::<K, 4>(q, dim, page, visible.clone(), p),
                2 => attend_heads::<K, 2>(q, dim, page, visible.clone(), p),
                _ => attend_heads::<K, 1>(q, dim, page, visible.clone(), p),
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
fn attend_heads<K: Kind, const Q: usize>(
    queries: &[f32],
    dim: usize,
    page: &Page<'_, K>,
    visible: Range<usize>,
    partials: &mut [f32],
) {
    let mut weights = [[0.0f32; PAGE_TOKENS]; Q];
    scores::<K, Q>(queries, dim, page, &visible, &mut weights);
    let len = partials.len() / Q;
    for (weights, partial) in weights.iter_mut().zip(partials.chunks_exact_mut(len)) {
        (partial[0], partial[1]) = exponentials(weights, &visible, 1.0 / (dim as f32).sqrt());
    }
    if K::SCALED {
        scaled_values::<K, Q>(&weights, page, &visible, partials, len);
    } else {
        weighted_values::<K, Q>(&weights, page.values, 0..(len - HEADER) / WIDE, &visible, partials, len);
    }
}

/// `q · k` of the vectors of tokens that overlap `visible`, a block of dimensions after the other; `scores` is zero before.
#[inline(always)]
fn scores<K: Kind, const Q: usize>(
    queries: &[f32],
    dim: usize,
    page: &Page<'_, K>,
    visible: &Range<usize>,
    scores: &mut [[f32; PAGE_TOKENS]; Q],
) {
    let (scales, _) = page.key_scales.as_chunks::<WIDE>();
    for first in (0..dim).step_by(BLOCK) {
        let queries = query_block::<Q>(queries, dim, first);
        let pairs = BLOCK.min(dim - first).div_ceil(2);
        for vector in visible.start / WIDE..visible.end.div_ceil(WIDE) {
            let mut sums = products::<K, Q>(&queries[..pairs], page.keys, first / 2, vector);
            if K::SCALED {
                let scales = widen(&scales[first / BLOCK * (PAGE_TOKENS / WIDE) + vector]);
                for sums in &mut sums {
                    sums.iter_mut().zip(&scales).for_each(|(sum, scale)| *sum *= scale);
                }
            }
            for (scores, sums) in scores.iter_mut().zip(&sums) {
                let (vectors, _) = scores.as_chunks_mut::<WIDE>();
                vectors[vector].iter_mut().zip(sums).for_each(|(score, sum)| *score += sum);
            }
        }
    }
}

/// Dimensions `first..` of the queries, in pairs, so that those of all heads lie side by side; zero past the last
/// dimension.
#[inline(always)]
fn query_block<const Q: usize>(queries: &[f32], dim: usize, first: usize) -> [[[f32; Q]; 2]; BLOCK / 2] {
    let mut block = [[[0.0; Q]; 2]; BLOCK / 2];
    for (h, query) in queries.chunks_exact(dim).enumerate() {
        for (to, from) in block.as_flattened_mut().iter_mut().zip(&query[first..]) {
            to[h] = *from;
        }
    }
    block
}

/// `q · k`, not yet scaled, over some pairs of dimensions, of which the key's first is `first`, for one vector of tokens.
#[inline(always)]
fn products<K: Kind, const Q: usize>(
    queries: &[[[f32; Q]; 2]],
    keys: &[K::Code],
    first: usize,
    vector: usize,
) -> [[f32; WIDE]; Q] {
    let mut sums = [[0.0f32; WIDE]; Q];
    for (pair, queries) in queries.iter().enumerate() {
        let pair = one_by_one(first + pair);
        for (query, key) in queries.iter().zip(&K::keys(keys, pair, vector)) {
            for (sums, q) in sums.iter_mut().zip(query) {
                for (sum, key) in sums.iter_mut().zip(key) {
                    *sum += q * key;
                }
            }
        }
    }
    sums
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

/// `Σ weight · value` into the partials, where a block of a value has a scale: it goes into the weights.
#[inline(always)]
fn scaled_values<K: Kind, const Q: usize>(
    weights: &[[f32; PAGE_TOKENS]; Q],
    page: &Page<'_, K>,
    visible: &Range<usize>,
    partials: &mut [f32],
    len: usize,
) {
    let blocks = (len - HEADER) / WIDE;
    let (scales, _) = page.value_scales.as_chunks::<WIDE>();
    for (first, scales) in (0..blocks).step_by(BLOCK / WIDE).zip(scales.chunks_exact(PAGE_TOKENS / WIDE)) {
        let mut scaled = *weights;
        for (i, scales) in scales.iter().enumerate() {
            let (i, scales) = (one_by_one(i), widen(scales));
            for scaled in &mut scaled {
                let (vectors, _) = scaled.as_chunks_mut::<WIDE>();
                vectors[i].iter_mut().zip(&scales).for_each(|(weight, scale)| *weight *= scale);
            }
        }
        let blocks = first..blocks.min(first + BLOCK / WIDE);
        weighted_values::<K, Q>(&scaled, page.values, blocks, visible, partials, len);
    }
}

/// `Σ weight · value` into the partials, [`WIDE`] dimensions at a time.
#[inline(always)]
fn weighted_values<K: Kind, const Q: usize>(
    weights: &[[f32; PAGE_TOKENS]; Q],
    values: &[K::Code],
    blocks: Range<usize>,
    visible: &Range<usize>,
    partials: &mut [f32],
    len: usize,
) {
    let row = (len - HEADER) / WIDE;
    for block in blocks {
        let mut sums = [[0.0f32; WIDE]; Q];
        for token in visible.clone() {
            let value = K::values(values, one_by_one(token * row + block));
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

/// Keeps the compiler from working on several rounds of a loop at once, given what the round begins with: the numbers of one
/// round fill the vectors, and what several rounds have in common it would have to gather from memory, 32 bits at a
/// time (with AVX-512 it did, ten times slower).
#[inline(always)]
fn one_by_one(index: usize) -> usize {
    black_box(index)
}

#[cfg(test)]
mod tests {
    use upg_codec::Isa;
    use upg_pdvm::KvKind;

    use super::*;
    use crate::{
        kv::{KvStore, Place, for_kind},
        memory::Arena,
    };

    fn wave(n: usize, f: f32) -> Vec<f32> {
        (0..n).map(|i| (i as f32 * f).sin()).collect()
    }

    /// A cache of `pages` pages.
    fn cache<K: Kind>(kind: KvKind, pages: usize, dim: usize) -> KvStore {
        let store = KvStore::new(&Arena::default(), pages, (1, 1, dim), kind).unwrap();
        for token in 0..pages * PAGE_TOKENS {
            let place = Place { page: (token / PAGE_TOKENS) as u32, layer: 0, head: 0 };
            let (key, value) = token_kv(token, dim);
            // SAFETY: one thread, and `K` is the cache's kind.
            unsafe { store.write::<K>(place, token % PAGE_TOKENS, &key, &value) };
        }
        store
    }

    fn token_kv(token: usize, dim: usize) -> (Vec<f32>, Vec<f32>) {
        let wave = |f: f32| (0..dim).map(|d| ((token * dim + d) as f32 * f).sin()).collect();
        (wave(0.13), wave(0.39))
    }

    /// The shape of a case: query heads, their dimensions, the token's position, the window.
    type Case = (usize, usize, usize, Option<usize>);

    fn attend<K: Kind>(kind: KvKind, isa: Isa, (heads, dim, position, window): Case) -> Vec<f32> {
        let queries = wave(heads * dim, 0.71);
        let len = partial_len(dim.next_multiple_of(WIDE));
        let (mut all, mut one) = (vec![0.0; heads * len], vec![0.0; heads * len]);
        let store = cache::<K>(kind, position / PAGE_TOKENS + 1, dim);
        for index in pages(position, window) {
            // SAFETY: nobody writes any more, and `K` is the cache's kind.
            let page = unsafe { store.read::<K>(Place { page: index as u32, layer: 0, head: 0 }) };
            let first = index == pages(position, window).start;
            let to = if first { &mut all } else { &mut one };
            attend_page(isa, &queries, dim, &page, visible(index, position, window), to);
            if !first {
                merge(isa, &mut all, &one, len);
            }
        }
        let mut out = vec![0.0; heads * dim];
        finish(isa, &all, len, dim, &mut out);
        out
    }

    /// Softmax in f64, by the definition, over what the kind keeps.
    fn plain(kind: KvKind, (heads, dim, position, window): Case) -> Vec<f64> {
        let queries = wave(heads * dim, 0.71);
        let cache: Vec<_> = (0..=position)
            .map(|token| {
                let (mut key, mut value) = token_kv(token, dim);
                kind.keep(&mut key);
                kind.keep(&mut value);
                (key, value)
            })
            .collect();
        let first = window.map_or(0, |w| (position + 1).saturating_sub(w));
        let mut out = vec![];
        for q in queries.chunks(dim) {
            let product = |(q, k): (&f32, &f32)| f64::from(*q) * f64::from(*k);
            let score = |t: usize| q.iter().zip(&cache[t].0).map(product).sum::<f64>() / (dim as f64).sqrt();
            let weights: Vec<f64> = (first..=position).map(|t| score(t).exp()).collect();
            let total: f64 = weights.iter().sum();
            let mix = |d| {
                weights.iter().zip(first..).map(|(w, t)| w * f64::from(cache[t].1[d])).sum::<f64>() / total
            };
            out.extend((0..dim).map(mix));
        }
        out
    }

    fn check<K: Kind>(kind: KvKind, case: Case) {
        let scalar = attend::<K>(kind, Isa::Scalar, case);
        for (found, expected) in scalar.iter().zip(plain(kind, case)) {
            assert!(
                (f64::from(*found) - expected).abs() < 1e-5,
                "{kind}, {case:?}: {found} is not {expected}"
            );
        }
        for isa in Isa::available() {
            let found = attend::<K>(kind, isa, case);
            let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
            assert_eq!(bits(&found), bits(&scalar), "{kind} on {}", isa.name());
        }
    }

    #[test]
    fn every_kind_agrees_with_the_definition_and_across_isas() {
        for kind in KvKind::ALL {
            for case in [
                (1, 8, 0, None),
                (3, 64, 127, None),
                (4, 20, 300, None),
                (7, 16, 140, Some(100)),
                (2, 33, 260, Some(200)),
                (2, 128, 500, Some(5)),
            ] {
                for_kind!(kind, check(kind, case));
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
