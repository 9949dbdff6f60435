"""The compilation of a run's steps for devices that are not here: `preflight`'s part in a process of its own.

The environment says what JAX compiles for and must be set before JAX is imported: `preflight` starts this module, hands
it (config, target, names of steps, None for all) and reads lines of JSON: the plan, then a line for each step.
"""

import dataclasses
import inspect
import json
import math
import pickle
import sys
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from reft_jax.algorithms.rollout import Slots
from reft_jax.algorithms.steps import ANY_IDS, sampling_of, steps
from reft_jax.algorithms.train_state import TrainState, abstract_params
from reft_jax.config import Config
from reft_jax.config.validation import check_batches, check_lengths
from reft_jax.data.tokenizers import load_tokenizer
from reft_jax.models.hf.load import resolve_model
from reft_jax.models.policy import Policy
from reft_jax.parallel.compilation import Step
from reft_jax.parallel.processes import enable_x64
from reft_jax.parallel.sharding import make_mesh, shard_count
from reft_jax.preflight.devices import Target
from reft_jax.preflight.hlo import Traffic, aliased_inputs, collectives


def bucket(step: Step) -> tuple[int, int, int, int]:
    """Rows, prompt and response tokens of the bucket that is compiled, the largest; and how many buckets there are."""
    prompt, response = (*step.largest, 0, 0)[:2]
    return step.rows, prompt, step.response or response, len(step.buckets)


def fill_in(config: Config) -> Config:
    """The config with its decoder's shape filled in, from the `config.json` in `model.path` or the tokenizer.

    Raises:
        FileNotFoundError, ValueError: the shape cannot be known; names the key.
    """
    model, vocabulary = config.model, {}
    if not model.path and not model.decoder.vocab_size:
        if model.tokenizer != "embedded" and not Path(model.tokenizer).is_dir():
            raise ValueError(
                f"the size of the vocabulary of model.tokenizer {model.tokenizer!r} is not known without its files: "
                "set model.decoder.vocab_size"
            )
        vocabulary = load_tokenizer(model.tokenizer, model.revision).get_vocab()
    return dataclasses.replace(config, model=resolve_model(model, vocabulary))


def device_bytes(tree: Any) -> int:
    """Bytes of a tree of abstract arrays on one device."""
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def argument_parts(step: str, args: tuple[Any, ...]) -> dict[str, int]:
    """Bytes of a step's arguments on one device, by what they are."""
    first, *rest = args
    if isinstance(first, TrainState):
        optimizer = (first.opt_state, first.step)
        return {"params": device_bytes(first.params), "optimizer": device_bytes(optimizer), "batch": device_bytes(rest)}
    if step.endswith("experience"):
        return {"params": device_bytes(first), "reference": device_bytes(rest[0]), "batch": device_bytes(rest[1:])}
    found = {"params" if step == "layout" else "weights": device_bytes(first)}
    if rest and isinstance(rest[0], Slots):
        found["cache"] = device_bytes(rest[0].cache)
        rest[0] = dataclasses.replace(rest[0], cache=())
    return {**found, "batch": device_bytes(rest)}


def _compiled(config: Config, mesh: Mesh) -> dict[str, Step]:
    """The steps of the config but for `slots`, which only makes what the next ones are given."""
    return {name: step for name, step in steps(config, mesh).items() if name != "slots"}


def plan(config: Config, mesh: Mesh) -> dict[str, Any]:
    """What will be compiled and how large its arguments are; compiles nothing.

    Raises:
        ValueError: the config does not suit the mesh; names the key.
    """
    check_batches(config, shard_count(mesh, "batch"))
    planned: dict[str, Any] = {}
    for name, step in _compiled(config, mesh).items():
        _, args = step.build(*step.largest)
        planned[name] = {"bucket": bucket(step), "arguments": argument_parts(name, args)}
    decoder = abstract_params(Policy(config.model, mesh), mesh, value_head=False, adapters=False)
    return {
        "mesh": dict(mesh.shape),
        "shards": shard_count(mesh, "batch"),
        "slots": sampling_of(config, mesh, ANY_IDS).per_device if config.needs_sampling else 0,
        "vocabulary": config.model.decoder.vocab_size,
        "shape": dataclasses.asdict(config.model.decoder),
        "parameters": sum(x.size for x in jax.tree.leaves(decoder)),
        "decoder": device_bytes(decoder),
        "steps": planned,
    }


def measure(step: Step, target: Target) -> dict[str, Any]:
    """Compiles a step in its largest bucket and reads off what the compiler says; `refused` if memory is too small."""
    jitted, args = step.build(*step.largest)
    started = time.monotonic()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Some donated buffers")  # they are found below
        lowered = jitted.lower(*args)
        try:
            compiled = lowered.compile()
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            return {"refused": str(error).splitlines()[0].removeprefix("RESOURCE_EXHAUSTED: ")}
    seconds = time.monotonic() - started
    stats, text = compiled.memory_analysis(), compiled.as_text()
    memory = {
        name: int(getattr(stats, f"{name}_size_in_bytes")) for name in ("argument", "output", "alias", "temp")
    } | {"peak": int(stats.peak_memory_in_bytes), "code": int(stats.generated_code_size_in_bytes)}
    allocated = memory["argument"] + memory["output"] - memory["alias"] + memory["temp"]
    needed = memory["peak"] if target.platform == "tpu" else allocated  # the TPU's compiler holds its peak to the chip
    found = collectives(text)
    return {
        "seconds": seconds,
        **memory,
        "needed": needed,
        "not_aliased": not_aliased(jitted, args, lowered, aliased_inputs(text)),
        "collectives": as_dict(found.once),
        "per_turn": as_dict(found.per_turn),
        "open_loops": found.open_loops,
    }


def not_aliased(jitted: Any, args: tuple[Any, ...], lowered: Any, aliased: frozenset[str]) -> dict[str, int]:
    """Bytes on one device of the inputs that are given up and yet not reused, by name."""
    names = list(inspect.signature(jitted).parameters)
    described = jax.tree_util.tree_leaves_with_path(lowered.args_info[0])
    found = {}
    for (path, info), leaf in zip(described, jax.tree.leaves(args), strict=True):
        name = names[path[0].idx] + jax.tree_util.keystr(path[1:])
        if info.donated and name not in aliased:
            found[name] = device_bytes(leaf)
    return found


def as_dict(traffic: Mapping[str, Traffic]) -> dict[str, dict[str, int]]:
    return {kind: dataclasses.asdict(found) for kind, found in traffic.items()}


def answers(config: Config, target: Target, names: Sequence[str] | None) -> Iterator[dict[str, Any]]:
    """Yields the plan, then the measures of each step in `names`, or of all.

    Raises:
        FileNotFoundError, ValueError: the config cannot be compiled for the target; names the key.
    """
    enable_x64(config.model)
    config = fill_in(config)
    check_lengths(config)
    mesh = make_mesh(config.mesh, target.devices())
    yield plan(config, mesh)
    compiled = _compiled(config, mesh)
    for name in compiled if names is None else names:
        yield measure(compiled[name], target)


def main() -> None:
    """Reads (config, target, names) from the standard input and prints lines of JSON; `error` says what is wrong."""
    try:
        for answer in answers(*pickle.load(sys.stdin.buffer)):
            print(json.dumps(answer), flush=True)
    except (ValueError, FileNotFoundError) as error:
        print(json.dumps({"error": str(error)}))


if __name__ == "__main__":
    main()
