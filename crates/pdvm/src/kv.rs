use crate::{Batch, MachineError};

/// Tokens in one page of the KV cache. Attention also splits a context at page boundaries, whatever the number of
/// threads, so that the order of every sum, and so every bit of the result, depends on positions alone.
pub const PAGE_TOKENS: usize = 128;

/// A sequence of a machine: an index that stays valid until the sequence is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SeqId(pub u32);

/// Why the cache cannot take what was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KvError {
    /// The sequence would outgrow the context.
    #[error(
        "the sequence needs {needed} tokens but the context holds {context}: shorten the prompt, ask for fewer \
         tokens, or load the model with a larger context"
    )]
    ContextFull {
        /// Tokens the sequence would have.
        needed: usize,
        /// Tokens it may have.
        context: usize,
    },
    /// All sequences are in use.
    #[error("all {0} sequences are in use: close one, or load the model with more sequences")]
    TooManySequences(usize),
    /// The identifier belongs to no open sequence.
    #[error("sequence {} is not open", .0.0)]
    Closed(SeqId),
}

#[derive(Debug)]
struct Sequence {
    pages: Vec<u32>,
    len: usize,
    reach: usize,
}

/// The book-keeping of a paged KV cache, shared by all machines: which pages belong to which sequence. The storage
/// behind the page numbers is the machine's.
#[derive(Debug)]
pub struct KvPages {
    context: usize,
    free: Vec<u32>,
    total: usize,
    sequences: Vec<Option<Sequence>>,
}

impl KvPages {
    /// Pages for `sequences` sequences of up to `context` tokens each. Allocates only the book-keeping.
    pub fn new(context: usize, sequences: usize) -> Self {
        let total = context.div_ceil(PAGE_TOKENS) * sequences;
        Self {
            context,
            // Popped from the end: pages are handed out in ascending order.
            free: (0..total as u32).rev().collect(),
            total,
            sequences: std::iter::repeat_with(|| None).take(sequences).collect(),
        }
    }

    /// Tokens a sequence may have.
    pub fn context(&self) -> usize {
        self.context
    }

    /// Pages in all: page numbers are below it.
    pub fn total(&self) -> usize {
        self.total
    }

    /// Pages in use.
    pub fn used(&self) -> usize {
        self.total - self.free.len()
    }

    /// Opens an empty sequence.
    ///
    /// # Errors
    /// [`KvError::TooManySequences`].
    pub fn open(&mut self) -> Result<SeqId, KvError> {
        let slot = self.sequences.iter().position(Option::is_none);
        let slot = slot.ok_or(KvError::TooManySequences(self.sequences.len()))?;
        let pages = Vec::with_capacity(self.context.div_ceil(PAGE_TOKENS));
        self.sequences[slot] = Some(Sequence { pages, len: 0, reach: 0 });
        Ok(SeqId(slot as u32))
    }

    /// Closes a sequence and frees its pages.
    pub fn close(&mut self, seq: SeqId) {
        if let Some(sequence) = self.sequences.get_mut(seq.0 as usize).and_then(Option::take) {
            self.free.extend(sequence.pages);
        }
    }

    /// Tokens of a sequence.
    ///
    /// # Errors
    /// [`KvError::Closed`].
    pub fn len(&self, seq: SeqId) -> Result<usize, KvError> {
        Ok(self.sequence(seq)?.len)
    }

    /// The most tokens that the sequence has had since it was last empty, or was said to get ([`KvPages::expect`]).
    ///
    /// LongRoPE's frequencies depend on the length of the whole sequence, and keys already in the cache keep those
    /// they were turned by: hence this mark, which truncating leaves alone.
    ///
    /// # Errors
    /// [`KvError::Closed`].
    pub fn reach(&self, seq: SeqId) -> Result<usize, KvError> {
        Ok(self.sequence(seq)?.reach)
    }

