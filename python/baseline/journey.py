"""From Python to the metal: one table of how fast Phi-4's shapes decode on this machine, each way that there is.

    python python/baseline/journey.py --upg target/release/upg --out docs/journey

writes journey.md, journey.json and journey.svg there. Every row is measured in this run: Python by timing one layer and the
head (the rest is multiplied, and said so), the others by `upg bench --synthetic phi-4` with a few layers and with one: the
difference is the layers', the rest the head's. A row that this machine cannot measure says why and has no numbers.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from chart import svg
from decoder import Decoder
from reader import GROUP, T8, Tensor

LAYERS = 40
# Phi-4's shapes, and the bits that `upg bench --synthetic phi-4` gives them.
CONFIG: dict[str, Any] = {
    "hidden": 5120,
    "layers": 1,
    "heads": 40,
    "kv_heads": 10,
    "head_dim": 128,
    "mlp": 17920,
    "vocab": 100352,
    "norm_eps": 1e-5,
    "rope": {"dim": 128, "theta": 250000.0, "scaling": "none"},
    "tied_embeddings": False,
    "qkv_bias": False,
    "rotation": {"seed": 1},
}


@dataclass
class Row:
    """A way to decode, and what it takes; times in milliseconds."""

    name: str
    how: str
    layer_ms: float | None = None
    head_ms: float | None = None
    absent: str | None = None
    """Why it could not be measured."""
    token_bytes: float | None = None
    """Bytes of weights that a whole token reads."""

    @property
    def token_ms(self) -> float | None:
        """A token of the whole model."""
        if self.layer_ms is None or self.head_ms is None:
            return None
        return LAYERS * self.layer_ms + self.head_ms


@dataclass(frozen=True)
class Way:
    """A row that `upg bench` measures."""

    name: str
    options: tuple[str, ...]
    layers: int
    tokens: int
    environment: tuple[tuple[str, str], ...] = ()


WAYS = [
    Way("Rust, scalar, one thread", ("--device", "cpu", "--threads", "1"), 2, 2, (("UPG_ISA", "scalar"),)),
    Way("Rust, SIMD, one thread", ("--device", "cpu", "--threads", "1"), 9, 8),
    Way("Rust, SIMD, all threads", ("--device", "cpu"), 9, 16),
    Way("GPU, CUDA graph", ("--device", "cuda"), 40, 64, (("UPG_CUDA", "graph"),)),
    Way("GPU, PDVM: one persistent kernel", ("--device", "cuda"), 40, 64, (("UPG_CUDA", "persistent"),)),
]


def python_row(reps: int) -> Row:
    """Times one layer and the head, in NumPy."""
    random = np.random.default_rng(1)

    def tensor(rows: int, cols: int, bits: int) -> Tensor:
        codes = random.integers(0, 256, (rows, cols // GROUP, 4 * bits), np.uint8)
        return T8(bits, np.full(rows, 1 / (40 * cols**0.5), np.float16), codes)

    hidden, mlp = CONFIG["hidden"], CONFIG["mlp"]
    kv = CONFIG["kv_heads"] * CONFIG["head_dim"]
    shapes = {"q": (hidden, hidden), "k": (kv, hidden), "v": (kv, hidden), "o": (hidden, hidden)}
    shapes |= {"gate": (mlp, hidden), "up": (mlp, hidden), "down": (hidden, mlp)}
    weights = {f"layers.0.{name}": tensor(*shape, 3) for name, shape in shapes.items()}
    layer_bytes = sum(t.nbytes for t in weights.values())
    weights["head"] = tensor(CONFIG["vocab"], hidden, 4)
    x = random.standard_normal((1, hidden), np.float32)
    decoder = Decoder(CONFIG, weights.__getitem__)
    layer = 1000 * median([timed(lambda: decoder.layer(0, x)) for _ in range(reps)])
    head = 1000 * median([timed(lambda: decoder.norm_head(x)) for _ in range(reps)])
    how = f"one layer and the head timed (median of {reps}), {LAYERS} layers computed; NumPy {np.__version__}"
    return Row("Python, NumPy", how, layer, head, token_bytes=LAYERS * layer_bytes + weights["head"].nbytes)


def timed(work: Any) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def median(numbers: list[float]) -> float:
    return float(np.median(numbers))


def bench(upg: str, way: Way, layers: int, reps: int) -> dict[str, Any]:
    """One run of the command; raises with its last line where it fails."""
    line = [upg, "bench", "--synthetic", "phi-4", "--layers", str(layers), "-p", "0", "-n", str(way.tokens)]
    line += ["-r", str(reps), "--output", "json", "--quiet", *way.options]
    done = subprocess.run(line, capture_output=True, text=True, env=os.environ | dict(way.environment), check=False)
    if done.returncode != 0:
        raise RuntimeError(done.stderr.strip().splitlines()[-1].removeprefix("error: "))
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def bench_row(upg: str, way: Way, reps: int) -> tuple[Row, float | None]:
    """A row, and the memory's speed in GB/s as that device measures it."""
    row = Row(way.name, " ".join([*(f"{k}={v}" for k, v in way.environment), *way.options]))
    try:
        one, many = (bench(upg, way, layers, reps) for layers in (1, way.layers))
    except RuntimeError as error:
        row.absent = str(error)
        return row, None
    token_ms = [1000 / report["decode_tok_s"] for report in (one, many)]
    row.layer_ms = (token_ms[1] - token_ms[0]) / (way.layers - 1)
    row.head_ms = token_ms[0] - row.layer_ms
    layer_bytes = (many["token_bytes"] - one["token_bytes"]) / (way.layers - 1)
    row.token_bytes = one["token_bytes"] + (LAYERS - 1) * layer_bytes
    row.how += f" ({many['detail']}; {way.layers} layers and one timed, median of {reps}, {LAYERS} computed)"
    if way.layers == LAYERS:
        row.how = row.how.replace(f", {LAYERS} computed", "")
    return row, many["read_gb_s"]


