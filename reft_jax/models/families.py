"""Model families of Hugging Face: how `config.json` becomes a `DecoderConfig`, and where each parameter is stored.

A family is data: a translator of fields, and a table from the decoder's parameters to a checkpoint's tensors. The table
says how dimensions are laid out, not what to do with them, so that it can be read in both directions (`hf.py` does).
"""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from reft_jax.config import DecoderConfig

ACTIVATIONS = {
    "silu": "silu",
    "relu": "relu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}


@dataclasses.dataclass(frozen=True)
class ConfigFields:
    """The fields of a `config.json`; null counts as missing, as it does there."""

    path: Path
    values: Mapping[str, Any]

    def __getitem__(self, key: str) -> Any:
        if self.values.get(key) is None:
            raise ValueError(f"{self.path}: field {key} is missing")
        return self.values[key]

    def get(self, key: str, default: Any) -> Any:
        value = self.values.get(key)
        return default if value is None else value

    def translate(self, key: str, default: Any, supported: Mapping[Any, Any]) -> Any:
        """What `supported` makes of the field.

        Raises:
            ValueError: for any other value.
        """
        value = self.get(key, default)
        if value not in supported:
            raise self.refusal(key, f"supported: {', '.join(map(repr, supported))}")
        return supported[value]

    def refusal(self, key: str, reason: str) -> ValueError:
        return ValueError(f"{self.path}: {key} = {self.values.get(key)!r} is not supported ({reason})")


def _rope(fields: ConfigFields, head_dim: int) -> dict[str, Any]:
    """Rotary fields, from `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling` (before)."""
    nested = fields.get("rope_parameters", fields.get("rope_scaling", {}))
    rope = ConfigFields(fields.path, {"rope_theta": fields.get("rope_theta", 10_000.0), **nested})
    kind = "rope_type" if "rope_type" in nested else "type"
    scaled = rope.translate(kind, "default", {"default": False, "llama3": True})
    rope.translate("partial_rotary_factor", 1.0, {1.0: True})
    common = {"rotary_dim": head_dim, "rope_theta": rope["rope_theta"]}
    if not scaled:
        return common
    return common | {
        "rope_scaling_factor": rope["factor"],
        "rope_low_freq_factor": rope["low_freq_factor"],
        "rope_high_freq_factor": rope["high_freq_factor"],
        "rope_original_positions": rope["original_max_position_embeddings"],
    }


def _llama_config(fields: ConfigFields) -> DecoderConfig:
    heads = fields["num_attention_heads"]
    kv_heads = fields.get("num_key_value_heads", heads)
    if heads % kv_heads:
        raise fields.refusal("num_key_value_heads", f"it does not divide num_attention_heads = {heads}")
    head_dim = fields.get("head_dim", fields["hidden_size"] // heads)
    max_positions = fields.get("max_position_embeddings", 2048)
    if fields.get("sliding_window", max_positions) < max_positions:
        raise fields.refusal("sliding_window", f"attention is never cut off: max_position_embeddings = {max_positions}")
    return DecoderConfig(
        vocab_size=fields["vocab_size"],
        embed_dim=fields["hidden_size"],
        num_layers=fields["num_hidden_layers"],
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        mlp_dim=fields["intermediate_size"],
        max_positions=max_positions,
        norm="rms",
        norm_eps=fields.get("rms_norm_eps", 1e-6),
        activation=fields.translate("hidden_act", "silu", ACTIVATIONS),
        gated_mlp=True,
        qkv_bias=fields.get("attention_bias", False),
        attention_out_bias=fields.get("attention_bias", False),
        mlp_bias=fields.get("mlp_bias", False),
        tie_embeddings=fields.get("tie_word_embeddings", False),
        initializer_range=fields.get("initializer_range", 0.02),
        **_rope(fields, head_dim),
    )


def _gpt2_config(fields: ConfigFields) -> DecoderConfig:
    embed_dim, heads = fields["n_embd"], fields["n_head"]
    if embed_dim % heads:
        raise fields.refusal("n_head", f"it does not divide n_embd = {embed_dim}")
    fields.translate("add_cross_attention", False, {False: False})
    return DecoderConfig(
        vocab_size=fields["vocab_size"],
        embed_dim=embed_dim,
        num_layers=fields["n_layer"],
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=embed_dim // heads,
        mlp_dim=fields.get("n_inner", 4 * embed_dim),
        max_positions=fields.get("n_positions", 1024),
        norm="layer",
        norm_eps=fields.get("layer_norm_epsilon", 1e-5),
        activation=fields.translate("activation_function", "gelu_new", ACTIVATIONS),
        gated_mlp=False,
        qkv_bias=True,
        attention_out_bias=True,
        mlp_bias=True,
        tie_embeddings=fields.get("tie_word_embeddings", True),
        rotary_dim=0,
        scale_attention=fields.get("scale_attn_weights", True),
        scale_attention_by_layer=fields.get("scale_attn_by_inverse_layer_idx", False),
        initializer_range=fields.get("initializer_range", 0.02),
    )


@dataclasses.dataclass(frozen=True)
class Stored:
    """Where a checkpoint keeps a parameter."""

    param: str
    """Path of the parameter in the decoder's tree."""
    name: str
    """Name of the tensor, less the family's prefix; `{}` is the layer, the parameter's first dimension."""
    layout: str
    """Dimensions of the tensor, separated by commas, each the product of the parameter's axes named there; the
    extra axis `part` counts the parameters that share the tensor."""
    part: int = 0
    """Index along `part`."""
    parts: int = 1
    """Size of `part`."""


@dataclasses.dataclass(frozen=True)
class Family:
    """All that is known of a `model_type`."""

    config: Callable[[ConfigFields], DecoderConfig]
    """Translates its `config.json`."""
    prefix: str
    """Begins the names of all tensors but the output projection's; files of the bare body lack it."""
    tensors: tuple[Stored, ...]
    """Every parameter that the family can have."""
    ignored: str
    """Pattern of tensors that are not parameters."""


def _norm(param: str, name: str) -> tuple[Stored, Stored]:
    return Stored(f"{param}/scale", f"{name}.weight", "norm"), Stored(f"{param}/bias", f"{name}.bias", "norm")


def _linear(param: str, name: str, weight: str, bias: str, part: int = 0, parts: int = 1) -> tuple[Stored, Stored]:
    kernel = Stored(f"{param}/kernel", f"{name}.weight", weight, part, parts)
    return kernel, Stored(f"{param}/bias", f"{name}.bias", bias, part, parts)


TABLE = "table_rows, table_embed"

# torch's Linear keeps [out, in].
_LLAMA_TENSORS = (
    Stored("embed", "embed_tokens.weight", TABLE),
    Stored("lm_head", "lm_head.weight", TABLE),
    *_norm("final_norm", "norm"),
    *_norm("blocks/attn_norm", "layers.{}.input_layernorm"),
    *_linear("blocks/attn/q", "layers.{}.self_attn.q_proj", "heads head_dim, embed", "heads head_dim"),
    *_linear("blocks/attn/k", "layers.{}.self_attn.k_proj", "kv_heads head_dim, embed", "kv_heads head_dim"),
    *_linear("blocks/attn/v", "layers.{}.self_attn.v_proj", "kv_heads head_dim, embed", "kv_heads head_dim"),
    *_linear("blocks/attn/o", "layers.{}.self_attn.o_proj", "embed, heads head_dim", "embed"),
    *_norm("blocks/mlp_norm", "layers.{}.post_attention_layernorm"),
    *_linear("blocks/mlp/gate", "layers.{}.mlp.gate_proj", "mlp, embed", "mlp"),
    *_linear("blocks/mlp/up", "layers.{}.mlp.up_proj", "mlp, embed", "mlp"),
    *_linear("blocks/mlp/down", "layers.{}.mlp.down_proj", "embed, mlp", "embed"),
)

# GPT-2's Conv1D keeps [in, out], and q, k, v stand side by side in one.
_GPT2_TENSORS = (
    Stored("embed", "wte.weight", TABLE),
    Stored("position_embed", "wpe.weight", "position_rows, embed"),
    Stored("lm_head", "lm_head.weight", TABLE),
    *_norm("final_norm", "ln_f"),
    *_norm("blocks/attn_norm", "h.{}.ln_1"),
    *_linear("blocks/attn/q", "h.{}.attn.c_attn", "embed, part heads head_dim", "part heads head_dim", 0, 3),
    *_linear("blocks/attn/k", "h.{}.attn.c_attn", "embed, part kv_heads head_dim", "part kv_heads head_dim", 1, 3),
    *_linear("blocks/attn/v", "h.{}.attn.c_attn", "embed, part kv_heads head_dim", "part kv_heads head_dim", 2, 3),
    *_linear("blocks/attn/o", "h.{}.attn.c_proj", "heads head_dim, embed", "embed"),
    *_norm("blocks/mlp_norm", "h.{}.ln_2"),
    *_linear("blocks/mlp/up", "h.{}.mlp.c_fc", "embed, mlp", "mlp"),
    *_linear("blocks/mlp/down", "h.{}.mlp.c_proj", "mlp, embed", "embed"),
)

FAMILIES = {
    "llama": Family(_llama_config, "model.", _LLAMA_TENSORS, ignored=r"rotary_emb\.inv_freq$"),
    "gpt2": Family(_gpt2_config, "transformer.", _GPT2_TENSORS, ignored=r"attn\.(masked_)?bias$"),  # causal masks
}
