"""What a run of a config compiles, and the compilation of one step of it: `preflight`'s part in a process of its own.

The environment says what JAX compiles for and must be set before JAX is imported: `preflight` starts this module once
for the plan and once for each step, hands it (config, target, step) and reads one line of JSON.
"""

import dataclasses
import inspect
import json
import math
import pickle
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from reft_jax.algorithms import classification, ppo, self_training, sft
from reft_jax.algorithms.rollout import SamplingParams, build_generate, build_layout, needs_layout, rollout_policy
from reft_jax.algorithms.train_state import TrainState, abstract_params
from reft_jax.config import Config, LoraConfig, ModelConfig, SupervisedConfig
from reft_jax.config.validation import check_batches, check_lengths
from reft_jax.data.tokenizers import load_tokenizer
from reft_jax.models.decoder import KVCache
from reft_jax.models.hf.load import resolve_model
from reft_jax.models.policy import Policy
from reft_jax.parallel.processes import enable_x64
from reft_jax.parallel.sharding import make_mesh, named_sharding, shard_count
from reft_jax.preflight.devices import Target
from reft_jax.preflight.hlo import Traffic, aliased_inputs, collectives

Build = Callable[[], tuple[Any, tuple[Any, ...]]]
PAD, EOS, SCHEDULE = 1, 2, 1000  # neither ids nor the length of a schedule change a program's size


def build_steps(config: Config, mesh: Mesh) -> dict[str, Build]:
    """The programs of a run by name, each in its largest bucket: what makes (jitted, abstract arguments)."""
    model, rl, generation, evaluation = config.model, config.rl, config.generation, config.evaluation
    longest = {"prompt": max(generation.prompt_buckets)}
    scored: dict[str, Any] = {**longest, "response": generation.max_new_tokens, "temperature": generation.temperature}
    layout = (model, mesh, generation.weight_layout)

    def supervised(model: ModelConfig, stage: SupervisedConfig) -> Build:
        sizes = {"prompt": max(stage.prompt_buckets), "response": max(stage.response_buckets)}
        return lambda: sft.build_step(model, stage, mesh, total_steps=SCHEDULE, **sizes)

    def generate(batch: int, sampling: SamplingParams) -> Build:
        lengths: dict[str, Any] = {**longest, "max_new_tokens": generation.max_new_tokens}
        how: dict[str, Any] = {"scan_layers": generation.scan_layers, "weight_layout": generation.weight_layout}
        ids: dict[str, Any] = {"eos": EOS, "pad": PAD}
        return lambda: build_generate(model, mesh, batch=batch, sampling=sampling, **lengths, **how, **ids)

    found: dict[str, Build] = {}
    if config.pretrain.epochs:  # there, a fresh model learns with all its weights
        found["pretrain"] = supervised(dataclasses.replace(model, lora=LoraConfig()), config.pretrain)
    if config.sft.schedule_epochs:
        found["sft"] = supervised(model, config.sft)
    if (config.sft.schedule_epochs or rl.epochs) and needs_layout(*layout):
        found["layout"] = lambda: build_layout(*layout)
    if rl.epochs:
        found["rollout"] = generate(
            rl.rollout_batch_size * rl.samples_per_question, SamplingParams(generation.temperature)
        )
        if rl.algorithm == "self_training":
            gold = (max(config.sft.prompt_buckets), max(config.sft.response_buckets))
            lesson: dict[str, Any] = {**longest, "response": generation.max_new_tokens}
            lesson["gold"] = gold if rl.self_training.gold_weight else None
            found["update"] = lambda: self_training.build_update(model, rl, mesh, total_steps=SCHEDULE, **lesson)
        else:
            found["experience"] = lambda: ppo.build_experience(model, rl, mesh, **scored)
            found["update"] = lambda: ppo.build_update(model, rl, mesh, total_steps=SCHEDULE, **scored)
    if config.sft.schedule_epochs or rl.epochs:
        sampling = SamplingParams(evaluation.temperature, evaluation.top_k, evaluation.top_p)
        found["evaluation"] = generate(evaluation.batch_size, sampling)
    if config.reward_model.samples:  # in a run of its own
        judge, length = config.reward_model, max(config.reward_model.row_buckets)
        step, scoring = classification.build_step, classification.build_scoring
        found["reward_model"] = lambda: step(model, judge, mesh, total_steps=SCHEDULE, length=length)
        found["scoring"] = lambda: scoring(model, mesh, batch=judge.microbatch_size, length=length)
    return found