def table(rows: list[Row], read: dict[str, float | None]) -> tuple[str, list[dict[str, Any]]]:
    """The rows as Markdown and as what JSON gets."""
    python = rows[0].token_ms
    assert python is not None
    lines = ["| | ms a layer | tok/s | times Python | % of the memory limit |", "|---|--:|--:|--:|--:|"]
    told = []
    for row in rows:
        token, limit = row.token_ms, read.get(row.name)
        if token is None or row.layer_ms is None or row.token_bytes is None:
            lines.append(f"| {row.name} | absent | - | - | - |")
            told.append(asdict(row))
            continue
        speedup = python / token
        percent = 100 * row.token_bytes / (token / 1000) / (limit * 1e9) if limit else None
        numbers = {"tok_s": 1000 / token, "speedup": speedup, "percent_of_memory_limit": percent, "read_gb_s": limit}
        told.append(asdict(row) | numbers)
        cells = [digits(row.layer_ms), digits(1000 / token), digits(speedup), digits(percent) if percent else "-"]
        lines.append(f"| {row.name} | " + " | ".join(cells) + " |")
    notes = [f"- {row.name}: {'absent: ' + row.absent if row.absent else row.how}" for row in rows]
    return "\n".join([*lines, "", *notes]), told


def digits(number: float) -> str:
    """Three digits that count, or more before the point."""
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def machine() -> str:
    """The processor, for people."""
    model = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        names = [line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")]
        model = names[0] if names else model
    return f"{model}, {len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()} cores"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--upg", default="target/release/upg", help="the upg command (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("docs/journey"), help="the folder (default: %(default)s)")
    parser.add_argument("--reps", type=int, default=3, help="times that each is timed (default: %(default)s)")
    parser.add_argument("--only-python", action="store_true", help="time Python alone, and print that as JSON")
    args = parser.parse_args()
    if args.only_python:
        print(json.dumps(asdict(python_row(args.reps))))
        return
    if not Path(args.upg).exists():
        parser.error(f"{args.upg} is missing: run `make build`, or name another with --upg")

    print("Python, NumPy …", file=sys.stderr)
    rows = [python_row(args.reps)]
    read: dict[str, float | None] = {}
    for way in WAYS:
        print(f"{way.name} …", file=sys.stderr)
        row, read[row.name] = bench_row(args.upg, way, args.reps)
        rows.append(row)
    # Python and one thread are held to what the whole processor could read.
    cpu = read["Rust, SIMD, all threads"]
    for name in [row.name for row in rows[:4]]:
        read[name] = cpu
    markdown, told = table(rows, read)
    command = f"python/baseline/journey.py --upg {args.upg} --reps {args.reps}"
    title = f"Decoding Phi-4's shapes at 10:1 (synthetic weights) on {machine()}"
    args.out.mkdir(parents=True, exist_ok=True)
    head = f"# From Python to the metal\n\n{title}; printed by `{command}`.\n"
    (args.out / "journey.md").write_text(f"{head}\n{markdown}\n\n![journey](journey.svg)\n")
    (args.out / "journey.json").write_text(
        json.dumps({"title": title, "command": command, "rows": told}, indent=2) + "\n"
    )
    bars = [(row.name, row.layer_ms) for row in rows if row.layer_ms is not None]
    (args.out / "journey.svg").write_text(svg(title, "milliseconds a layer, logarithmic", bars))
    print(f"{title}\n\n{markdown}")


if __name__ == "__main__":
    main()
