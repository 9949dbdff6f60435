"""How the `config.json` of each family becomes a `DecoderConfig`; what the decoder does not do is refused by name.

`families` joins each translator to the family's table of tensors; `hf.decoder_config` reads the file and calls it. A
field that no translator has read must be one of `WITHOUT_EFFECT`, or off.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from reft_jax.config import DecoderConfig
from reft_jax.files import json_object

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


_REASONS = {
    "where the file is from": "_name_or_path name_or_path _commit_hash architectures transformers_version "
    "keys_to_ignore_at_inference tokenizer_class "
    "transformers.js_config unsloth_version unsloth_fixed is_llama_config task_specific_params",
    "how a program holds the model and what it gives back": "torch_dtype dtype onnx_dtype use_bfloat16 torchscript "
    "tf_legacy_loss attn_implementation _attn_implementation _attn_implementation_autoset "
    "_attn_implementation_internal _experts_implementation_internal _flash_attn_2_enabled pretraining_tp "
    "chunk_size_feed_forward is_decoder use_cache return_dict output_hidden_states output_attentions output_past",
    "scores are float32 here": "reorder_and_upcast_attn",
    "tokens are the tokenizer's": "bos_token_id eos_token_id pad_token_id sep_token_id cls_token_id unk_token_id "
    "mask_token_id decoder_start_token_id prefix n_special predict_special_tokens",
    "training has settings of its own": "attention_dropout activation_dropout hidden_dropout dropout layerdrop "
    "attn_pdrop embd_pdrop resid_pdrop gradient_checkpointing",
    "of heads that predict no tokens": "id2label label2id num_labels _num_labels problem_type finetuning_task "
    "classifier_dropout summary_activation summary_first_dropout summary_proj_to_labels summary_type summary_use_proj",
    "bounded by the number of positions or by the window": "n_ctx max_sequence_length model_max_length "
    "max_window_layers",
    "drawing of tokens has settings of its own": "do_sample temperature top_k top_p min_p typical_p epsilon_cutoff "
    "eta_cutoff repetition_penalty encoder_repetition_penalty length_penalty diversity_penalty num_beams "
    "num_beam_groups num_return_sequences early_stopping max_length max_new_tokens min_length min_new_tokens "
    "no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids forced_bos_token_id forced_eos_token_id "
    "suppress_tokens begin_suppress_tokens exponential_decay_length_penalty remove_invalid_values renormalize_logits "
    "cache_implementation guidance_scale penalty_alpha use_mtp output_scores return_dict_in_generate",
}
Accepted = Mapping[str, tuple[Any, ...] | None]
"""The values at which fields may stand in a file though nothing reads them; None is all."""

WITHOUT_EFFECT: Accepted = {
    **dict.fromkeys(name for names in _REASONS.values() for name in names.split()),
    "scale_attn_weights": (True,),  # which GPT-2 can leave, and CodeGen always does
    "is_causal": (True,),
    "is_encoder_decoder": (False,),
    "learned_embeddings": (True,),  # of Galactica's positions
}
"""Fields that change nothing in what a model of any family here computes."""

_OFF: tuple[Any, ...] = (False, "", [], {})
_KINDS: tuple[tuple[Any, str], ...] = (  # in this order: true is a number in Python
    (bool, "true or false"),
    (int | float, "a number"),
    (str, "a string"),
    (list, "a list"),
    (dict, "an object"),
)


@dataclasses.dataclass(frozen=True)
class ConfigFields:
    """The fields of a JSON config, such as `config.json`, and which of them were read; null counts as missing there."""

    path: Path
    values: Mapping[str, Any]
    prefix: str = ""
    """Of the fields' names in messages, where they stand within another."""
    seen: set[str] = dataclasses.field(default_factory=set, compare=False)
    """The fields that were read, whether they are there or not."""

    @classmethod
    def of_file(cls, path: Path) -> "ConfigFields":
        """The fields of a file.

        Raises:
            FileNotFoundError: there is none.
            ValueError: it is no JSON object.
        """
        if not path.exists():
            raise FileNotFoundError(f"{path}: no such file")
        return cls(path, json_object(path.read_bytes(), str(path)))

    def __getitem__(self, key: str) -> Any:
        """The field, a number.

        Raises:
            ValueError: it is missing, or no number.
        """
        if self.get(key, None) is None:
            raise ValueError(f"{self.path}: field {self.prefix}{key} is missing")
        return self.get(key, 0)

    def get(self, key: str, default: Any) -> Any:
        """The field, or the default where it is missing.

        Raises:
            ValueError: it is of another kind than the default, see `_KINDS`.
        """
        self.seen.add(key)
        value = self.values.get(key)
        if value is None:
            return default
        for kind, name in _KINDS:
            if isinstance(default, kind):
                if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
                    raise self.refusal(key, f"it must be {name}")
                break
        return value

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
        """The error that names the file, the field and its value."""
        value = f"{self.values.get(key)!r:.200}"
        return ValueError(f"{self.path}: {self.prefix}{key} = {value} is not supported ({reason})")

    def refuse_unread(self, accepted: Accepted) -> None:
        """Refuses what nobody has looked at, for it may ask for something that is not done.

        Raises:
            ValueError: naming the first field that was not read and is not at an accepted value; where it is not in the
                table, these are null, false and what is empty.
        """
        for key, value in self.values.items():
            supported = accepted.get(key, _OFF)
            if key in self.seen or value is None or supported is None:
                continue
            if not any(type(value) is type(other) and value == other for other in supported):
                unknown = "not known here: delete it if it changes nothing"
                known = f"supported: {', '.join(map(repr, supported))}"
                raise self.refusal(key, known if key in accepted else unknown)