def bucket(config: Config, step: str) -> tuple[int, int, int, int]:
    """Rows, prompt and response tokens of the bucket that is compiled, and how many buckets there are."""
    generation, rl = config.generation, config.rl
    if step in ("pretrain", "sft"):
        stage = getattr(config, step)
        count = len(stage.prompt_buckets) * len(stage.response_buckets)
        return stage.batch_size, max(stage.prompt_buckets), max(stage.response_buckets), count
    if step in ("reward_model", "scoring"):
        judge = config.reward_model
        size = judge.batch_size if step == "reward_model" else judge.microbatch_size
        return size, max(judge.row_buckets), 0, len(judge.row_buckets)
    if step == "layout":
        return 0, 0, 0, 1
    rows = {"evaluation": config.evaluation.batch_size, "update": rl.minibatch_size}
    count = len(generation.prompt_buckets)
    sampled = rl.rollout_batch_size * rl.samples_per_question
    return rows.get(step, sampled), max(generation.prompt_buckets), generation.max_new_tokens, count


def fill_in(config: Config) -> Config:
    """The config with its decoder's shape filled in, from the `config.json` in `model.path` or the tokenizer.

    Raises:
        FileNotFoundError, ValueError: the shape cannot be known; names the key.
    """
    model, size = config.model, 0
    if not model.path and not model.decoder.vocab_size:
        if model.tokenizer != "embedded" and not Path(model.tokenizer).is_dir():
            raise ValueError(
                f"the size of the vocabulary of model.tokenizer {model.tokenizer!r} is not known without its files: "
                "set model.decoder.vocab_size"
            )
        size = len(load_tokenizer(model.tokenizer, model.revision))
    return dataclasses.replace(config, model=resolve_model(model, size))


def device_bytes(tree: Any) -> int:
    """Bytes of a tree of abstract arrays on one device."""
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def argument_parts(step: str, args: tuple[Any, ...]) -> dict[str, int]:
    """Bytes of a step's arguments on one device, by what they are."""
    first, *rest = args
    if isinstance(first, TrainState):
        optimizer = (first.opt_state, first.step)
        return {"params": device_bytes(first.params), "optimizer": device_bytes(optimizer), "batch": device_bytes(rest)}
    if step == "experience":
        return {"params": device_bytes(first), "reference": device_bytes(rest[0]), "batch": device_bytes(rest[1:])}
    return {"params" if step == "layout" else "weights": device_bytes(first), "batch": device_bytes(rest)}


def cache_bytes(config: Config, mesh: Mesh, rows: int) -> int:
    """Bytes of the KV cache of a generation on one device."""
    policy = rollout_policy(config.model, mesh, config.generation.weight_layout)
    slots = max(config.generation.prompt_buckets) + config.generation.max_new_tokens
    cache = jax.eval_shape(lambda: KVCache.empty(config.model, rows, slots))
    axes = ("layers", "batch", None, "activation_kv_heads", None)
    piece = named_sharding(mesh, *axes, layout=policy.layout).shard_shape(cache.k.shape)
    return 2 * math.prod(piece) * cache.k.dtype.itemsize


def plan(config: Config, mesh: Mesh) -> dict[str, Any]:
    """What will be compiled and how large its arguments are; compiles nothing.

    Raises:
        ValueError: the config does not suit the mesh; names the key.
    """
    check_batches(config, shard_count(mesh, "batch"))
    steps: dict[str, Any] = {}
    for name, build in build_steps(config, mesh).items():
        _, args = build()
        steps[name] = {"bucket": bucket(config, name), "arguments": argument_parts(name, args), "cache": 0}
        if name in ("rollout", "evaluation"):
            steps[name]["cache"] = cache_bytes(config, mesh, steps[name]["bucket"][0])
    decoder = abstract_params(Policy(config.model, mesh), mesh, value_head=False, adapters=False)
    return {
        "mesh": dict(mesh.shape),
        "shards": shard_count(mesh, "batch"),
        "vocabulary": config.model.decoder.vocab_size,
        "parameters": sum(x.size for x in jax.tree.leaves(decoder)),
        "decoder": device_bytes(decoder),
        "steps": steps,
    }


def measure(build: Build, target: Target) -> dict[str, Any]:
    """Compiles a step and reads off it all that the compiler says; `refused` where it says that memory does not do."""
    jitted, args = build()
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


def run(config: Config, target: Target, step: str) -> dict[str, Any]:
    """The plan, where `step` is empty, or the measures of that step."""
    enable_x64(config.model)
    config = fill_in(config)
    check_lengths(config)
    mesh = make_mesh(config.mesh, target.devices())
    return measure(build_steps(config, mesh)[step], target) if step else plan(config, mesh)


def main() -> None:
    """Reads (config, target, step) from the standard input and prints a line of JSON; `error` says what is wrong."""
    try:
        result = run(*pickle.load(sys.stdin.buffer))
    except (ValueError, FileNotFoundError) as error:
        result = {"error": str(error)}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
