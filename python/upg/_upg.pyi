"""The native part of upg. Use the package `upg` instead."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from os import PathLike
from typing import Any, Literal, final, overload

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Self

__all__ = ["Engine", "Generation", "Options", "Tokenizer", "__version__", "call", "main"]

__version__: str

# id, log-probability, likeliest tokens
_Token = tuple[int, float | None, list[tuple[int, float]]]
# text, tokens
_Piece = tuple[str, list[_Token]]
# prompt, cached and generated tokens; seconds of prefill, to the first token, of decoding; bytes a token reads
_Stats = tuple[int, int, int, float, float, float, int]
# text, tokens, why it ended, seed, stats
_Completion = tuple[str, list[_Token], Literal["stop", "length", "cancelled"], int, _Stats]

def main(args: Sequence[str]) -> int: ...
def call(args: Sequence[str], progress: Callable[[str, float], object] | None = None) -> str: ...
@final
class Options:
    def __new__(
        cls,
        *,
        max_tokens: int | None = None,
        temperature: float = ...,
        top_k: int = ...,
        top_p: float = ...,
        min_p: float = ...,
        repetition_penalty: float = ...,
        presence_penalty: float = ...,
        frequency_penalty: float = ...,
        penalty_window: int = ...,
        seed: int | None = None,
        logprobs: int | None = None,
        stop: str | Sequence[str] = ...,
        ignore_stop_tokens: bool = False,
    ) -> Self: ...

@final
class Engine:
    def __new__(
        cls,
        path: str | PathLike[str],
        *,
        device: str = "auto",
        threads: int | None = None,
        context: int | None = None,
        kv: str | None = None,
        sequences: int = ...,
        max_batch: int = ...,
        progress: Callable[[float], object] | None = None,
    ) -> Self: ...
    @property
    def tokenizer(self) -> Tokenizer: ...
    @property
    def closed(self) -> bool: ...
    def config(self) -> dict[str, Any]: ...
    def info(self) -> dict[str, Any]: ...
    def start(self, tokens: Iterable[int], options: Options, *, stream: bool) -> Generation: ...
    def batch(self, prompts: Sequence[Iterable[int]], options: Options) -> list[_Completion]: ...
    def logits(self, tokens: Iterable[int]) -> NDArray[np.float32]: ...
    def score(self, tokens: Iterable[int]) -> NDArray[np.float32]: ...
    def close(self) -> None: ...

@final
class Generation:
    @property
    def finish_reason(self) -> Literal["stop", "length", "cancelled"] | None: ...
    @property
    def seed(self) -> int: ...
    def __iter__(self) -> Self: ...
    def __next__(self) -> _Piece: ...
    def stats(self) -> _Stats: ...
    def cancel(self) -> None: ...
    def close(self) -> None: ...

@final
class Tokenizer:
    @property
    def bos(self) -> int | None: ...
    @property
    def eos(self) -> int | None: ...
    @property
    def stop_tokens(self) -> list[int]: ...
    @property
    def chat_template(self) -> str | None: ...
    def encode(self, text: str, *, allow_special: bool = False, add_bos: bool = False) -> list[int]: ...
    def decode(self, tokens: Iterable[int], *, skip_special: bool = True) -> str: ...
    def prompt(self, text: str) -> list[int]: ...
    @overload
    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        tokenize: Literal[True] = True,
        **variables: Any,
    ) -> list[int]: ...
    @overload
    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        tokenize: Literal[False],
        **variables: Any,
    ) -> str: ...
    def token_to_text(self, token: int) -> str | None: ...
    def text_to_token(self, text: str) -> int | None: ...
