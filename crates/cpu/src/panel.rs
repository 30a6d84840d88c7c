use upg_codec::Isa;

use crate::quantize::{CHUNK, Quantized};

/// Dwords of a chunk of one token.
pub(crate) const CHUNK_DWORDS: usize = CHUNK / 2;

/// The most tokens of a panel: their sums stay in registers.
pub(crate) const fn tokens(isa: Isa) -> usize {
    if matches!(isa, Isa::Avx512) { 8 } else { 6 }
}

/// The values of some tokens side by side, in the order in which a path's kernel for many tokens reads them.
///
/// What a kernel multiplies in one step is a dword a token; that of the first token stands before that of the second, and
/// so on: one stream for the processor's prefetchers. Each token's values by themselves would be as many streams, and meet
/// in the same few sets of the first cache. AVX2's kernel takes four columns of whole values in two steps, of two columns
/// each. The others take them in one step a plane, of a chunk first all of the high plane.
pub(crate) struct Panel {
    isa: Isa,
    dwords: Vec<i32>,
    tokens: usize,
}

#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "only kernels of x86-64 read panels"))]
impl Panel {
    /// Room for tokens of up to `cols` columns (in whole chunks).
    pub(crate) fn new(isa: Isa, cols: usize) -> Self {
        Self { isa, dwords: Vec::with_capacity(tokens(isa) * cols / 2), tokens: 0 }
    }

    /// Takes up to [`tokens`] tokens of the same number of columns. Does not allocate where [`Panel::new`] made room.
    pub(crate) fn set(&mut self, tokens: &[Quantized]) {
        let count = tokens.len();
        self.tokens = count;
        self.dwords.resize(tokens.iter().map(|token| token.ordered.len() / 2).sum(), 0);
        // Chunk by chunk, which the first cache holds: a token's dwords are far apart.
        for (i, chunk) in self.dwords.chunks_exact_mut(CHUNK_DWORDS * count).enumerate() {
            for (place, token) in tokens.iter().enumerate() {
                if self.isa == Isa::Avx2 {
                    whole(&token.ordered.as_chunks().0[i], place, count, chunk);
                } else {
                    let (high, low) = chunk.split_at_mut(CHUNK_DWORDS / 2 * count);
                    plane(&token.high.as_chunks().0[i], place, count, high);
                    plane(&token.low.as_chunks().0[i], place, count, low);
                }
            }
        }
    }

    /// Its tokens.
    pub(crate) fn tokens(&self) -> usize {
        self.tokens
    }

    /// The dwords of some chunks.
    pub(crate) fn chunks(&self, chunks: std::ops::Range<usize>) -> &[i32] {
        let chunk = CHUNK_DWORDS * self.tokens;
        &self.dwords[chunks.start * chunk..chunks.end * chunk]
    }
}

/// Puts the values of a chunk to one of `count` places of its steps.
fn whole(values: &[i16; CHUNK], place: usize, count: usize, steps: &mut [i32]) {
    let pair = |low: i16, high: i16| i32::from(low as u16) | i32::from(high) << 16;
    for (steps, &[a, b, c, d]) in steps.chunks_exact_mut(2 * count).zip(values.as_chunks().0) {
        steps[place] = pair(a, c);
        steps[count + place] = pair(b, d);
    }
}

/// The same for a plane's.
fn plane(values: &[i8; CHUNK], place: usize, count: usize, steps: &mut [i32]) {
    for (step, &[a, b, c, d]) in steps.chunks_exact_mut(count).zip(values.as_chunks().0) {
        step[place] = i32::from_le_bytes([a as u8, b as u8, c as u8, d as u8]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::Layout;

    /// A panel of three tokens, whose values number their columns.
    fn panel(isa: Isa) -> Panel {
        let mut tokens = [0, 1, 2].map(|_| Quantized::new(Layout::LanePlanar, 256));
        for (t, token) in tokens.iter_mut().enumerate() {
            token.ordered.extend((0..256).map(|i| 1000 * t as i16 + i));
            token.high.extend((0..256).map(|i| (40 * t + i % 32) as i8));
            token.low.extend((0..256).map(|i| -((40 * t + i % 32) as i8)));
        }
        let mut panel = Panel::new(isa, 256);
        panel.set(&tokens);
        assert_eq!(panel.tokens(), 3);
        panel
    }

    #[test]
    fn a_step_holds_each_token_s_even_or_odd_groups() {
        let panel = panel(Isa::Avx2);
        let pairs = |dwords: &[i32]| dwords.iter().map(|d| [d & 0xffff, d >> 16]).collect::<Vec<_>>();
        let expected = [[0, 2], [1000, 1002], [2000, 2002], [1, 3], [1001, 1003], [2001, 2003], [4, 6]];
        assert_eq!(pairs(&panel.chunks(0..1)[..7]), expected);
        assert_eq!(pairs(&panel.chunks(1..2)[..1]), [[128, 130]]);
        assert_eq!(panel.chunks(1..2).len(), 3 * 64);
    }

    #[test]
    fn a_chunk_s_high_plane_stands_before_its_low_one() {
        let panel = panel(Isa::Avx512);
        let bytes = |dword: i32| dword.to_le_bytes().map(|byte| byte as i8);
        assert_eq!(
            panel.chunks(0..2)[..4].iter().map(|d| bytes(*d)).collect::<Vec<_>>(),
            [[0, 1, 2, 3], [40, 41, 42, 43], [80, 81, 82, 83], [4, 5, 6, 7]]
        );
        assert_eq!(bytes(panel.chunks(1..2)[3 * 32 + 2]), [-80, -81, -82, -83]);
    }
}
