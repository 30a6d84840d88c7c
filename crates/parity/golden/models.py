"""Tiny random checkpoints of every architecture, and transformers' logits for them.

    pip install -r requirements.txt && python models.py

Writes models/NAME/: config.json as it is published (with shrunken sizes), weights in bf16, and logits.safetensors:

    whole.tokens, whole.rows, whole.logits    one forward pass over all tokens; the logits after some of them
    short.…                                   the same of a prompt as long as LongRoPE's original context
    steps.tokens, steps.start, steps.logits   `generate` made to continue the first `start` tokens with the others
    greedy.tokens, greedy.start               `generate` left to itself, without sampling
"""

import functools
import json
import pathlib
import shutil

import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM, LogitsProcessor

FOLDER = pathlib.Path(__file__).parent / "models"
VOCAB = 128
SEEDS = 100

# Everything that the checkpoints share. Heads are 4 to 1.
SIZES = dict(
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=1,
    vocab_size=VOCAB,
    max_position_embeddings=512,
    hidden_act="silu",
    bos_token_id=1,
    eos_token_id=2,
    pad_token_id=0,
)

SHORT = [1.0, 1.05, 1.1, 1.3, 1.55, 2.0]
LONG = [1.1, 1.6, 2.9, 5.3, 11.0, 24.5]
PHI3 = dict(architectures=["Phi3ForCausalLM"], model_type="phi3", rms_norm_eps=1e-5)
# Phi-3.5's head is 16 wide here, all of it turned: two more factors.
LONG_ROPE_FULL = dict(type="longrope", short_factor=[1.0, *SHORT, 2.4], long_factor=[1.0, *LONG, 40.0])

MODELS = {
    "llama3": dict(
        architectures=["LlamaForCausalLM"],
        model_type="llama",
        # q is wider than the residual stream; no size is a power of two.
        **SIZES | dict(hidden_size=96, intermediate_size=160, head_dim=40),
        rms_norm_eps=1e-5,
        rope_theta=500000.0,
        rope_scaling=dict(
            rope_type="llama3",
            factor=8.0,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            original_max_position_embeddings=64,
        ),
        attention_bias=False,
        mlp_bias=False,
        tie_word_embeddings=False,
    ),
    "smollm2": dict(
        architectures=["LlamaForCausalLM"],
        model_type="llama",
        **SIZES | dict(hidden_size=96, num_attention_heads=3),
        rms_norm_eps=1e-5,
        rope_theta=100000,
        rope_scaling=None,
        tie_word_embeddings=True,
    ),
    "llama-linear": dict(
        architectures=["LlamaForCausalLM"],
        model_type="llama",
        **SIZES,
        rms_norm_eps=1e-6,
        rope_scaling=dict(type="linear", factor=4.0),
        tie_word_embeddings=False,
    ),
    "mistral": dict(
        architectures=["MistralForCausalLM"],
        model_type="mistral",
        **SIZES,
        rms_norm_eps=1e-5,
        rope_theta=10000.0,
        sliding_window=24,
        tie_word_embeddings=False,
    ),
    "phi-4": dict(
        **PHI3,
        **SIZES,
        rope_theta=250000,
        rope_scaling=None,
        partial_rotary_factor=1.0,
        original_max_position_embeddings=512,
        sliding_window=None,
        tie_word_embeddings=False,
        attention_bias=False,
    ),
    "phi-4-mini": dict(
        **PHI3,
        **SIZES,
        rope_theta=10000.0,
        rope_scaling=dict(type="longrope", short_factor=SHORT, long_factor=LONG),
        partial_rotary_factor=0.75,
        original_max_position_embeddings=32,
        sliding_window=262144,
        tie_word_embeddings=True,
        attention_bias=False,
    ),
    "phi-3.5-mini": dict(
        **PHI3,
        **SIZES | dict(num_key_value_heads=4),
        rope_theta=10000.0,
        rope_scaling=LONG_ROPE_FULL,
        original_max_position_embeddings=32,
        sliding_window=48,
        tie_word_embeddings=False,
        attention_bias=False,
    ),
    "qwen2": dict(
        architectures=["Qwen2ForCausalLM"],
        model_type="qwen2",
        **SIZES,
        rms_norm_eps=1e-6,
        rope_theta=1000000.0,
        use_sliding_window=False,
        sliding_window=24,
        max_window_layers=2,
        tie_word_embeddings=False,
    ),
    "qwen2-tied": dict(
        architectures=["Qwen2ForCausalLM"],
        model_type="qwen2",
        **SIZES,
        rms_norm_eps=1e-6,
        # As transformers 5 writes it.
        rope_parameters=dict(rope_type="default", rope_theta=1000000.0),
        layer_types=["full_attention"] * 2,
        tie_word_embeddings=True,
    ),
    "longrope-factor": dict(
        **PHI3,
        **SIZES,
        # Said twice: the inner ones count. The stretch is not the ratio of the contexts.
        rope_theta=500.0,
        partial_rotary_factor=0.5,
        rope_parameters=dict(
            rope_type="longrope",
            rope_theta=20000.0,
            partial_rotary_factor=0.75,
            short_factor=SHORT,
            long_factor=LONG,
            factor=3.0,
        ),
        original_max_position_embeddings=32,
        tie_word_embeddings=False,
    ),
}


