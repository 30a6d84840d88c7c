"""GGUF files of the tiny checkpoints, as llama.cpp's converter makes them.

    pip install -r requirements.txt && python models.py && python ggufs.py

Reads models/NAME/config.json and model.safetensors, writes models/NAME/model.gguf with the same weights: what transformers
computed for the one must come out of the other. The rules are those of llama.cpp's convert_hf_to_gguf.py (its classes
LlamaModel, Phi3MiniModel and Qwen2Model) for the keys, the order of the rows of q and k, and RoPE's factors; tensors' names come
from the gguf package itself. Mistral is left out: llama.cpp converts it as llama and forgets its sliding window.
"""

import json
import math
import pathlib

import gguf
import numpy as np
from safetensors import deserialize

FOLDER = pathlib.Path(__file__).parent / "models"

# Checkpoint to GGUF's name of the architecture.
MODELS = {
    "llama3": "llama",
    "llama-linear": "llama",
    "smollm2": "llama",
    "phi-4": "phi3",
    "phi-4-mini": "phi3",
    "phi-3.5-mini": "phi3",
    "qwen2": "qwen2",
    "qwen2-tied": "qwen2",
}


def weights(folder):
    """Tensors in f32, which holds bf16 exactly."""
    for name, tensor in deserialize((folder / "model.safetensors").read_bytes()):
        assert tensor["dtype"] == "BF16", name
        halves = np.frombuffer(bytes(tensor["data"]), dtype="<u2").astype("<u4")
        yield name, (halves << 16).view("<f4").reshape(tensor["shape"])


def permute(matrix, heads):
    """LlamaModel.permute: from half-split to interleaved RoPE."""
    rows = matrix.shape[0]
    return matrix.reshape(heads, 2, rows // heads // 2, *matrix.shape[1:]).swapaxes(1, 2).reshape(matrix.shape)


def llama3_factors(config, head_dim):
    """LlamaModel.generate_extra_tensors: one divisor a frequency."""
    scaling = config["rope_scaling"]
    low, high, factor = (scaling[key] for key in ("low_freq_factor", "high_freq_factor", "factor"))
    original = scaling["original_max_position_embeddings"]
    for i in range(0, head_dim, 2):
        wavelength = 2 * math.pi * config["rope_theta"] ** (i / head_dim)
        if wavelength < original / high:
            yield 1.0
        elif wavelength > original / low:
            yield factor
        else:
            smooth = (original / wavelength - low) / (high - low)
            yield 1 / ((1 - smooth) / factor + smooth)


def write_keys(writer, config, architecture, head_dim):
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)
    rope = config.get("rope_parameters") or {}
    writer.add_rope_freq_base(rope.get("rope_theta", config.get("rope_theta", 10000.0)))
    if architecture == "llama":
        writer.add_vocab_size(config["vocab_size"])
        writer.add_rope_dimension_count(head_dim)
    if "head_dim" in config:
        writer.add_key_length(head_dim)
        writer.add_value_length(head_dim)
    if architecture == "phi3":
        writer.add_rope_dimension_count(int(config.get("partial_rotary_factor", 1.0) * head_dim))
        writer.add_rope_scaling_orig_ctx_len(config["original_max_position_embeddings"])
        # 0 tells Phi-4 from the models with a window.
        writer.add_sliding_window(config["sliding_window"] or 0)


def write_scaling(writer, config, head_dim):
    scaling = config.get("rope_scaling") or {}
    kind = scaling.get("rope_type", scaling.get("type"))
    if kind == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(scaling["factor"])
    elif kind == "llama3":
        factors = np.array(list(llama3_factors(config, head_dim)), dtype=np.float32)
        writer.add_tensor("rope_freqs.weight", factors)
    elif kind == "longrope":
        original = config["original_max_position_embeddings"]
        stretch = config["max_position_embeddings"] / original
        writer.add_rope_scaling_attn_factors(math.sqrt(1 + math.log(stretch) / math.log(original)))
        for name in ("long", "short"):
            factors = np.array(scaling[f"{name}_factor"], dtype=np.float32)
            writer.add_tensor(f"rope_factors_{name}.weight", factors)


def write_vocabulary(writer, config):
    """A byte-level one that spells ASCII; no text is encoded."""
    letters = [chr(code) for code in range(ord("!"), ord("~") + 1)] + ["\u0120", "\u010a"]
    tokens = ["<pad>", "<s>", "</s>", *letters, "he"]
    kinds = [gguf.TokenType.CONTROL] * 3 + [gguf.TokenType.NORMAL] * (len(letters) + 1)
    holes = config["vocab_size"] - len(tokens)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens + [f"[PAD{i}]" for i in range(holes)])
    writer.add_token_types(kinds + [gguf.TokenType.UNUSED] * holes)
    writer.add_token_merges(["h e"])
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_eos_token_id(config["eos_token_id"])
    writer.add_pad_token_id(config["pad_token_id"])


def make(name, architecture):
    folder = FOLDER / name
    config = json.loads((folder / "config.json").read_text())
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    head_dim = config.get("head_dim", config["hidden_size"] // config["num_attention_heads"])
    writer = gguf.GGUFWriter(folder / "model.gguf", architecture)
    write_keys(writer, config, architecture, head_dim)
    write_vocabulary(writer, config)
    write_scaling(writer, config, head_dim)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[architecture.upper()], config["num_hidden_layers"])
    for stored, tensor in weights(folder):
        permuted = next((count for part, count in heads.items() if f".{part}." in stored), None)
        if architecture == "llama" and permuted:
            tensor = permute(tensor, permuted)
        mapped = names.get_name(stored, try_suffixes=(".weight", ".bias"))
        if tensor.ndim == 1:
            writer.add_tensor(mapped, tensor)
        else:
            bf16 = gguf.GGMLQuantizationType.BF16
            writer.add_tensor(mapped, gguf.quants.quantize(tensor, bf16), raw_dtype=bf16)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    print(name, (folder / "model.gguf").stat().st_size, "bytes")


if __name__ == "__main__":
    for name, architecture in MODELS.items():
        make(name, architecture)
