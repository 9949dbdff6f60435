"""Proximal policy optimisation on verified answers: a rollout and its rewards become experience, experience an update.

GRPO, RLOO and REINFORCE take the same way; they have no critic, and what a response is worth they read off the other
samples of its question, or off its reward alone. Which parts an algorithm is made of is in the config. All arrays are
aligned to the response: index t is the action that emits response token t, the end token included.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.sharding import Mesh

from reft_jax import losses
from reft_jax.algorithms.rollout import Rollout
from reft_jax.algorithms.train_state import (
    Optimizer,
    PartOptimizers,
    TrainState,
    abstract_params,
    abstract_sequences,
    abstract_state,
    accumulate,
    at_length,
    by_length,
    cut_lengths,
    jit_update,
    make_optimizer,
    microbatches,
    optimizer_step,
    padding_share,
    positions,
    split_critic,
    take_rows,
)
from reft_jax.config import ModelConfig, RlConfig
from reft_jax.data.batches import Sequences
from reft_jax.models.params import Params
from reft_jax.models.policy import Policy, Scores, response_hidden, response_values, score_responses
from reft_jax.parallel.sharding import abstract_rows, batch_shardings, replicated

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int


@struct.dataclass
class Experience:
    """One iteration's completions with all that the update needs; constant during the update."""

    sequences: Sequences
    log_probs: Float[Array, "B R"]  # of the policy that sampled: the sampler's own, or scored by the training forward
    reference: Float[Array, "B R"] | None  # log-probs of the reference; None where the KL is not in the loss
    advantages: Float[Array, "B R"]
    values: Float[Array, "B R"] | None  # of the state in which each token was chosen; None without a critic
    returns: Float[Array, "B R"] | None  # None without a critic
    kept: Bool[Array, " B"] | None = None  # rows that are learned from; None where all are
    correct: Bool[Array, " B"] | None = None  # None where no likelihood of right completions is in the loss
    learned: Bool[Array, " B"] | None = None  # rows that a gradient comes from; None where all are taken
    low_entropy: Bool[Array, " B"] | None = None  # all alike: whether entropy is rewarded; None where it never is
    log_ratio: Float[Array, "B R"] | None = None  # log-probs less the reference's, if scored; for the records alone


KL = {"k1": losses.kl_k1, "k3": losses.kl_k3}


@struct.dataclass
class RolloutScores:
    """What policy and reference say of sampled responses, by the training forward."""

    log_probs: Float[Array, "B R"] | None  # of the policy, nats; these two are None where nobody reads them
    entropy: Float[Array, "B R"] | None  # of the policy, nats
    reference: Float[Array, "B R"] | None  # log-probs of the reference, nats; None where nobody reads them
    values: Float[Array, "B R"] | None  # None without a critic


def score_rollout(
    policy: Policy,
    config: RlConfig,
    temperature: float,
    params: Params,
    reference: Params | None,
    sequences: Sequences,
    shorter: tuple[int, ...] = (),
) -> RolloutScores:
    """Scores responses [B, R] by policy, reference and critic, as asked for, `config.microbatch_size` rows at a time.

    Rows of like length are scored together, without most of their padding, in `cut_lengths` of `shorter`. What is said
    of padding means nothing.
    """
    width = sequences.responses.shape[1]

    def score(params: Params, rows: Sequences) -> RolloutScores:
        log_probs = entropy = hidden = other = values = None
        if config.scores_policy:
            scores = score_responses(policy, params, rows, temperature)
            log_probs, entropy, hidden = scores.log_probs, scores.entropy, scores.hidden
        if reference is not None:
            other = score_responses(policy, reference, rows, temperature).log_probs
        if config.has_critic:
            values = response_values(policy, params, rows, hidden)
        said = RolloutScores(log_probs=log_probs, entropy=entropy, reference=other, values=values)
        return jax.tree.map(lambda x: jnp.pad(x, ((0, 0), (0, width - x.shape[1]))), said)

    sizes, count = cut_lengths(sequences.tokens.shape[1], shorter), len(sequences.tokens) // config.microbatch_size
    score_cut = at_length(score, sizes, lambda part: part.lengths)
    if count == 1:
        return score_cut(params, sequences)
    order = by_length(jnp.arange(len(sequences.tokens)), sequences.lengths, sizes, count)
    parts = microbatches(take_rows(sequences, order), count, policy.mesh)
    stacked = jax.lax.map(lambda part: score_cut(params, part), parts)
    together = jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(-1, width), stacked)
    return take_rows(together, jnp.argsort(order))


