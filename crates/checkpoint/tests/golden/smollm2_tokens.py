"""Makes `smollm2_tokens.json`: texts and their tokens by a plain byte-pair encoder that knows nothing of `tokenizers`.

    pip install gguf==0.19.0 regex && python smollm2_tokens.py ../../../../models/SmolLM2-135M-Instruct.Q4_1.gguf
"""

import json
import sys
from pathlib import Path

import regex
from gguf import GGUFReader

GPT2 = regex.compile(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")
TEXTS = [
    "",
    "Hello world",
    "The quick brown fox jumps over the lazy dog.",
    "In 2024, 12345 people paid $67.89; that's 100%.",
    "I'm sure they'll say we've won, don't you?",
    "def fib(n):\n    return n if n < 2 else fib(n - 1) + fib(n - 2)\n",
    "   leading,   inner    and trailing   ",
    "tabs\tand\r\nnew\n\n\nlines",
    "Grüße aus Köln: naïve café, €5",
    "日本語のテキストと中文文本",
    "مرحبا بالعالم",
    "emoji 👩‍👩‍👧‍👦 and 🇩🇪 flags",
    "<|im_start|>user\nHi!<|im_end|>\n<|im_start|>assistant\n",
    "x²+y³=½ Ⅷ ٣٤",
]


def byte_letters() -> dict[int, str]:
    """GPT-2's letter for each byte: printable ones stand for themselves, the others follow from 256."""
    keep = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in keep]
    return {byte: chr(byte) for byte in keep} | {byte: chr(256 + i) for i, byte in enumerate(others)}


def main(model: str) -> None:
    fields = GGUFReader(model).fields
    tokens = fields["tokenizer.ggml.tokens"].contents()
    kinds = fields["tokenizer.ggml.token_type"].contents()
    merges = fields["tokenizer.ggml.merges"].contents()
    ids = {token: i for i, token in enumerate(tokens)}
    ranks = {tuple(merge.split(" ")): i for i, merge in enumerate(merges)}
    special = [token for token, kind in zip(tokens, kinds) if kind == 3]
    letters = byte_letters()

    def word(piece: str) -> list[int]:
        parts = [letters[byte] for byte in piece.encode()]
        while True:
            pairs = [(ranks.get(pair, len(ranks)), i) for i, pair in enumerate(zip(parts, parts[1:]))]
            rank, i = min(pairs, default=(len(ranks), 0))
            if rank == len(ranks):
                return [ids[part] for part in parts]
            parts[i : i + 2] = [parts[i] + parts[i + 1]]

    def encode(text: str) -> list[int]:
        found = []
        for part in regex.split("(" + "|".join(map(regex.escape, special)) + ")", text):
            if part in special:
                found.append(ids[part])
                continue
            # Digits are cut off one by one before GPT-2's pattern sees the text.
            for piece in regex.split(r"(\p{N})", part):
                for match in GPT2.finditer(piece):
                    found += word(match[0])
        return found

    cases = [{"text": text, "tokens": encode(text)} for text in TEXTS]
    lines = ",\n".join(json.dumps(case, ensure_ascii=False) for case in cases)
    Path(__file__).with_name("smollm2_tokens.json").write_text(f"[\n{lines}\n]\n")


if __name__ == "__main__":
    main(sys.argv[1])
