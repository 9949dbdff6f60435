"""Hugging Face checkpoints: where they are, what shape they have, and their weights as the decoder's parameters.

At the start of a run `resolve` finds the directory, `decoder_config` reads the model's shape and `load_decoder_params`
its weights, each device's share by itself. What tells one family from another is in `families.py`.
"""

import dataclasses
import itertools
import re
import shutil
from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any

import huggingface_hub
import jax
import numpy as np
from flax import linen as nn
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from reft_jax.config import DecoderConfig, ModelConfig
from reft_jax.config.paths import local_folder
from reft_jax.config.validation import range_errors, refuse
from reft_jax.files import ask_hub
from reft_jax.models.decoder import Decoder
from reft_jax.models.hf.adapters import CONFIG_FILE as ADAPTER_FILE
from reft_jax.models.hf.adapters import load_adapters, read_settings
from reft_jax.models.hf.configs import WITHOUT_EFFECT
from reft_jax.models.hf.files import FileTensor, list_tensors
from reft_jax.models.hf.tensors import FAMILIES, ConfigFields, Family, TensorLayout
from reft_jax.models.params import abstract_variables

HUB_FILES = ["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja"]  # weights, configs, every form of tokenizer
CONFIG_FILE, GENERATION_FILE = "config.json", "generation_config.json"
_OTHERS = f"; {CONFIG_FILE} and weights are of two models, or files are missing"
HEAD = "lm_head.weight"
ROWS = 4096  # of a table, read at once where all of it is compared
PICKLES = ["pytorch_model*.bin", "pytorch_model.bin.index.json"]


def resolve(path: str, revision: str = "main", *, key: str = "model.path") -> Path:
    """The local directory of a model, given as such or as a hub id, which is downloaded or taken from the cache.

    Args:
        path: the directory, or the id.
        revision: of the hub's files.
        key: the setting that names it; `model.lora.path` is that of an adapter.

    Raises:
        FileNotFoundError: naming the key: it is neither a directory nor to be had from the hub, or it is one of
            something else.
    """
    directory = local_folder(path, key) or _download(path, revision, key)
    has_config, has_adapter = ((directory / name).exists() for name in (CONFIG_FILE, ADAPTER_FILE))
    if key == "model.lora.path":
        if not has_adapter:
            other = "is a whole model: give it as model.path" if has_config else f"has no {ADAPTER_FILE}"
            raise FileNotFoundError(f"{key}: {path} is no PEFT adapter, it {other}")
    elif has_config and has_adapter:
        raise FileNotFoundError(
            f"{key}: {path} has an adapter beside the model, which transformers would apply: move its files to a "
            "folder of their own, and give that as model.lora.path if it is wanted"
        )
    elif has_adapter:
        base = ConfigFields.of_file(directory / ADAPTER_FILE).get("base_model_name_or_path", "which it does not name")
        raise FileNotFoundError(
            f"{key}: {path} is a PEFT adapter: give it as model.lora.path and its base ({base}) as model.path"
        )
    elif not has_config:
        raise FileNotFoundError(f"{key}: {path} is no Hugging Face model, it has no {CONFIG_FILE}")
    return directory


def _download(path: str, revision: str, key: str) -> Path:
    """The directory of a hub id in the local cache."""
    ask_hub()
    try:
        directory = Path(huggingface_hub.snapshot_download(path, revision=revision, allow_patterns=HUB_FILES))
        if not any(directory.glob("*.safetensors")):
            huggingface_hub.snapshot_download(path, revision=revision, allow_patterns=PICKLES)
        return directory
    except HFValidationError as error:
        raise FileNotFoundError(f"{key}: there is no folder {path}, and it is no hub id (owner/name)") from error
    except (LocalEntryNotFoundError, HfHubHTTPError) as error:
        raise FileNotFoundError(
            f"{key}: there is no folder {path}, and as a hub id (revision {revision}) it is neither in the local cache "
            f"nor to be had ({type(error).__name__}). Fetch it once where there is a network with `hf download {path} "
            f"--revision {revision}`, or give the path of a folder with its files"
        ) from error


def require_model(config: ModelConfig, *, adapter: bool = True) -> None:
    """Judges what `model.path` and, with `adapter`, `model.lora.path` name, before anything of it is loaded.

    Raises:
        FileNotFoundError, ValueError: see `resolve`, `decoder_config`, `end_tokens` and `adapters.read_settings`.
    """
    if config.path:
        directory = resolve(config.path, config.revision)
        decoder = decoder_config(directory)
        end_tokens(directory)
        if adapter and config.lora.path:
            read_settings(resolve(config.lora.path, key="model.lora.path"), decoder.num_layers)


def _read_fields(directory: Path) -> tuple[ConfigFields, Family]:
    fields = ConfigFields.of_file(directory / CONFIG_FILE)
    if fields.get("quantization_config", None) is not None:
        raise fields.refusal("quantization_config", "only plain floating-point weights are read")
    return fields, fields.translate("model_type", "", FAMILIES)


