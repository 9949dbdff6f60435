"""Surrogate losses of the policy, by its ratio to the one that sampled.

Each is a mean over a response's tokens. The mean over the batch is the caller's: sum the rows, each with its share of
the whole batch, so that micro-batches add up to the whole.

Arguments that all have:
    log_probs: of the policy that is updated.
    old_log_probs: of the policy that sampled.
    advantages: constants: the gradient is wanted in `log_probs` only.
    mask: True on actions.
    clip_range: how far below 1 a ratio is trusted.
    clip_range_high: how far above; None is as far.
    level: whose ratio it is, see `importance_ratio`.

All give 0 for filler.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import jax
import jax.numpy as jnp

from reft_jax.losses.arrays import assert_response_arrays, masked_mean, visible

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float

Level = Literal["token", "sequence_mean", "sequence_product"]


def importance_ratio(
    log_probs: Float[Array, "B R"], old_log_probs: Float[Array, "B R"], mask: Bool[Array, "B R"], level: Level = "token"
) -> Float[Array, "B R"]:
    """Policy over old policy of each action, 1 where the mask hides it.

    `token`: of the token, `exp(log p_t - log q_t)`. `sequence_mean`: the geometric mean of the response's tokens,
    `s = exp(mean_t(log p_t - log q_t))`; source: GSPO, Zheng et al. 2025 (arXiv 2507.18071), section 4.1.
    `sequence_product`: the whole response's, `s = exp(sum_t(log p_t - log q_t))`. Such an s stands at each token with
    the gradient `s grad log p_t` there (GSPO-token, section 4.3), so that the mean over a response's tokens has the
    gradient of s with `sequence_mean`, and that divided by the number of tokens with `sequence_product`.

    Returns:
        Above 0.
    """
    log_ratio = visible(log_probs, mask) - visible(old_log_probs, mask)
    if level == "token":
        return jnp.exp(log_ratio)
    whole = jnp.sum(log_ratio, axis=1, keepdims=True)
    if level == "sequence_mean":
        whole = masked_mean(log_ratio, mask, axis=1)[:, None]
    whole = jnp.minimum(whole, 80)  # a product of many may be more than float32 has, and infinity times 0 is nan
    return jnp.exp(jnp.where(mask, jax.lax.stop_gradient(whole - log_ratio) + log_ratio, 0))


def _clipped(ratio: Float[Array, "B R"], clip_range: float, clip_range_high: float | None) -> Float[Array, "B R"]:
    return jnp.clip(ratio, 1 - clip_range, 1 + (clip_range if clip_range_high is None else clip_range_high))


def ppo_policy_loss(
    log_probs: Float[Array, "B R"],
    old_log_probs: Float[Array, "B R"],
    advantages: Float[Array, "B R"],
    mask: Bool[Array, "B R"],
    *,
    clip_range: float,
    clip_range_high: float | None = None,
    dual_clip: float = 0.0,
    level: Level = "token",
) -> Float[Array, " B"]:
    """Clipped surrogate: mean over each response of `max(-A ratio, -A clip(ratio, 1 - low, 1 + high))`.

    `low` is `clip_range`, `high` is `clip_range_high`. Source: Schulman et al. 2017 (arXiv 1707.06347), equation 7,
    with the sign turned; the ends apart as in DAPO, Yu et al. 2025 (arXiv 2503.14476), equation 10. With `dual_clip` c,
    above 1, the loss is at most `-A c` where A < 0, and has no gradient there; source: Ye et al. 2020 (arXiv
    1912.09729), from memory, where c is 3.
    """
    assert_response_arrays(mask, log_probs, old_log_probs, advantages)
    ratio = importance_ratio(log_probs, old_log_probs, mask, level)
    advantages = visible(advantages, mask)
    clipped = _clipped(ratio, clip_range, clip_range_high)
    loss = jnp.maximum(-advantages * ratio, -advantages * clipped)
    if dual_clip:
        loss = jnp.where(advantages < 0, jnp.minimum(loss, -advantages * dual_clip), loss)
    return masked_mean(loss, mask, axis=-1)


def reinforce_policy_loss(
    log_probs: Float[Array, "B R"], advantages: Float[Array, "B R"], mask: Bool[Array, "B R"]
) -> Float[Array, " B"]:
    """Likelihood weighted by advantages: mean over each response of `-A log p`; no ratio corrects for older samples.

    Source: Williams 1992, REINFORCE; on samples of another policy AsymRE, Arnal et al. 2025 (arXiv 2506.20520),
    section 3. A constant weight of each token may be multiplied into the advantages.
    """
    assert_response_arrays(mask, log_probs, advantages)
    return masked_mean(-visible(advantages, mask) * visible(log_probs, mask), mask, axis=-1)


def cispo_policy_loss(
    log_probs: Float[Array, "B R"],
    old_log_probs: Float[Array, "B R"],
    advantages: Float[Array, "B R"],
    mask: Bool[Array, "B R"],
    *,
    clip_range: float,
    clip_range_high: float | None = None,
    level: Level = "token",
) -> Float[Array, " B"]:
    """Likelihood with a clipped weight: mean over each response of `-sg(clip(ratio, ...)) A log p`.

    sg stops the gradient, so that a token whose ratio is clipped still has one. Source: CISPO, MiniMax 2025 (arXiv
    2506.13585), equations 4 and 5, where `clip_range` is so large that it does nothing.
    """
    assert_response_arrays(mask, log_probs, old_log_probs, advantages)
    ratio = jax.lax.stop_gradient(importance_ratio(log_probs, old_log_probs, mask, level))
    weight = _clipped(ratio, clip_range, clip_range_high)
    return reinforce_policy_loss(log_probs, weight * visible(advantages, mask), mask)


def topr_policy_loss(
    log_probs: Float[Array, "B R"],
    old_log_probs: Float[Array, "B R"],
    advantages: Float[Array, "B R"],
    mask: Bool[Array, "B R"],
    *,
    level: Level = "sequence_product",
) -> Float[Array, " B"]:
    """Likelihood with a weight for what is to become rarer: mean over each response of `-w A log p`.

    w is 1 where A >= 0, and `sg(min(ratio, 1))` where A < 0. Source: TOPR, Le Roux et al. 2025 (arXiv 2503.14286),
    section 3, whose ratio is the whole response's, and whose likelihood is a sum over its tokens.
    """
    assert_response_arrays(mask, log_probs, old_log_probs, advantages)
    ratio = jax.lax.stop_gradient(importance_ratio(log_probs, old_log_probs, mask, level))
    advantages = visible(advantages, mask)
    return reinforce_policy_loss(log_probs, jnp.where(advantages < 0, jnp.minimum(ratio, 1), 1) * advantages, mask)


def clip_fraction(
    log_probs: Float[Array, "B R"],
    old_log_probs: Float[Array, "B R"],
    mask: Bool[Array, "B R"],
    *,
    clip_range: float,
    clip_range_high: float | None = None,
    level: Level = "token",
) -> Float[Array, " B"]:
    """Share of each response's actions whose ratio is beyond `1 - clip_range` or `1 + clip_range_high`.

    Returns:
        0 to 1, to be averaged over sequences like the losses; 0 for filler.
    """
    assert_response_arrays(mask, log_probs, old_log_probs)
    ratio = importance_ratio(log_probs, old_log_probs, mask, level)
    outside = jnp.abs(ratio - 1) > clip_range
    if clip_range_high is not None:
        outside = (1 - ratio > clip_range) | (ratio - 1 > clip_range_high)
    return masked_mean(outside.astype(ratio.dtype), mask, axis=-1)


def sampler_weights(
    log_probs: Float[Array, "B R"], sampler_log_probs: Float[Array, "B R"], mask: Bool[Array, "B R"], *, cap: float
) -> Float[Array, "B R"]:
    """Truncated importance weights of the old policy against the sampler's numbers: `min(p_t / mu_t, cap)`.

    They belong in front of a token's advantage. Source: Yao et al. 2025, "Your Efficient RL Framework Secretly Brings
    You Off-Policy RL Training" (a page on the web, known here from what others say of it).

    Args:
        log_probs: of the policy that sampled, by the training forward.
        sampler_log_probs: of the same tokens by the sampler, which rounds otherwise.
        mask: True on actions.
        cap: the largest weight, C.

    Returns:
        Between 0 and `cap`; 0 where the mask hides.
    """
    assert_response_arrays(mask, log_probs, sampler_log_probs)
    ratio = importance_ratio(log_probs, sampler_log_probs, mask)
    return jnp.where(mask, jnp.minimum(ratio, cap), 0)


def effective_sample_size(weights: Float[Array, "B R"], mask: Bool[Array, "B R"]) -> Float[Array, ""]:
    """Share of the tokens that as many with equal weights would be worth: `(sum w)^2 / (n sum w^2)`.

    Source: Kish 1965; as a diagnostic of importance weights Owen 2013, "Monte Carlo theory, methods and examples",
    section 9.3.

    Args:
        weights: not negative.
        mask: True on the n tokens that count.

    Returns:
        Above 0 and at most 1; 0 where there is no weight.
    """
    assert_response_arrays(mask, weights)
    weights = visible(weights, mask)
    squares = jnp.sum(mask, dtype=weights.dtype) * jnp.sum(weights**2)
    return jnp.sum(weights) ** 2 / jnp.where(squares > 0, squares, 1)
