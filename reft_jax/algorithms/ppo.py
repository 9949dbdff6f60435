"""Proximal policy optimisation on verified answers: a rollout and its rewards become experience, experience an update.

GRPO and RLOO take the same way; they have no critic, and what a response is worth they read off the other samples of
its question. All arrays are aligned to the response: index t is the action that emits response token t, the end token
included.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from flax import struct
from jax.sharding import Mesh

from reft_jax import losses
from reft_jax.algorithms.rollout import Rollout
from reft_jax.algorithms.train_state import (
    TrainState,
    abstract_params,
    abstract_sequences,
    abstract_stage,
    at_length,
    by_length,
    jit_update,
    microbatches,
    optimizer_step,
    take_rows,
)
from reft_jax.config import ModelConfig, RlConfig
from reft_jax.data.batches import Sequences
from reft_jax.models.params import Params
from reft_jax.models.policy import Policy, response_values, score_responses
from reft_jax.parallel.sharding import abstract_rows, batch_shardings, replicated

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int


@struct.dataclass
class Experience:
    """One iteration's completions with all that the update needs; constant during the update."""

    sequences: Sequences
    log_probs: Float[Array, "B R"]  # of the policy that sampled, scored by the training forward
    reference: Float[Array, "B R"] | None  # log-probs of the reference; None where the KL is not in the loss
    advantages: Float[Array, "B R"]
    values: Float[Array, "B R"] | None  # of the state in which each token was chosen; None without a critic
    returns: Float[Array, "B R"] | None  # None without a critic


KL = {"k1": losses.kl_k1, "k3": losses.kl_k3}


@struct.dataclass
class RolloutScores:
    """What policy and reference say of sampled responses, by the training forward."""

    log_probs: Float[Array, "B R"]  # of the policy, nats
    entropy: Float[Array, "B R"]  # of the policy, nats
    reference: Float[Array, "B R"] | None  # log-probs of the reference, nats; None where nobody reads them
    values: Float[Array, "B R"] | None  # None without a critic


def score_rollout(
    policy: Policy, config: RlConfig, temperature: float, params: Params, reference: Params | None, sequences: Sequences
) -> RolloutScores:
    """Scores responses [B, R] by policy and reference, if there is one, `config.microbatch_size` rows at a time.

    Rows of like length are scored together, without most of their padding. What is said of padding means nothing.
    """
    width = sequences.responses.shape[1]

    def score(params: Params, rows: Sequences) -> RolloutScores:
        scores = score_responses(policy, params, rows, temperature)
        other = None if reference is None else score_responses(policy, reference, rows, temperature).log_probs
        values = response_values(policy, params, rows, scores.hidden) if has_critic(config) else None
        said = RolloutScores(log_probs=scores.log_probs, entropy=scores.entropy, reference=other, values=values)
        return jax.tree.map(lambda x: jnp.pad(x, ((0, 0), (0, width - x.shape[1]))), said)

    padded, count = sequences.tokens.shape[1], sequences.tokens.shape[0] // config.microbatch_size
    score_cut = at_length(score, padded, lambda part: part.lengths)
    if count == 1:
        return score_cut(params, sequences)
    order = by_length(jnp.arange(len(sequences.tokens)), sequences.lengths, padded, count)
    parts = microbatches(take_rows(sequences, order), count, policy.mesh)
    stacked = jax.lax.map(lambda part: score_cut(params, part), parts)
    together = jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(-1, width), stacked)
    return take_rows(together, jnp.argsort(order))


def rollout_metrics(rollout: Rollout, scores: RolloutScores) -> dict[str, jax.Array]:
    """KL to the reference, where it was scored, entropy, and how far sampler and trainer differ.

    `rl/sampler_gap` is the mean |sampler's log-prob - scored log-prob| of a token, nats.
    """
    mask = rollout.sequences.response_mask
    gap = jnp.abs(rollout.log_probs - scores.log_probs)
    metrics = {
        "rl/entropy": losses.masked_mean(scores.entropy, mask),
        "rl/sampler_gap": losses.masked_mean(gap, mask),
        "rl/sampler_gap_max": jnp.max(jnp.where(mask, gap, 0)),
    }
    if scores.reference is None:
        return metrics
    kl = losses.kl_k1(scores.log_probs, scores.reference)
    return metrics | {
        "rl/kl_k1": losses.masked_mean(kl, mask),
        "rl/kl_k3": losses.masked_mean(losses.kl_k3(scores.log_probs, scores.reference), mask),
        "rl/sequence_kl": jnp.sum(jnp.where(mask, kl, 0)) / jnp.maximum(jnp.sum(jnp.any(mask, axis=1)), 1),
        "rl/kl_max": jnp.max(jnp.where(mask, jnp.abs(kl), 0)),
    }