class Forced(LogitsProcessor):
    """Makes `generate` choose given tokens."""

    def __init__(self, tokens):
        self.tokens = tokens

    def __call__(self, input_ids, scores):
        forced = torch.full_like(scores, -torch.inf)
        forced[:, self.tokens[input_ids.shape[1]]] = 0.0
        return forced


def randomise(model, generator):
    """Weights that make every part count: peaked attention, gains and biases far from 1 and 0."""
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if name.endswith("norm.weight"):
            value = 1.0 + 0.3 * noise
        elif name.endswith("bias"):
            value = 0.5 * noise
        elif "embed_tokens" in name:
            value = noise
        else:
            value = noise * (1.5 if "q_proj" in name or "k_proj" in name or "qkv" in name else 1.0)
            value /= parameter.shape[1] ** 0.5
        parameter.data.copy_(value)


def logits_of(model, generator):
    whole = torch.randint(VOCAB, (1, 150), generator=generator)
    # Both sides of the windows, of LongRoPE's switch and of a page of the KV cache.
    rows = torch.tensor([0, 1, 2, 23, 24, 31, 32, 47, 48, 100, 127, 128, 149])
    short = torch.randint(VOCAB, (1, 32), generator=generator)
    steps, start = torch.randint(VOCAB, (1, 44), generator=generator), 26
    generate = functools.partial(
        model.generate,
        steps[:, :start],
        attention_mask=torch.ones(1, start, dtype=torch.long),
        max_new_tokens=steps.shape[1] - start,
        eos_token_id=None,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
    )
    forced = generate(logits_processor=[Forced(steps[0].tolist())])
    assert forced.sequences.equal(steps)
    greedy = generate()
    best = torch.cat(greedy.logits).topk(2).values
    margin = (best[:, 0] - best[:, 1]).min()
    assert margin > 2e-3, f"{margin}: a rounding error could change the choice: take another seed"
    return {
        "whole.tokens": whole[0],
        "whole.rows": rows,
        "whole.logits": model(whole).logits[0, rows],
        "short.tokens": short[0],
        "short.rows": torch.arange(0, 32, 4),
        "short.logits": model(short).logits[0, ::4],
        "steps.tokens": steps[0],
        "steps.start": torch.tensor([start]),
        "steps.logits": torch.cat(forced.logits),
        "greedy.tokens": greedy.sequences[0],
        "greedy.start": torch.tensor([start]),
    }


def make(name, config, seed):
    folder = FOLDER / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(seed)
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    # No text is encoded, but a checkpoint has a tokenizer.
    (folder / "tokenizer.json").write_text('{"added_tokens": [], "model": {"type": "BPE"}}\n')

    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder), dtype=torch.float32)
    randomise(model, generator)
    weights = {key: value.to(torch.bfloat16).contiguous() for key, value in model.state_dict().items()}
    if config["tie_word_embeddings"]:
        del weights["lm_head.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", local_files_only=True
    ).eval()
    with torch.inference_mode():
        logits = logits_of(model, generator)
    save_file({key: value.clone().contiguous() for key, value in logits.items()}, folder / "logits.safetensors")
    print(name, sum(weight.numel() for weight in weights.values()), "weights")


if __name__ == "__main__":
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)
    for index, (name, config) in enumerate(MODELS.items()):
        make(name, config, seed=SEEDS + index)
