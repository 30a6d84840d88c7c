"""The NumPy decoder computes what the reference machine computes."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import upg
from decoder import Decoder
from reader import TABLES, UpgFile

TABLES_RS = Path(__file__).parents[2] / "crates" / "codec" / "src" / "tables.rs"


def test_the_tables_are_the_codecs() -> None:
    text = TABLES_RS.read_text()
    found = re.findall(r"const B(\d): Table = Table \{\s+low: (\[.*?\]),\s+high: (\[.*?\]),", text)
    assert {int(k): (eval(low), eval(high)) for k, low, high in found} == TABLES


def compare(path: Path, prompt: list[int], more: list[int]) -> None:
    file = UpgFile(path)
    decoder = Decoder(file.config, file.tensor)
    # A prompt at once, then token by token.
    mine = np.concatenate([decoder.logits(prompt), *(decoder.logits([token]) for token in more)])
    with upg.load(path, device="reference", context=64) as reference:
        expected = reference.logits(prompt + more)
    assert mine.shape == expected.shape and mine.dtype == np.float32
    assert np.abs(mine - expected).max() < 2e-4 * np.abs(expected).max()


@pytest.mark.parametrize("bits", [2.9, 4.5, 7.0, 9.0])
def test_a_tiny_model(tiny_checkpoint: Path, tmp_path: Path, bits: float) -> None:
    path = tmp_path / "tiny.upg"
    upg.compress(tiny_checkpoint, path, bits=bits, calibrate=None, progress=False)
    compare(path, [72, 101, 108, 108, 111], [44, 220, 3])


def test_smollm2(path: Path, model: upg.Model) -> None:
    tokens = model.tokenizer.encode("The capital of France is Paris.")
    compare(path, tokens[:5], tokens[5:])
