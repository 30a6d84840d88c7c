"""Runs a .upg model in plain NumPy: one function an instruction, as crates/pdvm/src/program.rs defines them.

This is what an ordinary user would write: vectorised, no threads but NumPy's own, weights kept compressed and decoded
each time that they are needed, for decoded ones take ten times the memory. `n` is the number of new tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from reader import Floats, Tensor

# Weights decoded at once: what stays in the cache or nearly so.
BLOCK = 1 << 20

Weights = Callable[[str], Tensor]


class Decoder:
    """A model and one sequence.

    `weights` gives tensors by their names in docs/format.md; `config` is the file's.
    """

    def __init__(self, config: dict[str, Any], weights: Weights) -> None:
        if config["rope"]["scaling"] != "none":
            raise NotImplementedError("RoPE scaling: use a model without, or the machines")
        self.config, self.weights = config, weights
        self.keys: list[Floats] = [self._no_tokens() for _ in range(config["layers"])]  # [tokens, kv_heads, head_dim]
        self.values: list[Floats] = [self._no_tokens() for _ in range(config["layers"])]
        rotation = config.get("rotation")
        self.signs = None if rotation is None else signs(config["hidden"], rotation["seed"])

    def _no_tokens(self) -> Floats:
        return np.zeros((0, self.config["kv_heads"], self.config["head_dim"]), np.float32)

    def logits(self, tokens: Sequence[int]) -> Floats:
        """Continues the sequence; logits after each new token, `[n, vocab]`."""
        x = self.embed(tokens)
        for layer in range(self.config["layers"]):
            x = self.layer(layer, x)
        return self.norm_head(x)

    def embed(self, tokens: Sequence[int]) -> Floats:
        """`x = embed[token]`, `[n, hidden]`."""
        embed = self.weights("embed")
        return np.concatenate([embed.rows(token, token + 1) for token in tokens])

    def layer(self, layer: int, x: Floats) -> Floats:
        """The five instructions of a layer."""
        q = self.norm_qkv_rope(layer, x)
        x = x + self.linear(layer, "o", self.attend(layer, q))
        return x + self.linear(layer, "down", self.norm_gate_up(layer, x))

    def norm_qkv_rope(self, layer: int, x: Floats) -> Floats:
        """Queries, `[n, heads, head_dim]`; keys and values go to the cache."""
        config, n = self.config, len(x)
        normed = self.norm(x)
        q, k, v = (self.linear(layer, name, normed) for name in "qkv")
        if config["qkv_bias"]:
            q, k, v = (y + self.weights(f"layers.{layer}.{name}_bias").rows(0, 1) for name, y in zip("qkv", (q, k, v)))
        start = len(self.keys[layer])
        positions = np.arange(start, start + n)
        q = rope(q.reshape(n, config["heads"], -1), positions, config["rope"])
        k = rope(k.reshape(n, config["kv_heads"], -1), positions, config["rope"])
        self.keys[layer] = np.concatenate([self.keys[layer], k])
        self.values[layer] = np.concatenate([self.values[layer], v.reshape(k.shape)])
        return q

    def attend(self, layer: int, q: Floats) -> Floats:
        """`softmax(q kᵀ / sqrt(head_dim)) v` for each query head over the tokens that it sees, `[n, heads · head_dim]`."""
        n, heads, width = q.shape
        keys, values = self.keys[layer], self.values[layer]
        tokens = len(keys)
        groups = self.config["kv_heads"]
        q = q.reshape(n, groups, heads // groups, width)
        scores = np.einsum("nghd,tgd->nght", q, keys) / np.float32(width**0.5)
        own, seen = np.arange(tokens - n, tokens)[:, None], np.arange(tokens)
        window = self.config.get("sliding_window") or tokens
        visible = (seen <= own) & (seen > own - window)  # [n, tokens]
        scores = np.where(visible[:, None, None, :], scores, -np.inf)
        scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
        scores /= scores.sum(axis=-1, keepdims=True)
        attended: Floats = np.einsum("nght,tgd->nghd", scores, values).reshape(n, heads * width)
        return attended

    def norm_gate_up(self, layer: int, x: Floats) -> Floats:
        """`hadamard(silu(gate n) · (up n))`, `[n, mlp]`."""
        normed = self.norm(x)
        gate, up = self.linear(layer, "gate", normed), self.linear(layer, "up", normed)
        h = gate / (1 + np.exp(-gate)) * up
        return h if self.signs is None else hadamard(h)

    def norm_head(self, x: Floats) -> Floats:
        """Logits, `[n, vocab]`."""
        normed = self.norm(x)
        if not self.config["tied_embeddings"]:
            return product(self.weights("head"), normed)
        # The embedding's rows are rotated, the last norm's gain is not: out of the rotation and in again.
        if self.signs is not None:
            normed = hadamard(normed) * self.signs
        normed = normed * self.weights("final_norm").rows(0, 1)
        if self.signs is not None:
            normed = hadamard(normed * self.signs)
        return product(self.weights("embed"), normed)

    def norm(self, x: Floats) -> Floats:
        """RMSNorm; gains are folded into the matrices."""
        mean_square = np.mean(x * x, axis=-1, keepdims=True, dtype=np.float32)
        normed: Floats = x / np.sqrt(mean_square + np.float32(self.config["norm_eps"]))
        return normed

    def linear(self, layer: int, name: str, x: Floats) -> Floats:
        return product(self.weights(f"layers.{layer}.{name}"), x)


def product(weights: Tensor, x: Floats) -> Floats:
    """`W x` for each of n vectors, `[n, rows]`: decodes and multiplies block by block."""
    rows, cols = weights.shape
    step = max(BLOCK // cols, 1)
    blocks = [x @ weights.rows(first, min(first + step, rows)).T for first in range(0, rows, step)]
    return np.concatenate(blocks, axis=1)


def rope(x: Floats, positions: np.ndarray[Any, Any], config: dict[str, Any]) -> Floats:
    """Turns dimension i with i + dim/2 by an angle of the position; `x` is `[n, heads, head_dim]`."""
    pairs = config["dim"] // 2
    frequencies = (float(config["theta"]) ** (-np.arange(pairs) / pairs)).astype(np.float32)
    angles = positions[:, None].astype(np.float32) * frequencies  # [n, pairs]
    cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]
    a, b, rest = x[..., :pairs], x[..., pairs : 2 * pairs], x[..., 2 * pairs :]
    return np.concatenate([a * cos - b * sin, b * cos + a * sin, rest], axis=-1)


def hadamard(x: Floats) -> Floats:
    """Multiplies each block of the last axis by the orthonormal Hadamard matrix; a block is the largest power of two that
    divides the width."""
    width = x.shape[-1]
    block = width & -width
    half = 1
    y = x.reshape(-1, block)
    while half < block:
        pairs = y.reshape(len(y), -1, 2, half)
        a, b = pairs[:, :, 0], pairs[:, :, 1]
        y = np.stack([a + b, a - b], axis=2).reshape(len(y), block)
        half *= 2
    scaled: Floats = (y / np.float32(block**0.5)).reshape(x.shape)
    return scaled


def signs(width: int, seed: int) -> Floats:
    """The residual rotation's random signs (crates/pdvm/src/rotation.rs): the highest bits of SplitMix64."""
    mask = (1 << 64) - 1
    found = np.empty(width, np.float32)
    for i in range(width):
        seed = (seed + 0x9E3779B97F4A7C15) & mask
        z = seed
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & mask
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB & mask
        z ^= z >> 31
        found[i] = -1 if z >> 63 else 1
    return found
