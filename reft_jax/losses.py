"""Losses and everything they are made of: log-probs, KL, rewards per token, advantages, PPO and SFT losses.

Layer 1: arrays and scalars in, arrays out; no model, no config, no state, so everything here can be jitted,
differentiated and sharded by its caller. In the flow of one batch these functions turn what the models say about a
rollout into an experience (`kl_penalised_rewards`, `gae`, `whiten`), and the experience into the quantities that an
update minimises (`ppo_policy_loss`, `ppo_value_loss`; `masked_nll` in the warm-up).

Conventions (B batch, R response, V vocabulary; log-probs, KL and entropy in nats):

- Arrays [B, R] are response-aligned: index t is the action that emits response token t. Its log-prob and value belong
  to the state before that token; the state after the last action is terminal and worth 0.
- `mask` [B, R], bool, is True on the first `length` actions of each row, the end token's included (`t < length`). A row
  with length 0 is filler: it yields 0 everywhere. What the mask hides never matters, not even if it is nan.
- Results have the dtype of the inputs, but float32 at least: bfloat16 and integers are raised, float64 stays.
- An array of the wrong shape, rank or mask dtype raises `AssertionError` when the function is traced.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import chex
import jax
import jax.numpy as jnp

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int, Real, Shaped


def _float(x: Shaped[Array, "*shape"]) -> Float[Array, "*shape"]:
    """`x` in float32, or in float64 if it is float64."""
    x = jnp.asarray(x)
    return x.astype(jnp.float64 if x.dtype == jnp.float64 else jnp.float32)


def _visible(x: Shaped[Array, "*#shape"], mask: Bool[Array, "*shape"]) -> Float[Array, "*shape"]:
    """`x` with 0 where the mask hides it; done before any arithmetic, because the gradient of 0 * nan is nan."""
    return jnp.where(mask, _float(x), 0)


def _assert_response_arrays(mask: Array, *arrays: Array) -> None:
    chex.assert_rank(mask, 2)
    chex.assert_type(mask, bool)
    chex.assert_equal_shape([mask, *arrays])


def token_log_probs(logits: Float[Array, "*n V"], tokens: Int[Array, "*n"]) -> Float[Array, "*n"]:
    """Log-probability of each token: `logits[token] - logsumexp(logits)`.

    A gather, not a one-hot product: nothing of the size of `logits` is made beyond the upcast.

    Args:
        logits: already divided by the temperature; -inf on columns that can never be predicted.
        tokens: ids in [0, V); an id of V or more gives nan.

    Returns:
        Nats.
    """
    chex.assert_equal_shape_prefix([logits, tokens], tokens.ndim)
    chex.assert_rank(logits, tokens.ndim + 1)
    logits = _float(logits)
    chosen = jnp.take_along_axis(logits, tokens[..., None], axis=-1)[..., 0]
    return chosen - jax.nn.logsumexp(logits, axis=-1)


def entropy(logits: Float[Array, "*n V"]) -> Float[Array, "*n"]:
    """Entropy of each distribution: `-sum_v p_v log p_v`.

    Args:
        logits: -inf on columns that can never be predicted.

    Returns:
        Nats, between 0 and log V.
    """
    log_p = jax.nn.log_softmax(_float(logits), axis=-1)
    p = jnp.exp(log_p)
    return -jnp.sum(p * jnp.where(p > 0, log_p, 0), axis=-1)  # 0 log 0 = 0, in the gradient too


def masked_mean(
    x: Shaped[Array, "*shape"], mask: Bool[Array, "*shape"], axis: int | tuple[int, ...] | None = None
) -> Float[Array, "*kept"]:
    """Mean of the entries that the mask shows, and 0 where it shows none.

    Args:
        x: any numbers, or truths.
        mask: True on what is averaged.
        axis: averaged over; None is all.

    Returns:
        `x` without the averaged axes.
    """
    chex.assert_type(mask, bool)
    chex.assert_equal_shape([x, mask])
    x = _visible(x, mask)
    return jnp.sum(x, axis=axis) / jnp.maximum(jnp.sum(mask, axis=axis, dtype=x.dtype), 1)


def _centred(x: Shaped[Array, "*shape"], mask: Bool[Array, "*shape"]) -> Float[Array, "*shape"]:
    """`x` minus its mean over the mask; 0 where the mask hides it."""
    return jnp.where(mask, _visible(x, mask) - masked_mean(x, mask), 0)


def whiten(x: Float[Array, "B R"], mask: Bool[Array, "B R"], *, eps: float = 1e-8) -> Float[Array, "B R"]:
    """Shift and scale to mean 0 and variance 1 over all visible entries: `(x - mean) * rsqrt(var + eps)`.

    The variance is the unbiased one (n - 1), as in TRL 0.7.2 `masked_whiten`, which the ReFT implementation applies to
    the advantages of all devices together. Call it on the whole batch, never on a micro-batch.

    Args:
        x: such as advantages.
        mask: True on actions.
        eps: added to the variance.

    Returns:
        0 where the mask hides, and everywhere if fewer than two entries are visible.
    """
    _assert_response_arrays(mask, x)
    centred = _centred(x, mask)
    variance = jnp.sum(centred**2) / jnp.maximum(jnp.sum(mask, dtype=centred.dtype) - 1, 1)
    return centred * jax.lax.rsqrt(variance + eps)


def kl_k1(log_probs: Float[Array, "*shape"], reference_log_probs: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Estimator k1 of KL(policy || reference) per sampled token: `log p - log q`.

    Unbiased for tokens sampled from the policy; single values, and means of few, may be negative.
    Source: Schulman, "Approximating KL Divergence", 2020 (http://joschu.net/blog/kl-approx.html).

    Args:
        log_probs: of the sampled tokens under the policy.
        reference_log_probs: of the same tokens under the reference.

    Returns:
        Nats.
    """
    chex.assert_equal_shape([log_probs, reference_log_probs])
    return _float(log_probs) - _float(reference_log_probs)


