"""Decoder parameters to Hugging Face files: the tables of `families` read backwards.

The last station of a model: what `hf.load_decoder_params` reads, this writes, file by file, so that no more than one
file's share is in host memory beside the parameters.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

from reft_jax.config import DecoderConfig, EvaluationConfig, ModelConfig
from reft_jax.data.tokenizers import SpecialIds
from reft_jax.models.decoder import Decoder
from reft_jax.models.hf.configs import ConfigFields
from reft_jax.models.hf.files import INDEX_FILE, WEIGHTS_FILE
from reft_jax.models.hf.load import CONFIG_FILE, is_box, param_name
from reft_jax.models.hf.tensors import FAMILIES, TensorLayout
from reft_jax.models.params import abstract_variables

DTYPES = {"float32": np.dtype("float32"), "float16": np.dtype("float16"), "bfloat16": np.dtype(ml_dtypes.bfloat16)}

SCORE = TensorLayout("class_head/kernel", "score.weight", "class, embed")
"""Where transformers' sequence classifiers keep the class head, in every family."""


def fresh_fields(decoder: DecoderConfig) -> dict[str, Any]:
    """The `config.json` of a model made from scratch, as a Llama.

    Raises:
        ValueError: naming the fields in which the model is none.
    """
    fields = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": decoder.vocab_size,
        "hidden_size": decoder.embed_dim,
        "intermediate_size": decoder.mlp_dim,
        "num_hidden_layers": decoder.num_layers,
        "num_attention_heads": decoder.num_heads,
        "num_key_value_heads": decoder.num_kv_heads,
        "head_dim": decoder.head_dim,
        "max_position_embeddings": decoder.max_positions,
        "rms_norm_eps": decoder.norm_eps,
        "hidden_act": decoder.activation,
        "attention_bias": decoder.qkv_bias,
        "mlp_bias": decoder.mlp_bias,
        "tie_word_embeddings": decoder.tie_embeddings,
        "initializer_range": decoder.initializer_range,
        "rope_theta": decoder.rope_theta,
    }
    read_back = FAMILIES["llama"].config(ConfigFields(Path(CONFIG_FILE), fields))
    names = [name for name in vars(decoder) if name not in ("vocab_multiple", "unused_ids")]
    if different := [name for name in names if getattr(decoder, name) != getattr(read_back, name)]:
        settings = ", ".join(f"model.decoder.{name} = {getattr(decoder, name)!r}" for name in different)
        raise ValueError(f"no Hugging Face architecture for a model made from scratch with {settings}")
    return fields


def classifier_fields(fields: Mapping[str, Any], *, pad: int) -> dict[str, Any]:
    """The `config.json` of a sequence classifier that has the body of a model with these `fields`.

    transformers takes the classes from the rightmost token that is not `pad`, the id that fills rows.

    Raises:
        ValueError: transformers has no classifier of its family.
    """
    family = FAMILIES[fields["model_type"]]
    if not family.classifier:
        raise ValueError(f"transformers has no sequence classifier for model_type {fields['model_type']!r}")
    classes = ("wrong", "right")
    return {
        **fields,
        "architectures": [family.classifier],
        "id2label": {str(i): name for i, name in enumerate(classes)},
        "label2id": {name: i for i, name in enumerate(classes)},
        "pad_token_id": pad,
    }


