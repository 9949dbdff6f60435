"""Adapters in PEFT's file format, read and written by the tables of `families`.

PEFT keeps A as `lora_A.weight` [rank, in] and B as `lora_B.weight` [out, rank] for each linear map by its name in the
model of transformers. Projections that a family keeps in one tensor (GPT-2's and CodeGen's q, k, v) have no adapters of
their own there, and are refused by name.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from safetensors.numpy import load_file, save_file

from reft_jax.config import LoraConfig, ModelConfig
from reft_jax.models.decoder import Decoder
from reft_jax.models.hf.tensors import FAMILIES, TensorLayout
from reft_jax.models.lora import SUFFIX
from reft_jax.models.params import Tree

WEIGHTS_FILE, CONFIG_FILE = "adapter_model.safetensors", "adapter_config.json"
PREFIX = "base_model.model."


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
            or of another shape; names file and field or tensor.
    """
    tensors = load_file(_existing(directory / WEIGHTS_FILE))
    modules = {name.removeprefix(PREFIX).rpartition(".lora_")[0] for name in tensors}
    rank, alpha = _read_settings(_existing(directory / CONFIG_FILE))
    with_all = ModelConfig(decoder=config.decoder, lora=LoraConfig(rank=rank, alpha=alpha))
    targets = list(_adapted(with_all, model_type, modules))
    settings = LoraConfig(rank=rank, alpha=alpha, targets=tuple(target for _, target, _ in targets))
    shapes = _shapes(with_all)["blocks"]
    lora: dict[str, Any] = {"blocks": {}}
    for part, target, stored in targets:
        wanted = shapes[part][target + SUFFIX]
        names = [PREFIX + _module(stored, layer, model_type) for layer in range(config.decoder.num_layers)]
        lora["blocks"].setdefault(part, {})[target + SUFFIX] = {
            "a": _take(tensors, [f"{name}.lora_A.weight" for name in names], wanted["a"].shape, directory, (-1, rank)),
            "b": _take(tensors, [f"{name}.lora_B.weight" for name in names], wanted["b"].shape, directory, (rank, -1)),
        }
    if tensors:
        raise ValueError(f"{directory / WEIGHTS_FILE}: tensor {min(tensors)} is for nothing that the model has")
    return settings, lora


def _existing(path: Path) -> Path:
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file; is {path.parent} a PEFT adapter?")
    return path


def _read_settings(path: Path) -> tuple[int, float]:
    """Rank and alpha of a config that asks for nothing that is not done here."""
    fields = json.loads(path.read_text(encoding="utf-8"))
    plain: dict[str, tuple[Any, ...]] = {
        "peft_type": ("LORA",),
        "bias": ("none", None),
        "use_dora": (False, None),
        "use_rslora": (False, None),
        "rank_pattern": ({}, None),
        "alpha_pattern": ({}, None),
        "modules_to_save": ([], None),
    }
    for key, accepted in plain.items():
        if fields.get(key) not in accepted:
            raise ValueError(f"{path}: {key} = {fields[key]!r} is not supported (supported: {accepted[0]!r})")
    return fields["r"], float(fields["lora_alpha"])


def _take(
    tensors: dict[str, np.ndarray], names: list[str], shape: tuple[int, ...], directory: Path, flat: tuple[int, int]
) -> np.ndarray:
    """The tensors of all layers, taken out of `tensors`, as one of `shape`; `flat` is a layer's as a matrix."""
    layers = []
    for name in names:
        if name not in tensors:
            raise ValueError(f"{directory / WEIGHTS_FILE}: tensor {name} is missing")
        array = tensors.pop(name)
        expected = np.empty(shape[1:]).reshape(flat).T.shape
        if array.shape != expected:
            raise ValueError(f"{directory / WEIGHTS_FILE}: tensor {name} has shape {array.shape}, expected {expected}")
        layers.append(array.T.reshape(shape[1:]))
    return np.stack(layers)


def _adapted(
    config: ModelConfig, model_type: str, only: set[str] | None = None
) -> Iterator[tuple[str, str, TensorLayout]]:
    """(`attn` or `mlp`, target, where its kernel is stored) of each adapter of a model, those of modules `only`."""
    stored = {entry.param: entry for entry in FAMILIES[model_type].tensors}
    for part, adapters in _shapes(config)["blocks"].items():
        for name in adapters:
            target = name.removesuffix(SUFFIX)
            entry = stored[f"blocks/{part}/{target}/kernel"]
            if only is not None and _module(entry, 0, model_type) not in only:
                continue
            if entry.parts > 1:
                raise ValueError(
                    f"the adapter of {target} has no place in PEFT's format: {model_type} keeps that projection with "
                    f"others in {entry.name}; leave {target} out of model.lora.targets, or export the merged model"
                )
            yield part, target, entry


def _module(stored: TensorLayout, layer: int, model_type: str) -> str:
    return FAMILIES[model_type].prefix + stored.name.format(layer).removesuffix(".weight")


def _shapes(config: ModelConfig) -> Tree:
    """The adapters' tree of shapes."""
    token = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    return nn.meta.unbox(jax.eval_shape(Decoder(config).init, jax.random.key(0), token, token)["lora"])
