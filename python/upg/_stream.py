"""An answer that arrives in pieces."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING

from upg import _upg
from upg._results import Completion, FinishReason, Piece, Stats, Token, piece_of

if TYPE_CHECKING:
    from typing_extensions import Self


class Stream:
    """An iterator over the pieces of an answer, made by :meth:`Model.stream`.

    It holds one of the model's sequences until it is read to its end, closed, or forgotten; ``with`` closes it in any
    case. What was read so far is in :attr:`text` and :attr:`tokens`. Threads may share it: each piece goes to one of them.

    >>> with model.stream("Once upon a time", max_tokens=8, seed=1) as stream:
    ...     for piece in stream:
    ...         pass
    >>> stream.finish_reason, stream.stats.generated_tokens
    ('length', 8)
    """

    def __init__(self, generation: _upg.Generation) -> None:
        self._generation = generation
        self.text = ""
        """The text so far."""
        self.tokens: list[Token] = []
        """The tokens so far."""

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Piece:
        piece = piece_of(next(self._generation))
        self.text += piece.text
        self.tokens += piece.tokens
        return piece

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why the answer ended; ``None`` while it goes on."""
        return self._generation.finish_reason

    @property
    def seed(self) -> int:
        """The seed that repeats the answer."""
        return self._generation.seed

    @property
    def stats(self) -> Stats:
        """What it took so far."""
        return Stats(*self._generation.stats())

    def complete(self) -> Completion:
        """Reads what is left and returns the whole answer.

        >>> model.stream("Once upon a time", max_tokens=8).complete().finish_reason
        'length'
        """
        for _ in self:
            pass
        return Completion(self.text, self.tokens, self.finish_reason or "cancelled", self.seed, self.stats)

    def cancel(self) -> None:
        """Asks the answer to end at the next token, from any thread; its reader gets the rest that is there."""
        self._generation.cancel()

    def close(self) -> None:
        """Ends the answer and gives its sequence back."""
        self._generation.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
