"""The loss of the critic, and how good it is."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax.numpy as jnp

from reft_jax.losses.arrays import assert_response_arrays, centred, masked_mean, visible

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float


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
    assert_response_arrays(mask, values, old_values, returns)
    values, old_values, returns = (visible(x, mask) for x in (values, old_values, returns))
    clipped = jnp.clip(values, old_values - clip_range, old_values + clip_range)
    return masked_mean(0.5 * jnp.maximum((values - returns) ** 2, (clipped - returns) ** 2), mask, axis=-1)


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
    assert_response_arrays(mask, values, returns)
    values, returns = visible(values, mask), visible(returns, mask)
    total = jnp.sum(centred(returns, mask) ** 2)
    residual = jnp.sum(centred(returns - values, mask) ** 2)
    # Equal returns leave a total of rounding errors, not 0: compare the extremes.
    highest = jnp.max(returns, where=mask, initial=-jnp.inf)
    varies = (highest > jnp.min(returns, where=mask, initial=jnp.inf)) & (total > 0)
    return jnp.where(varies, 1 - residual / jnp.where(varies, total, 1), 0)


def within_part(mask: Bool[Array, "B R"], part: int, *, parts: int) -> Bool[Array, "B R"]:
    """The actions of one of `parts` equal parts of each response, from 0: t with `floor(parts t / length) == part`.

    A response of fewer tokens than parts has none in some.
    """
    assert_response_arrays(mask)
    lengths = jnp.maximum(jnp.sum(mask, axis=1, keepdims=True), 1)
    return mask & (parts * jnp.arange(mask.shape[1])[None, :] // lengths == part)