def decoder_config(directory: Path) -> DecoderConfig:
    """The shape of the model in a Hugging Face directory.

    Raises:
        FileNotFoundError: without a `config.json`.
        ValueError: naming the field and its value, for what the decoder does not do, or may not do: see
            `ConfigFields.refuse_unread`.
    """
    fields, family = _read_fields(directory)
    decoder = family.config(fields)
    fields.refuse_unread(WITHOUT_EFFECT)
    refuse(f"{fields.path}: as {fault}" for fault in range_errors(decoder, "model.decoder."))
    return decoder


def resolve_model(config: ModelConfig, vocabulary: Mapping[str, int]) -> ModelConfig:
    """The model's config with its decoder's shape, and which ids it never predicts, from checkpoint and tokenizer.

    These are the ids that no token of the tokenizer has, unless the model's files name one as an end.

    Args:
        config: the model's settings.
        vocabulary: the tokenizer's, ids by token, added ones included. They may have holes, so that the highest id says
            more than their number.

    Raises:
        ValueError: naming a token of the tokenizer whose id the embedding lacks.
    """
    token, last = max(vocabulary.items(), key=lambda item: item[1], default=("", -1))
    used = set(vocabulary.values())
    if config.path:
        directory = resolve(config.path, config.revision)
        own = decoder_config(directory)
        used |= set(end_tokens(directory))
        decoder = dataclasses.replace(own, vocab_multiple=config.decoder.vocab_multiple)
    else:
        decoder = dataclasses.replace(config.decoder, vocab_size=config.decoder.vocab_size or last + 1)
    if decoder.vocab_size <= last:
        way = "give the tokenizer of this model" if config.path else "set model.decoder.vocab_size to 0"
        raise ValueError(
            f"the tokenizer's {token!r} has id {last}, and the embedding has {decoder.vocab_size} tokens, from 0: {way}"
        )
    unused = _gaps(used, decoder.vocab_size) if vocabulary else ()
    return dataclasses.replace(config, decoder=dataclasses.replace(decoder, unused_ids=unused))


def _gaps(used: Set[int], size: int) -> tuple[tuple[int, int], ...]:
    """The runs of ids below `size` that are not used, each as (first, last + 1)."""
    bounds = [-1, *sorted(used), size]
    return tuple((before + 1, after) for before, after in itertools.pairwise(bounds) if before + 1 < after)


def model_type(directory: Path) -> str:
    """The family of the model in a directory, a key of `FAMILIES`."""
    return _read_fields(directory)[0].get("model_type", "")


def end_tokens(directory: Path) -> tuple[int, ...]:
    """The ids that end a response by `generation_config.json` and by `config.json`, each once.

    A model may have been trained to end with either's: files of the same model are often edited one without the other.

    Raises:
        ValueError: one is no id of the embedding; names the file.
    """
    found: list[int] = []
    for path in (directory / GENERATION_FILE, directory / CONFIG_FILE):
        if not path.exists():
            continue
        named = ConfigFields.of_file(path).get("eos_token_id", None)
        if named is None:
            continue
        ids = tuple(named) if isinstance(named, list) else (named,)
        size = ConfigFields.of_file(directory / CONFIG_FILE)["vocab_size"]
        for token in ids:
            if type(token) is not int or not 0 <= token < size:
                raise ValueError(
                    f"{path}: eos_token_id names {token!r}, which is no id of the embedding's {size} tokens, from 0"
                )
        found += ids
    return tuple(dict.fromkeys(found))


def copy_config_files(source: Path, target: Path) -> None:
    """Copies `config.json` and, where there is one, `generation_config.json` from one directory to another."""
    target.mkdir(parents=True, exist_ok=True)
    for name in (CONFIG_FILE, GENERATION_FILE):
        if (source / name).exists():
            shutil.copy(source / name, target / name)


def _read(
    tensor: FileTensor, stored: TensorLayout, sizes: Mapping[str, int], ranges: Mapping[str, range]
) -> np.ndarray:
    """The piece `ranges` of a parameter, its axes in their order; no more than the box around it is read.

    Args:
        tensor: where it is stored.
        stored: how.
        sizes: length of each axis in the file.
        ranges: the wanted part of each axis.
    """
    axes = stored.axes
    rows = [  # ascending indices into each dimension of the tensor
        place[np.ix_(*(ranges[axis] for axis in dim))].ravel() for place, dim in zip(stored.places(sizes), axes)
    ]
    box = tensor.read(stored.shape(sizes), tuple(slice(int(r[0]), int(r[-1]) + 1) for r in rows))
    for dimension, r in enumerate(rows):
        if len(r) < box.shape[dimension]:
            box = box.take(r - r[0], axis=dimension)
    order = [axis for dim in axes for axis in dim]
    return box.reshape([len(ranges[axis]) for axis in order]).transpose([order.index(axis) for axis in ranges])


