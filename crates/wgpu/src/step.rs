//! What changes from batch to batch, in one buffer that every shader can read (`shaders/step.wgsl`).

use upg_codec::Bits;
use upg_format::ModelConfig;
use upg_pdvm::{BatchRow, KvPages, MachineError, MachineOptions, PAGE_TOKENS, SeqId, rope::RopeTable};

use crate::code;

/// Where what lies in the step buffer, in words.
#[derive(Clone, Debug)]
pub(crate) struct StepLayout {
    /// Tokens that one submission takes at most.
    pub tokens: usize,
    pages_a_sequence: usize,
    /// Sequences of one submission.
    sequences: usize,
    pub rows_at: usize,
    pub row_words: usize,
    pub tables_at: usize,
    pub triples_at: usize,
}

impl StepLayout {
    /// Words before the page tables.
    const HEAD: usize = 8;
    /// Words of a row before its cosines and sines.
    pub(crate) const ROW_HEAD: usize = 8;

    pub(crate) fn new(config: &ModelConfig, options: &MachineOptions, tokens: usize) -> Self {
        let pages_a_sequence = options.context.div_ceil(PAGE_TOKENS);
        let sequences = options.sequences.min(tokens);
        let rows_at = Self::HEAD + sequences * pages_a_sequence;
        let row_words = Self::ROW_HEAD + config.rope.dim;
        let tables_at = rows_at + tokens * row_words;
        let triples_at = tables_at + Bits::ALL.len() * 256;
        Self { tokens, pages_a_sequence, sequences, rows_at, row_words, tables_at, triples_at }
    }

    /// Words in all.
    pub(crate) fn words(&self) -> usize {
        self.triples_at + code::triples_words()
    }
}

/// The host's copy of the step buffer.
pub(crate) struct Step {
    pub layout: StepLayout,
    words: Vec<u32>,
    sequences: Vec<SeqId>,
}

impl Step {
    /// An empty step, with the look-up tables in place.
    pub(crate) fn new(layout: StepLayout) -> Self {
        let mut words = vec![0; layout.words()];
        let small = Bits::ALL.into_iter().flat_map(code::entries);
        let large =
            Bits::ALL.into_iter().filter(|bits| bits.get() <= code::TRIPLE_BITS).flat_map(code::triples);
        words[layout.tables_at..].iter_mut().zip(small.chain(large)).for_each(|(word, entry)| *word = entry);
        Self { sequences: Vec::with_capacity(layout.sequences), layout, words }
    }

    /// All words, for the first time.
    pub(crate) fn all(&self) -> &[u32] {
        &self.words
    }

    /// The words that a batch of `rows` tokens uses.
    pub(crate) fn used(&self, rows: usize) -> &[u32] {
        &self.words[..self.layout.rows_at + rows * self.layout.row_words]
    }

    /// Stages tokens.
    ///
    /// # Errors
    /// A closed sequence.
    pub(crate) fn stage(
        &mut self,
        rows: &[BatchRow],
        splits: usize,
        kv: &KvPages,
        rope: &RopeTable,
    ) -> Result<(), MachineError> {
        let StepLayout { pages_a_sequence, rows_at, row_words, .. } = self.layout;
        self.words[..2].copy_from_slice(&[rows.len() as u32, splits as u32]);
        self.sequences.clear();
        for (n, row) in rows.iter().enumerate() {
            // A batch names a sequence once: its rows are consecutive.
            if self.sequences.last() != Some(&row.seq) {
                let pages = kv.pages(row.seq)?;
                let at = StepLayout::HEAD + self.sequences.len() * pages_a_sequence;
                self.words[at..at + pages.len()].copy_from_slice(pages);
                self.sequences.push(row.seq);
            }
            let pages_at = StepLayout::HEAD + (self.sequences.len() - 1) * pages_a_sequence;
            let (head, angles) =
                self.words[rows_at + n * row_words..][..row_words].split_at_mut(StepLayout::ROW_HEAD);
            head[..3].copy_from_slice(&[row.token, row.position as u32, pages_at as u32]);
            let (cos, sin) = bytemuck::cast_slice_mut(angles).split_at_mut(rope.pairs());
            rope.fill(row.position, row.rope_length, cos, sin);
        }
        Ok(())
    }

    /// Stages attention's tiles, up to `most` consecutive tokens of one sequence each; returns how many.
    pub(crate) fn stage_tiles(&mut self, rows: &[BatchRow], most: usize) -> usize {
        let StepLayout { rows_at, row_words, .. } = self.layout;
        let (mut tiles, mut first) = (0, 0);
        while let Some(row) = rows.get(first) {
            let tokens = rows[first..].iter().take(most).take_while(|other| other.seq == row.seq).count();
            let at = rows_at + tiles * row_words + 4;
            self.words[at..at + 2].copy_from_slice(&[first as u32, tokens as u32]);
            tiles += 1;
            first += tokens;
        }
        tiles
    }

    /// Stages where the token goes that the device chooses: a place of [`crate::plan::Memory::chosen`].
    pub(crate) fn stage_choice(&mut self, place: usize) {
        self.words[3] = place as u32;
    }

    /// The first row's word that names its token.
    pub(crate) fn token_at(&self) -> usize {
        self.layout.rows_at
    }

    /// Stages which tokens' logits are computed.
    pub(crate) fn stage_logits(&mut self, tokens: &[usize]) {
        let StepLayout { rows_at, row_words, .. } = self.layout;
        self.words[2] = tokens.len() as u32;
        for (n, token) in tokens.iter().enumerate() {
            self.words[rows_at + n * row_words + 3] = *token as u32;
        }
    }
}