def make_experience(
    policy: Policy,
    config: RlConfig,
    temperature: float,
    params: Params,
    reference: Params | None,
    rollout: Rollout,
    rewards: Float[Array, " B"],
) -> tuple[Experience, dict[str, jax.Array]]:
    """Scores a rollout with policy and reference, and estimates advantages (ReFT, section 3.2).

    Args:
        policy: the model of both.
        config: algorithm and what it takes, KL, micro-batch size.
        temperature: of the rollout; divides the logits of policy and reference alike.
        params: the policy's, as they sampled.
        reference: the frozen starting parameters {"decoder"}; None where `config.kl_coef` is 0 and nobody asks.
        rollout: [B, T].
        rewards: [B] float, the verdict on each completion.

    Returns:
        (experience, metrics).
    """
    sequences, mask = rollout.sequences, rollout.sequences.response_mask
    scores = score_rollout(policy, config, temperature, params, reference, sequences)
    if scores.reference is not None and config.kl_in == "reward":
        kl = KL[config.kl_estimator](scores.log_probs, scores.reference)
        per_token = losses.kl_penalised_rewards(rewards, kl, mask, kl_coef=config.kl_coef)
    else:
        per_token = losses.place_reward(rewards, mask)
    advantages, returns = estimate_advantages(config, per_token, scores.values, mask)
    metrics = rollout_metrics(rollout, scores) | {"rl/advantage_mean": losses.masked_mean(advantages, mask)}
    if scores.values is not None and returns is not None:
        metrics |= {
            "rl/explained_variance": losses.explained_variance(scores.values, returns, mask),
            "rl/value_mean": losses.masked_mean(scores.values, mask),
            "rl/return_mean": losses.masked_mean(returns, mask),
        }
        if config.whiten_advantages:
            advantages = losses.whiten(advantages, mask)
    experience = Experience(
        sequences=sequences,
        log_probs=scores.log_probs,
        reference=scores.reference if config.kl_in == "loss" and config.kl_coef else None,
        advantages=advantages,
        values=scores.values,
        returns=returns,
    )
    return experience, metrics


def has_critic(config: RlConfig) -> bool:
    """Whether the algorithm learns values."""
    return config.algorithm == "ppo"


def estimate_advantages(
    config: RlConfig, rewards: Float[Array, "B R"], values: Float[Array, "B R"] | None, mask: Bool[Array, "B R"]
) -> tuple[Float[Array, "B R"], Float[Array, "B R"] | None]:
    """How much better each action was than expected, by the algorithm of the config; PPO's are not whitened yet.

    GRPO and RLOO give all actions of a response its one advantage, made from the sum of its rewards.

    Args:
        config: algorithm, and what it takes.
        rewards: [B, R] of each action, the KL penalty taken off.
        values: [B, R]; None without a critic.
        mask: [B, R], bool.

    Returns:
        (advantages, returns), each [B, R], 0 where the mask hides; returns are None without a critic.
    """
    total, samples = jnp.sum(rewards, axis=1), config.samples_per_question
    match config.algorithm:
        case "ppo" if values is not None:
            return losses.gae(rewards, values, mask, discount=config.discount, gae_lambda=config.gae_lambda)
        case "grpo":
            by_response = losses.group_relative_advantages(total, samples=samples, scale=config.scale_by_group)
        case "rloo":
            by_response = losses.leave_one_out_advantages(total, samples=samples)
        case other:
            raise ValueError(f"rl.algorithm `{other}` has no advantages")
    return jnp.where(mask, by_response[:, None], 0), None


def objective(
    config: RlConfig,
    log_probs: Float[Array, "B R"],
    values: Float[Array, "B R"] | None,
    experience: Experience,
    weight: Float[Array, " B"],
) -> tuple[Float[Array, ""], dict[str, Any]]:
    """`policy_loss + vf_coef * value_loss + kl_coef * kl_loss` of some responses.

    The clipped surrogate (Schulman et al. 2017, eq. 7), the value loss where there is a critic, and the KL where the
    config makes it part of the loss; each the weighted sum over responses of its mean over a response's tokens.

    Args:
        config: coefficients, clip ranges, KL.
        log_probs: [B, R] of the policy that is trained, nats.
        values: [B, R] of its critic; None without one.
        experience: [B, R].
        weight: [B] what each response counts for; sums to 1 over the minibatch.

    Returns:
        (loss, metrics: `sums`, which add up over micro-batches, and a maximum).
    """
    mask = experience.sequences.response_mask
    mean = lambda by_response: jnp.sum(by_response * weight)
    old = experience.log_probs
    policy_loss = mean(
        losses.ppo_policy_loss(log_probs, old, experience.advantages, mask, clip_range=config.clip_range)
    )
    log_ratio = jnp.where(mask, log_probs - old, 0)
    clipped = losses.clip_fraction(log_probs, old, mask, clip_range=config.clip_range)
    total, sums = policy_loss, {"rl/policy_loss": policy_loss, "rl/clip_fraction": mean(clipped)}
    if values is not None and experience.values is not None and experience.returns is not None:
        value_loss = mean(
            losses.ppo_value_loss(
                values, experience.values, experience.returns, mask, clip_range=config.value_clip_range
            )
        )
        total, sums["rl/value_loss"] = total + config.vf_coef * value_loss, value_loss
    if experience.reference is not None:
        estimator = KL[config.kl_estimator]
        kl_loss = mean(losses.kl_loss(log_probs, old, experience.reference, mask, estimator=estimator))
        total, sums["rl/kl_loss"] = total + config.kl_coef * kl_loss, kl_loss
    sums["rl/total_loss"] = total
    sums["rl/ratio_mean"] = mean(losses.masked_mean(jnp.exp(log_ratio), mask, axis=1))
    sums["rl/log_ratio_mean"] = mean(losses.masked_mean(jnp.abs(log_ratio), mask, axis=1))
    return total, {"sums": sums, "rl/log_ratio_max": jnp.max(jnp.abs(log_ratio))}


