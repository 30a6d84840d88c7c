"""What the command line does beside running models: each function is the command of that name, as a program wants it."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import Any, Union, cast

from upg import _upg
from upg._errors import OptionError
from upg._progress import Progress, callback_of

Path = Union[str, "os.PathLike[str]"]


def compress(
    source: Path,
    output: Path,
    *,
    ratio: float | None = None,
    bits: float | None = None,
    size: int | str | None = None,
    calibrate: Path | Sequence[Path] | None = (),
    calibration_tokens: int | None = None,
    memory: int | str | None = None,
    plan: Path | None = None,
    seed: int | None = None,
    force: bool = False,
    threads: int | None = None,
    progress: Progress = True,
) -> dict[str, Any]:
    """Compresses a checkpoint to a ``.upg`` file.

    Memory stays bounded, whatever the model's size. Ctrl-C stops; the same call goes on where it stopped.

    Args:
        source: A GGUF file, a Hugging Face folder, or a repository on the hub, ``"hf:owner/name"``, which is fetched bit by bit.
        output: The ``.upg`` file to write.
        ratio: Times smaller than all parameters in 32-bit floats. Without ``bits`` and ``size``: 10.
        bits: Bits a weight, the whole file counted.
        size: Bytes of the file, or a text such as ``"5.5GiB"``.
        calibrate: UTF-8 text files to round by. Without any, the model writes a text itself (a repository on the hub is then
            rounded to the nearest code); ``None``: the nearest code, quickly.
        calibration_tokens: Tokens of those texts, shared out over them; 16,384 unless told otherwise.
        memory: What calibration may take, in bytes or as ``"6GiB"``: less of the text is used where it needs more.
        plan: A JSON file that says how each tensor is stored, as ``upg compress --save-plan`` writes it.
        seed: Seed of the rotation's signs; 0 unless told otherwise.
        force: Overwrites ``output`` where it exists.
        threads: Threads; ``None``: one a core.
        progress: ``True``: a line on standard error; a function: gets what is being done and the fraction done.

    Returns:
        ``file``, ``file_bytes``, ``parameters``, ``ratio``, ``bits_per_weight``, ``seconds``, ``weights`` (rounded in this
        run) and ``peak_rss_bytes``.

    Raises:
        OptionError: Sizes that no file can have, several of them, an ``output`` that exists.
        ModelError: A checkpoint that is damaged, of an unknown kind, or has numbers that are none.

    >>> upg.compress(checkpoint, "small.upg", bits=9, calibrate=None, progress=False)["bits_per_weight"] <= 9
    True
    """
    if not force and os.path.exists(output):
        raise OptionError(f"{os.fspath(output)} exists: pass force=True to overwrite it, or choose another file")
    if calibrate is None:
        calibrate = "none"
    texts = [calibrate] if isinstance(calibrate, (str, os.PathLike)) else list(calibrate)
    args = ["compress", f"--output={os.fspath(output)}", "--json"]
    args += _options(ratio=ratio, bits=bits, size=size, plan=plan, seed=seed, threads=threads, force=force)
    args += [f"--calibrate={os.fspath(text)}" for text in texts]
    args += _options(tokens=calibration_tokens, memory=memory)
    return cast("dict[str, Any]", _call([*args, "--", os.fspath(source)], progress))


def inspect(path: Path, *, verify: bool = False, progress: Progress = False) -> dict[str, Any]:
    """What a model is made of: configuration, sizes, bits per tensor, where it comes from.

    Args:
        path: A ``.upg`` file, a GGUF file or a Hugging Face folder.
        verify: Checks every byte of a ``.upg`` against its checksum.
        progress: As in :func:`compress`.

    Returns:
        What ``upg inspect --json`` prints: among others ``config``, ``parameters``, ``file_bytes``, and, of a ``.upg``,
        ``ratio``, ``bits_per_weight``, ``tensors`` and ``provenance``.

    Raises:
        ModelNotFoundError: There is no such file.
        ModelError: It is damaged, or no model.

    >>> report = upg.inspect(path, verify=True)
    >>> report["verified"], report["config"]["architecture"]
    (True, 'llama')
    """
    args = ["inspect", "--json", *_options(verify=verify), "--", os.fspath(path)]
    return cast("dict[str, Any]", _call(args, progress))


def bench(
    model: Path | None = None,
    *,
    synthetic: str | None = None,
    layers: int | None = None,
    prompt: int | None = None,
    generate: int | None = None,
    depth: int | None = None,
    reps: int | None = None,
    device: str = "auto",
    threads: int | None = None,
    progress: Progress = False,
) -> dict[str, Any]:
    """Measures how fast a model runs, beside how fast the machine could read it.

    Args:
        model: A ``.upg`` file or an uncompressed checkpoint.
        synthetic: Instead of a model: random weights in the shapes of this one, such as ``"phi-4"``.
        layers: Only the first layers of the synthetic model.
        prompt: Tokens of the prompt, 512 unless told otherwise; 0: no such test.
        generate: Tokens to generate, 128 unless told otherwise; 0: no such test.
        depth: Tokens in the context before each test.
        reps: Times that each test is run, 3 unless told otherwise; medians are reported.
        device: As :func:`devices` lists them.
        threads: Threads of the CPU; ``None``: one a core.
        progress: As in :func:`compress`.

    Returns:
        What ``upg bench --output json`` prints: among others ``decode_tok_s``, ``prefill_tok_s`` (tokens a second),
        ``decode_gb_s`` and ``read_gb_s`` (10⁹ bytes a second), ``percent_of_limit``, and where a device counts them
        ``dispatches_per_token`` and ``host_us_per_token``.

    Raises:
        OptionError: Nothing to measure, or options that contradict each other.

    >>> upg.bench(path, prompt=4, generate=4, reps=1)["decode_tok_s"] > 0
    True
    """
    args = ["bench", "--output=json", f"--device={device}"]
    args += _options(synthetic=synthetic, layers=layers, prompt=prompt, gen=generate, depth=depth)
    args += _options(reps=reps, threads=threads)
    if model is not None:
        args += ["--", os.fspath(model)]
    return cast("dict[str, Any]", _call(args, progress))


def devices() -> list[dict[str, str]]:
    """The devices of this computer, each with ``name`` and ``detail``, the one that ``auto`` picks first.

    >>> "cpu" in [device["name"] for device in upg.devices()]
    True
    """
    return cast("list[dict[str, str]]", _call(["devices", "--json"], False))


def _options(**options: Any) -> list[str]:
    """Options of the command line: absent where ``None`` or ``False``."""
    flags = [f"--{name}" for name, value in options.items() if value is True]
    values = [(name, value) for name, value in options.items() if not isinstance(value, bool) and value is not None]
    return flags + [f"--{name}={os.fspath(v) if isinstance(v, os.PathLike) else v}" for name, v in values]


def _call(args: list[str], progress: Progress) -> Any:
    return json.loads(_upg.call(args, callback_of(progress)))
