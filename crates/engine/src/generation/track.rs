use super::{FinishReason, GenerationOptions, Model, Piece, Step};
use crate::{EngineError, Sampler, TextStream, sampler::Choice, stop::StopTexts};

/// The state of one answer, apart from the machine: what was said, and whether it has ended.
pub(super) struct Track {
    sampler: Sampler,
    stream: TextStream,
    stops: StopTexts,
    ignore_stop_tokens: bool,
    max_tokens: usize,
    plain_greedy: bool,
    generated: usize,
    piece: Piece,
    finish: Option<FinishReason>,
}

impl Track {
    pub(super) fn new(
        model: Model<'_>,
        prompt: &[u32],
        options: &GenerationOptions,
        vocab: usize,
    ) -> Result<Self, EngineError> {
        options.validate()?;
        let mut sampler = Sampler::new(&options.sampling, vocab)?;
        let seen = prompt.len().saturating_sub(options.sampling.penalty_window);
        prompt[seen..].iter().for_each(|&token| sampler.accept(token));
        let max_tokens = options.max_tokens.unwrap_or(usize::MAX);
        Ok(Self {
            sampler,
            stream: TextStream::after(model.tokenizer, prompt),
            stops: StopTexts::new(&options.stop),
            ignore_stop_tokens: options.ignore_stop_tokens,
            max_tokens,
            plain_greedy: options.sampling.is_plain_greedy(),
            generated: 0,
            piece: Piece::default(),
            finish: (max_tokens == 0).then_some(FinishReason::Length),
        })
    }

    pub(super) fn finish(&self) -> Option<FinishReason> {
        self.finish
    }

    pub(super) fn seed(&self) -> u64 {
        self.sampler.seed()
    }

    /// Tokens generated, a stop token included.
    pub(super) fn generated(&self) -> usize {
        self.generated
    }

    /// Tokens still wanted that the machine may choose by itself.
    pub(super) fn greedy_left(&self) -> usize {
        if self.plain_greedy { self.max_tokens - self.generated } else { 0 }
    }

    /// Chooses a token after `logits` and takes it in. Returns the token to run next, unless the answer has ended;
    /// `room`: the cache has a place for it.
    pub(super) fn advance(
        &mut self,
        model: Model<'_>,
        logits: &[f32],
        room: bool,
    ) -> Result<Option<u32>, EngineError> {
        let choice = self.sampler.sample(logits)?;
        self.take(model, choice, room)
    }

    /// Takes in a token that was chosen. Returns what [`Track::advance`] does.
    pub(super) fn take(
        &mut self,
        model: Model<'_>,
        choice: Choice,
        room: bool,
    ) -> Result<Option<u32>, EngineError> {
        let token = choice.token;
        self.sampler.accept(token);
        self.generated += 1;
        if !self.ignore_stop_tokens && model.stop_tokens.contains(&token) {
            self.end(model, FinishReason::Stop)?;
            return Ok(None);
        }
        self.piece.tokens.push(Step { token, logprob: choice.logprob, top: self.sampler.top().to_vec() });
        let text = self.stream.push(model.tokenizer, token)?;
        if self.stops.push(&text, &mut self.piece.text) {
            self.finish = Some(FinishReason::Stop);
        } else if self.generated >= self.max_tokens || !room {
            self.end(model, FinishReason::Length)?;
        }
        Ok(if self.finish.is_some() { None } else { Some(token) })
    }

    /// Ends the answer: what was held back is part of it after all, unless it completes a stop text.
    pub(super) fn end(&mut self, model: Model<'_>, reason: FinishReason) -> Result<(), EngineError> {
        self.finish = Some(reason);
        let text = self.stream.finish(model.tokenizer)?;
        if self.stops.push(&text, &mut self.piece.text) {
            self.finish = Some(FinishReason::Stop);
        }
        self.stops.finish(&mut self.piece.text);
        Ok(())
    }

    /// What there is to show: text, or the last tokens of an answer that has ended.
    pub(super) fn take_piece(&mut self) -> Option<Piece> {
        let last = self.finish.is_some() && !self.piece.tokens.is_empty();
        if self.piece.text.is_empty() && !last { None } else { Some(std::mem::take(&mut self.piece)) }
    }
}
