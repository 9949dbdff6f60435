"""What a response earned, action by action."""

from __future__ import annotations

from typing import TYPE_CHECKING

import chex
import jax.numpy as jnp

from reft_jax.losses.arrays import as_float, assert_response_arrays, visible

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Real


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
    assert_response_arrays(mask)
    chex.assert_shape(rewards, mask.shape[:1])
    last = jnp.sum(mask, axis=-1, keepdims=True) - 1  # [B, 1]; -1 in a filler row, which is no position
    return visible(rewards[:, None], jnp.arange(mask.shape[1])[None, :] == last)


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
    assert_response_arrays(mask, kl)
    return place_reward(rewards, mask) - kl_coef * visible(kl, mask)


def overlong_penalty(lengths: Real[Array, " B"], *, longest: int, buffer: int) -> Float[Array, " B"]:
    """What a response that comes near the longest loses: 0 up to `longest - buffer` tokens, linearly to 1 at `longest`.

    Source: DAPO, Yu et al. 2025 (arXiv 2503.14476), equation 13, with the sign turned; a response that was cut is as
    long as the longest here.

    Args:
        lengths: tokens of each response.
        longest: tokens that a response can have.
        buffer: tokens over which the penalty rises; above 0.
    """
    chex.assert_rank(lengths, 1)
    return jnp.clip((as_float(lengths) - (longest - buffer)) / buffer, 0, 1)
