"""What is refused, and as what."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import upg


def test_every_error_is_one_of_ours() -> None:
    for name in upg.__all__:
        error = getattr(upg, name)
        if isinstance(error, type) and issubclass(error, Exception):
            assert issubclass(error, upg.UpgError)
    assert issubclass(upg.OptionError, ValueError)
    assert issubclass(upg.ModelNotFoundError, FileNotFoundError)


def test_files_that_are_no_models(tmp_path: Path, tiny_path: Path) -> None:
    with pytest.raises(upg.ModelNotFoundError, match="check the path"):
        upg.load(tmp_path / "absent.upg")
    with pytest.raises(upg.ModelNotFoundError):
        upg.inspect(tmp_path / "absent.upg")
    empty = tmp_path / "empty.upg"
    empty.touch()
    with pytest.raises(upg.ModelError):
        upg.load(empty)
    with pytest.raises(upg.ModelError):
        upg.load(tmp_path)
    data = bytearray(tiny_path.read_bytes())
    data[-100] ^= 1
    damaged = tmp_path / "damaged.upg"
    damaged.write_bytes(data)
    with pytest.raises(upg.ModelError, match="checksum"):
        upg.inspect(damaged, verify=True)
    with pytest.raises(upg.ModelError):
        upg.compress(empty, tmp_path / "out.upg", progress=False)


@pytest.mark.parametrize(
    "options",
    [
        {"device": "gpu9"},
        {"kv": "f8"},
        {"context": 0},
        {"context": 1 << 30},
        {"sequences": 0},
        {"max_batch": 1 << 20},
        {"threads": -1},
        {"context": 1 << 80},
    ],
)
def test_load_options(tiny_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(upg.OptionError):
        upg.load(tiny_path, **options)


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": -1},
        {"temperature": float("nan")},
        {"top_p": 0},
        {"top_p": 2},
        {"min_p": -0.5},
        {"top_k": -1},
        {"max_tokens": -1},
        {"seed": 1 << 64},
        {"logprobs": 5000},
        {"stop": [""]},
        {"stop": ["x"] * 100},
        {"repetition_penalty": 0},
    ],
)
def test_generation_options(tiny_model: upg.Model, options: dict[str, Any]) -> None:
    for call in (tiny_model.generate, tiny_model.stream, tiny_model.chat):
        with pytest.raises(upg.OptionError):
            call("abc", **options)
    with pytest.raises(upg.OptionError):
        tiny_model.generate_batch(["abc"], **options)


def test_wrong_types(tiny_model: upg.Model) -> None:
    wrong: Any = [{"temprature": 1}, {"temperature": "hot"}, {"stop": 5}, {"max_tokens": 1.5}]
    for options in wrong:
        with pytest.raises(TypeError):
            tiny_model.generate("abc", **options)
    tokens: Any = [None, 5, [1.5], ["a"], b"abc", [None]]
    for prompt in tokens:
        with pytest.raises(TypeError):
            tiny_model.generate(prompt)


def test_prompts(tiny_model: upg.Model) -> None:
    for prompt in ("", [], "x" * 5000, [-1], [1 << 40], [288]):
        with pytest.raises(upg.PromptError):
            tiny_model.generate(prompt, max_tokens=1)
        with pytest.raises(upg.PromptError):
            tiny_model.logits(prompt)
        with pytest.raises(upg.PromptError):
            tiny_model.score(prompt)
        with pytest.raises(upg.PromptError):
            tiny_model.generate_batch([prompt], max_tokens=1)
    messages: Any
    for messages in ([{"role": "user"}, 5], {"role": "user"}, [{"content": "no role"}]):
        with pytest.raises(upg.PromptError):
            tiny_model.chat(messages)
    # None of it has cost a sequence.
    assert tiny_model.generate("abc", max_tokens=1).finish_reason == "length"


def test_a_closed_model(tiny_path: Path) -> None:
    with upg.load(tiny_path) as model:
        stream = model.stream("abc", ignore_stop_tokens=True)
        next(stream)
    assert model.closed
    model.close()
    with pytest.raises(upg.ClosedError):
        next(stream)
    for call in (model.generate, model.logits, model.score):
        with pytest.raises(upg.ClosedError):
            call("abc")
    # Text needs no machine.
    assert model.tokenizer.encode("a") == [97]


def test_open_streams_use_up_the_sequences(tiny_path: Path) -> None:
    with upg.load(tiny_path, sequences=2) as model:
        first = model.stream("abc", ignore_stop_tokens=True)
        assert model.generate("abc", max_tokens=2).finish_reason == "length"
        second = model.stream("abc", ignore_stop_tokens=True)
        for call in (model.generate, model.stream, model.logits):
            with pytest.raises(upg.BusyError, match="more sequences"):
                call("abc")
        first.close()
        assert list(first) == []
        model.generate("abc", max_tokens=2)
        third = model.stream("abc", ignore_stop_tokens=True)
        # Forgotten, not closed.
        del second
        model.generate("abc", max_tokens=2)
        third.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_fork_is_told_to_load_anew(tiny_model: upg.Model) -> None:
    child = os.fork()
    if child == 0:
        try:
            tiny_model.generate("abc", max_tokens=1)
        except RuntimeError as error:
            os._exit(7 if "fork" in str(error) else 1)
        os._exit(2)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 7
