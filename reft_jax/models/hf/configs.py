"""How the `config.json` of each family becomes a `DecoderConfig`; what the decoder does not do is refused by name.

`families` joins each translator to the family's table of tensors; `hf.decoder_config` reads the file and calls it.
"""

import dataclasses
from collections.abc import Mapping
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
CODEGEN_GROUPS = (
    4  # the devices that CodeGen was trained on; each kept the queries, values and keys of its heads together
)


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


def _split_heads(fields: ConfigFields, key: str, width_key: str) -> tuple[int, int]:
    """Number of heads and features of each, where they share the width evenly."""
    heads, width = fields[key], fields[width_key]
    if width % heads:
        raise fields.refusal(key, f"it does not divide {width_key} = {width}")
    return heads, width // heads


def _gated(fields: ConfigFields, head_dim: int | None = None) -> DecoderConfig:
    """What Llama, Mistral and Qwen share: RMSNorm, a gated MLP, whole heads rotated, grouped queries.

    `head_dim` is the family's default; without, the heads share the width.
    """
    heads = fields["num_attention_heads"]
    kv_heads = fields.get("num_key_value_heads", heads)
    if heads % kv_heads:
        raise fields.refusal("num_key_value_heads", f"it does not divide num_attention_heads = {heads}")
    head_dim = fields.get("head_dim", head_dim or fields["hidden_size"] // heads)
    return DecoderConfig(
        vocab_size=fields["vocab_size"],
        embed_dim=fields["hidden_size"],
        num_layers=fields["num_hidden_layers"],
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        mlp_dim=fields["intermediate_size"],
        max_positions=fields.get("max_position_embeddings", 2048),
        norm="rms",
        norm_eps=fields.get("rms_norm_eps", 1e-6),
        activation=fields.translate("hidden_act", "silu", ACTIVATIONS),
        gated_mlp=True,
        tie_embeddings=fields.get("tie_word_embeddings", False),
        initializer_range=fields.get("initializer_range", 0.02),
        **_rope(fields, head_dim),
    )


def _within_window(decoder: DecoderConfig, window: int | None) -> DecoderConfig:
    """Rows no longer than the sliding window of attention never notice it, so that it bounds their length."""
    return dataclasses.replace(decoder, max_positions=min(decoder.max_positions, window or decoder.max_positions))


def llama(fields: ConfigFields) -> DecoderConfig:
    """Llama 2 and 3, CodeLlama, SmolLM2."""
    decoder = _gated(fields)
    if fields.get("sliding_window", decoder.max_positions) < decoder.max_positions:
        raise fields.refusal("sliding_window", f"Llama has none: max_position_embeddings = {decoder.max_positions}")
    bias = fields.get("attention_bias", False)
    mlp_bias = fields.get("mlp_bias", False)
    return dataclasses.replace(decoder, qkv_bias=bias, attention_out_bias=bias, mlp_bias=mlp_bias)


def mistral(fields: ConfigFields) -> DecoderConfig:
    """Mistral 7B, within its window where it has one; here null, unlike a missing field, means none."""
    return _within_window(_gated(fields), fields.values.get("sliding_window", 4096))


def _qwen_window(fields: ConfigFields) -> int | None:
    return fields.get("sliding_window", 4096) if fields.get("use_sliding_window", False) else None


def qwen2(fields: ConfigFields) -> DecoderConfig:
    """Qwen2 and Qwen2.5: biases on queries, keys and values only."""
    return dataclasses.replace(_within_window(_gated(fields), _qwen_window(fields)), qkv_bias=True)


def qwen3(fields: ConfigFields) -> DecoderConfig:
    """Qwen3, dense: queries and keys are normed head by head."""
    bias = fields.get("attention_bias", False)
    decoder = _within_window(_gated(fields, head_dim=128), _qwen_window(fields))
    return dataclasses.replace(decoder, qkv_bias=bias, attention_out_bias=bias, qk_norm=True)


def gpt2(fields: ConfigFields) -> DecoderConfig:
    """GPT-2 and Codeparrot, whose `reorder_and_upcast_attn` asks for the float32 scores that all models have here."""
    heads, head_dim = _split_heads(fields, "n_head", "n_embd")
    fields.translate("add_cross_attention", False, {False: False})
    return DecoderConfig(
        vocab_size=fields["vocab_size"],
        embed_dim=fields["n_embd"],
        num_layers=fields["n_layer"],
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=head_dim,
        mlp_dim=fields.get("n_inner", 4 * fields["n_embd"]),
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


def opt(fields: ConfigFields) -> DecoderConfig:
    """OPT, but for the 350M model, and Galactica, which is one without biases and norm weights."""
    heads, head_dim = _split_heads(fields, "num_attention_heads", "hidden_size")
    fields.translate("do_layer_norm_before", True, {True: True})
    fields.translate("_remove_final_layer_norm", False, {False: False})
    width = fields["hidden_size"]
    if fields.get("word_embed_proj_dim", width) != width:
        raise fields.refusal("word_embed_proj_dim", f"embeddings are as wide as hidden_size = {width}")
    bias = fields.get("enable_bias", True)
    return DecoderConfig(
        vocab_size=fields["vocab_size"],
        embed_dim=width,
        num_layers=fields["num_hidden_layers"],
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=head_dim,
        mlp_dim=fields["ffn_dim"],
        max_positions=fields.get("max_position_embeddings", 2048),
        norm="layer",
        norm_affine=fields.get("layer_norm_elementwise_affine", True),
        activation=fields.translate("activation_function", "relu", ACTIVATIONS),
        gated_mlp=False,
        qkv_bias=bias,
        attention_out_bias=bias,
        mlp_bias=bias,
        tie_embeddings=fields.get("tie_word_embeddings", True),
        rotary_dim=0,
        position_offset=2,
        initializer_range=fields.get("init_std", 0.02),
    )


def codegen(fields: ConfigFields) -> DecoderConfig:
    """CodeGen: attention and MLP side by side, neighbouring features rotated in a part of each head."""
    heads, head_dim = _split_heads(fields, "n_head", "n_embd")
    if heads % CODEGEN_GROUPS:
        raise fields.refusal("n_head", f"the fused projection has {CODEGEN_GROUPS} equal groups of heads")
    rotary_dim = fields["rotary_dim"]
    if rotary_dim not in range(2, head_dim + 1, 2):
        raise fields.refusal("rotary_dim", f"it must be even, positive and at most n_embd / n_head = {head_dim}")
    return DecoderConfig(
        vocab_size=fields["vocab_size"],
        embed_dim=fields["n_embd"],
        num_layers=fields["n_layer"],
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=head_dim,
        mlp_dim=fields.get("n_inner", 4 * fields["n_embd"]),
        max_positions=fields.get("n_positions", 2048),
        norm="layer",
        norm_eps=fields.get("layer_norm_epsilon", 1e-5),
        activation=fields.translate("activation_function", "gelu_new", ACTIVATIONS),
        gated_mlp=False,
        mlp_bias=True,
        lm_head_bias=True,
        tie_embeddings=fields.get("tie_word_embeddings", False),
        parallel_block=True,
        rotary_dim=rotary_dim,
        rope_interleaved=True,
        initializer_range=fields.get("initializer_range", 0.02),
    )
