from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import tiny
import upg

ROOT = Path(__file__).parents[2]
CHECKPOINT = ROOT / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="session")
def tiny_checkpoint(folder: Path) -> Path:
    return tiny.write(folder / "tiny")


@pytest.fixture(scope="session")
def tiny_path(folder: Path, tiny_checkpoint: Path) -> Path:
    path = folder / "tiny.upg"
    upg.compress(tiny_checkpoint, path, bits=8.9, calibrate=None, progress=False)
    return path


@pytest.fixture
def tiny_model(tiny_path: Path) -> Iterator[upg.Model]:
    with upg.load(tiny_path) as model:
        yield model


@pytest.fixture(scope="session")
def checkpoint() -> Path:
    assert CHECKPOINT.exists(), f"{CHECKPOINT} is missing: run `make fixtures`"
    return CHECKPOINT


@pytest.fixture(scope="session")
def path(folder: Path, checkpoint: Path) -> Path:
    """SmolLM2 at 5 bits a weight: made once."""
    path = folder / "smollm2.upg"
    upg.compress(checkpoint, path, bits=5, calibrate=None, progress=False)
    return path


@pytest.fixture(scope="session")
def model(path: Path) -> Iterator[upg.Model]:
    with upg.load(path) as model:
        yield model


@pytest.fixture(scope="session")
def command() -> Callable[..., subprocess.CompletedProcess[str]]:
    """The command line of the installed package."""

    def run(*args: object) -> subprocess.CompletedProcess[str]:
        line = [sys.executable, "-m", "upg", *map(str, args)]
        return subprocess.run(line, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)

    return run
