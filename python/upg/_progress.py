"""Progress that people see, in terminals and notebooks alike."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Union

Progress = Union[bool, Callable[[str, float], object]]
"""``True``: a line on standard error; a function: gets what is being done and the fraction done, 0 to 1."""

# What takes less than this, in seconds, shows nothing.
_PATIENCE = 0.7


class _Line:
    """One line on standard error that is written over and over."""

    def __init__(self) -> None:
        self._show_at = time.monotonic() + _PATIENCE
        self._shown = ""

    def __call__(self, what: str, done: float) -> None:
        text = f"{what} {done:4.0%}"
        if time.monotonic() < self._show_at or text == self._shown:
            return
        print(f"\r{text}", end="\n" if done >= 1 else "", file=sys.stderr, flush=True)
        self._shown = text


def callback_of(progress: Progress) -> Callable[[str, float], object] | None:
    """The function to call, if any."""
    if callable(progress):
        return progress
    return _Line() if progress else None
