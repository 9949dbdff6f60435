"""Online self-training: likelihood of the completions that were right, and of the annotations of the same questions.

The baseline of ReFT (arXiv 2401.08967, section 4.2) that learns from the same samples and verdicts as PPO, but from the
right ones alone: no critic, no reference, no advantages.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from flax import struct
from jax.sharding import Mesh

from reft_jax.algorithms.train_state import (
    TrainState,
    abstract_sequences,
    abstract_stage,
    at_length,
    by_length,
    cut_lengths,
    jit_update,
    optimizer_step,
    padding_share,
    positions,
    take_rows,
)
from reft_jax.config import ModelConfig, RlConfig
from reft_jax.data.batches import Sequences
from reft_jax.losses import masked_nll
from reft_jax.models.params import Params
from reft_jax.models.policy import Policy, score_responses
from reft_jax.parallel.sharding import abstract_rows, replicated

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Int


@struct.dataclass
class SelfTrainingBatch:
    """One iteration's completions beside the annotation of each one's question; constant during the update."""

    sampled: Sequences
    correct: Bool[Array, " B"]
    gold: Sequences | None  # a row for each completion; None where annotations do not count


def update(
    policy: Policy,
    config: RlConfig,
    total_steps: int,
    state: TrainState,
    data: SelfTrainingBatch,
    rows: Int[Array, " M"],
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One optimizer step over a minibatch on `(1 - gold_weight) * nll(right completions) + gold_weight * nll(gold)`.

    Each nll is a mean over the minibatch's tokens; without a right completion the first is 0, as in the reference.

    Args:
        policy: the model.
        config: batch split, weight of the annotations, optimizer.
        total_steps: length of the learning-rate schedule, in optimizer steps.
        state: parameters {"decoder"} and optimizer.
        data: [B, ...], of the iteration.
        rows: [M] int32, the minibatch's rows; M must be `config.minibatch_size`.
    """
    batch, count, cut = take_rows(data, rows), config.minibatch_size // config.microbatch_size, None
    lengths_of = lambda part: jnp.where(part.correct, part.sampled.lengths, 0)
    if batch.gold is None:  # no gradient comes from wrong completions: they are last, and not computed
        sizes = (0, *cut_lengths(batch.sampled.tokens.shape[1]))
        batch = by_length(batch, lengths_of(batch), sizes, count)
        cut = functools.partial(at_length, sizes=sizes, lengths=lengths_of)
    gold_weight = config.self_training.gold_weight
    count_tokens = lambda part: jnp.maximum(jnp.sum(part), 1)
    sampled_tokens = count_tokens(jnp.where(batch.correct, batch.sampled.response_lengths, 0))
    gold_tokens = count_tokens(batch.gold.response_lengths) if batch.gold else 0

    def loss(params: Params, part: SelfTrainingBatch) -> tuple[jax.Array, dict[str, jax.Array]]:
        shown = part.sampled.response_mask & part.correct[:, None]
        own = masked_nll(score_responses(policy, params, part.sampled).log_probs, shown)[0] / sampled_tokens
        total, sums = (1 - gold_weight) * own, {"rl/sampled_loss": own}
        if part.gold:
            gold, _ = masked_nll(score_responses(policy, params, part.gold).log_probs, part.gold.response_mask)
            total, sums["rl/gold_loss"] = total + gold_weight * gold / gold_tokens, gold / gold_tokens
        computed = positions(part.sampled) + (positions(part.gold) if part.gold else 0)
        return total, {**sums, "rl/total_loss": total, "positions": computed}

    state, metrics, sums = optimizer_step(
        loss, state, batch, config.optimizer, total_steps, count=count, mesh=policy.mesh, cut=cut
    )
    lengths = jnp.stack([batch.sampled.lengths, batch.gold.lengths]) if batch.gold else lengths_of(batch)
    metrics["throughput/padding_share"] = padding_share(lengths, sums.pop("positions"))
    return state, {**metrics, **jax.tree.map(jnp.sum, sums)}


def build_update(
    model: ModelConfig,
    config: RlConfig,
    mesh: Mesh,
    *,
    total_steps: int,
    prompt: int,
    response: int,
    gold: tuple[int, int] | None,
) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """The jitted `(state, data, rows) -> (state, metrics)` for a bucket, and its arguments; donates the state.

    `gold` are the padded lengths of the annotations' prompts and targets, None where they do not count.
    """
    policy = Policy(model, mesh)
    completions = config.completions_per_iteration
    data = SelfTrainingBatch(
        sampled=abstract_sequences(mesh, completions, prompt, response),
        correct=abstract_rows(jax.ShapeDtypeStruct((completions,), jnp.bool_), mesh),
        gold=abstract_sequences(mesh, completions, *gold) if gold else None,
    )
    rows = jax.ShapeDtypeStruct((config.minibatch_size,), jnp.int32, sharding=replicated(mesh))

    def step(state: TrainState, data: SelfTrainingBatch, rows: jax.Array) -> tuple[TrainState, dict[str, jax.Array]]:
        return update(policy, config, total_steps, state, data, rows)

    return jit_update(step, mesh, abstract_stage(policy, mesh, config.optimizer, total_steps), data, rows)
