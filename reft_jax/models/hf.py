"""Hugging Face checkpoints: where they are, what shape they have, and their weights as the decoder's parameters.

At the start of a run `resolve` finds the directory, `decoder_config` reads the model's shape and `load_decoder_params`
its weights, each device's share by itself. What tells one family from another is in `families.py`.
"""

import contextlib
import dataclasses
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import huggingface_hub
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError, safe_open

from reft_jax.config import DecoderConfig, ModelConfig
from reft_jax.models.decoder import Decoder
from reft_jax.models.families import FAMILIES, ConfigFields, Family, Stored

HUB_FILES = ["*.safetensors", "*.json", "*.txt", "*.model"]  # weights, configs and every form of tokenizer
CONFIG_FILE, WEIGHTS_FILE, INDEX_FILE = "config.json", "model.safetensors", "model.safetensors.index.json"
FLOATS = ("F64", "F32", "BF16", "F16")


def resolve(path: str, revision: str = "main") -> Path:
    """The local directory of a checkpoint, given as such or as a hub id, which is downloaded or taken from the cache.

    Raises:
        FileNotFoundError: when it is neither a directory nor to be had from the hub; says how to fetch it.
    """
    if Path(path).expanduser().is_dir():
        return Path(path).expanduser()
    try:
        return Path(huggingface_hub.snapshot_download(path, revision=revision, allow_patterns=HUB_FILES))
    except HFValidationError as error:
        raise FileNotFoundError(f"{path}: no such directory, and not a hub id (owner/name)") from error
    except (LocalEntryNotFoundError, HfHubHTTPError) as error:
        raise FileNotFoundError(
            f"{path} (revision {revision}): no such directory, not in the local cache, and not to be had from the hub "
            f"({type(error).__name__}). Fetch it once where there is a network with `hf download {path} --revision "
            f"{revision}`, or give the path of a directory with its files"
        ) from error


def _read_fields(directory: Path) -> tuple[ConfigFields, Family]:
    path = Path(directory) / CONFIG_FILE
    try:
        fields = ConfigFields(path, json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path}: no such file; is {directory} a Hugging Face model directory?") from error
    except ValueError as error:
        raise ValueError(f"{path}: not valid JSON: {error}") from error
    if fields.get("quantization_config", None) is not None:
        raise fields.refusal("quantization_config", "only plain floating-point weights are read")
    return fields, fields.translate("model_type", "", FAMILIES)


def decoder_config(directory: Path) -> DecoderConfig:
    """The shape of the model in a Hugging Face directory.

    Raises:
        FileNotFoundError: without a `config.json`.
        ValueError: naming the field and its value, for what the decoder does not do.
    """
    fields, family = _read_fields(directory)
    return family.config(fields)


@dataclasses.dataclass(frozen=True)
class _Tensor:
    """One tensor of an open file; slices of it are read when asked for."""

    path: Path
    name: str
    file: Any

    def view(self, shape: tuple[int, ...]) -> Any:
        """The tensor, to be sliced, after a check of its shape and type."""
        view = self.file.get_slice(self.name)
        if tuple(view.get_shape()) != shape:
            raise ValueError(f"{self.path}: tensor {self.name} has shape {tuple(view.get_shape())}, expected {shape}")
        if view.get_dtype() not in FLOATS:
            raise ValueError(f"{self.path}: tensor {self.name} is {view.get_dtype()}; readable are {', '.join(FLOATS)}")
        return view


def _open(directory: Path, stack: contextlib.ExitStack) -> dict[str, _Tensor]:
    """All tensors of a checkpoint by name, in one file or in those of an index; `stack` closes the files."""
    index = directory / INDEX_FILE
    listed: dict[str, str] = {}
    if (directory / WEIGHTS_FILE).exists() or not index.exists():
        files = [WEIGHTS_FILE]
    else:
        listed = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        files = sorted(set(listed.values()))
    tensors: dict[str, _Tensor] = {}
    for file in files:
        path = directory / file
        try:
            handle = stack.enter_context(safe_open(path, framework="numpy"))
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{path}: no such file; the weights are missing or not all downloaded") from error
        except SafetensorError as error:
            raise ValueError(f"{path}: truncated or corrupt ({error}); fetch it again") from error
        tensors |= {name: _Tensor(path, name, handle) for name in handle.keys()}  # noqa: SIM118 (not a dict)
    for name, file in listed.items():
        if name not in tensors or tensors[name].path.name != file:
            raise ValueError(f"{index}: tensor {name} should be in {file}, but is not there")
    return tensors


