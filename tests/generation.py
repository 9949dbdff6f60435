"""Generation in one program, for tests: a slot for each row."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from reft_jax.algorithms.rollout import SamplingParams, abstract_rollout_params, generate, rollout_policy
from reft_jax.config import ModelConfig, SamplingLayout
from reft_jax.data.batches import PromptBatch
from reft_jax.parallel.sharding import abstract_rows, batch_shardings, replicated, shard_count


def build_generate(
    config: ModelConfig,
    mesh: Mesh,
    *,
    batch: int,
    prompt: int,
    max_new_tokens: int,
    sampling: SamplingParams,
    eos: int | tuple[int, ...],
    pad: int,
    scan_layers: bool,
    weight_layout: SamplingLayout = "auto",
    samples: int = 1,
) -> tuple[Any, tuple[Any, ...]]:
    """The jitted `(params, prompts, seed, step) -> Rollout` and its abstract arguments.

    Samples of a question share its prefill where they lie on one device.
    """
    policy = rollout_policy(config, mesh, weight_layout, scan_layers=scan_layers)
    together = samples if batch % (samples * shard_count(mesh, "batch")) == 0 else 1

    def step(params: Any, prompts: PromptBatch, seed: jax.Array, step: jax.Array) -> Any:
        how = {"max_new_tokens": max_new_tokens, "sampling": sampling, "eos": eos, "pad": pad, "samples": together}
        return generate(policy, params, prompts, seed, step, **how)

    ids: Callable[..., Any] = lambda *shape: jax.ShapeDtypeStruct((batch, *shape), jnp.int32)
    prompts = PromptBatch(tokens=ids(prompt), lengths=ids(), problem=ids(), sample=ids())
    scalar = jax.ShapeDtypeStruct((), jnp.int32, sharding=replicated(mesh))
    args = (abstract_rollout_params(policy), abstract_rows(prompts, mesh), scalar, scalar)
    return jax.jit(step, out_shardings=batch_shardings(jax.eval_shape(step, *args), mesh)), args
