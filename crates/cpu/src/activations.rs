use upg_codec::Isa;

use crate::{
    kernels,
    layout::Layout,
    panel::{self, Panel},
    quantize::{CHUNK, Quantized},
};

/// The vectors of a batch in integers, in all forms that the kernels of a path read.
pub(crate) struct Activations {
    isa: Isa,
    tokens: Vec<Quantized>,
    /// Where products with many tokens want them.
    panels: Vec<Panel>,
}

/// [`Activations`] of some tokens, to be read.
#[derive(Clone, Copy)]
pub(crate) struct Integers<'a> {
    /// One a token.
    pub tokens: &'a [Quantized],
    /// All tokens, [`panel::tokens`] at a time, or none: see [`kernels::takes_panels`].
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "only kernels of x86-64 read panels"))]
    pub panels: &'a [Panel],
}

impl Activations {
    /// Room for `tokens` vectors of up to `cols` numbers.
    pub(crate) fn new(isa: Isa, cols: usize, tokens: usize) -> Self {
        let panel = |_| Panel::new(isa, cols.next_multiple_of(CHUNK));
        Self {
            isa,
            tokens: (0..tokens).map(|_| Quantized::new(Layout::of(isa), cols)).collect(),
            panels: (0..panels(isa, tokens)).map(panel).collect(),
        }
    }

    /// The first `n` tokens.
    pub(crate) fn first(&self, n: usize) -> Integers<'_> {
        Integers { tokens: &self.tokens[..n], panels: &self.panels[..panels(self.isa, n)] }
    }

    /// The same, to be written: tokens by [`Quantized::set`], then panels by [`Panel::set`].
    pub(crate) fn first_mut(&mut self, n: usize) -> (&mut [Quantized], &mut [Panel]) {
        (&mut self.tokens[..n], &mut self.panels[..panels(self.isa, n)])
    }

    /// Quantises vectors one after the other.
    pub(crate) fn set<'a>(&mut self, vectors: impl ExactSizeIterator<Item = &'a [f32]>) -> Integers<'_> {
        let (isa, n) = (self.isa, vectors.len());
        let (tokens, panels) = self.first_mut(n);
        tokens.iter_mut().zip(vectors).for_each(|(token, x)| token.set(isa, x));
        panels
            .iter_mut()
            .zip(tokens.chunks(panel::tokens(isa)))
            .for_each(|(panel, tokens)| panel.set(tokens));
        self.first(n)
    }
}

/// Panels of `tokens` tokens.
fn panels(isa: Isa, tokens: usize) -> usize {
    if kernels::takes_panels(isa, tokens) { tokens.div_ceil(panel::tokens(isa)) } else { 0 }
}