def rollout_metrics(rollout: Rollout, scores: RolloutScores) -> dict[str, jax.Array]:
    """KL to the reference, entropy, and how far sampler and trainer differ, each where it was scored.

    `rl/sampler_gap` is the mean |sampler's log-prob - scored log-prob| of a token, nats.
    """
    mask, metrics = rollout.sequences.response_mask, {}
    if scores.log_probs is not None and scores.entropy is not None:
        gap = jnp.abs(rollout.log_probs - scores.log_probs)
        metrics = {
            "rl/entropy": losses.masked_mean(scores.entropy, mask),
            "rl/sampler_gap": losses.masked_mean(gap, mask),
            "rl/sampler_gap_max": jnp.max(jnp.where(mask, gap, 0)),
        }
    if scores.reference is None:
        return metrics
    log_probs = rollout.log_probs if scores.log_probs is None else scores.log_probs
    kl = losses.kl_k1(log_probs, scores.reference)
    return metrics | {
        "rl/kl_k1": losses.masked_mean(kl, mask),
        "rl/kl_k3": losses.masked_mean(losses.kl_k3(log_probs, scores.reference), mask),
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
    correct: Bool[Array, " B"],
    shorter: tuple[int, ...] = (),
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
        correct: [B], whether its answer is right.
        shorter: lengths that many rows do not exceed, see `cut_lengths`.

    Returns:
        (experience, metrics).
    """
    sequences, mask = rollout.sequences, rollout.sequences.response_mask
    scores = score_rollout(policy, config, temperature, params, reference, sequences, shorter)
    old = rollout.log_probs if scores.log_probs is None else scores.log_probs
    earned = rewards
    if config.overlong_buffer:
        lengths = sequences.response_lengths.astype(rewards.dtype)
        penalty = losses.overlong_penalty(lengths, longest=mask.shape[1], buffer=config.overlong_buffer)
        earned = rewards - config.overlong_penalty * penalty
    if scores.reference is not None and config.kl_in == "reward":
        kl = KL[config.kl_estimator](old, scores.reference)
        per_token = losses.kl_penalised_rewards(earned, kl, mask, kl_coef=config.kl_coef)
    else:
        per_token = losses.place_reward(earned, mask)
    advantages, returns = estimate_advantages(config, per_token, scores.values, mask)
    metrics = rollout_metrics(rollout, scores) | {"rl/advantage_mean": losses.masked_mean(advantages, mask)}
    if scores.values is not None and returns is not None:
        metrics |= critic_metrics(scores.values, returns, mask)
    if config.chosen_scale == "whiten":
        advantages = losses.whiten(advantages, mask)
    if config.positive_weight != 1 or config.negative_weight != 1:
        weights = {"positive": config.positive_weight, "negative": config.negative_weight}
        advantages = losses.sign_weighted(advantages, **weights)
    if config.sampler_ratio_cap:
        ratio = losses.sampler_weights(old, rollout.log_probs, mask, cap=config.sampler_ratio_cap)
        metrics["rl/sampler_sample_size"] = losses.effective_sample_size(ratio, mask)
        advantages = advantages * ratio
    metrics["rl/right_pushed_down"] = losses.masked_mean(advantages < 0, mask & correct[:, None])
    low_entropy = None
    if config.entropy_floor:  # a truth for each row, so that it is split over devices as all else is
        low_entropy = jnp.broadcast_to(metrics["rl/entropy"] < config.entropy_floor, rewards.shape)
    kept = kept_rows(config, rollout, rewards)
    if kept is not None:
        metrics["rl/kept"] = losses.masked_mean(kept, sequences.response_lengths > 0)
    right = correct if config.positive_nll_coef else None
    learned = learned_rows(config, advantages, mask, kept, right)
    if learned is not None:
        metrics["rl/learned"] = losses.masked_mean(learned, sequences.response_lengths > 0)
    experience = Experience(
        sequences=sequences,
        log_probs=old,
        reference=scores.reference if config.kl_in == "loss" and config.kl_coef else None,
        advantages=advantages,
        values=scores.values,
        returns=returns,
        kept=kept,
        correct=right,
        learned=learned,
        low_entropy=low_entropy,
        log_ratio=None if scores.reference is None else old - scores.reference,
    )
    return experience, metrics


def kept_rows(config: RlConfig, rollout: Rollout, rewards: Float[Array, " B"]) -> Bool[Array, " B"] | None:
    """[B], the rows that are learned from; None where that is all of them."""
    kept = []
    if config.overlong_filter:
        kept.append(rollout.ended)
    if config.only_mixed_groups:
        kept.append(losses.mixed_groups(rewards, samples=config.samples_per_question))
    return functools.reduce(jnp.logical_and, kept) if kept else None


def learned_rows(
    config: RlConfig,
    advantages: Float[Array, "B R"],
    mask: Bool[Array, "B R"],
    kept: Bool[Array, " B"] | None,
    right: Bool[Array, " B"] | None,
) -> Bool[Array, " B"] | None:
    """[B], the rows that a gradient comes from: no update computes the others. None where that is all of them.

    Args:
        config: the terms of the loss. A critic, a KL and an entropy take all rows that are kept.
        advantages: as they are learned from; one that is 0 adds nothing to any surrogate.
        mask: True on actions.
        kept: of `kept_rows`.
        right: rows whose likelihood is learned, whatever their advantage; None where none is.
    """
    others = config.has_critic or config.kl_coef > 0 or config.entropy_floor > 0
    if not config.scores_policy or (others and kept is None):  # what no pass has scored, an update measures
        return None
    learned = jnp.any(mask if others else mask & (advantages != 0), axis=1)
    if right is not None:
        learned = learned | (right & jnp.any(mask, axis=1))
    return learned if kept is None else learned & kept


def critic_metrics(
    values: Float[Array, "B R"], returns: Float[Array, "B R"], mask: Bool[Array, "B R"]
) -> dict[str, jax.Array]:
    """How good the critic is: over all tokens, and over each third of the responses."""
    thirds = {name: losses.within_part(mask, i, parts=3) for i, name in enumerate(("first", "middle", "last"))}
    return {
        "rl/explained_variance": losses.explained_variance(values, returns, mask),
        **{f"rl/explained_variance_{k}": losses.explained_variance(values, returns, m) for k, m in thirds.items()},
        "rl/value_mean": losses.masked_mean(values, mask),
        "rl/return_mean": losses.masked_mean(returns, mask),
    }


def estimate_advantages(
    config: RlConfig, rewards: Float[Array, "B R"], values: Float[Array, "B R"] | None, mask: Bool[Array, "B R"]
) -> tuple[Float[Array, "B R"], Float[Array, "B R"] | None]:
    """How much better each action was than expected, not whitened yet: by GAE, or `(r - baseline) / scale`.

    Without a critic all actions of a response have its one advantage, made from the sum of its rewards.

    Args:
        config: baseline and scale, and what GAE takes.
        rewards: [B, R] of each action, the KL penalty taken off.
        values: [B, R]; None without a critic.
        mask: [B, R], bool.

    Returns:
        (advantages, returns), each [B, R], 0 where the mask hides; returns are None without a critic.
    """
    if values is not None:
        return _by_critic(config, rewards, values, mask)
    total, samples = jnp.sum(rewards, axis=1), config.samples_per_question
    by_response = total
    match config.chosen_baseline:
        case "group_mean":
            by_response = total - losses.group_means(total, samples=samples)
        case "leave_one_out":
            by_response = total - losses.leave_one_out_means(total, samples=samples)
    if config.baseline_shift:
        by_response = by_response - config.baseline_shift
    match config.chosen_scale:
        case "group_deviation":
            by_response = by_response / (losses.group_deviations(total, samples=samples) + 1e-4)
        case "group_mean":
            mean = losses.group_means(total, samples=samples)
            by_response = jnp.where(mean > 0, by_response / jnp.where(mean > 0, mean, 1), 0)
    return jnp.where(mask, by_response[:, None], 0), None


def _by_critic(
    config: RlConfig, rewards: Float[Array, "B R"], values: Float[Array, "B R"], mask: Bool[Array, "B R"]
) -> tuple[Float[Array, "B R"], Float[Array, "B R"]]:
    gae_lambda: Any = config.gae_lambda
    if config.gae_length_alpha:
        lengths = jnp.sum(mask, axis=1, dtype=values.dtype)
        gae_lambda = losses.adaptive_lambda(lengths, alpha=config.gae_length_alpha, floor=config.gae_lambda)
    estimate = functools.partial(losses.gae, rewards, values, mask, discount=config.discount)
    advantages, returns = estimate(gae_lambda=gae_lambda)
    if config.value_lambda != "auto":
        _, returns = estimate(gae_lambda=config.value_lambda)
    return advantages, returns


def policy_loss(
    config: RlConfig, log_probs: Float[Array, "B R"], experience: Experience
) -> tuple[Float[Array, " B"], Float[Array, " B"]]:
    """The config's surrogate of each response, [B], and the share of its actions that are beyond the clip range."""
    old, advantages, mask = experience.log_probs, experience.advantages, experience.sequences.response_mask
    high = None if config.clip_range_high == "auto" else config.clip_range_high
    level: Any = {"level": config.ratio}
    clip: Any = {"clip_range": config.clip_range, "clip_range_high": high, **level}
    clipped = losses.clip_fraction(log_probs, old, mask, **clip)
    match config.surrogate:
        case "cispo":
            loss = losses.cispo_policy_loss(log_probs, old, advantages, mask, **clip)
        case "topr":
            loss = losses.topr_policy_loss(log_probs, old, advantages, mask, **level)
        case "reinforce":
            loss = losses.reinforce_policy_loss(log_probs, advantages, mask)
        case _:
            loss = losses.ppo_policy_loss(log_probs, old, advantages, mask, dual_clip=config.dual_clip, **clip)
    return loss, clipped


def objective(
    config: RlConfig,
    scores: Scores,
    values: Float[Array, "B R"] | None,
    experience: Experience,
    weight: Float[Array, " B"],
    right_weight: Float[Array, " B"] | None = None,
) -> tuple[Float[Array, ""], dict[str, Any]]:
    """`policy_loss + vf_coef * value_loss + kl_coef * kl_loss - entropy + positive_nll_coef * nll` of some responses.

    The surrogate of the config, the value loss where there is a critic, the KL where the config makes it part of the
    loss, the entropy while it is too low, and the likelihood of right completions; each the weighted sum over responses
    of its mean over a response's tokens.

    Args:
        config: coefficients, clip ranges, KL.
        scores: [B, R] of the policy that is trained, nats.
        values: [B, R] of its critic; None without one.
        experience: [B, R].
        weight: [B] what each response counts for; sums to 1 over the minibatch, but see `response_weights`.
        right_weight: the same in the likelihood of right completions; None where it is not in the loss.

    Returns:
        (loss, metrics: `sums`, which add up over micro-batches, and a maximum).
    """
    mask, log_probs = experience.sequences.response_mask, scores.log_probs
    mean = lambda by_response, weight=weight: jnp.sum(by_response * weight)
    old = experience.log_probs
    surrogate, clipped = policy_loss(config, log_probs, experience)
    total = mean(surrogate)
    log_ratio = jnp.where(mask, log_probs - old, 0)
    sums = {"rl/policy_loss": total, "rl/clip_fraction": mean(clipped)}
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
    if experience.low_entropy is not None:
        rewarded = jnp.where(experience.low_entropy, losses.masked_mean(scores.entropy, mask, axis=1), 0)
        total = total - config.entropy_coef * mean(rewarded)
    if right_weight is not None:
        nll = mean(losses.masked_mean(-log_probs, mask, axis=1), right_weight)
        total, sums["rl/positive_nll"] = total + config.positive_nll_coef * nll, nll
    sums["rl/total_loss"] = total
    sums["rl/ratio_mean"] = mean(losses.masked_mean(jnp.exp(log_ratio), mask, axis=1))
    sums["rl/log_ratio_mean"] = mean(losses.masked_mean(jnp.abs(log_ratio), mask, axis=1))
    return total, {"sums": sums, "rl/log_ratio_max": jnp.max(jnp.abs(log_ratio))}


_MEANS = ("rl/clip_fraction", "rl/ratio_mean", "rl/log_ratio_mean")
"""Metrics of the objective that are means, whatever the weights of its losses sum to."""


def response_weights(
    config: RlConfig, lengths: Int[Array, " M"], longest: int, kept: Bool[Array, " M"] | None = None
) -> Float[Array, " M"]:
    """What each response of a minibatch counts for, by `loss_aggregation`; filler and what is not kept is 0.

    Alike, or as its tokens, and 1 in sum; or as its share of the `longest` response's tokens, by the number of
    responses (Dr. GRPO, Liu et al. 2025, arXiv 2503.20783), so that the sum is less than 1.
    """
    lengths = lengths if kept is None else jnp.where(kept, lengths, 0)
    if config.loss_aggregation == "constant_length":
        return lengths / (longest * jnp.maximum(jnp.sum(lengths > 0), 1))
    parts = lengths if config.loss_aggregation == "token_mean" else lengths > 0
    return parts / jnp.maximum(jnp.sum(parts), 1)


def right_weights(batch: Experience) -> Float[Array, " M"] | None:
    """What each response of a minibatch counts for in the likelihood of right ones: as its tokens; None without it."""
    if batch.correct is None:
        return None
    learned = batch.correct if batch.kept is None else batch.correct & batch.kept
    lengths = jnp.where(learned, batch.sequences.response_lengths, 0)
    return lengths / jnp.maximum(jnp.sum(lengths), 1)


def update(
    policy: Policy,
    config: RlConfig,
    temperature: float,
    total_steps: int,
    critic_steps: int,
    state: TrainState,
    experience: Experience,
    rows: Int[Array, " M"],
    shorter: tuple[int, ...] = (),
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One optimizer step on a minibatch's `objective`.

    Args:
        policy, config, temperature, shorter: as for `make_experience`.
        total_steps, critic_steps: as for `make_optimizers`.
        state: parameters, with a value head where there is a critic, and optimizer.
        experience: [B, R].
        rows: [M] int32, the minibatch's rows; M must be `config.minibatch_size`.
    """
    batch, sizes = _minibatch(config, experience, rows, shorter, experience.learned)
    longest, lengths = experience.sequences.responses.shape[1], batch.sequences.response_lengths
    weights, counted = response_weights(config, lengths, longest, batch.kept), batch.sequences.lengths
    pieces = batch, weights, right_weights(batch)
    if batch.learned is not None:  # the others count in the weights alone
        counted, weights = jnp.where(batch.learned, counted, 0), jnp.where(batch.learned, weights, 0)
        hidden = dataclasses.replace(batch.sequences, response_lengths=jnp.where(batch.learned, lengths, 0))
        pieces = dataclasses.replace(batch, sequences=hidden), *pieces[1:]
    tokens = jnp.maximum(jnp.sum(lengths), 1)

    def loss(params: Params, piece: tuple[Experience, jax.Array, Any]) -> tuple[jax.Array, dict[str, Any]]:
        part, weight, right_weight = piece
        scores, values = score_responses(policy, params, part.sequences, temperature), None
        if config.has_critic:
            hidden = jax.lax.stop_gradient(scores.hidden) if config.critic == "detached" else scores.hidden
            values = response_values(policy, params, part.sequences, hidden)
        said = {} if config.scores_policy else unscored_metrics(scores, part, tokens)
        if not config.scores_policy and config.old_log_probs == "scored":  # the one update: old is what is here
            part = dataclasses.replace(part, log_probs=jax.lax.stop_gradient(scores.log_probs))
        total, aux = objective(config, scores, values, part, weight, right_weight)
        return total, {**aux, **said, "positions": positions(part.sequences)}

    state, metrics, aux = optimizer_step(
        loss,
        state,
        pieces,
        config.optimizer,
        total_steps,
        mesh=policy.mesh,
        optimizer=make_optimizers(config, total_steps, critic_steps),
        **sizes,
    )
    metrics |= jax.tree.map(jnp.sum, aux["sums"])
    metrics["throughput/padding_share"] = padding_share(counted, aux["positions"])
    if not config.scores_policy:
        metrics |= {name: jnp.sum(aux[name]) for name in ("rl/entropy", "rl/sampler_gap")}
        metrics["rl/sampler_gap_max"] = jnp.max(aux["rl/sampler_gap_max"])
    if config.loss_aggregation == "constant_length" or not (batch.kept is None and batch.learned is None):
        # the weights do not sum to 1
        whole = jnp.sum(weights)
        metrics |= {name: metrics[name] / jnp.where(whole > 0, whole, 1) for name in _MEANS}
    return state, {**metrics, "rl/log_ratio_max": jnp.max(aux["rl/log_ratio_max"])}


def unscored_metrics(scores: Scores, part: Experience, tokens: Int[Array, ""]) -> dict[str, jax.Array]:
    """Of a micro-batch that no pass has scored before: its shares of entropy and `rl/sampler_gap`, and the largest gap.

    Args:
        scores: by the policy as it is in the update.
        part: the micro-batch, with the sampler's log-probs.
        tokens: of the minibatch's responses.
    """
    mask = part.sequences.response_mask
    gap = jnp.where(mask, jnp.abs(part.log_probs - scores.log_probs), 0)
    entropy = jnp.sum(jnp.where(mask, scores.entropy, 0)) / tokens
    return {"rl/entropy": entropy, "rl/sampler_gap": jnp.sum(gap) / tokens, "rl/sampler_gap_max": jnp.max(gap)}


def _minibatch(
    config: RlConfig,
    experience: Experience,
    rows: Int[Array, " M"],
    shorter: tuple[int, ...],
    learned: Bool[Array, " B"] | None = None,
) -> tuple[Experience, dict[str, Any]]:
    """A minibatch, its rows in the order of `by_length`, and how it is accumulated over micro-batches.

    Rows that are not `learned` come last, and micro-batches that have no others are not computed.
    """
    count = config.minibatch_size // config.microbatch_size
    sizes = cut_lengths(experience.sequences.tokens.shape[1], shorter)
    lengths, of_part = experience.sequences.lengths, lambda part: part[0].sequences.lengths
    if learned is not None:
        sizes, lengths = (0, *sizes), jnp.where(learned, lengths, 0)
        of_part = lambda part: jnp.where(part[0].learned, part[0].sequences.lengths, 0)
    rows = by_length(rows, take_rows(lengths, rows), sizes, count)
    cut = functools.partial(at_length, sizes=sizes, lengths=of_part)
    return take_rows(experience, rows), {"count": count, "cut": cut}


def make_optimizers(config: RlConfig, total_steps: int, critic_steps: int) -> Optimizer:
    """The optimizer of the policy, and that of the critic where `critic_optimizer` has a learning rate.

    Args:
        config: both.
        total_steps: length of the policy's learning-rate schedule, in optimizer steps.
        critic_steps: of the critic's, which begins with `critic_warmup`.
    """
    policy = make_optimizer(config.optimizer, total_steps)
    if not config.has_critic or not config.critic_optimizer.learning_rate:
        return policy
    return PartOptimizers(policy, make_optimizer(config.critic_optimizer, critic_steps))


def critic_update(
    policy: Policy,
    config: RlConfig,
    critic_steps: int,
    state: TrainState,
    experience: Experience,
    rows: Int[Array, " M"],
    shorter: tuple[int, ...] = (),
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One step of the critic's own optimizer on the squared error of its values; nothing else moves.

    Source: value pretraining of VC-PPO, Yuan et al. 2025 (arXiv 2503.01491), section 4.1. The error is not clipped: no
    policy depends on these values yet. Arguments as for `update`.
    """
    batch, sizes = _minibatch(config, experience, rows, shorter)
    longest = experience.sequences.responses.shape[1]
    weights = response_weights(config, batch.sequences.response_lengths, longest, batch.kept)
    critic, others = split_critic(state.params)

    def loss(critic: Params, piece: tuple[Experience, jax.Array]) -> tuple[jax.Array, jax.Array]:
        part, weight = piece
        hidden = response_hidden(policy, others, part.sequences)  # nobody reads it where the critic has its own
        values = response_values(policy, {**others, **critic}, part.sequences, hidden)
        assert part.values is not None
        assert part.returns is not None
        mask = part.sequences.response_mask
        errors = losses.ppo_value_loss(values, part.values, part.returns, mask, clip_range=jnp.inf)
        value_loss = jnp.sum(errors * weight)
        return value_loss, value_loss

    gradients, value_losses = accumulate(loss, critic, (batch, weights), mesh=policy.mesh, **sizes)
    optimizer = make_optimizer(config.critic_optimizer, critic_steps)
    opt_state = state.opt_state["critic"]
    updates, critic_state = optimizer.update(gradients, opt_state, critic)
    metrics = {"rl/value_loss": jnp.sum(value_losses), "optimizer/gradient_norm": optax.tree.norm(gradients)}
    params: Params = {**others, **optax.apply_updates(critic, updates)}
    opt_state = {**state.opt_state, "critic": critic_state}
    return TrainState(step=state.step, params=params, opt_state=opt_state), metrics


def _abstract_rollout(batch: int, prompt: int, response: int, dtype: Any, mesh: Mesh) -> Rollout:
    return Rollout(
        sequences=abstract_sequences(mesh, batch, prompt, response),
        log_probs=abstract_rows(jax.ShapeDtypeStruct((batch, response), dtype), mesh),
        ended=abstract_rows(jax.ShapeDtypeStruct((batch,), jnp.bool_), mesh),
    )


def build_experience(
    model: ModelConfig,
    config: RlConfig,
    mesh: Mesh,
    *,
    temperature: float,
    prompt: int,
    response: int,
    buckets: Sequence[int] = (),
) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """The jitted `(params, reference, rollout, rewards, correct) -> (Experience, metrics)`, and its arguments.

    Rows may be cut to prompts of the shorter ones of `buckets`, see `cut_lengths`.
    """
    shorter = tuple(bucket + response for bucket in buckets if bucket < prompt)
    policy = Policy(model, mesh, config.separate_critic)
    wide = jnp.promote_types(model.dtype, jnp.float32)
    batch = config.completions_per_iteration
    params = abstract_params(policy, mesh, value_head=config.has_critic)
    args = (
        params,
        {"decoder": params["decoder"]} if config.scores_reference else None,
        _abstract_rollout(batch, prompt, response, wide, mesh),
        abstract_rows(jax.ShapeDtypeStruct((batch,), wide), mesh),
        abstract_rows(jax.ShapeDtypeStruct((batch,), jnp.bool_), mesh),
    )

    def step(params: Params, reference: Params | None, rollout: Rollout, rewards: jax.Array, correct: jax.Array):
        return make_experience(policy, config, temperature, params, reference, rollout, rewards, correct, shorter)

    experience, _ = jax.eval_shape(step, *args)
    return jax.jit(step, out_shardings=(batch_shardings(experience, mesh), replicated(mesh))), args


def monte_carlo(config: RlConfig) -> RlConfig:
    """The config of the iterations of `critic_warmup`, in which returns are the rewards that came."""
    return dataclasses.replace(config, gae_lambda=1.0, gae_length_alpha=0.0, value_lambda="auto")


def build_update(
    model: ModelConfig,
    config: RlConfig,
    mesh: Mesh,
    *,
    temperature: float,
    total_steps: int,
    prompt: int,
    response: int,
    critic_steps: int = 0,
    critic_alone: bool = False,
    buckets: Sequence[int] = (),
) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """The jitted `(state, experience, rows) -> (state, metrics)` for a bucket, and its arguments; donates the state.

    With `critic_alone` it is the step of `critic_warmup`. `buckets` are as for `build_experience`.
    """
    shorter = tuple(bucket + response for bucket in buckets if bucket < prompt)
    policy = Policy(model, mesh, config.separate_critic)
    make, args = build_experience(model, config, mesh, temperature=temperature, prompt=prompt, response=response)
    experience = abstract_rows(jax.eval_shape(make, *args)[0], mesh)
    rows = jax.ShapeDtypeStruct((config.minibatch_size,), jnp.int32, sharding=replicated(mesh))

    def step(state: TrainState, experience: Experience, rows: jax.Array):
        if critic_alone:
            return critic_update(policy, config, critic_steps, state, experience, rows, shorter)
        return update(policy, config, temperature, total_steps, critic_steps, state, experience, rows, shorter)

    optimizer = make_optimizers(config, total_steps, critic_steps)
    return jit_update(step, mesh, abstract_state(args[0], optimizer, mesh), experience, rows)