def _read(tensor: _Tensor, stored: Stored, sizes: Mapping[str, int], ranges: Mapping[str, range]) -> np.ndarray:
    """The piece `ranges` of a parameter, its axes in their order; no more than the box around it is read.

    Args:
        tensor: where it is stored.
        stored: how.
        sizes: length of each axis in the file.
        ranges: the wanted part of each axis.
    """
    sizes = {**sizes, "part": stored.parts}
    wanted = {**ranges, "part": range(stored.part, stored.part + 1)}
    dims = [dim.split() for dim in stored.layout.split(",")]
    rows = [  # ascending indices into each dimension of the tensor
        np.ravel_multi_index(np.ix_(*(wanted[axis] for axis in dim)), [sizes[axis] for axis in dim]).ravel()
        for dim in dims
    ]
    view = tensor.view(tuple(math.prod(sizes[axis] for axis in dim) for dim in dims))
    box = view[tuple(slice(int(r[0]), int(r[-1]) + 1) for r in rows)]
    for dimension, r in enumerate(rows):
        if len(r) < box.shape[dimension]:
            box = box.take(r - r[0], axis=dimension)
    axes = [axis for dim in dims for axis in dim]
    piece = box.reshape([len(wanted[axis]) for axis in axes])
    if "part" in axes:
        piece = piece.squeeze(axes.index("part"))
        axes.remove("part")
    return piece.transpose([axes.index(axis) for axis in ranges])


def _assemble(
    tensors: list[_Tensor], stored: Stored, box: nn.LogicallyPartitioned, sharding: jax.sharding.Sharding, vocab: int
) -> jax.Array:
    """A parameter from the tensors of its layers (one tensor, where it has no layers)."""
    shape, axes = box.value.shape, [str(name) for name in box.names]
    sizes = {**dict(zip(axes, shape)), "table_rows": vocab}

    def piece(index: Any) -> np.ndarray:  # a slice for each dimension
        whole = [range(*s.indices(size)) for s, size in zip(index, shape)]
        out = np.zeros([len(r) for r in whole], box.value.dtype)
        ranges = dict(zip(axes, whole))
        layers = ranges.pop("layers", range(1))
        if "table_rows" in ranges:  # the rest is padding
            ranges["table_rows"] = range(ranges["table_rows"].start, min(ranges["table_rows"].stop, vocab))
        if all(ranges.values()):
            filled = tuple(slice(len(r)) for r in ranges.values())
            for target, layer in zip(out if "layers" in axes else out[None], layers):
                target[filled] = _read(tensors[layer], stored, sizes, ranges)
        return out

    return jax.make_array_from_callback(shape, sharding, piece)


def _locate(
    found: Mapping[str, _Tensor], family: Family, directory: Path, params: set[str], config: DecoderConfig
) -> dict[str, list[_Tensor]]:
    """The tensors of each parameter, by layer.

    Raises:
        ValueError: naming the tensor, unless the files have all that `params` need and nothing else.
    """
    found = {name.removeprefix(family.prefix): tensor for name, tensor in found.items()}
    layers = lambda name: range(config.num_layers if "{}" in name else 1)
    wanted = {s.param: [s.name.format(i) for i in layers(s.name)] for s in family.tensors if s.param in params}
    names = {name for layered in wanted.values() for name in layered}
    if missing := sorted(names - set(found)):
        raise ValueError(f"{directory}: {len(missing)} tensor(s) missing from the weights, such as {missing[0]}")
    tied = {"lm_head.weight"} if config.tie_embeddings else set()
    extra = sorted(name for name in set(found) - names - tied if not re.search(family.ignored, name))
    if extra:
        raise ValueError(
            f"{found[extra[0]].path}: {len(extra)} tensor(s) that the model of {CONFIG_FILE} does not have, "
            f"such as {found[extra[0]].name}"
        )
    return {param: [found[name] for name in layered] for param, layered in wanted.items()}


def _is_box(x: Any) -> bool:
    return isinstance(x, nn.LogicallyPartitioned)


def _param(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def load_decoder_params(directory: Path, config: ModelConfig, shardings: Any = None) -> dict[str, Any]:
    """The weights in a Hugging Face directory as the decoder's parameters, in `config.param_dtype`.

    Every device's piece is read by itself, so that a process reads what its devices hold and no more. Rows that only
    pad the vocabulary are 0.

    Args:
        directory: as `resolve` gives it.
        config: the model; its `decoder` is `decoder_config(directory)`, with any `vocab_multiple`.
        shardings: a sharding for each parameter, in the tree's structure; without, all goes to the first device.

    Returns:
        The tree of `Decoder.init` under `params`, without the boxes of axis names.

    Raises:
        FileNotFoundError: for a file that is not there.
        ValueError: for a truncated file, or a missing, an extra or an ill-shaped tensor; names file and tensor.
    """
    directory = Path(directory)
    _, family = _read_fields(directory)
    stored = {s.param: s for s in family.tensors}
    token = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    boxed = jax.eval_shape(Decoder(config).init, jax.random.key(0), token, token)["params"]
    if shardings is None:
        first = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        shardings = jax.tree.map(lambda _: first, boxed, is_leaf=_is_box)
    params = {_param(path) for path, _ in jax.tree.leaves_with_path(boxed, is_leaf=_is_box)}
    with contextlib.ExitStack() as stack:
        tensors = _locate(_open(directory, stack), family, directory, params, config.decoder)

        def load(path: Any, box: nn.LogicallyPartitioned, sharding: jax.sharding.Sharding) -> jax.Array:
            return _assemble(tensors[_param(path)], stored[_param(path)], box, sharding, config.decoder.vocab_size)

        return jax.tree_util.tree_map_with_path(load, boxed, shardings, is_leaf=_is_box)
