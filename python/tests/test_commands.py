"""The command line, and the functions that are commands."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest
import upg

Command = Callable[..., "CompletedProcess[str]"]


def test_the_command_line_is_upg(command: Command) -> None:
    version = command("--version")
    assert (version.returncode, version.stdout) == (0, f"upg {upg.__version__}\n")
    wrong = command("frobnicate")
    assert wrong.returncode == 2
    assert wrong.stdout == ""
    assert "unrecognized subcommand" in wrong.stderr
    missing = command("inspect", "no-such-file.upg")
    assert missing.returncode == 1
    assert "there is no such file" in missing.stderr


def test_the_script_is_installed() -> None:
    from importlib.metadata import entry_points

    (script,) = entry_points(group="console_scripts", name="upg")
    assert script.value == "upg.__main__:main"


def test_inspect_is_the_commands(tiny_path: Path, command: Command) -> None:
    printed = json.loads(command("inspect", tiny_path, "--json", "--verify").stdout)
    assert upg.inspect(tiny_path, verify=True) == printed
    assert printed["verified"] is True
    assert upg.inspect(tiny_path)["verified"] is False


def test_a_checkpoint_can_be_inspected(tiny_checkpoint: Path) -> None:
    assert upg.inspect(tiny_checkpoint)["parameters"] == upg.inspect(tiny_checkpoint)["fp32_bytes"] // 4


def test_compressing_tells_its_progress_and_its_result(tiny_checkpoint: Path, tmp_path: Path) -> None:
    told: list[tuple[str, float]] = []
    out = tmp_path / "out.upg"

    def progress(what: str, done: float) -> None:
        told.append((what, done))

    report = upg.compress(tiny_checkpoint, out, bits=9, calibrate=None, progress=progress)
    assert report["file_bytes"] == out.stat().st_size
    assert report["bits_per_weight"] <= 9
    assert told[-1] == ("Compressing", 1.0)
    assert [done for _, done in told] == sorted(done for _, done in told)


def test_compressing_is_the_commands(tiny_checkpoint: Path, tmp_path: Path, command: Command) -> None:
    mine, theirs = tmp_path / "mine.upg", tmp_path / "theirs.upg"
    upg.compress(tiny_checkpoint, mine, size="0.1MiB", calibrate=None, seed=3, threads=1, progress=False)
    done = command("compress", tiny_checkpoint, "-o", theirs, "--size", "0.1MiB", "--seed", 3, "--calibrate", "none")
    assert done.returncode == 0, done.stderr
    assert mine.read_bytes() == theirs.read_bytes()


def test_an_exception_in_the_progress_stops_the_compression(tiny_checkpoint: Path, tmp_path: Path) -> None:
    def fail(what: str, done: float) -> None:
        raise ZeroDivisionError(what)

    with pytest.raises(ZeroDivisionError, match="Compressing"):
        upg.compress(tiny_checkpoint, tmp_path / "out.upg", bits=9, calibrate=None, progress=fail)


def test_what_exists_is_not_overwritten_by_accident(tiny_checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.upg"
    out.write_text("precious")
    with pytest.raises(upg.OptionError, match="force=True"):
        upg.compress(tiny_checkpoint, out, bits=9, progress=False)
    assert out.read_text() == "precious"
    upg.compress(tiny_checkpoint, out, bits=9, force=True, progress=False)
    assert upg.inspect(out, verify=True)["verified"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ratio": 10, "bits": 3}, "cannot be used with"),
        ({"bits": -1}, "positive"),
        ({"bits": 0.001}, "smallest file"),
        ({"size": "much"}, "much"),
        ({"threads": 0}, "at least 1"),
    ],
)
def test_bad_sizes(
    tiny_checkpoint: Path, tmp_path: Path, options: dict[str, object], message: str
) -> None:
    with pytest.raises(upg.OptionError, match=message):
        upg.compress(tiny_checkpoint, tmp_path / "out.upg", progress=False, **options)  # type: ignore[arg-type]


def test_bench(tiny_path: Path) -> None:
    report = upg.bench(tiny_path, prompt=8, generate=4, reps=1, threads=1, device="cpu")
    assert report["decode_tok_s"] > 0 and report["prefill_tok_s"] > 0
    assert (report["threads"], report["n_gen"], report["backend"]) == (1, 4, "cpu")
    with pytest.raises(upg.OptionError):
        upg.bench()
    with pytest.raises(upg.OptionError, match="no device"):
        upg.bench(tiny_path, device="gpu9")


def test_devices() -> None:
    assert {"cpu", "reference"} <= {device["name"] for device in upg.devices()}