def _assemble(
    tensors: list[FileTensor],
    stored: TensorLayout,
    box: nn.LogicallyPartitioned,
    sharding: jax.sharding.Sharding,
    vocab: int,
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
    found: Mapping[str, FileTensor], family: Family, directory: Path, params: set[str], config: DecoderConfig
) -> dict[str, list[FileTensor]]:
    """The tensors of each parameter, by layer.

    Raises:
        ValueError: naming the tensor, unless the files have all that `params` need and nothing else but, where it is
            tied, the embedding twice.
    """
    found = {name.removeprefix(family.prefix): tensor for name, tensor in found.items()}
    layers = lambda name: range(config.num_layers if "{}" in name else 1)
    wanted = {s.param: [s.name.format(i) for i in layers(s.name)] for s in family.tensors if s.param in params}
    names = {name for layered in wanted.values() for name in layered}
    if missing := sorted(names - set(found)):
        raise ValueError(
            f"{directory}: {len(missing)} tensor(s) missing from the weights, such as {missing[0]}{_OTHERS}"
        )
    tied = {HEAD} if config.tie_embeddings else set()
    extra = sorted(name for name in set(found) - names - tied if not re.search(family.ignored, name))
    if extra:
        raise ValueError(
            f"{found[extra[0]].path}: {len(extra)} tensor(s) that the model of {CONFIG_FILE} does not have, "
            f"such as {found[extra[0]].name}{_OTHERS}"
        )
    if tied & set(found):
        _require_equal(found[HEAD], found[wanted["embed"][0]], (config.vocab_size, config.embed_dim))
    return {param: [found[name] for name in layered] for param, layered in wanted.items()}


def _require_equal(head: FileTensor, embed: FileTensor, shape: tuple[int, int]) -> None:
    """Refuses an output projection beside a tied embedding that is not the same; reads both, some rows at a time."""
    for start in range(0, shape[0], ROWS):
        rows = (slice(start, min(start + ROWS, shape[0])), slice(0, shape[1]))
        ours, theirs = (tensor.read(shape, rows).astype(np.float64) for tensor in (head, embed))
        if not np.array_equal(ours, theirs):
            raise ValueError(
                f"{head.path}: tensor {head.name} is not equal to {embed.name}, yet by tie_word_embeddings of "
                f"{CONFIG_FILE} (true there, or by default) there is but one: set it to false to keep both"
            )


def is_box(x: Any) -> bool:
    return isinstance(x, nn.LogicallyPartitioned)


def param_name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _find(directory: Path, config: ModelConfig) -> tuple[Any, dict[str, TensorLayout], dict[str, list[FileTensor]]]:
    """The decoder's boxed shapes, and of each parameter how it is stored, and its tensors by layer."""
    _, family = _read_fields(directory)
    boxed = abstract_variables(Decoder(config), inputs=2)["params"]
    params = {param_name(path) for path, _ in jax.tree.leaves_with_path(boxed, is_leaf=is_box)}
    tensors = _locate(list_tensors(directory), family, directory, params, config.decoder)
    return boxed, {stored.param: stored for stored in family.tensors}, tensors


def require_weights(config: ModelConfig) -> None:
    """Holds the weights of `model.path`, and the adapter of `model.lora.path`, against their configs, before a start.

    Of each tensor name, shape and type are looked at; the numbers themselves are read when they are needed.

    Raises:
        FileNotFoundError, ValueError: see `load_decoder_params` and `adapters.load_adapters`.
    """
    if not config.path:
        return
    directory = resolve(config.path, config.revision)
    boxed, stored, tensors = _find(directory, config)
    for path, box in jax.tree.leaves_with_path(boxed, is_leaf=is_box):
        name = param_name(path)
        sizes = {**dict(zip(map(str, box.names), box.value.shape)), "table_rows": config.decoder.vocab_size}
        shape = stored[name].shape(sizes)
        for tensor in tensors[name]:
            tensor.read(shape, (slice(1),) * len(shape))
    if config.lora.path:
        load_adapters(resolve(config.lora.path, key="model.lora.path"), config, model_type(directory))


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
        ValueError: for a truncated file, a missing, an extra or an ill-shaped tensor, or an output projection that
            differs from the embedding that it is said to be; names file and tensor.
    """
    boxed, stored, tensors = _find(Path(directory), config)
    if shardings is None:
        first = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        shardings = jax.tree.map(lambda _: first, boxed, is_leaf=is_box)

    def load(path: Any, box: nn.LogicallyPartitioned, sharding: jax.sharding.Sharding) -> jax.Array:
        name = param_name(path)
        return _assemble(tensors[name], stored[name], box, sharding, config.decoder.vocab_size)

    return jax.tree_util.tree_map_with_path(load, boxed, shardings, is_leaf=is_box)
