use crate::quantize::Quantized;

/// The most tokens of a panel: their sums stay in registers.
pub(crate) const PANEL_TOKENS: usize = 6;

/// The values of some tokens side by side, in the order in which AVX2's kernel for many tokens reads them.
///
/// The kernel takes four columns (one of each of a chunk's groups) in two steps, of two columns each. A step's two values
/// of the first token stand before those of the second, and so on: one stream for the processor's prefetchers. Each
/// token's values by themselves would be as many streams, and meet in the same few sets of the first cache.
pub(crate) struct Panel {
    pairs: Vec<[i16; 2]>,
    tokens: usize,
}

#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "only AVX2's kernels read panels"))]
impl Panel {
    /// Room for tokens of up to `cols` columns (in whole chunks).
    pub(crate) fn new(cols: usize) -> Self {
        Self { pairs: Vec::with_capacity(PANEL_TOKENS * cols / 2), tokens: 0 }
    }

    /// Takes up to [`PANEL_TOKENS`] tokens of the same number of columns. Does not allocate where [`Panel::new`] made room.
    pub(crate) fn set(&mut self, tokens: &[Quantized]) {
        let count = tokens.len();
        self.tokens = count;
        self.pairs.resize(tokens.iter().map(|token| token.ordered.len() / 2).sum(), [0; 2]);
        for (place, token) in tokens.iter().enumerate() {
            let (fours, _) = token.ordered.as_chunks::<4>();
            for (steps, &[a, b, c, d]) in self.pairs.chunks_exact_mut(2 * count).zip(fours) {
                steps[place] = [a, c];
                steps[count + place] = [b, d];
            }
        }
    }

    /// Its tokens.
    pub(crate) fn tokens(&self) -> usize {
        self.tokens
    }

    /// The values of some columns, which begin and end with a chunk's.
    pub(crate) fn columns(&self, columns: std::ops::Range<usize>) -> &[[i16; 2]] {
        &self.pairs[columns.start / 2 * self.tokens..columns.end / 2 * self.tokens]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::Layout;

    #[test]
    fn a_step_holds_each_token_s_even_or_odd_groups() {
        let mut tokens = [0, 1, 2].map(|_| Quantized::new(Layout::LanePlanar, 256));
        for (t, token) in tokens.iter_mut().enumerate() {
            token.ordered.extend((0..256).map(|i| 1000 * t as i16 + i));
        }
        let mut panel = Panel::new(256);
        panel.set(&tokens);
        assert_eq!(panel.tokens(), 3);
        let expected = [[0, 2], [1000, 1002], [2000, 2002], [1, 3], [1001, 1003], [2001, 2003], [4, 6]];
        assert_eq!(panel.columns(0..128)[..7], expected);
        assert_eq!(panel.columns(128..256)[0], [128, 130]);
        assert_eq!(panel.columns(128..256).len(), 3 * 64);
    }
}
