"""The supervised step: maximum likelihood of annotated chains of thought, for pretraining, warm-up and baseline."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
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
)
from reft_jax.config import ModelConfig, SupervisedConfig
from reft_jax.data.batches import Sequences
from reft_jax.losses import masked_nll
from reft_jax.models.params import Params
from reft_jax.models.policy import Policy, score_responses


def update(
    policy: Policy, config: SupervisedConfig, total_steps: int, state: TrainState, batch: Sequences
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One optimizer step on the negative log-likelihood of the batch's target tokens.

    The mean is over all target tokens of the batch (`loss_aggregation="token_mean"`), or over micro-batches of their
    token means, which is what the reference computes (`"microbatch_mean"`).

    Args:
        policy: the model.
        config: batch split, averaging and optimizer.
        total_steps: length of the learning-rate schedule.
        state: parameters {"decoder"} and optimizer.
        batch: [B, T]; B must be `config.batch_size`.
    """
    count, sizes = config.batch_size // config.microbatch_size, cut_lengths(batch.tokens.shape[1])
    if config.loss_aggregation == "token_mean":  # the other depends on which rows are together
        batch = by_length(batch, batch.lengths, sizes, count)
    tokens_in_batch = jnp.maximum(jnp.sum(batch.response_lengths), 1)

    def loss(params: Params, rows: Sequences) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        scores = score_responses(policy, params, rows)
        total, tokens = masked_nll(scores.log_probs, rows.response_mask)
        share = tokens_in_batch if config.loss_aggregation == "token_mean" else count * jnp.maximum(tokens, 1)
        return total / share, (total, positions(rows))

    cut = functools.partial(at_length, sizes=sizes, lengths=lambda rows: rows.lengths)
    state, metrics, (totals, computed) = optimizer_step(
        loss,
        state,
        batch,
        config.optimizer,
        total_steps,
        count=count,
        mesh=policy.mesh,
        cut=cut if count > 1 else None,  # the bucket is the whole batch's
    )
    metrics["throughput/padding_share"] = padding_share(batch.lengths, computed)
    return state, {**metrics, "loss": jnp.sum(totals) / tokens_in_batch, "tokens": tokens_in_batch}


def build_step(
    model: ModelConfig, config: SupervisedConfig, mesh: Mesh, *, total_steps: int, prompt: int, response: int
) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """The jitted `(state, batch) -> (state, metrics)` for one bucket, and its abstract arguments; donates the state."""
    policy = Policy(model, mesh)

    def step(state: TrainState, batch: Sequences) -> tuple[TrainState, dict[str, jax.Array]]:
        return update(policy, config, total_steps, state, batch)

    state = abstract_stage(policy, mesh, config.optimizer, total_steps)
    return jit_update(step, mesh, state, abstract_sequences(mesh, config.batch_size, prompt, response))
