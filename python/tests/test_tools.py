"""The parts of the comparison with llama.cpp that need no llama.cpp."""

from __future__ import annotations

import math
from xml.etree import ElementTree

import numpy as np
import scatter
from divergence import Comparison


def test_equal_logits_do_not_diverge() -> None:
    logits = np.random.default_rng(1).normal(size=(20, 50)).astype(np.float32)
    comparison = Comparison()
    comparison.add(logits, logits + 3.0, np.arange(20))
    found = comparison.result()
    assert found.mean < 1e-6 and found.top1 == 1.0
    assert math.isclose(found.perplexity_ratio, 1.0, rel_tol=1e-5)


def test_divergence_of_two_coins() -> None:
    p, q = np.array([0.75, 0.25]), np.array([0.5, 0.5])
    comparison = Comparison()
    for _ in range(2):
        comparison.add(np.log(p)[None].astype(np.float32), np.log(q)[None].astype(np.float32), np.array([1]))
    found = comparison.result()
    assert math.isclose(found.mean, float(np.sum(p * np.log(p / q))), rel_tol=1e-5)
    assert math.isclose(found.perplexity_ratio, 0.25 / 0.5, rel_tol=1e-5)
    assert found.median == found.p999 and found.error < 1e-6


def test_a_plot_is_svg_with_every_point() -> None:
    series = [("one", [("a & b", 1.0, 0.1), ("c", 2.0, 0.01)]), ("two", [("d", 1.5, 0.05)])]
    root = ElementTree.fromstring(scatter.svg("title", "x", "y", series))
    assert len(root.findall("{*}circle")) == 3
    assert "a & b" in [text.text for text in root.findall("{*}text")]
