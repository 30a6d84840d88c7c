"""Makes the golden files of the dequantisation test: random blocks and what the `gguf` package makes of them.

    pip install gguf==0.19.0 && python dequantize.py
"""

from pathlib import Path

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType as Type
from gguf.quants import dequantize, quantize

FOLDER = Path(__file__).parent / "dequantize"
WEIGHTS = 1024
# Byte offsets of the f16 scales in a block. Random bytes there would make mostly absurd and infinite scales.
SCALES = {
    "Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0],
    "Q2_K": [80, 82], "Q3_K": [108], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208],
}  # fmt: skip


def main() -> None:
    rng = np.random.default_rng(20241212)
    for name in ["F32", "F16", "BF16", *SCALES]:
        kind = Type[name]
        block, size = GGML_QUANT_SIZES[kind]
        if name in SCALES:
            data = rng.integers(0, 256, (WEIGHTS // block, size), dtype=np.uint8)
            for at in SCALES[name]:
                scale = rng.normal(0, 0.05, len(data)).astype("<f2")
                data[:, at : at + 2] = scale.view(np.uint8).reshape(-1, 2)
        else:
            data = quantize(rng.normal(0, 1, WEIGHTS).astype(np.float32), kind)
        (FOLDER / f"{name}.bin").write_bytes(data.tobytes())
        (FOLDER / f"{name}.f32").write_bytes(dequantize(data, kind).astype("<f4").tobytes())


if __name__ == "__main__":
    main()
