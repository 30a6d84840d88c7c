//! Matrices as the shaders read them: in quads of four rows. A quad holds each group's words of its four rows as vectors
//! of four words, `[quad][vector][group]`, so that threads that take neighbouring groups read one contiguous piece.

use rayon::prelude::*;
use upg_codec::GROUP;

use crate::code::Code;

/// Words of a matrix in quads.
pub(crate) const fn words(code: Code, rows: usize, cols: usize) -> usize {
    rows.div_ceil(4) * quad_words(code, cols)
}

/// Words of one quad.
pub(crate) const fn quad_words(code: Code, cols: usize) -> usize {
    4 * code.words() * (cols / GROUP)
}

/// Packs `rows` rows; row r of the result is row `order(r)` of `words`, which holds rows of `cols / 32` groups of
/// [`Code::words`] words each. What lies past the last row is zero.
pub(crate) fn pack(
    code: Code,
    rows: usize,
    cols: usize,
    source: &[u32],
    order: &(dyn Fn(usize) -> usize + Sync),
) -> Vec<u32> {
    let (k, groups) = (code.words(), cols / GROUP);
    let mut packed = vec![0; words(code, rows, cols)];
    packed.par_chunks_mut(quad_words(code, cols)).enumerate().for_each(|(quad, packed)| {
        for r in 0..4.min(rows - 4 * quad) {
            let row = &source[order(4 * quad + r) * groups * k..][..groups * k];
            for (g, group) in row.chunks_exact(k).enumerate() {
                for (w, word) in group.iter().enumerate() {
                    let flat = r * k + w;
                    packed[(flat / 4 * groups + g) * 4 + flat % 4] = *word;
                }
            }
        }
    });
    packed
}

/// The order in which rows of q and k are packed: pairs that RoPE turns are neighbours. Row r of the result is the
/// row that this returns for it.
pub(crate) fn rope_pairs(head_dim: usize, rope_dim: usize) -> impl Fn(usize) -> usize {
    move |row| {
        let (head, at) = (row / head_dim, row % head_dim);
        let dim = if at < rope_dim { at / 2 + at % 2 * (rope_dim / 2) } else { at };
        head * head_dim + dim
    }
}

#[cfg(test)]
mod tests {
    use upg_codec::Bits;

    use super::*;

    #[test]
    fn every_word_is_where_the_shaders_look_for_it() {
        for (code, rows, cols) in
            [(Code::T8(Bits::B3), 6, 96), (Code::T8(Bits::B8), 4, 64), (Code::F32, 5, 32)]
        {
            let (k, groups) = (code.words(), cols / GROUP);
            let source: Vec<u32> = (1..=(rows * groups * k) as u32).collect();
            let packed = pack(code, rows, cols, &source, &|r| rows - 1 - r);
            for r in 0..rows {
                for g in 0..groups {
                    for w in 0..k {
                        let flat = r % 4 * k + w;
                        let at = ((r / 4 * k + flat / 4) * groups + g) * 4 + flat % 4;
                        assert_eq!(packed[at], source[((rows - 1 - r) * groups + g) * k + w]);
                    }
                }
            }
            assert_eq!(packed.iter().filter(|word| **word != 0).count(), source.len());
        }
    }

    #[test]
    fn rope_pairs_are_neighbours_and_the_rest_stays() {
        let order = rope_pairs(8, 6);
        assert_eq!((0..8).map(&order).collect::<Vec<_>>(), [0, 3, 1, 4, 2, 5, 6, 7]);
        assert_eq!(order(8 + 1), 8 + 3);
    }
}
