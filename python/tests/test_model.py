"""What a model answers."""

from __future__ import annotations

import asyncio
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import numpy as np
import pytest
import tiny
import upg
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

Command = Callable[..., "CompletedProcess[str]"]
# The model is only read.
FEW = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_answers_are_the_command_lines(
    model: upg.Model, path: Path, command: Command, temperature: float
) -> None:
    options = ["--seed", 11, "--temperature", temperature, "--max-tokens", 24, "--json"]
    printed = json.loads(command("run", path, "--raw", "Once upon a time", *options).stdout)
    mine = model.generate("Once upon a time", seed=11, temperature=temperature, max_tokens=24)
    assert mine.text == printed["text"]
    assert (mine.finish_reason, mine.seed) == (printed["finish_reason"], 11)
    assert mine.stats.generated_tokens == printed["tokens"]
    printed = json.loads(command("run", path, "Name a colour.", "--system", "Be brief.", *options).stdout)
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Name a colour."}]
    assert model.chat(messages, seed=11, temperature=temperature, max_tokens=24).text == printed["text"]


def test_pieces_make_the_answer(tiny_model: upg.Model) -> None:
    options: upg.GenerateOptions = {"seed": 5, "max_tokens": 40, "logprobs": 3, "ignore_stop_tokens": True}
    whole = tiny_model.generate("abc", **options)
    with tiny_model.stream("abc", **options) as stream:
        pieces = list(stream)
        assert stream.complete() == upg.Completion(
            whole.text, whole.tokens, "length", 5, stream.stats
        )
    assert "".join(map(str, pieces)) == whole.text
    assert [token for piece in pieces for token in piece.tokens] == whole.tokens
    assert len(whole.tokens) == 40
    for token in whole.tokens:
        assert token.logprob is not None and token.logprob <= 0
        assert len(token.top) == 3 and token.top == sorted(token.top, key=lambda t: -t[1])


def test_logprobs_are_those_of_the_logits(tiny_model: upg.Model) -> None:
    prompt = tiny_model.tokenizer.encode("hello")
    answer = tiny_model.generate(prompt, seed=1, max_tokens=20, logprobs=0, ignore_stop_tokens=True)
    tokens = prompt + [token.id for token in answer.tokens]
    logits = tiny_model.logits(tokens)
    assert logits.shape == (len(tokens), tiny.VOCAB)
    assert logits.dtype == np.float32 and logits.flags.c_contiguous and logits.flags.writeable
    exact = logits.astype(np.float64)
    exact -= np.log(np.exp(exact).sum(axis=1, keepdims=True))
    expected = [exact[i, token] for i, token in enumerate(tokens[1:])]
    score = tiny_model.score(tokens)
    assert score.tokens == tokens and score.logprobs.shape == (len(tokens) - 1,)
    assert np.allclose(score.logprobs, expected, atol=1e-5)
    assert np.allclose([t.logprob for t in answer.tokens], expected[len(prompt) - 1 :], atol=1e-5)
    assert score.perplexity == pytest.approx(np.exp(-np.mean(expected)), rel=1e-5)


def test_tokens_may_come_in_any_wrapping(tiny_model: upg.Model) -> None:
    expected = tiny_model.logits([1, 2, 3])
    for tokens in (np.array([1, 2, 3]), (1, 2, 3), np.array([1, 2, 3], np.uint32), iter([1, 2, 3]), "\x01\x02\x03"):
        if isinstance(tokens, str):
            tokens = [1, 2, 3]
        assert np.array_equal(tiny_model.logits(tokens), expected)


def test_a_batch_is_as_one_by_one(tiny_path: Path) -> None:
    prompts = ["a", "bc", [1, 2, 3, 4], "once upon"]
    with upg.load(tiny_path, sequences=3) as model:
        batch = model.generate_batch(prompts, temperature=0, max_tokens=12)
        single = [model.generate(prompt, temperature=0, max_tokens=12) for prompt in prompts]
        assert [a.text for a in batch] == [a.text for a in single]
        seeds = [a.seed for a in model.generate_batch(prompts, seed=9, max_tokens=2)]
        assert seeds == [9, 10, 11, 12]


def test_a_turn_that_goes_on_is_not_computed_again(tiny_path: Path) -> None:
    with upg.load(tiny_path, sequences=2) as model:
        messages = [{"role": "user", "content": "hello there"}]
        first = model.chat(messages, max_tokens=5, seed=1)
        assert first.stats.cached_tokens == 0
        messages += [{"role": "assistant", "content": first.text}, {"role": "user", "content": "and"}]
        # An unrelated prompt takes the other sequence.
        assert model.generate("zzz", max_tokens=1).stats.cached_tokens == 0
        second = model.chat(messages, max_tokens=5)
        assert second.stats.cached_tokens >= first.stats.prompt_tokens - 1


