"""The keywords of generation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

from upg import _upg
from upg._errors import OptionError


class GenerateOptions(TypedDict, total=False):
    """How an answer is generated: the keywords of every method that generates.

    Applied in this order: penalties, temperature, ``top_k``, ``top_p``, ``min_p``. An option out of its range raises
    :class:`upg.OptionError`.
    """

    max_tokens: int | None
    """The most tokens to generate; ``None`` (the default): until the context is full."""
    temperature: float
    """Divides the logits; 0 always takes the likeliest token. 0 to 100, default 0.7."""
    top_k: int
    """Only the ``k`` likeliest tokens; 0 (the default): all."""
    top_p: float
    """Only the likeliest tokens that together have this probability; above 0, up to 1, default 0.95."""
    min_p: float
    """Only tokens at least this probable relative to the likeliest; 0 (the default) to 1."""
    repetition_penalty: float
    """Divides the logits of tokens seen before; 0.01 to 100, default 1: off."""
    presence_penalty: float
    """Taken from the logits of tokens seen before; -2 to 2, default 0."""
    frequency_penalty: float
    """Taken from the logits of a token for each time it was seen; -2 to 2, default 0."""
    penalty_window: int
    """Tokens that the penalties look back on, the prompt's included; up to 8,192, default 64."""
    seed: int | None
    """The same seed gives the same answer; ``None`` (the default): a new one, which the result tells."""
    logprobs: int | None
    """Log-probabilities wanted: ``n``: the chosen token's and those of the ``n`` likeliest; up to 1,000."""
    stop: str | Sequence[str]
    """Texts that end the answer and are not part of it; up to 64 of up to 4,096 bytes."""
    ignore_stop_tokens: bool
    """Goes on past the model's stop tokens (for benchmarks)."""


def options_of(options: GenerateOptions) -> _upg.Options:
    """The keywords, checked."""
    try:
        return _upg.Options(**options)
    except OverflowError as error:
        raise OptionError(f"an option is negative or too large ({error}): give a whole number from 0 up") from None
