"""Log-probabilities of tokens, entropy of what they are drawn from, and negative log-likelihood."""

from __future__ import annotations

from typing import TYPE_CHECKING

import chex
import jax
import jax.numpy as jnp

from reft_jax.losses.arrays import as_float, visible

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int


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
    logits = as_float(logits)
    chosen = jnp.take_along_axis(logits, tokens[..., None], axis=-1)[..., 0]
    return chosen - jax.nn.logsumexp(logits, axis=-1)


def entropy(logits: Float[Array, "*n V"]) -> Float[Array, "*n"]:
    """Entropy of each distribution: `-sum_v p_v log p_v`.

    Args:
        logits: -inf on columns that can never be predicted.

    Returns:
        Nats, between 0 and log V.
    """
    log_p = jax.nn.log_softmax(as_float(logits), axis=-1)
    p = jnp.exp(log_p)
    return -jnp.sum(p * jnp.where(p > 0, log_p, 0), axis=-1)  # 0 log 0 = 0, in the gradient too


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
    return -jnp.sum(visible(log_probs, mask)), jnp.sum(mask)
