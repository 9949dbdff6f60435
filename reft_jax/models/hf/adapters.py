"""Adapters in PEFT's file format, read and written by the tables of `families`.

PEFT keeps A as `lora_A.weight` [rank, in] and B as `lora_B.weight` [out, rank] for each linear map by its name in the
model of transformers. Projections that a family keeps in one tensor (GPT-2's and CodeGen's q, k, v) have no adapters of
their own there, and are refused by name.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from reft_jax.config import LoraConfig, ModelConfig
from reft_jax.models.decoder import Decoder
from reft_jax.models.hf.configs import Accepted, ConfigFields
from reft_jax.models.hf.tensors import FAMILIES, TensorLayout
from reft_jax.models.lora import SUFFIX
from reft_jax.models.params import Tree, abstract_variables

WEIGHTS_FILE, CONFIG_FILE = "adapter_model.safetensors", "adapter_config.json"
PREFIX = "base_model.model."

_FLOATS = ("float64", "float32", "bfloat16", "float16")
_TABLES = ("embed_tokens", "embed_positions", "lm_head", "wte", "wpe")
_MERGE = "merge the adapter in PEFT by merge_and_unload, save the model, and give that as model.path"
_CONVERT = (
    "the adapter belongs to a base that it changed at its start: convert it in PEFT by save_pretrained(..., "
    "path_initial_model_for_weight_conversion=...), or give the merged model as model.path"
)
_CHANGE_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
_FIELDS: tuple[tuple[str, tuple[Any, ...] | None], ...] = (
    # what the tensors say too, what began or helped the training, and what is for a program
    ("target_modules exclude_modules fan_in_fan_out layers_pattern base_model_name_or_path revision", None),
    ("task_type", ("CAUSAL_LM",)),
    ("lora_dropout loftq_config eva_config corda_config lora_ga_config qalora_group_size ensure_weight_tying", None),
    ("peft_version auto_mapping inference_mode runtime_config megatron_core merge_weights", None),
    ("bias", ("none",)),
    ("init_lora_weights", (True, False, "gaussian", "orthogonal", "eva")),
    ("use_dora use_rslora use_qalora lora_bias", (False,)),
    ("rank_pattern alpha_pattern modules_to_save trainable_token_indices target_parameters", ([], {})),
    ("layer_replication megatron_config alora_invocation_tokens use_bdlora arrow_config", ([], {})),
    ("velora_config monteclora_config kasa_config", ([], {})),
)
FIELDS: Accepted = {name: accepted for names, accepted in _FIELDS for name in names.split()}
"""Of an `adapter_config.json`, what a plain adapter of all layers may say beside what is read of it: `peft_type`, `r`,
`lora_alpha` and `layers_to_transform`."""


def save_adapters(
    directory: Path, lora: Tree, config: ModelConfig, model_type: str, base: str, revision: str = "main"
) -> None:
    """Writes adapters as `PeftModel.from_pretrained` reads them.

    Args:
        directory: made where it is missing.
        lora: the adapters' tree.
        config: the model.
        model_type: its family.
        base: path or hub id of the model that they belong to.
        revision: of the base on the hub.

    Raises:
        ValueError: naming the adapter, where the family keeps its projection together with others.
    """
    directory.mkdir(parents=True, exist_ok=True)
    tensors, modules = {}, set()
    for part, name, stored in _adapted(config, model_type):
        if stored.parts > 1:
            raise ValueError(
                f"the adapter of {name} has no place in PEFT's format: {model_type} keeps that projection with "
                f"others in {stored.name}; leave {name} out of model.lora.targets, or export the merged model"
            )
        a, b = (np.asarray(jax.device_get(lora["blocks"][part][name + SUFFIX][key])) for key in ("a", "b"))
        for layer in range(config.decoder.num_layers):
            module = _module(stored, layer, model_type)
            modules.add(module.rpartition(".")[2])
            rank = config.lora.rank
            tensors[f"{PREFIX}{module}.lora_A.weight"] = np.ascontiguousarray(a[layer].reshape(-1, rank).T)
            tensors[f"{PREFIX}{module}.lora_B.weight"] = np.ascontiguousarray(b[layer].reshape(rank, -1).T)
    save_file(tensors, directory / WEIGHTS_FILE, metadata={"format": "pt"})
    fields = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "revision": None if revision == "main" else revision,
        "r": config.lora.rank,
        "lora_alpha": config.lora.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": model_type == "gpt2",  # its Conv1D keeps [in, out]
        "target_modules": sorted(modules),
        "inference_mode": True,
    }
    (directory / CONFIG_FILE).write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")


def load_adapters(directory: Path, config: ModelConfig, model_type: str) -> tuple[LoraConfig, Tree]:
    """The adapters in a directory, on the host: their settings and their tree.

    Raises:
        FileNotFoundError: naming the file that is not there.
        ValueError: for what is no plain LoRA, a target that the model does not have, or a tensor that is missing, extra
            or of another shape or type; names file and field or tensor.
    """
    rank, alpha = read_settings(directory, config.decoder.num_layers)
    tensors = _read_tensors(directory / WEIGHTS_FILE)
    modules = {name.removeprefix(PREFIX).rpartition(".lora_")[0] for name in tensors}
    with_all = ModelConfig(decoder=config.decoder, lora=LoraConfig(rank=rank, alpha=alpha))
    layers = range(config.decoder.num_layers)
    in_a_layer = lambda stored: any(_module(stored, layer, model_type) in modules for layer in layers)
    targets = [found for found in _adapted(with_all, model_type) if in_a_layer(found[2])]
    settings = LoraConfig(rank=rank, alpha=alpha, targets=tuple(target for _, target, _ in targets))
    shapes = _shapes(with_all)["blocks"]
    lora: dict[str, Any] = {"blocks": {}}
    for part, target, stored in targets:
        if stored.parts > 1:
            module = _module(stored, 0, model_type).rpartition(".")[2]
            raise _unsupported_target(directory, module, "it is several projections in one")
        wanted = shapes[part][target + SUFFIX]
        names = [PREFIX + _module(stored, layer, model_type) for layer in layers]
        lora["blocks"].setdefault(part, {})[target + SUFFIX] = {
            "a": _take(tensors, [f"{name}.lora_A.weight" for name in names], wanted["a"].shape, directory, (-1, rank)),
            "b": _take(tensors, [f"{name}.lora_B.weight" for name in names], wanted["b"].shape, directory, (rank, -1)),
        }
    for name in sorted(tensors):
        module = re.sub(r"\.(lora_\w+(\.\w+)?|weight)$", "", name).rpartition(".")[2]
        if module not in _TABLES:
            raise ValueError(f"{directory / WEIGHTS_FILE}: tensor {name} is for nothing that the model has")
        if ".lora_" in name:
            raise _unsupported_target(directory, module, "it is no linear map of a layer")
        raise ValueError(f"{directory / WEIGHTS_FILE}: tensor {name} would replace the base's own; {_MERGE}")
    return settings, lora


def _unsupported_target(directory: Path, module: str, reason: str) -> ValueError:
    where = directory / CONFIG_FILE
    return ValueError(f"{where}: target_modules: an adapter of {module} is not supported ({reason}); {_MERGE}")


def _read_tensors(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a file; those of 16 bits as float32, so that B A is exact until it is added to a weight."""
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file; adapters are read from safetensors")
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path}: truncated or corrupt ({error}); fetch it again") from error
    for name, array in tensors.items():
        if array.dtype.name not in _FLOATS:
            raise ValueError(f"{path}: tensor {name} is {array.dtype}; readable are {', '.join(_FLOATS)}")
    wide = lambda array: array.astype(np.float32) if array.dtype.itemsize < 4 else array
    return {name: wide(array) for name, array in tensors.items()}


