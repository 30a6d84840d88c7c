"""A model on a device."""

from __future__ import annotations

import asyncio
import html
import os
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Union

import numpy as np
from numpy.typing import NDArray

from upg import _upg
from upg._errors import OptionError
from upg._options import GenerateOptions, options_of
from upg._progress import Progress, callback_of
from upg._results import Completion, Piece, Score, completion_of
from upg._stream import Stream

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

Prompt = Union[str, Iterable[int]]
"""A text, which is encoded as plain text after bos where the model wants one; or tokens, which are taken as they are."""

Messages = Union[str, Sequence[Mapping[str, Any]]]
"""Dictionaries with ``role`` and ``content``; or a text: one question of the user."""


class Model:
    """A model on a device. :func:`upg.load` makes one.

    **Threads.** Every method may be called from any thread, and none holds the GIL while it computes. A model computes
    one thing at a time; calls wait for each other, and streams take turns token by token. It has ``sequences`` places for
    answers under way: a *call* (``generate``, ``chat``, ``score``, …) waits for one, a *stream* holds one until it is read to
    its end or closed. Where streams hold all of them, :class:`upg.BusyError` is raised instead of waiting for ever.

    **Ctrl-C** ends whatever is computed, at the next token or the next ``max_batch`` tokens of a prompt.

    **Pickling** takes the path and the options along, not the weights: the copy loads the file again.

    >>> model = upg.load(path, context=512)
    >>> model.generate("The capital of France is", max_tokens=2, temperature=0).text
    ' Paris.'
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        device: str = "auto",
        threads: int | None = None,
        context: int | None = None,
        kv: str | None = None,
        sequences: int = 1,
        max_batch: int = 512,
        progress: Progress = False,
    ) -> None:
        # What is no file may be a name that means the same everywhere.
        self.path = os.path.abspath(path) if os.path.exists(path) else os.fspath(path)
        """The file or folder."""
        self._options = {
            "device": device,
            "threads": threads,
            "context": context,
            "kv": kv,
            "sequences": sequences,
            "max_batch": max_batch,
        }
        tell = callback_of(progress)
        try:
            self._engine = _upg.Engine(
                path,
                device=device,
                threads=threads,
                context=context,
                kv=kv,
                sequences=sequences,
                max_batch=max_batch,
                progress=tell and (lambda done: tell("Loading", done)),
            )
        except OverflowError as error:
            raise OptionError(f"an option is negative or too large ({error}): give a number from 1 up") from None
        self.tokenizer = self._engine.tokenizer
        """The tokenizer and chat template, a :class:`upg.Tokenizer`."""
        self.config: dict[str, Any] = self._engine.config()
        """The model's configuration: ``hidden``, ``layers``, ``vocab``, …"""
        self.info: dict[str, Any] = self._engine.info()
        """How it runs: ``device``, ``detail``, ``threads``, ``context``, ``sequences``, ``weight_bytes``, …"""

    def generate(self, prompt: Prompt, **options: Unpack[GenerateOptions]) -> Completion:
        """Continues a prompt.

        Args:
            prompt: A text or tokens.
            **options: See :class:`upg.GenerateOptions`.

        Raises:
            PromptError: The prompt is empty or longer than the context.
            OptionError: An option is out of its range.

        >>> answer = model.generate("The capital of France is", max_tokens=2, temperature=0)
        >>> answer.text, answer.finish_reason
        (' Paris.', 'length')
        """
        return self._start(prompt, options, stream=False).complete()

    def stream(self, prompt: Prompt, **options: Unpack[GenerateOptions]) -> Stream:
        """Continues a prompt, piece by piece. Runs the prompt before it returns.

        Args and errors are those of :meth:`generate`; besides:

        Raises:
            BusyError: Open streams use all sequences.

        >>> for piece in model.stream("The capital of France is", max_tokens=2, temperature=0):
        ...     print(repr(piece.text))
        ' Paris'
        '.'
        """
        return self._start(prompt, options, stream=True)

    async def agenerate(self, prompt: Prompt, **options: Unpack[GenerateOptions]) -> Completion:
        """:meth:`generate` for asyncio: computes on a thread; cancelling the task ends the answer.

        >>> asyncio.run(model.agenerate("The capital of France is", max_tokens=2, temperature=0)).text
        ' Paris.'
        """
        call = _Call(self, prompt, options)
        try:
            return await asyncio.to_thread(call.run)
        except asyncio.CancelledError:
            call.cancel()
            raise

    async def astream(self, prompt: Prompt, **options: Unpack[GenerateOptions]) -> AsyncIterator[Piece]:
        """:meth:`stream` for asyncio.

        >>> async def text():
        ...     pieces = model.astream("The capital of France is", max_tokens=2, temperature=0)
        ...     return "".join([piece.text async for piece in pieces])
        >>> asyncio.run(text())
        ' Paris.'
        """
        stream = await asyncio.to_thread(self._start, prompt, options, stream=True)
        try:
            while (piece := await asyncio.to_thread(next, stream, None)) is not None:
                yield piece
        finally:
            # A step may be under way on a thread that nobody waits for any more.
            stream.cancel()
            await asyncio.shield(asyncio.to_thread(stream.close))

    def chat(
        self,
        messages: Messages,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **options: Unpack[GenerateOptions],
    ) -> Completion:
        """Answers a conversation, through the model's chat template.

        What the cache still holds of an earlier turn is not computed again.

        Args:
            messages: A question, or dictionaries with ``role`` and ``content``.
            tools: JSON schemas of what the model may call.
            **options: See :class:`upg.GenerateOptions`.

        Raises:
            PromptError: The template refuses the messages, or the model has none; they are longer than the context.

        >>> "Paris" in model.chat("What is the capital of France?", temperature=0, max_tokens=20).text
        True
        """
        return self._start(self._render(messages, tools), options, stream=False).complete()

    def chat_stream(
        self,
        messages: Messages,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **options: Unpack[GenerateOptions],
    ) -> Stream:
        """:meth:`chat`, piece by piece.

        >>> len([piece for piece in model.chat_stream("Hello!", temperature=0, max_tokens=3)])
        3
        """
        return self._start(self._render(messages, tools), options, stream=True)

    def generate_batch(
        self, prompts: Sequence[Prompt], **options: Unpack[GenerateOptions]
    ) -> list[Completion]:
        """Continues several prompts in lock-step, as many at once as there are free ``sequences``.

        Answers come in the order of the prompts. A ``seed`` is the first prompt's; the others get the numbers after it.

        >>> answers = model.generate_batch(["One, two,", "Monday, Tuesday,"], max_tokens=2, temperature=0)
        >>> [answer.text for answer in answers]
        [' three,', ' Wednesday,']
        """
        checked = options_of(options)
        return [completion_of(raw) for raw in self._engine.batch([self._tokens(p) for p in prompts], checked)]

    def logits(self, tokens: Prompt) -> NDArray[np.float32]:
        """Logits after each token, ``[tokens, vocab]``, float32.

        The array is the buffer that the machine wrote to; nothing is copied. It takes ``4 * tokens * vocab`` bytes.

        Raises:
            PromptError: No tokens, more than the context holds, or one that the vocabulary does not have.
            MemoryError: No room for the array.

        >>> logits = model.logits("The capital of France is")
        >>> logits.shape == (5, model.config["vocab"]), model.tokenizer.decode([logits[-1].argmax()])
        (True, ' Paris')
        """
        return self._engine.logits(self._tokens(tokens))

    def score(self, text: Prompt) -> Score:
        """How likely the model finds a text: the log-probability of each token given those before it, and perplexity.

        Raises:
            PromptError: Fewer than two tokens, or more than the context holds.

        >>> likely, odd = (model.score(f"The capital of France is {city}.") for city in ("Paris", "spoon"))
        >>> likely.perplexity < odd.perplexity
        True
        """
        tokens = self._tokens(text)
        return Score(tokens, self._engine.score(tokens))

    def close(self) -> None:
        """Frees the model's memory, once the token under way is done. Streams and calls raise :class:`upg.ClosedError` then."""
        self._engine.close()

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
        return self._engine.closed

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return _load, (self.path, self._options)

    def __repr__(self) -> str:
        told = {name: value for name, value in self._options.items() if value not in (None, "auto")}
        options = "".join(f", {name}={value!r}" for name, value in told.items())
        return f"<upg.Model {self.path!r}{options}, on {self.info['device']}{', closed' if self.closed else ''}>"

    def _repr_html_(self) -> str:
        """Notebooks show a table."""
        config, info = self.config, self.info
        rows = {
            "model": os.path.basename(self.path),
            "architecture": f"{config['architecture']}, {info['parameters']:,} parameters, {config['layers']} layers",
            "weights": f"{info['weight_bytes'] / 2**20:,.1f} MiB read a token",
            "device": f"{info['device']}: {info['detail']}",
            "context": f"{info['context']:,} of {config['context']:,} tokens, {info['sequences']} sequences",
        }
        cells = "".join(f"<tr><th>{name}</th><td>{html.escape(text)}</td></tr>" for name, text in rows.items())
        return f"<table>{cells}</table>"

    def _tokens(self, prompt: Prompt) -> list[int]:
        if isinstance(prompt, bytes):
            raise TypeError("a prompt is a text or tokens, not bytes: decode them first")
        return self.tokenizer.prompt(prompt) if isinstance(prompt, str) else list(prompt)

    def _render(self, messages: Messages, tools: Sequence[Mapping[str, Any]] | None) -> list[int]:
        if isinstance(messages, str):
            messages = [{"role": "user", "content": messages}]
        return self.tokenizer.apply_chat_template(messages, tools=tools)

    def _start(self, prompt: Prompt, options: GenerateOptions, *, stream: bool) -> Stream:
        checked = options_of(options)
        return Stream(self._engine.start(self._tokens(prompt), checked, stream=stream))


