"""Writes `golden/`: small random models of each family as transformers saves them, and the logits torch gives them.

Run `python tests/models/make_golden.py` with torch installed after a change of the cases, and say in the commit why.
Biases and norm scales are randomised, for they start at 0 and 1, which hides swapped or forgotten ones; numbers of
heads, features and tokens are all different, so that a wrong reshape cannot fit.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from transformers import (
    AutoModelForCausalLM,
    CodeGenConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    Olmo2Config,
    OPTConfig,
    Qwen2Config,
    Qwen3Config,
    SmolLM3Config,
)

GOLDEN = Path(__file__).parent / "golden"
GATED = {
    "vocab_size": 61,
    "hidden_size": 24,
    "intermediate_size": 28,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 96,
}
WIDE_HEADS = {**GATED, "head_dim": 8}
GPT2 = {
    "vocab_size": 61,
    "n_embd": 24,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 40,
    "n_inner": 36,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
OPT = {
    "vocab_size": 61,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "ffn_dim": 36,
    "max_position_embeddings": 40,
    "pad_token_id": None,  # torch keeps the gradient of a pad token's embedding at 0
}
CODEGEN = {  # two heads in each of the four groups, and two pairs of features rotated in each head
    "vocab_size": 61,
    "n_embd": 40,
    "n_layer": 2,
    "n_head": 8,
    "n_positions": 40,
    "n_inner": 44,
    "rotary_dim": 4,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
TOKENS = {"pad_token_id": None, "bos_token_id": 1, "eos_token_id": 2}
LLAMA3 = {  # wavelengths of 6, 30, 140 and 664: kept, between, divided, divided
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
CASES = {
    # grouped queries, all biases, an output projection of its own, several files
    "llama": (
        LlamaConfig(**WIDE_HEADS, tie_word_embeddings=False, attention_bias=True, mlp_bias=True),
        torch.float32,
        "25KB",
    ),
    # as SmolLM2 and Llama 3.2: tied, no biases, scaled rotary frequencies
    "llama3": (LlamaConfig(**WIDE_HEADS, tie_word_embeddings=True, rope_parameters=LLAMA3), torch.bfloat16, "1GB"),
    "gpt2": (GPT2Config(**GPT2), torch.float32, "1GB"),
    # as Codeparrot, with an exact gelu
    "gpt2_by_layer": (
        GPT2Config(
            **GPT2,
            scale_attn_by_inverse_layer_idx=True,
            reorder_and_upcast_attn=True,
            activation_function="gelu",
        ),
        torch.float16,
        "1GB",
    ),
    # a window that no row reaches
    "mistral": (MistralConfig(**WIDE_HEADS, sliding_window=16), torch.bfloat16, "1GB"),
    # a window that is not used, biases on q, k, v only
    "qwen2": (Qwen2Config(**GATED, sliding_window=4, use_sliding_window=False), torch.bfloat16, "1GB"),
    "qwen3": (Qwen3Config(**WIDE_HEADS, tie_word_embeddings=True), torch.bfloat16, "1GB"),
    "opt": (OPTConfig(**OPT), torch.float16, "1GB"),
    "galactica": (
        OPTConfig(**OPT, enable_bias=False, layer_norm_elementwise_affine=False, activation_function="gelu"),
        torch.float16,
        "1GB",
    ),
    "codegen": (CodeGenConfig(**CODEGEN), torch.float16, "1GB"),
    # the second of two layers does not rotate
    "smollm3": (SmolLM3Config(**WIDE_HEADS, **TOKENS, no_rope_layer_interval=2), torch.bfloat16, "1GB"),
    "olmo2": (Olmo2Config(**GATED, **TOKENS), torch.bfloat16, "1GB"),
}


def randomise(model: torch.nn.Module) -> None:
    """Weights with gain near 1, norm scales around 1, biases around 0, all clearly not what they start at."""
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.data = parameter.data + 0.5 * torch.randn_like(parameter)
        else:
            parameter.data = 0.3 * torch.randn_like(parameter)


def main() -> None:
    """Writes all of them, or those that the command line names."""
    for seed, (name, (config, dtype, shard_size)) in enumerate(CASES.items()):
        if sys.argv[1:] and name not in sys.argv[1:]:
            continue
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config).eval()
        randomise(model)
        model.to(dtype).save_pretrained(GOLDEN / name, max_shard_size=shard_size)
        tokens = torch.randint(0, config.vocab_size, (2, 12))
        with torch.no_grad():
            # Read anew, for a cast to bf16 and back would leave the rotary frequencies rounded.
            logits = AutoModelForCausalLM.from_pretrained(GOLDEN / name, dtype=torch.float32)(tokens).logits
        np.savez_compressed(GOLDEN / name / "expected.npz", tokens=tokens.numpy(), logits=logits.numpy())
        (GOLDEN / name / "generation_config.json").unlink()


if __name__ == "__main__":
    main()
