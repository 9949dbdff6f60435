"""How much better than expected: baselines, scales and weights of a response's reward, and GAE with a critic."""

from __future__ import annotations

from typing import TYPE_CHECKING

import chex
import jax
import jax.numpy as jnp

from reft_jax.losses.arrays import as_float, assert_response_arrays, visible

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Real


def group_means(rewards: Real[Array, " B"], *, samples: int) -> Float[Array, " B"]:
    """The mean reward of the responses to the same question: the baseline of GRPO, and a question's rate of success.

    Source: GRPO, Shao et al. 2024 (arXiv 2402.03300), section 4.1.2; alone, Dr. GRPO, Liu et al. 2025 (arXiv
    2503.20783); as what advantages are divided by, MaxRL, Tajwar et al. 2026 (arXiv 2602.02710).

    Args:
        rewards: the responses of a question next to each other.
        samples: responses to a question, two or more; B is a multiple.
    """
    groups = _groups(rewards, samples)
    return jnp.broadcast_to(jnp.mean(groups, axis=1, keepdims=True), groups.shape).reshape(-1)


def leave_one_out_means(rewards: Real[Array, " B"], *, samples: int) -> Float[Array, " B"]:
    """The mean reward of the other responses to the same question: a baseline that leaves the gradient unbiased.

    Source: RLOO, Ahmadian et al. 2024 (arXiv 2402.14740), equation 8. Arguments as for `group_means`.
    """
    groups = _groups(rewards, samples)
    return ((jnp.sum(groups, axis=1, keepdims=True) - groups) / (samples - 1)).reshape(-1)


def group_deviations(rewards: Real[Array, " B"], *, samples: int) -> Float[Array, " B"]:
    """The standard deviation of the rewards of a question's responses, unbiased: what GRPO divides advantages by.

    Source and arguments as for `group_means`; TRL adds 1e-4 before it divides.
    """
    groups = _groups(rewards, samples)
    spread = jnp.std(groups, axis=1, ddof=1, keepdims=True)
    return jnp.broadcast_to(spread, groups.shape).reshape(-1)


def mixed_groups(rewards: Real[Array, " B"], *, samples: int) -> Bool[Array, " B"]:
    """Whether the responses to the same question earned different rewards, so that they can be compared.

    Source: Reinforce-Rej, Xiong et al. 2025 (arXiv 2504.11343), which leaves all others out. Arguments as for
    `group_means`.
    """
    groups = _groups(rewards, samples)
    mixed = jnp.max(groups, axis=1, keepdims=True) > jnp.min(groups, axis=1, keepdims=True)
    return jnp.broadcast_to(mixed, groups.shape).reshape(-1)


def _groups(rewards: Real[Array, " B"], samples: int) -> Float[Array, "questions {samples}"]:
    """A row for each question."""
    chex.assert_rank(rewards, 1)
    chex.assert_is_divisible(rewards.shape[0], samples)
    chex.assert_scalar_in(samples, 2, rewards.shape[0])
    return as_float(rewards).reshape(-1, samples)


def sign_weighted(advantages: Float[Array, "*shape"], *, positive: float, negative: float) -> Float[Array, "*shape"]:
    """Advantages by what their sign counts for: `positive A` where A > 0, `negative A` where A < 0.

    (1, 0) learns from what is better than the baseline alone, as RAFT++ does, Xiong et al. 2025 (arXiv 2504.11343);
    (0.1, 1) is W-REINFORCE and (0, 1) NSR, Zhu et al. 2025 (arXiv 2506.01347), section 5, where rewards are 1 and -1.
    """
    return advantages * jnp.where(advantages > 0, positive, negative)


def adaptive_lambda(lengths: Real[Array, " B"], *, alpha: float, floor: float) -> Float[Array, " B"]:
    """GAE factor by length of the response: `max(floor, 1 - 1 / (alpha l))`, so that the reward reaches its start.

    Source: VAPO, Yue et al. 2025 (arXiv 2504.05118), section 4.2, where alpha is 0.05 and there is no floor, so that a
    response of 20 tokens has 0 and a shorter one less.

    Args:
        lengths: tokens of each response.
        alpha: above 0; the sum of the factors of all later steps is about `alpha l`.
        floor: the least factor, and that of filler.

    Returns:
        Between `floor` and 1.
    """
    return jnp.maximum(floor, 1 - 1 / (alpha * jnp.maximum(as_float(lengths), 1)))


def gae(
    rewards: Float[Array, "B R"],
    values: Float[Array, "B R"],
    mask: Bool[Array, "B R"],
    *,
    discount: Float[Array, ""] | float,
    gae_lambda: Float[Array, "*rows"] | float,
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
        gae_lambda: of all rows, or of each; 0 takes the one-step error, 1 the whole discounted sum of rewards.

    Returns:
        (advantages, returns), not whitened; 0 where the mask hides.
    """
    assert_response_arrays(mask, rewards, values)
    rewards, values = visible(rewards, mask), visible(values, mask)
    next_values = jnp.pad(values[:, 1:], ((0, 0), (0, 1)))
    deltas = rewards + discount * next_values - values  # [B, R]

    def step(advantage: Float[Array, " B"], delta: Float[Array, " B"]) -> tuple[Float[Array, " B"], Float[Array, " B"]]:
        advantage = delta + discount * gae_lambda * advantage
        return advantage, advantage

    _, advantages = jax.lax.scan(step, jnp.zeros_like(deltas[:, 0]), deltas.T, reverse=True)
    advantages = advantages.T
    return advantages, advantages + values