class _Call:
    """A call on another thread that can be cancelled."""

    def __init__(self, model: Model, prompt: Prompt, options: GenerateOptions) -> None:
        self._model, self._prompt, self._options = model, prompt, options
        self._stream: Stream | None = None
        self._cancelled = False

    def run(self) -> Completion:
        self._stream = self._model._start(self._prompt, self._options, stream=False)
        # Either this thread sees the wish, or the one that has it sees the stream.
        if self._cancelled:
            self._stream.cancel()
        return self._stream.complete()

    def cancel(self) -> None:
        self._cancelled = True
        if self._stream is not None:
            self._stream.cancel()


def _load(path: str, options: dict[str, Any]) -> Model:
    return Model(path, **options)


def load(
    path: str | os.PathLike[str],
    *,
    device: str = "auto",
    threads: int | None = None,
    context: int | None = None,
    kv: str | None = None,
    sequences: int = 1,
    max_batch: int = 512,
    progress: Progress = False,
) -> Model:
    """Loads a model.

    Args:
        path: A ``.upg`` file, or an uncompressed checkpoint: a GGUF file or a Hugging Face folder.
        device: As :func:`upg.devices` lists them; ``auto``: the first of them.
        threads: Threads of the CPU; ``None``: one a core.
        context: Tokens that prompt and answer may have together; ``None``: 4,096, or what the model allows.
        kv: How keys and values are kept: ``"f16"``, ``"q8"`` (8 bits; on the CPU and with CUDA), ``"q4"`` (4 bits) or
            ``"f32"`` (both on the CPU); ``None``: the device's usual kind.
        sequences: Answers under way at once, each with a context of its own. See :class:`Model`.
        max_batch: Tokens of a prompt in one run of the machine: fewer take less memory and are interrupted sooner.
        progress: ``True``: a line on standard error; a function: gets ``"Loading"`` and the fraction done, 0 to 1.

    Raises:
        ModelNotFoundError: There is no such file.
        ModelError: It is damaged, or no model.
        OptionError: An option makes no sense, or the model cannot have it.
        DeviceError: The device cannot hold the model.

    >>> with upg.load(path, context=256) as small:
    ...     small.info["context"]
    256
    """
    return Model(
        path,
        device=device,
        threads=threads,
        context=context,
        kv=kv,
        sequences=sequences,
        max_batch=max_batch,
        progress=progress,
    )