def response_weights(config: RlConfig, lengths: Int[Array, " M"]) -> Float[Array, " M"]:
    """What each response of a minibatch counts for, [M]: alike, or as its tokens (`loss_aggregation`); filler is 0."""
    parts = lengths if config.loss_aggregation == "token_mean" else lengths > 0
    return parts / jnp.maximum(jnp.sum(parts), 1)


def update(
    policy: Policy,
    config: RlConfig,
    temperature: float,
    total_steps: int,
    state: TrainState,
    experience: Experience,
    rows: Int[Array, " M"],
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One optimizer step on a minibatch's `objective`.

    Args:
        policy, config, temperature: as for `make_experience`.
        total_steps: length of the learning-rate schedule, in optimizer steps.
        state: parameters, with a value head where there is a critic, and optimizer.
        experience: [B, R].
        rows: [M] int32, the minibatch's rows; M must be `config.minibatch_size`.
    """
    count = config.minibatch_size // config.microbatch_size
    padded = experience.sequences.tokens.shape[1]
    rows = by_length(rows, take_rows(experience.sequences.lengths, rows), padded, count)
    batch = take_rows(experience, rows)
    weights = response_weights(config, batch.sequences.response_lengths)

    def loss(params: Params, piece: tuple[Experience, jax.Array]) -> tuple[jax.Array, dict[str, Any]]:
        part, weight = piece
        scores = score_responses(policy, params, part.sequences, temperature)
        values = response_values(policy, params, part.sequences, scores.hidden) if has_critic(config) else None
        return objective(config, scores.log_probs, values, part, weight)

    state, metrics, aux = optimizer_step(
        loss,
        state,
        (batch, weights),
        config.optimizer,
        total_steps,
        count=count,
        mesh=policy.mesh,
        cut=functools.partial(at_length, padded=padded, lengths=lambda part: part[0].sequences.lengths),
    )
    metrics |= jax.tree.map(jnp.sum, aux["sums"])
    return state, {**metrics, "rl/log_ratio_max": jnp.max(aux["rl/log_ratio_max"])}


def _abstract_rollout(batch: int, prompt: int, response: int, dtype: Any, mesh: Mesh) -> Rollout:
    return Rollout(
        sequences=abstract_sequences(mesh, batch, prompt, response),
        log_probs=abstract_rows(jax.ShapeDtypeStruct((batch, response), dtype), mesh),
        ended=abstract_rows(jax.ShapeDtypeStruct((batch,), jnp.bool_), mesh),
    )


def build_experience(
    model: ModelConfig, config: RlConfig, mesh: Mesh, *, temperature: float, prompt: int, response: int
) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """The jitted `(params, reference, rollout, rewards) -> (Experience, metrics)` for one bucket, and its arguments."""
    policy = Policy(model, mesh, config.separate_critic)
    wide = jnp.promote_types(model.dtype, jnp.float32)
    batch = config.completions_per_iteration
    params = abstract_params(policy, mesh, value_head=has_critic(config))
    args = (
        params,
        {"decoder": params["decoder"]} if config.scores_reference else None,
        _abstract_rollout(batch, prompt, response, wide, mesh),
        abstract_rows(jax.ShapeDtypeStruct((batch,), wide), mesh),
    )

    def step(params: Params, reference: Params | None, rollout: Rollout, rewards: jax.Array):
        return make_experience(policy, config, temperature, params, reference, rollout, rewards)

    experience, _ = jax.eval_shape(step, *args)
    return jax.jit(step, out_shardings=(batch_shardings(experience, mesh), replicated(mesh))), args


def build_update(
    model: ModelConfig,
    config: RlConfig,
    mesh: Mesh,
    *,
    temperature: float,
    total_steps: int,
    prompt: int,
    response: int,
) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """The jitted `(state, experience, rows) -> (state, metrics)` for a bucket, and its arguments; donates the state."""
    policy = Policy(model, mesh, config.separate_critic)
    make, args = build_experience(model, config, mesh, temperature=temperature, prompt=prompt, response=response)
    experience = abstract_rows(jax.eval_shape(make, *args)[0], mesh)
    rows = jax.ShapeDtypeStruct((config.minibatch_size,), jnp.int32, sharding=replicated(mesh))

    def step(state: TrainState, experience: Experience, rows: jax.Array):
        return update(policy, config, temperature, total_steps, state, experience, rows)

    state = abstract_stage(policy, mesh, config.optimizer, total_steps, value_head=has_critic(config))
    return jit_update(step, mesh, state, experience, rows)
