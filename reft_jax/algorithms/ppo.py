"""Proximal policy optimisation on verified answers: a rollout and its rewards become experience, experience an update.

GRPO and RLOO take the same way; they have no critic, and what a response is worth they read off the other samples of
its question. All arrays are aligned to the response: index t is the action that emits response token t, the end token
included.
"""

from collections.abc import Callable
from typing import Any

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
    abstract_state,
    accumulate,
    apply_gradients,
    make_optimizer,
    make_schedule,
    microbatches,
)
from reft_jax.config import ModelConfig, RlConfig
from reft_jax.data.batches import Array, Sequences
from reft_jax.models.policy import Params, Policy, response_values, score_responses
from reft_jax.parallel.sharding import abstract_rows, batch_shardings, replicated


@struct.dataclass
class Experience:
    """One iteration's completions with all that the update needs; constant during the update."""

    sequences: Sequences
    log_probs: Array  # [B, R] of the policy that sampled, scored by the training forward
    reference: Any  # [B, R] log-probs of the reference; None where the KL is not in the loss
    advantages: Array  # [B, R]
    values: Any  # [B, R] of the state in which each token was chosen; None without a critic
    returns: Any  # [B, R]; None without a critic


KL = {"k1": losses.kl_k1, "k3": losses.kl_k3}


def make_experience(
    policy: Policy,
    config: RlConfig,
    temperature: float,
    params: Params,
    reference: Params,
    rollout: Rollout,
    rewards: jax.Array,
) -> tuple[Experience, dict[str, jax.Array]]:
    """Scores a rollout with policy and reference, and estimates advantages (ReFT, section 3.2).

    Args:
        policy: the model of both.
        config: algorithm and what it takes, KL, micro-batch size.
        temperature: of the rollout; divides the logits of policy and reference alike.
        params: the policy's, as they sampled.
        reference: the frozen starting parameters {"decoder"}.
        rollout: [B, T].
        rewards: [B] float, the verdict on each completion.

    Returns:
        (experience, metrics). `rl/sampler_gap` is the mean |sampler's log-prob - scored log-prob| of a token, nats.
    """
    sequences, mask = rollout.sequences, rollout.sequences.response_mask

    def score(rows: Sequences) -> dict[str, jax.Array]:
        scores = score_responses(policy, params, rows, temperature)
        values = {"values": response_values(policy, params, rows, scores.hidden)} if has_critic(config) else {}
        reference_log_probs = score_responses(policy, reference, rows, temperature).log_probs
        return {"log_probs": scores.log_probs, "entropy": scores.entropy, "reference": reference_log_probs, **values}

    count = mask.shape[0] // config.microbatch_size
    if count == 1:
        scored = score(sequences)
    else:
        stacked = jax.lax.map(score, microbatches(sequences, count, policy.mesh))
        scored = jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(-1, *x.shape[2:]), stacked)
    log_probs, kl_k1 = scored["log_probs"], losses.kl_k1(scored["log_probs"], scored["reference"])
    kl = KL[config.kl_estimator](log_probs, scored["reference"])
    per_token = losses.kl_penalised_rewards(
        rewards, kl, mask, kl_coef=config.kl_coef if config.kl_in == "reward" else 0.0
    )
    gap = jnp.abs(rollout.log_probs - log_probs)
    metrics = {
        "rl/kl_k1": losses.masked_mean(kl_k1, mask),
        "rl/kl_k3": losses.masked_mean(losses.kl_k3(log_probs, scored["reference"]), mask),
        "rl/sequence_kl": jnp.sum(jnp.where(mask, kl_k1, 0)) / jnp.maximum(jnp.sum(jnp.any(mask, axis=1)), 1),
        "rl/kl_max": jnp.max(jnp.where(mask, jnp.abs(kl_k1), 0)),
        "rl/entropy": losses.masked_mean(scored["entropy"], mask),
        "rl/sampler_gap": losses.masked_mean(gap, mask),
        "rl/sampler_gap_max": jnp.max(jnp.where(mask, gap, 0)),
    }
    values: Any = scored.get("values")
    advantages, returns = estimate_advantages(config, per_token, values, mask)
    metrics["rl/advantage_mean"] = losses.masked_mean(advantages, mask)
    if returns is not None:
        metrics |= {
            "rl/explained_variance": losses.explained_variance(values, returns, mask),
            "rl/value_mean": losses.masked_mean(values, mask),
            "rl/return_mean": losses.masked_mean(returns, mask),
        }
        if config.whiten_advantages:
            advantages = losses.whiten(advantages, mask)
    experience = Experience(
        sequences=sequences,
        log_probs=log_probs,
        reference=scored["reference"] if config.kl_in == "loss" else None,
        advantages=advantages,
        values=values,
        returns=returns,
    )
    return experience, metrics


def has_critic(config: RlConfig) -> bool:
    """Whether the algorithm learns values."""
    return config.algorithm == "ppo"


def estimate_advantages(config: RlConfig, rewards: jax.Array, values: Any, mask: jax.Array) -> tuple[jax.Array, Any]:
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
        case "ppo":
            return losses.gae(rewards, values, mask, discount=config.discount, gae_lambda=config.gae_lambda)
        case "grpo":
            by_response = losses.group_relative_advantages(total, samples=samples, scale=config.scale_by_group)
        case "rloo":
            by_response = losses.leave_one_out_advantages(total, samples=samples)
        case other:
            raise ValueError(f"rl.algorithm `{other}` has no advantages")
    return jnp.where(mask, by_response[:, None], 0), None