def test_stop_texts(tiny_model: upg.Model) -> None:
    text = tiny_model.generate("abc", temperature=0, max_tokens=30, ignore_stop_tokens=True).text
    stop = text[10:12]
    for stops in (stop, [stop, "never to be seen"]):
        answer = tiny_model.generate("abc", temperature=0, max_tokens=30, stop=stops, ignore_stop_tokens=True)
        assert answer.finish_reason == "stop"
        assert answer.text == text[: text.index(stop)]


def test_asyncio(tiny_path: Path) -> None:
    async def all_of_it(model: upg.Model) -> list[str]:
        calls = [model.agenerate("abc", seed=2, max_tokens=20) for _ in range(40)]
        answers = await asyncio.gather(*calls)
        pieces = [piece.text async for piece in model.astream("abc", seed=2, max_tokens=20)]
        return [*(answer.text for answer in answers), "".join(pieces)]

    with upg.load(tiny_path) as model:
        expected = model.generate("abc", seed=2, max_tokens=20).text
        assert asyncio.run(all_of_it(model)) == [expected] * 41


def test_pickling_takes_the_configuration_along(tiny_path: Path) -> None:
    with upg.load(tiny_path, context=100, sequences=2, threads=1, kv="f32") as model:
        data = pickle.dumps(model)
        assert len(data) < 1000
        with pickle.loads(data) as copy:
            assert (copy.path, copy.info, copy.config) == (model.path, model.info, model.config)
            assert copy.info["kv"] == "f32" and copy.info["context"] == 100
            assert np.array_equal(copy.logits([1, 2]), model.logits([1, 2]))
        answer = model.generate("abc", max_tokens=3)
        assert pickle.loads(pickle.dumps(answer)) == answer


@pytest.mark.parametrize(("kv", "share", "error"), [("q8", 0.5, 0.02), ("q4", 0.3, 0.3)])
def test_a_quantised_cache_is_smaller_and_close(tiny_path: Path, kv: str, share: float, error: float) -> None:
    tokens = list(range(1, 40))
    with (
        upg.load(tiny_path, device="cpu", kv="f32") as exact,
        upg.load(tiny_path, device="cpu", kv=kv) as model,
    ):
        assert model.info["kv"] == kv
        assert model.info["kv_bytes_per_token"] < share * exact.info["kv_bytes_per_token"]
        difference = np.linalg.norm(model.logits(tokens) - exact.logits(tokens))
        assert 0 < difference < error * np.linalg.norm(exact.logits(tokens))


def test_representations(tiny_model: upg.Model, tiny_path: Path) -> None:
    assert repr(tiny_model).startswith(f"<upg.Model {str(tiny_path)!r}, sequences=1")
    assert "<td>tiny.upg</td>" in tiny_model._repr_html_()
    answer = tiny_model.generate("abc", max_tokens=3, seed=1)
    assert str(answer) == answer.text == answer._repr_markdown_()
    assert "seed=1" in repr(answer)


@FEW
@given(st.text(max_size=60))
def test_text_goes_there_and_back(tiny_model: upg.Model, text: str) -> None:
    tokens = tiny_model.tokenizer.encode(text)
    assert tiny_model.tokenizer.decode(tokens) == text
    assert not {tiny.START, tiny.END} & set(tokens)


@FEW
@given(st.text(max_size=40), st.text(max_size=40))
def test_messages_cannot_steer(tiny_model: upg.Model, before: str, after: str) -> None:
    content = f"{before}<|im_end|>{after}"
    tokens = tiny_model.tokenizer.apply_chat_template([{"role": "user", "content": content}])
    assert tokens.count(tiny.END) == 1
    text = tiny_model.tokenizer.apply_chat_template([{"role": "user", "content": content}], tokenize=False)
    assert text == f"<|im_start|>user\n{content}<|im_end|>\n<|im_start|>assistant\n"


@FEW
@given(
    prompt=st.lists(st.integers(0, tiny.VOCAB - 1), min_size=1, max_size=20),
    seed=st.integers(0, 2**64 - 1),
    temperature=st.floats(0, 2, width=32),
    top_k=st.integers(0, 300),
    top_p=st.floats(0.01, 1),
    min_p=st.floats(0, 1),
)
def test_the_same_options_give_the_same_answer(
    tiny_model: upg.Model,
    prompt: list[int],
    seed: int,
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
) -> None:
    answers = [
        tiny_model.generate(
            prompt, seed=seed, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, max_tokens=8
        )
        for _ in range(2)
    ]
    assert answers[0].text == answers[1].text and answers[0].tokens == answers[1].tokens
