"""What generation returns."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

FinishReason = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True)
class Token:
    """A generated token.

    ``logprob`` (natural logarithm, under the model: before temperature and penalties) and ``top``, the likeliest tokens
    as ``(id, logprob)``, best first, are there where ``logprobs=`` asked for them.
    """

    id: int
    logprob: float | None = None
    top: list[tuple[int, float]] = field(default_factory=list)


@dataclass(frozen=True)
class Piece:
    """A piece of a streamed answer: text that never ends inside a character, and the tokens that it took."""

    text: str
    tokens: list[Token]

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Stats:
    """What an answer took. Times are in seconds, rates in tokens a second."""

    prompt_tokens: int
    """Tokens of the prompt."""
    cached_tokens: int
    """Those of them that were still in the cache of an earlier call."""
    generated_tokens: int
    """Tokens generated, a stop token included."""
    prefill_s: float
    """From the start to the prompt's logits."""
    first_token_s: float
    """From the start to the first token."""
    decode_s: float
    """Spent on the tokens after the first."""
    weight_bytes: int
    """Bytes of weights that a token reads."""

    @property
    def prefill_tok_s(self) -> float:
        """Prompt tokens a second, those in the cache not counted."""
        return _rate(self.prompt_tokens - self.cached_tokens, self.prefill_s)

    @property
    def decode_tok_s(self) -> float:
        """Tokens a second after the first."""
        return _rate(max(self.generated_tokens - 1, 0), self.decode_s)

    @property
    def decode_gb_s(self) -> float:
        """Weights read while decoding, in 10⁹ bytes a second."""
        return self.decode_tok_s * self.weight_bytes / 1e9


def _rate(tokens: int, seconds: float) -> float:
    return tokens / seconds if tokens and seconds else 0.0


@dataclass(frozen=True)
class Completion:
    """A whole answer. ``str(completion)`` is its text."""

    text: str
    tokens: list[Token]
    finish_reason: FinishReason
    """``stop``: a stop token or text; ``length``: ``max_tokens`` or the context's end; ``cancelled``."""
    seed: int
    """The seed that repeats it."""
    stats: Stats

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        stats = self.stats
        return (
            f"Completion({self.text!r}, finish_reason={self.finish_reason!r}, seed={self.seed}, "
            f"{stats.generated_tokens} tokens at {stats.decode_tok_s:.1f} tok/s)"
        )

    def _repr_markdown_(self) -> str:
        """Notebooks show the answer as the model formatted it."""
        return self.text


@dataclass(frozen=True, eq=False)
class Score:
    """How likely a model finds a text.

    ``tokens`` are the text's, ``[n]``, bos included where the model wants one; ``logprobs[i]`` is the natural
    log-probability of ``tokens[i + 1]`` given those before it, ``[n - 1]``, float32.
    """

    tokens: list[int]
    logprobs: NDArray[np.float32]

    @property
    def total(self) -> float:
        """Log-probability of the text, in nats."""
        return float(self.logprobs.sum(dtype=np.float64))

    @property
    def perplexity(self) -> float:
        """``exp`` of the mean negative log-probability."""
        return math.exp(-self.total / len(self.logprobs))

    def __repr__(self) -> str:
        return f"Score({len(self.tokens)} tokens, perplexity={self.perplexity:.3f})"


def token_of(raw: Any) -> Token:
    """A token as the native module gives it."""
    return Token(raw[0], raw[1], raw[2])


def piece_of(raw: Any) -> Piece:
    """A piece as the native module gives it."""
    text, tokens = raw
    return Piece(text, [token_of(token) for token in tokens])


def completion_of(raw: Any) -> Completion:
    """An answer as the native module gives it."""
    text, tokens, finish, seed, stats = raw
    return Completion(text, [token_of(token) for token in tokens], finish, seed, Stats(*stats))