def read_settings(directory: Path, layers: int) -> tuple[int, float]:
    """Rank and alpha of the adapters in a directory, for a model of so many layers.

    Raises:
        FileNotFoundError: there is no `adapter_config.json`.
        ValueError: naming the field: it asks for what is not done here.
    """
    fields = ConfigFields.of_file(directory / CONFIG_FILE)
    fields.translate("peft_type", "LORA", {"LORA": None})
    chosen = fields.get("layers_to_transform", None)
    if chosen not in (None, []) and chosen != list(range(layers)):
        raise fields.refusal("layers_to_transform", f"only all {layers} layers are")
    start = fields.values.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_CHANGE_THE_BASE):
        raise fields.refusal("init_lora_weights", _CONVERT)
    rank, alpha = fields["r"], float(fields["lora_alpha"])
    if not isinstance(rank, int) or rank < 1:
        raise fields.refusal("r", "it must be a whole number, more than 0")
    if alpha <= 0:
        raise fields.refusal("lora_alpha", "it must be more than 0")
    fields.refuse_unread(FIELDS)
    return rank, alpha


def _take(
    tensors: dict[str, np.ndarray], names: list[str], shape: tuple[int, ...], directory: Path, flat: tuple[int, int]
) -> np.ndarray:
    """The tensors of all layers, taken out of `tensors`, as one of `shape`; `flat` is a layer's as a matrix."""
    layers = []
    for name in names:
        if name not in tensors:
            raise ValueError(
                f"{directory / WEIGHTS_FILE}: tensor {name} is missing; a target has an adapter in every layer here"
            )
        array = tensors.pop(name)
        expected = np.empty(shape[1:]).reshape(flat).T.shape
        if array.shape != expected:
            raise ValueError(f"{directory / WEIGHTS_FILE}: tensor {name} has shape {array.shape}, expected {expected}")
        layers.append(array.T.reshape(shape[1:]))
    return np.stack(layers)


def _adapted(config: ModelConfig, model_type: str) -> Iterator[tuple[str, str, TensorLayout]]:
    """(`attn` or `mlp`, target, where its kernel is stored) of each adapter of a model."""
    stored = {entry.param: entry for entry in FAMILIES[model_type].tensors}
    for part, adapters in _shapes(config)["blocks"].items():
        for name in adapters:
            target = name.removesuffix(SUFFIX)
            yield part, target, stored[f"blocks/{part}/{target}/kernel"]


def _module(stored: TensorLayout, layer: int, model_type: str) -> str:
    return FAMILIES[model_type].prefix + stored.name.format(layer).removesuffix(".weight")


def _shapes(config: ModelConfig) -> Tree:
    """The adapters' tree of shapes."""
    return nn.meta.unbox(abstract_variables(Decoder(config), inputs=2)["lora"])
