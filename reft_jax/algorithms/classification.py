"""The steps of the reward model: cross-entropy of right and wrong, and the probability of right."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from reft_jax.algorithms.train_state import (
    TrainState,
    abstract_params,
    abstract_stage,
    at_length,
    by_length,
    cut_lengths,
    jit_update,
    optimizer_step,
    padding_share,
    positions,
)
from reft_jax.config import ModelConfig, RewardModelConfig
from reft_jax.data.samples import LabelledRows
from reft_jax.losses import masked_nll, token_log_probs
from reft_jax.models.classifier import Classifier, class_logits
from reft_jax.models.params import Params
from reft_jax.parallel.sharding import abstract_rows, replicated


def update(
    classifier: Classifier, config: RewardModelConfig, total_steps: int, state: TrainState, batch: LabelledRows
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One optimizer step on the mean over the batch's rows of `-log softmax(logits)[label]`, without class weights.

    Args:
        classifier: the model.
        config: batch split and optimizer.
        total_steps: length of the learning-rate schedule.
        state: parameters {"decoder", "class_head"} and optimizer.
        batch: [B, T]; B must be `config.batch_size`.

    Returns:
        The state, and the step's loss (nats) and accuracy (share of rows whose label is the likelier class), before it.
    """
    count, sizes = config.batch_size // config.microbatch_size, cut_lengths(batch.tokens.shape[1])
    batch = by_length(batch, batch.lengths, sizes, count)
    rows_in_batch = jnp.maximum(jnp.sum(batch.labels >= 0), 1)

    def loss(params: Params, rows: LabelledRows) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        logits = class_logits(classifier, params, rows.tokens, rows.lengths)  # [B, 2]
        real = rows.labels >= 0
        total, _ = masked_nll(token_log_probs(logits, jnp.maximum(rows.labels, 0)), real)
        right = jnp.sum(real & (jnp.argmax(logits, axis=-1) == rows.labels))
        return total / rows_in_batch, (total, right, positions(rows))

    cut = functools.partial(at_length, sizes=sizes, lengths=lambda rows: rows.lengths)
    state, metrics, (totals, rights, computed) = optimizer_step(
        loss,
        state,
        batch,
        config.optimizer,
        total_steps,
        count=count,
        mesh=classifier.mesh,
        cut=cut if count > 1 else None,  # the bucket is the whole batch's
    )
    metrics["throughput/padding_share"] = padding_share(batch.lengths, computed)
    metrics |= {"loss": jnp.sum(totals) / rows_in_batch, "accuracy": jnp.sum(rights) / rows_in_batch}
    return state, metrics


def abstract_batch(mesh: Mesh, batch: int, length: int) -> LabelledRows:
    """Shapes and shardings of a batch of rows, as an argument for lowering."""
    ids: Callable[..., Any] = lambda *shape: jax.ShapeDtypeStruct((batch, *shape), jnp.int32)
    return abstract_rows(LabelledRows(tokens=ids(length), lengths=ids(), labels=ids()), mesh)


def build_step(
    model: ModelConfig, config: RewardModelConfig, mesh: Mesh, *, total_steps: int, length: int
) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """The jitted `(state, batch) -> (state, metrics)` for one bucket, and its abstract arguments; donates the state."""
    classifier = Classifier(model, mesh)

    def step(state: TrainState, batch: LabelledRows) -> tuple[TrainState, dict[str, jax.Array]]:
        return update(classifier, config, total_steps, state, batch)

    state = abstract_stage(classifier, mesh, config.optimizer, total_steps)
    return jit_update(step, mesh, state, abstract_batch(mesh, config.batch_size, length))


def build_classify(
    model: ModelConfig, mesh: Mesh, *, batch: int, length: int
) -> tuple[Callable[..., Any], tuple[Params, jax.Array, jax.Array]]:
    """The jitted `(params, tokens, lengths) -> P(correct) [B]` for one bucket, and its abstract arguments."""
    classifier = Classifier(model, mesh)

    def classify(params: Params, tokens: jax.Array, lengths: jax.Array) -> jax.Array:
        return jax.nn.softmax(class_logits(classifier, params, tokens, lengths), axis=-1)[:, 1]

    params, rows = abstract_params(classifier, mesh, value_head=False), abstract_batch(mesh, batch, length)
    return jax.jit(classify, out_shardings=replicated(mesh)), (params, rows.tokens, rows.lengths)
