"""How close files of one size are to their checkpoint: llama.cpp's quantised types and ours, on the same tokens.

    python python/tools/compare_llama_cpp.py models/SmolLM2-135M-Instruct.Q4_1.gguf --text wiki.test.raw \\
        --calibrate calibration.txt --upg target/release/upg --files 10to1.upg 8to1.upg --out docs/comparison

writes comparison.md, comparison.json and comparison.svg. It needs NumPy and llama-cpp-python, whose package is source code
that pip compiles (ten minutes or more; LLAMA_CPP_LIB_PATH can name a folder with its libraries built elsewhere):

    pip install numpy llama-cpp-python==0.3.36

One reference for all: llama.cpp on the checkpoint written in 32-bit floats. Each chunk of --ctx tokens stands alone, and what
follows the tokens of its second half is compared. llama.cpp's types get an importance matrix of --calibrate, gathered as its
llama-imatrix does. The .upg files' logits come from `upg eval --logits`; that of the checkpoint itself is compared too, which
shows that both programs mean the same tokens and the same model.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from divergence import Comparison, Divergence, Rows
from llama import Importance, Model, quantise, silence
from scatter import svg

# Without Q4_0, Q4_1, Q5_0 and Q5_1: the demo's checkpoint lies on the grid of Q4_1, which would be exact.
TYPES = (
    "IQ2_XXS IQ2_XS IQ2_S IQ2_M Q2_K IQ3_XXS IQ3_XS IQ3_S IQ3_M Q3_K_S Q3_K_M IQ4_XS Q4_K_S Q4_K_M Q5_K_S Q5_K_M"
).split()
SAME_MODEL = 0.01
"""The mean KL by which two programs may differ on one checkpoint."""


@dataclass(frozen=True)
class Row:
    """One file."""

    name: str
    ours: bool
    size: int
    """Bytes."""
    bits: float
    """Bits a parameter."""
    divergence: Divergence


@dataclass(frozen=True)
class Text:
    """What all files are compared on."""

    chunks: list[list[int]]
    ctx: int
    path: Path

    def scored(self) -> range:
        """The tokens of a chunk after which logits are compared; the last one's have no target."""
        return range(self.ctx // 2, self.ctx - 1)

    def targets(self, chunk: list[int]) -> np.typing.NDArray[np.int64]:
        """The tokens that came after them."""
        return np.array(chunk[self.ctx // 2 + 1 :], dtype=np.int64)

    def compare(self, reference: Rows, rows: Iterator[Rows]) -> Divergence:
        """`reference` has the scored tokens of all chunks, `rows` those of one after the other."""
        comparison, count = Comparison(), len(self.scored())
        for i, (chunk, found) in enumerate(zip(self.chunks, rows, strict=True)):
            comparison.add(reference[i * count : (i + 1) * count], found, self.targets(chunk))
        return comparison.result()


def main() -> None:
    args = arguments()
    silence()
    with tempfile.TemporaryDirectory(dir=args.work) as work:
        rows = Run(args, Path(work)).rows()
    write(rows, args)


class Run:
    """The comparison of one command line, its files in a folder that goes away."""

    def __init__(self, args: argparse.Namespace, work: Path) -> None:
        self.args, self.work = args, work
        self.float_file = work / "f32.gguf"
        quantise(args.checkpoint, self.float_file, "F32", None, args.threads)
        with Model(self.float_file, args.ctx, args.threads) as model:
            text = chunks(model, args.text, args.ctx, args.chunks)
            self.text = Text(text, args.ctx, args.text)
            self.reference = np.concatenate(list(model.logits(text, self.text.scored())))
            self.parameters = model.parameters

    def rows(self) -> list[Row]:
        """A row for each file, ours first."""
        ours = [self.ours(path) for path in self.args.files]
        if ours:
            same = self.upg(self.args.checkpoint)
            note(f"the checkpoint by upg: mean KL {same.mean:.6f}")
            if same.mean > SAME_MODEL:
                raise SystemExit("upg and llama.cpp do not run the same model on the same tokens: nothing to compare")
        importance = self.importance() if self.args.types else None
        return ours + [self.theirs(file_type, importance) for file_type in self.args.types]

    def importance(self) -> Importance | None:
        """Of the calibration text, if there is one."""
        if self.args.calibrate is None:
            return None
        importance = Importance()
        with Model(self.float_file, self.args.ctx, self.args.threads, importance) as model:
            count = -(-self.args.tokens // self.args.ctx)
            for _ in model.logits(chunks(model, self.args.calibrate, self.args.ctx, count), range(1)):
                pass
        return importance

    def theirs(self, file_type: str, importance: Importance | None) -> Row:
        """One of llama.cpp's types."""
        path = self.work / f"{file_type}.gguf"
        quantise(self.float_file, path, file_type, importance, self.args.threads)
        with Model(path, self.args.ctx, self.args.threads) as model:
            rows = model.logits(self.text.chunks, self.text.scored())
            divergence = self.text.compare(self.reference, rows)
        row = self.row(file_type, False, path, divergence)
        path.unlink()
        return row

    def ours(self, path: Path) -> Row:
        """One .upg file."""
        return self.row(path.stem, True, path, self.upg(path))

    def upg(self, path: Path) -> Divergence:
        """What `upg eval` runs."""
        logits = self.work / "logits.npy"
        command = [self.args.upg, "eval", path, "--text", self.args.text, "--ctx", self.args.ctx]
        command += ["--chunks", len(self.text.chunks), "--logits", logits, "--threads", self.args.threads, "--quiet"]
        subprocess.run([str(part) for part in command], check=True, stdout=subprocess.DEVNULL)
        found = np.load(logits, mmap_mode="r")
        if found.shape != self.reference.shape:
            raise SystemExit(f"{path}: logits of {found.shape}, not {self.reference.shape}: is it made of the checkpoint?")
        divergence = self.text.compare(self.reference, iter(np.split(found, len(self.text.chunks))))
        logits.unlink()
        return divergence

    def row(self, name: str, ours: bool, path: Path, divergence: Divergence) -> Row:
        """A file's row; tells of it."""
        size = path.stat().st_size
        note(f"{name}: {size:,} bytes, mean KL {divergence.mean:.4f}")
        return Row(name, ours, size, 8 * size / self.parameters, divergence)


def chunks(model: Model, path: Path, ctx: int, count: int) -> list[list[int]]:
    """The first chunks of a text, each begun as the model wants texts begun."""
    # Tokenizing takes long, and few tokens have more than eight characters.
    # Bytes: line ends must stay what they are.
    tokens = model.tokens(path.read_bytes().decode()[: 8 * ctx * count])
    if len(tokens) < ctx * count:
        raise SystemExit(f"{path} has {len(tokens)} tokens, {ctx * count} are asked for: give a longer text or fewer --chunks")
    cut = [tokens[i * ctx : (i + 1) * ctx] for i in range(count)]
    bos = model.bos()
    return cut if bos is None else [[bos, *chunk[1:]] for chunk in cut]


def table(rows: list[Row]) -> str:
    """Markdown, by size."""
    lines = [
        "| file | bytes | bits a weight | mean KL | median | 99 % | 99.9 % | perplexity ratio | same top token |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for row in sorted(rows, key=lambda row: row.size):
        d, name = row.divergence, f"**upg {row.name}**" if row.ours else row.name
        lines.append(
            f"| {name} | {row.size:,} | {row.bits:.2f} | {d.mean:.4f} ± {d.error:.4f} | {d.median:.4f} | {d.p99:.3f} "
            f"| {d.p999:.3f} | {d.perplexity_ratio:.3f} | {100 * d.top1:.1f} % |"
        )
    return "\n".join([*lines, ""])


def write(rows: list[Row], args: argparse.Namespace) -> None:
    """The three files, and the table on standard output."""
    print(table(rows), end="")
    if args.out is None:
        return
    plotted = [
        (name, [(row.name, row.size / 1e6, row.divergence.mean) for row in rows if row.ours == ours])
        for name, ours in [("llama.cpp, with importance matrix" if args.calibrate else "llama.cpp", False), ("upg", True)]
    ]
    title = f"{args.checkpoint.name}: KL divergence from the checkpoint, {args.text.name}"
    outputs = {
        ".md": table(rows),
        ".json": json.dumps([asdict(row) for row in rows], indent=2) + "\n",
        ".svg": svg(title, "size of the file, MB", "mean KL, nats a token", [s for s in plotted if s[1]]),
    }
    for suffix, content in outputs.items():
        args.out.with_suffix(suffix).write_text(content, encoding="utf-8")


def note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="the model that all files are made of, a GGUF file")
    parser.add_argument("--text", type=Path, required=True, help="the text to compare on, UTF-8")
    parser.add_argument("--calibrate", type=Path, help="the text of the importance matrix (default: no matrix)")
    parser.add_argument("--tokens", type=int, default=16384, help="tokens of it (%(default)s)")
    parser.add_argument("--types", nargs="*", default=TYPES, metavar="TYPE", help="llama.cpp's types (%(default)s)")
    parser.add_argument("--files", nargs="*", default=[], type=Path, metavar="FILE", help=".upg files of the checkpoint")
    parser.add_argument("--upg", type=Path, default=Path("target/release/upg"), help="the upg command (%(default)s)")
    parser.add_argument("--ctx", type=int, default=512, help="tokens a chunk (%(default)s)")
    parser.add_argument("--chunks", type=int, default=16, help="chunks (%(default)s)")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="threads (%(default)s)")
    parser.add_argument("--work", type=Path, help="folder for temporary files, some gigabytes (default: the system's)")
    parser.add_argument("--out", type=Path, metavar="STEM", help="write STEM.md, STEM.json and STEM.svg")
    return parser.parse_args()


if __name__ == "__main__":
    main()
