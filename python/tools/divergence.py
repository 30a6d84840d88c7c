"""How far one model's logits are from another's."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.float32]
"""Logits, `[tokens, vocabulary]`."""


@dataclass(frozen=True)
class Divergence:
    """KL(reference || model) in nats a token, and what goes with it."""

    mean: float
    error: float
    """Standard error of the mean, tokens taken as independent."""
    median: float
    p99: float
    p999: float
    perplexity_ratio: float
    """The model's perplexity over the reference's."""
    top1: float
    """Fraction of tokens after which both find the same next token likeliest."""


class Comparison:
    """Takes rows of logits piece by piece."""

    def __init__(self) -> None:
        self._kl: list[npt.NDArray[Any]] = []
        self._excess: list[npt.NDArray[Any]] = []
        self._same: list[npt.NDArray[Any]] = []

    def add(self, reference: Rows, model: Rows, targets: npt.NDArray[np.int64]) -> None:
        """`targets` are the tokens that came, one a row."""
        p, q = _log_softmax(reference), _log_softmax(model)
        self._kl.append(np.maximum(np.sum(np.exp(p) * (p - q), axis=1, dtype=np.float64), 0.0))
        rows = np.arange(len(targets))
        self._excess.append(p[rows, targets].astype(np.float64) - q[rows, targets])
        self._same.append(np.argmax(reference, axis=1) == np.argmax(model, axis=1))

    def result(self) -> Divergence:
        """Of all rows so far."""
        kl = np.concatenate(self._kl)
        median, p99, p999 = np.quantile(kl, [0.5, 0.99, 0.999], method="inverted_cdf")
        return Divergence(
            mean=float(kl.mean()),
            error=float(kl.std() / math.sqrt(len(kl))),
            median=float(median),
            p99=float(p99),
            p999=float(p999),
            perplexity_ratio=math.exp(float(np.concatenate(self._excess).mean())),
            top1=float(np.concatenate(self._same).mean()),
        )


def _log_softmax(logits: Rows) -> Rows:
    shifted = logits - logits.max(axis=1, keepdims=True)
    total = np.log(np.sum(np.exp(shifted), axis=1, keepdims=True, dtype=np.float64))
    rows: Rows = shifted - total.astype(np.float32)
    return rows
