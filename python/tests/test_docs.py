"""What is written is so: stub, types, doctests, the guide's examples."""

from __future__ import annotations

import asyncio
import doctest
import re
import subprocess
import sys
from pathlib import Path

import pytest
import upg
from upg import _commands, _model, _stream, _upg

ROOT = Path(__file__).parents[2]
GUIDE = ROOT / "docs" / "python.md"


def run(*args: object) -> None:
    done = subprocess.run([sys.executable, *map(str, args)], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def blocks(page: Path) -> list[str]:
    """The Python examples of a page."""
    return re.findall(r"^```python\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)


def test_the_stub_is_the_binary() -> None:
    run("-m", "mypy.stubtest", "upg._upg", "--mypy-config-file", ROOT / "pyproject.toml")


def test_types(tmp_path: Path) -> None:
    # Each page is one program: its examples share names.
    examples = []
    for page in (GUIDE, ROOT / "README.md"):
        program = tmp_path / f"{page.stem.lower()}_examples.py"
        program.write_text("\n".join(blocks(page)))
        examples.append(program)
    run("-m", "mypy", "--strict", "--config-file", ROOT / "pyproject.toml", *examples)
    run("-m", "mypy", "--strict", "--config-file", ROOT / "pyproject.toml", "-p", "upg")


@pytest.mark.parametrize("module", [upg, _commands, _model, _stream, _upg.Tokenizer])
def test_doctests(
    module: object,
    model: upg.Model,
    path: Path,
    tiny_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    names = {
        "upg": upg,
        "asyncio": asyncio,
        "model": model,
        "tokenizer": model.tokenizer,
        "path": path,
        "checkpoint": tiny_checkpoint,
    }
    finder = doctest.DocTestFinder()
    found = finder.find(module, "upg", extraglobs=names)
    if isinstance(module, type):
        # The finder passes over methods that are native.
        parser = doctest.DocTestParser()
        methods = [(name, getattr(module, name).__doc__) for name in vars(module)]
        found = [parser.get_doctest(doc, names, name, None, 0) for name, doc in methods if doc]
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    report: list[str] = []
    for test in found:
        runner.run(test, out=report.append)
    assert runner.tries > 0
    assert runner.failures == 0, "".join(report)


def test_everything_public_is_documented() -> None:
    for name in upg.__all__:
        thing = getattr(upg, name)
        assert thing.__doc__, name
        if isinstance(thing, type) and not issubclass(thing, Exception):
            for method, value in vars(thing).items():
                if callable(value) and not method.startswith("_"):
                    assert value.__doc__, f"{name}.{method}"


@pytest.mark.parametrize("page", ["docs/python.md", "README.md"])
def test_the_examples_run(
    page: str, path: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In order, in one namespace, beside a model.upg and the checkpoint that the pages speak of."""
    monkeypatch.chdir(tmp_path)
    models = tmp_path / "models"
    models.mkdir()
    (tmp_path / "model.upg").symlink_to(path)
    (models / "smollm2-5bit.upg").symlink_to(path)
    (tmp_path / "model.gguf").symlink_to(checkpoint)
    names: dict[str, object] = {"__name__": "__main__"}
    examples = blocks(ROOT / page)
    assert examples
    for i, example in enumerate(examples):
        exec(compile(example, f"{page}, example {i + 1}", "exec"), names)