def _rope(fields: ConfigFields, head_dim: int, theta: float) -> dict[str, Any]:
    """Rotary fields, from `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling` (before).

    `theta` is the family's default.
    """
    named = {key: fields.get(key, {}) for key in ("rope_parameters", "rope_scaling")}
    given = [key for key, values in named.items() if values] or ["rope_scaling"]
    if len(given) > 1 and named["rope_parameters"] != named["rope_scaling"]:
        raise fields.refusal("rope_scaling", "rope_parameters say something else; delete one of the two")
    nested = named[given[0]]
    if any(isinstance(value, dict) for value in nested.values()):
        raise fields.refusal(given[0], "all layers have the same rotary embedding here, not each layer type its own")
    rope = ConfigFields(fields.path, nested, f"{given[0]}.")
    kind = "rope_type" if rope.get("rope_type", "") else "type"  # the older name
    scaled = rope.translate(kind, "default", {"default": False, "llama3": True})
    for where in (rope, fields):
        where.translate("partial_rotary_factor", 1.0, {1.0: True})
    outer = fields.get("rope_theta", theta)
    theta = rope.get("rope_theta", outer)
    if "rope_theta" in fields.values and theta != outer:
        raise rope.refusal("rope_theta", f"rope_theta beside it is {outer}; delete one of the two")
    common = {"rotary_dim": head_dim, "rope_theta": theta}
    if scaled:
        common |= {
            "rope_scaling_factor": rope["factor"],
            "rope_low_freq_factor": rope["low_freq_factor"],
            "rope_high_freq_factor": rope["high_freq_factor"],
            "rope_original_positions": rope["original_max_position_embeddings"],
        }
    rope.refuse_unread({"type": None})
    return common


def _split_heads(fields: ConfigFields, key: str, width_key: str) -> tuple[int, int]:
    """Number of heads and features of each, where they share the width evenly."""
    heads, width = fields[key], fields[width_key]
    if heads < 1 or width % heads:
        raise fields.refusal(key, f"it does not divide {width_key} = {width}")
    return heads, width // heads


def _gated(fields: ConfigFields, head_dim: int | None = None, theta: float = 10_000.0) -> DecoderConfig:
    """What Llama, Mistral and Qwen share: RMSNorm, a gated MLP, whole heads rotated, grouped queries.

    `head_dim` and `theta` are the family's defaults; without the first, the heads share the width.
    """
    heads = fields["num_attention_heads"]
    kv_heads = fields.get("num_key_value_heads", heads)
    if min(heads, kv_heads) < 1 or heads % kv_heads:
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
        **_rope(fields, head_dim, theta),
    )