_GENERATION = (
    *("max_length", "min_length", "do_sample", "early_stopping", "num_beams", "num_beam_groups", "diversity_penalty"),
    *("temperature", "top_k", "top_p", "typical_p", "epsilon_cutoff", "eta_cutoff", "num_return_sequences"),
    *("repetition_penalty", "length_penalty", "no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "bad_words_ids"),
    *("forced_bos_token_id", "forced_eos_token_id", "suppress_tokens", "begin_suppress_tokens"),
    *("remove_invalid_values", "exponential_decay_length_penalty", "task_specific_params"),
)
"""What an older `config.json` says of generation; transformers heeds or refuses it."""


def trained_fields(fields: Mapping[str, Any], ids: SpecialIds, bos: int | None) -> dict[str, Any]:
    """The `config.json` of a model with these `fields` after training: the run's special tokens, no way to generate."""
    return {name: value for name, value in fields.items() if name not in _GENERATION} | _special(ids, bos)


def generation_fields(
    ids: SpecialIds, bos: int | None, evaluation: EvaluationConfig, unused_ids: Sequence[tuple[int, int]] = ()
) -> dict[str, Any]:
    """The `generation_config.json` that generates as a run evaluates: nothing is the base's.

    Args:
        ids: of the run.
        bos: the tokenizer's.
        evaluation: how tokens are drawn.
        unused_ids: see `DecoderConfig`; suppressed.
    """
    special = {name: value for name, value in _special(ids, bos).items() if value is not None}
    if unused_ids:
        special["suppress_tokens"] = [token for first, stop in unused_ids for token in range(first, stop)]
    if evaluation.temperature == 0:
        return {**special, "do_sample": False}
    drawn = {name: getattr(evaluation, name) for name in ("temperature", "top_k", "top_p")}
    return {**special, "do_sample": True, **drawn}  # a top_k that is not written is 50 in transformers


def _special(ids: SpecialIds, bos: int | None) -> dict[str, Any]:
    ends = ids.ends[0] if len(ids.ends) == 1 else list(ids.ends)
    return {"bos_token_id": bos, "eos_token_id": ends, "pad_token_id": ids.pad}


def save_decoder(
    directory: Path, params: Any, decoder: DecoderConfig, fields: Mapping[str, Any], *, dtype: str, shard_bytes: int
) -> None:
    """Writes `config.json` and the weights; rows that only pad the vocabulary are cut off.

    Args:
        directory: made where it is missing.
        params: the tree of `Decoder.init`; a classifier's also has its `class_head`.
        decoder: its shape.
        fields: the `config.json` of the model's family; its type of weights is set to `dtype`.
        dtype: a key of `DTYPES`.
        shard_bytes: a file holds no more, unless a single tensor is larger; with one file there is no index.
    """
    directory.mkdir(parents=True, exist_ok=True)
    key = "dtype" if "dtype" in fields else "torch_dtype"
    text = json.dumps({**fields, key: dtype}, indent=2) + "\n"
    (directory / CONFIG_FILE).write_text(text, encoding="utf-8")
    shards = _shards(_tensors(params, decoder, fields["model_type"]), DTYPES[dtype].itemsize, shard_bytes)
    if len(shards) == 1:
        names = [WEIGHTS_FILE]
    else:
        names = [f"model-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
        weight_map = {tensor.name: file for file, shard in zip(names, shards) for tensor in shard}
        total = sum(math.prod(tensor.shape) for shard in shards for tensor in shard) * DTYPES[dtype].itemsize
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (directory / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    for file, shard in zip(names, shards):
        arrays = {tensor.name: tensor.array().astype(DTYPES[dtype]) for tensor in shard}
        save_file(arrays, directory / file, metadata={"format": "pt"})


class _Tensor(NamedTuple):
    """One tensor of a checkpoint, and the parameters that it is made of (or one layer of them)."""

    name: str
    layer: int | None
    parts: tuple[tuple[TensorLayout, jax.Array, tuple[str, ...]], ...]  # with the names of the parameter's axes
    vocab: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the tensor."""
        stored, param, axes = self.parts[0]
        return stored.shape(self._sizes(param, axes))

    def array(self) -> np.ndarray:
        """The tensor on the host, in the parameters' type."""
        whole = np.empty(self.shape, self.parts[0][1].dtype)
        for stored, param, axes in self.parts:
            piece = np.asarray(jax.device_get(param if self.layer is None else param[self.layer]))
            own = [axis for axis in axes if axis != "layers"]
            if "table_rows" in own:  # the first axis
                piece = piece[: self.vocab]
            piece = piece.transpose([own.index(axis) for dim in stored.axes for axis in dim])
            places = stored.places(self._sizes(param, axes))
            whole[np.ix_(*(place.ravel() for place in places))] = piece.reshape([place.size for place in places])
        return whole

    def _sizes(self, param: jax.Array, axes: tuple[str, ...]) -> dict[str, int]:
        return {**dict(zip(axes, param.shape)), "table_rows": self.vocab}


def _tensors(params: Any, decoder: DecoderConfig, model_type: str) -> Iterator[_Tensor]:
    """The tensors of a checkpoint in the order of the family's table, all layers of one after another."""
    family = FAMILIES[model_type]
    boxed = abstract_variables(Decoder(ModelConfig(decoder=decoder)), inputs=2)["params"]
    axes = {
        param_name(path): tuple(map(str, box.names)) for path, box in jax.tree.leaves_with_path(boxed, is_leaf=is_box)
    }
    axes[SCORE.param] = ("embed", "class")
    arrays = {param_name(path): array for path, array in jax.tree.leaves_with_path(params)}
    by_name: dict[str, list[TensorLayout]] = {}
    for stored in (*family.tensors, SCORE):
        if stored.param in arrays:
            by_name.setdefault(stored.name, []).append(stored)
    for name, entries in by_name.items():
        entries.sort(key=lambda stored: stored.part)
        parts = tuple((stored, arrays[stored.param], axes[stored.param]) for stored in entries)
        prefix = "" if name.startswith(("lm_head", "score")) else family.prefix
        for layer in range(decoder.num_layers) if "{}" in name else (None,):
            yield _Tensor(prefix + name.format(layer), layer, parts, decoder.vocab_size)


def _shards(tensors: Iterator[_Tensor], itemsize: int, limit: int) -> list[list[_Tensor]]:
    """Tensors by file, in order, none above `limit` bytes unless by one tensor alone."""
    shards: list[list[_Tensor]] = [[]]
    room = limit
    for tensor in tensors:
        size = math.prod(tensor.shape) * itemsize
        if shards[-1] and size > room:
            shards.append([])
            room = limit
        shards[-1].append(tensor)
        room -= size
    return shards
