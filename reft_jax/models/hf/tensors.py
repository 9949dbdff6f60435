"""Model families of Hugging Face: where each keeps the decoder's parameters.

A family is data: a translator of its `config.json` (`family_configs`), and a table from the decoder's parameters to a
checkpoint's tensors. The table says how dimensions are laid out, not what to do with them, so that it can be read in
both directions: `hf` reads a checkpoint by it, `hf_export` writes one.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping

import numpy as np

from reft_jax.config import DecoderConfig
from reft_jax.models.hf import configs as family_configs
from reft_jax.models.hf.configs import CODEGEN_GROUPS, ConfigFields


@dataclasses.dataclass(frozen=True)
class TensorLayout:
    """Where a checkpoint keeps a parameter."""

    param: str
    """Path of the parameter in the decoder's tree."""
    name: str
    """Name of the tensor, less the family's prefix; `{}` is the layer, the parameter's first dimension."""
    layout: str
    """Dimensions of the tensor, separated by commas, each the product of the parameter's axes named there; the
    extra axis `part` counts the parameters that share the tensor, and `group` the equal runs into which the parameter's
    next axis in the dimension is cut."""
    part: int = 0
    """Index along `part`."""
    parts: int = 1
    """Size of `part`."""
    groups: int = 1
    """Size of `group`."""

    @property
    def axes(self) -> list[list[str]]:
        """The parameter's axes in each dimension of the tensor."""
        return [[axis for axis in dim.split() if axis not in ("part", "group")] for dim in self.layout.split(",")]

    def places(self, sizes: Mapping[str, int]) -> list[np.ndarray]:
        """Indices into each dimension of the tensor where the parameter's entries stand, ascending, by its axes there.

        `sizes` are the lengths of the parameter's axes; with (heads, head_dim) = (4, 6) in 2 groups of 2 parts, part 1
        in the layout "group part heads head_dim" stands at 12..23 and 36..47, as an array [4, 6].
        """
        places = []
        for dim, own in zip(self.layout.split(","), self.axes):
            lengths = {axis: {**sizes, "part": self.parts, "group": self.groups}[axis] for axis in dim.split()}
            if "group" in lengths:
                lengths[own[0]] //= self.groups
            index: np.ndarray = np.arange(math.prod(lengths.values())).reshape(tuple(lengths.values()))
            if "part" in lengths:
                index = index.take(self.part, axis=list(lengths).index("part"))
            places.append(index.reshape([sizes[axis] for axis in own]))
        return places

    def shape(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """Shape of the tensor, `sizes` being the lengths of the parameter's axes."""
        sizes = {**sizes, "part": self.parts, "group": 1}  # groups cut an axis, they add none
        return tuple(math.prod(sizes[axis] for axis in dim.split()) for dim in self.layout.split(","))


@dataclasses.dataclass(frozen=True)
class Family:
    """All that is known of a `model_type`."""

    config: Callable[[ConfigFields], DecoderConfig]
    """Translates its `config.json`."""
    prefix: str
    """Begins the names of all tensors but the output projection's; files of the bare body lack it."""
    tensors: tuple[TensorLayout, ...]
    """Every parameter that the family can have."""
    ignored: str
    """Pattern of tensors that are not parameters."""
    classifier: str
    """Name of its sequence classifier in transformers, empty where there is none."""


def _norm(param: str, name: str) -> tuple[TensorLayout, TensorLayout]:
    return TensorLayout(f"{param}/scale", f"{name}.weight", "norm"), TensorLayout(
        f"{param}/bias", f"{name}.bias", "norm"
    )


def _linear(
    param: str, name: str, weight: str, bias: str, part: int = 0, parts: int = 1
) -> tuple[TensorLayout, TensorLayout]:
    kernel = TensorLayout(f"{param}/kernel", f"{name}.weight", weight, part, parts)
    return kernel, TensorLayout(f"{param}/bias", f"{name}.bias", bias, part, parts)


TABLE = "table_rows, table_embed"

# torch's Linear keeps [out, in].
_LLAMA_TENSORS = (
    TensorLayout("embed", "embed_tokens.weight", TABLE),
    TensorLayout("lm_head", "lm_head.weight", TABLE),
    *_norm("final_norm", "norm"),
    *_norm("blocks/attn_norm", "layers.{}.input_layernorm"),
    *_linear("blocks/attn/q", "layers.{}.self_attn.q_proj", "heads head_dim, embed", "heads head_dim"),
    *_linear("blocks/attn/k", "layers.{}.self_attn.k_proj", "kv_heads head_dim, embed", "kv_heads head_dim"),
    *_linear("blocks/attn/v", "layers.{}.self_attn.v_proj", "kv_heads head_dim, embed", "kv_heads head_dim"),
    TensorLayout("blocks/attn/q_norm/scale", "layers.{}.self_attn.q_norm.weight", "head_dim"),
    TensorLayout("blocks/attn/k_norm/scale", "layers.{}.self_attn.k_norm.weight", "head_dim"),
    *_linear("blocks/attn/o", "layers.{}.self_attn.o_proj", "embed, heads head_dim", "embed"),
    *_norm("blocks/mlp_norm", "layers.{}.post_attention_layernorm"),
    *_linear("blocks/mlp/gate", "layers.{}.mlp.gate_proj", "mlp, embed", "mlp"),
    *_linear("blocks/mlp/up", "layers.{}.mlp.up_proj", "mlp, embed", "mlp"),
    *_linear("blocks/mlp/down", "layers.{}.mlp.down_proj", "embed, mlp", "embed"),
)

_OLMO2_TENSORS = (
    *(stored for stored in _LLAMA_TENSORS if not re.search("blocks.*norm", stored.param)),
    *_norm("blocks/attn_norm", "layers.{}.post_attention_layernorm"),
    *_norm("blocks/mlp_norm", "layers.{}.post_feedforward_layernorm"),
    TensorLayout("blocks/attn/q_norm/scale", "layers.{}.self_attn.q_norm.weight", "heads head_dim"),
    TensorLayout("blocks/attn/k_norm/scale", "layers.{}.self_attn.k_norm.weight", "kv_heads head_dim"),
)

# GPT-2's Conv1D keeps [in, out], and q, k, v stand side by side in one.
_GPT2_TENSORS = (
    TensorLayout("embed", "wte.weight", TABLE),
    TensorLayout("position_embed", "wpe.weight", "position_rows, embed"),
    TensorLayout("lm_head", "lm_head.weight", TABLE),
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

# OPT's body has one module, the decoder, and bare files keep its name.
_OPT_TENSORS = (
    TensorLayout("embed", "decoder.embed_tokens.weight", TABLE),
    TensorLayout("position_embed", "decoder.embed_positions.weight", "position_rows, embed"),
    TensorLayout("lm_head", "lm_head.weight", TABLE),
    *_norm("final_norm", "decoder.final_layer_norm"),
    *_norm("blocks/attn_norm", "decoder.layers.{}.self_attn_layer_norm"),
    *_linear("blocks/attn/q", "decoder.layers.{}.self_attn.q_proj", "heads head_dim, embed", "heads head_dim"),
    *_linear("blocks/attn/k", "decoder.layers.{}.self_attn.k_proj", "kv_heads head_dim, embed", "kv_heads head_dim"),
    *_linear("blocks/attn/v", "decoder.layers.{}.self_attn.v_proj", "kv_heads head_dim, embed", "kv_heads head_dim"),
    *_linear("blocks/attn/o", "decoder.layers.{}.self_attn.out_proj", "embed, heads head_dim", "embed"),
    *_norm("blocks/mlp_norm", "decoder.layers.{}.final_layer_norm"),
    *_linear("blocks/mlp/up", "decoder.layers.{}.fc1", "mlp, embed", "mlp"),
    *_linear("blocks/mlp/down", "decoder.layers.{}.fc2", "embed, mlp", "embed"),
)


def _codegen_qkv(param: str, heads: str, part: int) -> TensorLayout:
    layout = f"group part {heads} head_dim, embed"
    return TensorLayout(f"blocks/attn/{param}/kernel", "h.{}.attn.qkv_proj.weight", layout, part, 3, CODEGEN_GROUPS)


# Each group of CodeGen's fused projection has the queries, then the values, then the keys of its heads.
_CODEGEN_TENSORS = (
    TensorLayout("embed", "wte.weight", TABLE),
    TensorLayout("lm_head", "lm_head.weight", TABLE),
    TensorLayout("lm_head_bias", "lm_head.bias", "table_rows"),
    *_norm("final_norm", "ln_f"),
    *_norm("blocks/attn_norm", "h.{}.ln_1"),
    _codegen_qkv("q", "heads", 0),
    _codegen_qkv("v", "kv_heads", 1),
    _codegen_qkv("k", "kv_heads", 2),
    TensorLayout("blocks/attn/o/kernel", "h.{}.attn.out_proj.weight", "embed, heads head_dim"),
    *_linear("blocks/mlp/up", "h.{}.mlp.fc_in", "mlp, embed", "mlp"),
    *_linear("blocks/mlp/down", "h.{}.mlp.fc_out", "embed, mlp", "embed"),
)

_INV_FREQ = r"rotary_emb\.inv_freq$"
_MASKS = r"attn\.((masked_)?bias|causal_mask)$"

FAMILIES = {
    "llama": Family(
        family_configs.llama, "model.", _LLAMA_TENSORS, ignored=_INV_FREQ, classifier="LlamaForSequenceClassification"
    ),
    "mistral": Family(
        family_configs.mistral,
        "model.",
        _LLAMA_TENSORS,
        ignored=_INV_FREQ,
        classifier="MistralForSequenceClassification",
    ),
    "qwen2": Family(
        family_configs.qwen2, "model.", _LLAMA_TENSORS, ignored=_INV_FREQ, classifier="Qwen2ForSequenceClassification"
    ),
    "qwen3": Family(
        family_configs.qwen3, "model.", _LLAMA_TENSORS, ignored=_INV_FREQ, classifier="Qwen3ForSequenceClassification"
    ),
    "smollm3": Family(
        family_configs.smollm3,
        "model.",
        _LLAMA_TENSORS,
        ignored=_INV_FREQ,
        classifier="SmolLM3ForSequenceClassification",
    ),
    "olmo2": Family(
        family_configs.olmo2, "model.", _OLMO2_TENSORS, ignored=_INV_FREQ, classifier="Olmo2ForSequenceClassification"
    ),
    "gpt2": Family(
        family_configs.gpt2, "transformer.", _GPT2_TENSORS, ignored=_MASKS, classifier="GPT2ForSequenceClassification"
    ),
    "opt": Family(
        family_configs.opt,
        "model.",
        _OPT_TENSORS,
        ignored=r"decoder\.version$",
        classifier="OPTForSequenceClassification",
    ),
    "codegen": Family(family_configs.codegen, "transformer.", _CODEGEN_TENSORS, ignored=_MASKS, classifier=""),
}
