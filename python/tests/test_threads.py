"""Threads, cancellation, Ctrl-C, memory."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import upg


@pytest.mark.parametrize("sequences", [1, 3])
def test_threads_share_a_model(tiny_path: Path, sequences: int) -> None:
    with upg.load(tiny_path, sequences=sequences) as model:
        prompts = [f"prompt {i}" for i in range(8)]
        expected = [model.generate(p, seed=3, max_tokens=20).text for p in prompts]
        scores = model.score("something").total

        def work(i: int) -> bool:
            right = model.generate(prompts[i % 8], seed=3, max_tokens=20).text == expected[i % 8]
            return right and model.score("something").total == pytest.approx(scores, abs=1e-4)

        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(work, range(64)))


def test_streams_take_turns(tiny_path: Path) -> None:
    options: upg.GenerateOptions = {"seed": 3, "max_tokens": 30, "ignore_stop_tokens": True}
    with upg.load(tiny_path, sequences=2) as model:
        expected = [model.generate(prompt, **options).text for prompt in ("ab", "cde")]
        streams = [model.stream(prompt, **options) for prompt in ("ab", "cde")]
        while any(stream.finish_reason is None for stream in streams):
            for stream in streams:
                next(stream, None)
        assert [stream.complete().text for stream in streams] == expected


def test_a_stream_may_be_read_by_several_threads(tiny_model: upg.Model) -> None:
    stream = tiny_model.stream("abc", seed=1, max_tokens=60, ignore_stop_tokens=True)
    with ThreadPoolExecutor(4) as pool:
        pieces = [piece for part in pool.map(lambda _: list(stream), range(4)) for piece in part]
    assert sum(len(piece.tokens) for piece in pieces) == 60


def test_the_gil_is_free_while_a_model_computes(tiny_model: upg.Model) -> None:
    ticks = 0
    done = threading.Event()

    def tick() -> None:
        nonlocal ticks
        while not done.is_set():
            ticks += 1
            time.sleep(0.0001)

    thread = threading.Thread(target=tick)
    thread.start()
    # One call into the native module that takes a while.
    tiny_model.logits([1] * 500)
    tiny_model.score([1] * 500)
    done.set()
    thread.join()
    assert ticks > 1


def test_another_thread_can_cancel(tiny_model: upg.Model) -> None:
    stream = tiny_model.stream("abc", ignore_stop_tokens=True)
    next(stream)
    threading.Thread(target=stream.cancel).start()
    answer = stream.complete()
    assert answer.finish_reason in ("cancelled", "length")
    stream = tiny_model.stream("abc", ignore_stop_tokens=True)
    stream.cancel()
    assert (stream.complete().finish_reason, stream.tokens) == ("cancelled", [])


def test_cancelling_a_task_ends_the_answer(model: upg.Model) -> None:
    async def cancelled() -> float:
        task = asyncio.create_task(model.agenerate("Once upon a time", ignore_stop_tokens=True))
        await asyncio.sleep(0.3)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        begin = time.monotonic()
        # It would take a minute to fill the context.
        await model.agenerate("Hello", max_tokens=1)
        return time.monotonic() - begin

    async def broken_off() -> None:
        async for _ in model.astream("Once upon a time", ignore_stop_tokens=True):
            break

    assert asyncio.run(cancelled()) < 10
    asyncio.run(broken_off())
    assert model.generate("Hello", max_tokens=1).finish_reason == "length"


SCRIPT = """
import signal, sys, upg
# Where tests are started in the background, the shell lets them ignore Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)
model = upg.load(sys.argv[1])
print("ready", flush=True)
try:
    {call}
except KeyboardInterrupt:
    # The model goes on working.
    model.generate("Hello", max_tokens=1)
    print("interrupted", flush=True)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
@pytest.mark.parametrize(
    "call",
    [
        "model.generate('Once upon a time', ignore_stop_tokens=True)",
        "[0 for _ in model.stream('Once upon a time', ignore_stop_tokens=True)]",
        "model.generate_batch(['Once upon a time'] * 100, ignore_stop_tokens=True)",
        "[model.logits([1] * 2000) for _ in range(1000)]",
    ],
)
def test_ctrl_c(path: Path, call: str) -> None:
    script = [sys.executable, "-c", SCRIPT.format(call=call), str(path)]
    with subprocess.Popen(script, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        try:
            said, _ = process.communicate(timeout=60)
        finally:
            process.kill()
    assert said == "interrupted\n"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_is_flat_over_a_thousand_generations(tiny_path: Path) -> None:
    def resident() -> int:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * 4096

    with upg.load(tiny_path, sequences=2) as model:

        def some(n: int) -> None:
            for i in range(n):
                model.generate("a b c", max_tokens=4, logprobs=5, seed=i)
                stream = model.stream("a b c", ignore_stop_tokens=True)
                next(stream)
                stream.close()
                model.logits([1, 2, 3])
                model.chat("hello", max_tokens=1)

        some(100)
        before = resident()
        some(1000)
        assert resident() - before < 2 << 20
