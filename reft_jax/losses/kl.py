"""Estimators of the KL to the reference from sampled tokens, and the KL as a part of the loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import chex
import jax
import jax.numpy as jnp

from reft_jax.losses.arrays import as_float, assert_response_arrays, masked_mean, visible
from reft_jax.losses.policy import importance_ratio

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float


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
    return as_float(log_probs) - as_float(reference_log_probs)


def kl_k3(log_probs: Float[Array, "*shape"], reference_log_probs: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Estimator k3 of KL(policy || reference) per sampled token: `q / p - 1 - log(q / p)`.

    Unbiased like k1, of lower variance where the two are close, and never negative (beyond rounding).
    Source, arguments and result as for `kl_k1`.
    """
    log_ratio = -kl_k1(log_probs, reference_log_probs)
    return jnp.expm1(log_ratio) - log_ratio


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
    assert_response_arrays(mask, log_probs, old_log_probs, reference_log_probs)
    kl = estimator(visible(log_probs, mask), visible(reference_log_probs, mask))
    return masked_mean(importance_ratio(log_probs, old_log_probs, mask) * kl, mask, axis=-1)