    /// Says that the sequence will get at least `tokens` tokens: to be called before a prompt that is run in chunks,
    /// so that all chunks use the RoPE frequencies of the whole.
    ///
    /// # Errors
    /// [`KvError::Closed`].
    pub fn expect(&mut self, seq: SeqId, tokens: usize) -> Result<(), KvError> {
        let sequence = self.sequence_mut(seq)?;
        sequence.reach = sequence.reach.max(tokens);
        Ok(())
    }

    /// The pages of a sequence: token `t` is in page `pages[t / PAGE_TOKENS]` at `t % PAGE_TOKENS`.
    ///
    /// # Errors
    /// [`KvError::Closed`].
    pub fn pages(&self, seq: SeqId) -> Result<&[u32], KvError> {
        Ok(&self.sequence(seq)?.pages)
    }

    /// Whether `tokens` more tokens fit.
    ///
    /// # Errors
    /// [`KvError::ContextFull`] and [`KvError::Closed`].
    pub fn check(&self, seq: SeqId, tokens: usize) -> Result<(), KvError> {
        let needed = self.len(seq)?.saturating_add(tokens);
        if needed > self.context {
            Err(KvError::ContextFull { needed, context: self.context })
        } else {
            Ok(())
        }
    }

    /// Takes the pages that `tokens` more tokens need; the length does not change until [`KvPages::advance`].
    ///
    /// # Errors
    /// [`KvError::ContextFull`] and [`KvError::Closed`]; nothing has changed then.
    pub fn reserve(&mut self, seq: SeqId, tokens: usize) -> Result<(), KvError> {
        self.check(seq, tokens)?;
        let Some(Some(sequence)) = self.sequences.get_mut(seq.0 as usize) else {
            return Err(KvError::Closed(seq));
        };
        let missing = (sequence.len + tokens).div_ceil(PAGE_TOKENS).saturating_sub(sequence.pages.len());
        // Every sequence has its share of pages, so enough are free here.
        debug_assert!(missing <= self.free.len());
        sequence.pages.extend(self.free.drain(self.free.len() - missing..).rev());
        Ok(())
    }

    /// Counts `tokens` reserved tokens as written.
    ///
    /// # Errors
    /// [`KvError::Closed`].
    pub fn advance(&mut self, seq: SeqId, tokens: usize) -> Result<(), KvError> {
        let sequence = self.sequence_mut(seq)?;
        sequence.len += tokens;
        sequence.reach = sequence.reach.max(sequence.len);
        debug_assert!(sequence.len <= sequence.pages.len() * PAGE_TOKENS, "advance without reserve");
        Ok(())
    }

    /// Counts all tokens of a batch as written.
    ///
    /// # Errors
    /// [`KvError::Closed`].
    pub fn advance_all(&mut self, batch: &Batch<'_>) -> Result<(), KvError> {
        batch.iter().try_for_each(|segment| self.advance(segment.seq, segment.tokens.len()))
    }

    /// Forgets all tokens of a sequence from `len` on.
    ///
    /// # Errors
    /// [`KvError::Closed`].
    pub fn truncate(&mut self, seq: SeqId, len: usize) -> Result<(), KvError> {
        let sequence = self.sequences.get_mut(seq.0 as usize).and_then(Option::as_mut);
        let sequence = sequence.ok_or(KvError::Closed(seq))?;
        sequence.len = sequence.len.min(len);
        if sequence.len == 0 {
            sequence.reach = 0;
        }
        self.free.extend(sequence.pages.drain(sequence.len.div_ceil(PAGE_TOKENS)..).rev());
        Ok(())
    }

    fn sequence_mut(&mut self, seq: SeqId) -> Result<&mut Sequence, KvError> {
        self.sequences.get_mut(seq.0 as usize).and_then(Option::as_mut).ok_or(KvError::Closed(seq))
    }

    fn sequence(&self, seq: SeqId) -> Result<&Sequence, KvError> {
        self.sequences.get(seq.0 as usize).and_then(Option::as_ref).ok_or(KvError::Closed(seq))
    }
}

impl From<KvError> for MachineError {
    fn from(error: KvError) -> Self {
        MachineError::Kv(error)
    }
}