def kl_k3(log_probs: Float[Array, "*shape"], reference_log_probs: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Estimator k3 of KL(policy || reference) per sampled token: `q / p - 1 - log(q / p)`.

    Unbiased like k1, of lower variance where the two are close, and never negative (beyond rounding).
    Source, arguments and result as for `kl_k1`.
    """
    log_ratio = -kl_k1(log_probs, reference_log_probs)
    return jnp.expm1(log_ratio) - log_ratio


def place_reward(rewards: Real[Array, " B"], mask: Bool[Array, "B R"]) -> Float[Array, "B R"]:
    """Each row's reward on its last action, 0 elsewhere.

    The last action emits the end token, or is the last one that fitted where the response was cut short (ReFT gives
    cut responses theirs as well).

    Args:
        rewards: one per response.
        mask: True on actions.

    Returns:
        Never an integer type.
    """
    _assert_response_arrays(mask)
    chex.assert_shape(rewards, mask.shape[:1])
    last = jnp.sum(mask, axis=-1, keepdims=True) - 1  # [B, 1]; -1 in a filler row, which is no position
    return _visible(rewards[:, None], jnp.arange(mask.shape[1])[None, :] == last)


def kl_penalised_rewards(
    rewards: Real[Array, " B"], kl: Float[Array, "B R"], mask: Bool[Array, "B R"], *, kl_coef: float
) -> Float[Array, "*kept"]:
    """Reward of each action: its share of the response's reward minus `kl_coef * kl`.

    Source: ReFT (arXiv 2401.08967), `r_total = r - beta KL`; per token, unclipped, with the estimator k1 in the
    reference implementation.

    Args:
        rewards: one per response.
        kl: of the policy that sampled from the reference, estimated at each token (`kl_k1`, `kl_k3`).
        mask: True on actions.
        kl_coef: reward lost per nat.
    """
    _assert_response_arrays(mask, kl)
    return place_reward(rewards, mask) - kl_coef * _visible(kl, mask)


def group_relative_advantages(
    rewards: Real[Array, " B"], *, samples: int, scale: bool, eps: float = 1e-4
) -> Float[Array, " B"]:
    """What a response earned beyond the mean of its question's responses: `(r - mean) / (std + eps)`.

    Source: GRPO, Shao et al. 2024 (arXiv 2402.03300), section 4.1.2, with the unbiased standard deviation and the
    small constant of TRL; without the division, Dr. GRPO, Liu et al. 2025 (arXiv 2503.20783).

    Args:
        rewards: the responses of a question next to each other.
        samples: responses to a question, two or more; B is a multiple.
        scale: whether to divide by the standard deviation.
        eps: added to it; responses that all earned the same have advantage 0.
    """
    groups = _groups(rewards, samples)
    centred = groups - jnp.mean(groups, axis=1, keepdims=True)
    if scale:
        centred = centred / (jnp.std(groups, axis=1, ddof=1, keepdims=True) + eps)
    return centred.reshape(-1)


def leave_one_out_advantages(rewards: Real[Array, " B"], *, samples: int) -> Float[Array, " B"]:
    """What a response earned beyond the mean of its question's other responses.

    Source: RLOO, Ahmadian et al. 2024 (arXiv 2402.14740), equation 8.

    Args:
        rewards, samples: as for `group_relative_advantages`.
    """
    groups = _groups(rewards, samples)
    others = (jnp.sum(groups, axis=1, keepdims=True) - groups) / (samples - 1)
    return (groups - others).reshape(-1)


def _groups(rewards: Real[Array, " B"], samples: int) -> Float[Array, "questions {samples}"]:
    """A row for each question."""
    chex.assert_rank(rewards, 1)
    chex.assert_is_divisible(rewards.shape[0], samples)
    chex.assert_scalar_in(samples, 2, rewards.shape[0])
    return _float(rewards).reshape(-1, samples)


def gae(
    rewards: Float[Array, "B R"],
    values: Float[Array, "B R"],
    mask: Bool[Array, "B R"],
    *,
    discount: Float[Array, ""] | float,
    gae_lambda: Float[Array, ""] | float,
) -> tuple[Float[Array, "B R"], Float[Array, "B R"]]:
    """Generalised advantage estimation, by a reverse scan over the response.

    `delta_t = r_t + discount V_{t+1} - V_t` and `A_t = delta_t + discount gae_lambda A_{t+1}`, where V and A are 0
    after the last action; `returns = A + V`. Source: Schulman et al. 2016 (arXiv 1506.02438), equation 16. (The ReFT
    paper swaps the two symbols: its lambda is the discount.)

    Args:
        rewards: of each action.
        values: of the state in which each action is chosen.
        mask: True on actions.
        discount: of rewards, per token.
        gae_lambda: 0 takes the one-step error, 1 the whole discounted sum of rewards.

    Returns:
        (advantages, returns), not whitened; 0 where the mask hides.
    """
    _assert_response_arrays(mask, rewards, values)
    rewards, values = _visible(rewards, mask), _visible(values, mask)
    next_values = jnp.pad(values[:, 1:], ((0, 0), (0, 1)))
    deltas = rewards + discount * next_values - values  # [B, R]

    def step(advantage: Float[Array, " B"], delta: Float[Array, " B"]) -> tuple[Float[Array, " B"], Float[Array, " B"]]:
        advantage = delta + discount * gae_lambda * advantage
        return advantage, advantage

    _, advantages = jax.lax.scan(step, jnp.zeros_like(deltas[:, 0]), deltas.T, reverse=True)
    advantages = advantages.T
    return advantages, advantages + values


def _ratio(
    log_probs: Float[Array, "B R"], old_log_probs: Float[Array, "B R"], mask: Bool[Array, "B R"]
) -> Float[Array, "*kept"]:
    """Policy over old policy per action, 1 where the mask hides it."""
    return jnp.exp(_visible(log_probs, mask) - _visible(old_log_probs, mask))


def ppo_policy_loss(
    log_probs: Float[Array, "B R"],
    old_log_probs: Float[Array, "B R"],
    advantages: Float[Array, "B R"],
    mask: Bool[Array, "B R"],
    *,
    clip_range: float,
) -> Float[Array, " B"]:
    """Clipped surrogate: mean over each response of `max(-A ratio, -A clip(ratio, 1 - clip_range, 1 + clip_range))`.

    Source: Schulman et al. 2017 (arXiv 1707.06347), equation 7, with the sign turned. The mean over the batch is the
    caller's: sum the rows and divide by the global number of sequences, so that micro-batches add up to the whole.

    Args:
        log_probs: of the policy that is updated.
        old_log_probs: of the policy that sampled.
        advantages: constants: the gradient is wanted in `log_probs` only.
        mask: True on actions.
        clip_range: half width of the trusted ratios around 1.

    Returns:
        0 for filler.
    """
    _assert_response_arrays(mask, log_probs, old_log_probs, advantages)
    ratio = _ratio(log_probs, old_log_probs, mask)
    advantages = _visible(advantages, mask)
    clipped = jnp.clip(ratio, 1 - clip_range, 1 + clip_range)
    return masked_mean(jnp.maximum(-advantages * ratio, -advantages * clipped), mask, axis=-1)


def kl_loss(
    log_probs: Float[Array, "B R"],
    old_log_probs: Float[Array, "B R"],
    reference_log_probs: Float[Array, "B R"],
    mask: Bool[Array, "B R"],
    *,
    estimator: Callable[[jax.Array, jax.Array], jax.Array],
) -> Float[Array, " B"]:
    """KL of the policy that is updated from the reference, as a loss: mean over each response of `ratio * kl`.

    The tokens are the old policy's, so each is weighted by its new over its old probability. That makes the mean an
    unbiased estimate of the KL and its gradient one of the KL's gradient, with either estimator; without the weight the
    gradient of k1 would be 0 on average, and that of k3 that of KL(reference || policy). Before the first update the
    value is that of GRPO's term. Source: DeepSeek-V3.2, 2025 (arXiv 2512.02556), section 3.1. Rows are summed by the
    caller as for `ppo_policy_loss`.

    Args:
        log_probs: of the policy that is updated.
        old_log_probs: of the policy that sampled.
        reference_log_probs: of the reference.
        mask: True on actions.
        estimator: `kl_k1` or `kl_k3`.

    Returns:
        Nats a token; 0 for filler.
    """
    _assert_response_arrays(mask, log_probs, old_log_probs, reference_log_probs)
    kl = estimator(_visible(log_probs, mask), _visible(reference_log_probs, mask))
    return masked_mean(_ratio(log_probs, old_log_probs, mask) * kl, mask, axis=-1)


def ppo_value_loss(
    values: Float[Array, "B R"],
    old_values: Float[Array, "B R"],
    returns: Float[Array, "B R"],
    mask: Bool[Array, "B R"],
    *,
    clip_range: float,
) -> Float[Array, " B"]:
    """Clipped value loss: mean over each response of
    `0.5 max((v - R)^2, (clip(v, v_old - clip_range, v_old + clip_range) - R)^2)`.

    Source: the form of OpenAI Baselines `ppo2`, TRL and the ReFT implementation (the ReFT paper's formula reads
    differently). Rows are summed by the caller as for `ppo_policy_loss`.

    Args:
        values: of the model that is updated.
        old_values: of the model that sampled.
        returns: targets, from `gae`.
        mask: True on actions.
        clip_range: half width of the trusted interval around the old value, in units of the reward.

    Returns:
        In squared units of the reward; 0 for filler.
    """
    _assert_response_arrays(mask, values, old_values, returns)
    values, old_values, returns = (_visible(x, mask) for x in (values, old_values, returns))
    clipped = jnp.clip(values, old_values - clip_range, old_values + clip_range)
    return masked_mean(0.5 * jnp.maximum((values - returns) ** 2, (clipped - returns) ** 2), mask, axis=-1)


def clip_fraction(
    log_probs: Float[Array, "B R"], old_log_probs: Float[Array, "B R"], mask: Bool[Array, "B R"], *, clip_range: float
) -> Float[Array, " B"]:
    """Share of each response's actions whose ratio is outside `1 +- clip_range`, on whichever side.

    Arguments as for `ppo_policy_loss`.

    Returns:
        0 to 1, to be averaged over sequences like the losses; 0 for filler.
    """
    _assert_response_arrays(mask, log_probs, old_log_probs)
    ratio = _ratio(log_probs, old_log_probs, mask)
    return masked_mean((jnp.abs(ratio - 1) > clip_range).astype(ratio.dtype), mask, axis=-1)


def explained_variance(
    values: Float[Array, "B R"], returns: Float[Array, "B R"], mask: Bool[Array, "B R"]
) -> Float[Array, ""]:
    """How much of the returns the values explain: `1 - var(returns - values) / var(returns)`.

    1 is perfect, 0 no better than a constant, negative worse.

    Args:
        values: of the states.
        returns: what they should have been, from `gae`.
        mask: True on actions.

    Returns:
        0 where the returns do not vary.
    """
    _assert_response_arrays(mask, values, returns)
    values, returns = _visible(values, mask), _visible(returns, mask)
    total = jnp.sum(_centred(returns, mask) ** 2)
    residual = jnp.sum(_centred(returns - values, mask) ** 2)
    # Equal returns leave a total of rounding errors, not 0: compare the extremes.
    highest = jnp.max(returns, where=mask, initial=-jnp.inf)
    varies = (highest > jnp.min(returns, where=mask, initial=jnp.inf)) & (total > 0)
    return jnp.where(varies, 1 - residual / jnp.where(varies, total, 1), 0)


def masked_nll(
    log_probs: Float[Array, "*shape"], mask: Bool[Array, "*shape"]
) -> tuple[Float[Array, ""], Int[Array, ""]]:
    """Negative log-likelihood of the target tokens, as a sum and a count.

    The mean is the caller's: sum of sums over sum of counts, over all micro-batches and devices.

    Args:
        log_probs: of the target tokens.
        mask: True on target tokens, the end token included.

    Returns:
        (sum of `-log p`, nats; number of tokens).
    """
    chex.assert_type(mask, bool)
    chex.assert_equal_shape([log_probs, mask])
    return -jnp.sum(_visible(log_probs, mask)), jnp.sum(mask)