def _within_window(
    fields: ConfigFields, window: int | None, head_dim: int | None = None, theta: float = 10_000.0
) -> DecoderConfig:
    """Rows no longer than the sliding window of attention never notice it, so that it bounds their length.

    Which layers have it does not matter then, but all layers must be of these two kinds.
    """
    decoder = _gated(fields, head_dim, theta)
    kinds = {"full_attention", "sliding_attention"} if window else {"full_attention"}
    if not kinds.issuperset(fields.get("layer_types", [])):
        raise fields.refusal("layer_types", f"supported: {', '.join(sorted(kinds))}")
    return dataclasses.replace(decoder, max_positions=min(decoder.max_positions, window or decoder.max_positions))


def llama(fields: ConfigFields) -> DecoderConfig:
    """Llama 2 and 3, CodeLlama, SmolLM2."""
    decoder = _within_window(fields, None)
    if fields.get("sliding_window", decoder.max_positions) < decoder.max_positions:
        raise fields.refusal("sliding_window", f"Llama has none: max_position_embeddings = {decoder.max_positions}")
    bias = fields.get("attention_bias", False)
    mlp_bias = fields.get("mlp_bias", False)
    return dataclasses.replace(decoder, qkv_bias=bias, attention_out_bias=bias, mlp_bias=mlp_bias)


def mistral(fields: ConfigFields) -> DecoderConfig:
    """Mistral 7B, within its window where it has one; here null, unlike a missing field, means none."""
    window = fields.get("sliding_window", 0 if "sliding_window" in fields.values else 4096)
    return _within_window(fields, window)


def _window(fields: ConfigFields, default: int | None) -> int | None:
    window = fields.get("sliding_window", default)
    return window if fields.get("use_sliding_window", False) else None


def qwen2(fields: ConfigFields) -> DecoderConfig:
    """Qwen2 and Qwen2.5: biases on queries, keys and values only."""
    return dataclasses.replace(_within_window(fields, _window(fields, 4096)), qkv_bias=True)


def qwen3(fields: ConfigFields) -> DecoderConfig:
    """Qwen3, dense: queries and keys are normed head by head."""
    bias = fields.get("attention_bias", False)
    decoder = _within_window(fields, _window(fields, 4096), head_dim=128)
    return dataclasses.replace(decoder, qkv_bias=bias, attention_out_bias=bias, qk_norm=True)


def smollm3(fields: ConfigFields) -> DecoderConfig:
    """SmolLM3: a Llama some of whose layers, every fourth by default, do not rotate."""
    decoder = _within_window(fields, _window(fields, None), theta=2_000_000.0)
    every = fields.get("no_rope_layer_interval", 4)
    rotated = fields.get("no_rope_layers", [])[: decoder.num_layers]
    if every < 1:
        raise fields.refusal("no_rope_layer_interval", "it must be 1 or more")
    if rotated:
        every = rotated.index(0) + 1 if 0 in rotated else 0
    if rotated and rotated != [int(not every or (i + 1) % every != 0) for i in range(decoder.num_layers)]:
        raise fields.refusal("no_rope_layers", "the layers that do not rotate stand at equal distances, 0 among 1")
    bias, mlp_bias = fields.get("attention_bias", False), fields.get("mlp_bias", False)
    return dataclasses.replace(
        decoder,
        qkv_bias=bias,
        attention_out_bias=bias,
        mlp_bias=mlp_bias,
        tie_embeddings=fields.get("tie_word_embeddings", True),
        no_rope_every=every,
    )


def olmo2(fields: ConfigFields) -> DecoderConfig:
    """OLMo 2: norms behind attention and MLP, and one over all queries, and over all keys, of a token."""
    bias = fields.get("attention_bias", False)
    return dataclasses.replace(
        _within_window(fields, None),
        norm_eps=fields.get("rms_norm_eps", 1e-5),
        qkv_bias=bias,
        attention_out_bias=bias,
        qk_norm=True,
        qk_norm_whole=True,
        post_norm=True,
    )


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