def update(
    policy: Policy,
    config: RlConfig,
    temperature: float,
    total_steps: int,
    state: TrainState,
    experience: Experience,
    rows: jax.Array,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One optimizer step on a minibatch's `policy_loss + vf_coef * value_loss + kl_coef * kl_loss`.

    The clipped surrogate (Schulman et al. 2017), the value loss where there is a critic, and the KL where the config
    makes it part of the loss.

    Each is a mean over every response, then over the minibatch's responses, or over all of its tokens
    (`loss_aggregation`).

    Args:
        policy, config, temperature: as for `make_experience`.
        total_steps: length of the learning-rate schedule, in optimizer steps.
        state: parameters {"decoder"[, "value_head"]} and optimizer.
        experience: [B, R].
        rows: [M] int32, the minibatch's rows; M must be `config.minibatch_size`.
    """
    batch = jax.tree.map(lambda x: jnp.take(x, rows, axis=0), experience)
    lengths = batch.sequences.response_lengths
    # What a response counts for: the sums below are over responses, of their means.
    parts = lengths if config.loss_aggregation == "token_mean" else lengths > 0
    weights = parts / jnp.maximum(jnp.sum(parts), 1)

    def loss(params: Params, piece: tuple[Experience, jax.Array]) -> tuple[jax.Array, dict[str, Any]]:
        part, weight = piece
        mask = part.sequences.response_mask
        mean = lambda by_response: jnp.sum(by_response * weight)
        scores = score_responses(policy, params, part.sequences, temperature)
        policy_loss = mean(
            losses.ppo_policy_loss(
                scores.log_probs, part.log_probs, part.advantages, mask, clip_range=config.clip_range
            )
        )
        log_ratio = jnp.where(mask, scores.log_probs - part.log_probs, 0)
        clipped = losses.clip_fraction(scores.log_probs, part.log_probs, mask, clip_range=config.clip_range)
        total, sums = policy_loss, {"rl/policy_loss": policy_loss, "rl/clip_fraction": mean(clipped)}
        if has_critic(config):
            values = response_values(policy, params, part.sequences, scores.hidden)
            value_loss = mean(
                losses.ppo_value_loss(values, part.values, part.returns, mask, clip_range=config.value_clip_range)
            )
            total, sums["rl/value_loss"] = total + config.vf_coef * value_loss, value_loss
        if config.kl_in == "loss":
            estimator = KL[config.kl_estimator]
            kl_loss = mean(losses.kl_loss(scores.log_probs, part.log_probs, part.reference, mask, estimator=estimator))
            total, sums["rl/kl_loss"] = total + config.kl_coef * kl_loss, kl_loss
        sums["rl/total_loss"] = total
        sums["rl/ratio_mean"] = mean(losses.masked_mean(jnp.exp(log_ratio), mask, axis=1))
        sums["rl/log_ratio_mean"] = mean(losses.masked_mean(jnp.abs(log_ratio), mask, axis=1))
        return total, {"sums": sums, "rl/log_ratio_max": jnp.max(jnp.abs(log_ratio))}

    count = config.minibatch_size // config.microbatch_size
    gradients, aux = accumulate(loss, state.params, (batch, weights), count, policy.mesh)
    learning_rate = make_schedule(config.optimizer, total_steps)(state.step)
    state, metrics = apply_gradients(state, gradients, make_optimizer(config.optimizer, total_steps))
    metrics |= jax.tree.map(jnp.sum, aux["sums"])
    metrics |= {"rl/log_ratio_max": jnp.max(aux["rl/log_ratio_max"]), "optimizer/learning_rate": learning_rate}
    return state, metrics


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
    policy = Policy(model, mesh, config.critic == "separate")
    wide = jnp.promote_types(model.dtype, jnp.float32)
    batch = config.rollout_batch_size * config.samples_per_question
    params = abstract_params(policy, mesh, value_head=has_critic(config))
    args = (
        params,
        {"decoder": params["decoder"]},
        _abstract_rollout(batch, prompt, response, wide, mesh),
        abstract_rows(jax.ShapeDtypeStruct((batch,), wide), mesh),
    )

    def step(params: Params, reference: Params, rollout: Rollout, rewards: jax.Array):
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
    policy = Policy(model, mesh, config.critic == "separate")
    make, args = build_experience(model, config, mesh, temperature=temperature, prompt=prompt, response=response)
    optimizer = make_optimizer(config.optimizer, total_steps)
    state = abstract_state(abstract_params(policy, mesh, value_head=has_critic(config)), optimizer, mesh)
    experience = abstract_rows(jax.eval_shape(make, *args)[0], mesh)
    rows = jax.ShapeDtypeStruct((config.minibatch_size,), jnp.int32, sharding=replicated(mesh))

    def step(state: TrainState, experience: Experience, rows: jax.Array):
        return update(policy, config, temperature, total_steps, state, experience, rows)

    out = (jax.tree.map(lambda x: x.sharding, state), replicated(mesh))
    return jax.jit(step, donate_argnums=0, out_shardings=out), (state, experience, rows)
