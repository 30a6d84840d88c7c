"""Reads a .upg file as docs/format.md describes it: enough to run a model, not to trust a file.

The real reader (crates/format) checks everything that the format demands; this one checks what it needs not to misread a
good file, and leaves BLAKE3 checksums to `upg inspect --verify`.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

MAGIC = b"\x8aUPG\r\n\x1a\n"
ALIGN = 64
GROUP = 32

# Part of the format: crates/codec/src/tables.rs. For each K: the values of a state's lower and upper four bits.
TABLES = {
    2: (
        [-16, -64, 2, 34, -49, -18, 7, 48, -6, 25, -55, -21, 53, -5, 14, -39],
        [-16, 16, 56, -34, 27, -29, 19, 19, -59, 8, -26, 60, 13, 51, -14, -3],
    ),
    3: (
        [9, -11, 33, -28, -5, 18, -50, 56, -24, 14, 42, 1, 24, -14, 6, 43],
        [18, 4, -43, -26, 65, -60, 1, 19, 37, -15, -13, -3, -67, -38, -26, 37],
    ),
    4: (
        [16, 22, -9, -3, -41, 58, 5, 29, 32, 43, -61, -15, 10, -30, 2, -22],
        [-23, 16, -37, 23, -29, -14, 56, -45, 32, 7, 9, 0, -7, -15, -57, 41],
    ),
    5: (
        [-14, 12, -47, -59, 27, 7, -52, -9, -40, -21, 21, 53, -34, -26, 32, 2],
        [13, 35, 42, -9, -67, 28, 57, -31, -23, 20, -16, -1, 65, 6, 50, -38],
    ),
    6: (
        [-29, 49, -20, -54, 24, 66, 32, 7, -2, -11, 57, 16, -70, -36, -45, 40],
        [-6, 52, -28, 60, -13, -42, -48, 16, -35, 38, 2, 31, 9, 23, -57, -20],
    ),
    8: (
        [-79, -97, -38, 2, 115, 30, -52, -116, 88, -65, 73, -11, 44, 58, 16, -25],
        [8, 3, 9, 7, 12, 0, 4, 6, -4, 1, 10, -11, -1, 5, 2, 11],
    ),
}

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Plain:
    """A tensor of plain numbers."""

    numbers: Floats  # [rows, cols]

    def rows(self, first: int, last: int) -> Floats:
        return self.numbers[first:last]

    @property
    def shape(self) -> tuple[int, int]:
        rows, cols = self.numbers.shape
        return rows, cols

    @property
    def nbytes(self) -> int:
        return self.numbers.nbytes


@dataclass(frozen=True)
class T8:
    """A tensor in T8: K bits a weight, in groups of 32 weights, a scale for each row."""

    bits: int
    scales: NDArray[np.float16]  # [rows]
    codes: NDArray[np.uint8]  # [rows, groups, 4 K]

    def rows(self, first: int, last: int) -> Floats:
        """Decodes rows to numbers, `[last - first, cols]`."""
        codes = self.codes[first:last]
        # The state of weight i is the eight bits from bit K i of its group's ring on.
        bit = self.bits * np.arange(GROUP)
        byte, shift = bit // 8, (bit % 8).astype(np.uint16)
        ring = codes.shape[2]
        pairs = codes[:, :, byte].astype(np.uint16) | codes[:, :, (byte + 1) % ring].astype(np.uint16) << 8
        states = (pairs >> shift & 255).astype(np.uint8)  # [rows, groups, 32]
        weights = values(self.bits)[states].reshape(len(codes), -1)
        weights *= self.scales[first:last, None].astype(np.float32)
        return weights

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.scales), self.codes.shape[1] * GROUP

    @property
    def nbytes(self) -> int:
        return self.scales.nbytes + self.codes.nbytes


Tensor = Plain | T8


def values(bits: int) -> Floats:
    """The value of each of the 256 states."""
    low, high = (np.array(table, np.float32) for table in TABLES[bits])
    state = np.arange(256)
    return low[state % 16] + high[state // 16]


class UpgFile:
    """An opened file: its configuration, and its tensors by name, mapped."""

    def __init__(self, path: str | Path) -> None:
        self.data = np.memmap(path, np.uint8, "r")
        magic, version, zero, header_length, file_length = struct.unpack("<8sIIQQ", self.data[:32].tobytes())
        if (magic, version, zero, file_length) != (MAGIC, 1, 0, len(self.data)):
            raise ValueError(f"{path} is no .upg file of version 1")
        header: dict[str, Any] = json.loads(self.data[64 : 64 + header_length].tobytes())
        self.config: dict[str, Any] = header["config"]
        self.entries: dict[str, dict[str, Any]] = {entry["name"]: entry for entry in header["tensors"]}

    def tensor(self, name: str) -> Tensor:
        entry = self.entries[name]
        rows, cols = entry["shape"]
        data = self.data[entry["offset"] : entry["offset"] + entry["length"]]
        encoding = entry["encoding"]
        if encoding == "f32":
            return Plain(data.view("<f4").reshape(rows, cols))
        if encoding == "f16":
            return Plain(data.view("<f2").astype(np.float32).reshape(rows, cols))
        bits = int(encoding.removeprefix("t8-"))
        scales_end = -(-2 * rows // ALIGN) * ALIGN
        scales = data[: 2 * rows].view("<f2")
        return T8(bits, scales, data[scales_end:].reshape(rows, cols // GROUP, 4 * bits))
