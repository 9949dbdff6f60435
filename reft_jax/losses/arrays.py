"""What all losses are made of: types, masks, means, whitening; see the package for the conventions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import chex
import jax
import jax.numpy as jnp

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Shaped


def as_float(x: Shaped[Array, "*shape"]) -> Float[Array, "*shape"]:
    """`x` in float32, or in float64 if it is float64."""
    x = jnp.asarray(x)
    return x.astype(jnp.float64 if x.dtype == jnp.float64 else jnp.float32)


def visible(x: Shaped[Array, "*#shape"], mask: Bool[Array, "*shape"]) -> Float[Array, "*shape"]:
    """`x` with 0 where the mask hides it; done before any arithmetic, because the gradient of 0 * nan is nan."""
    return jnp.where(mask, as_float(x), 0)


def assert_response_arrays(mask: Shaped[Array, "*shape"], *arrays: Shaped[Array, "*_"]) -> None:
    """Refuses a mask that is none, and arrays that have not its shape."""
    chex.assert_rank(mask, 2)
    chex.assert_type(mask, bool)
    chex.assert_equal_shape([mask, *arrays])


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
    x = visible(x, mask)
    return jnp.sum(x, axis=axis) / jnp.maximum(jnp.sum(mask, axis=axis, dtype=x.dtype), 1)


def centred(x: Shaped[Array, "*shape"], mask: Bool[Array, "*shape"]) -> Float[Array, "*shape"]:
    """`x` minus its mean over the mask; 0 where the mask hides it."""
    return jnp.where(mask, visible(x, mask) - masked_mean(x, mask), 0)


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
    assert_response_arrays(mask, x)
    x = centred(x, mask)
    variance = jnp.sum(x**2) / jnp.maximum(jnp.sum(mask, dtype=x.dtype) - 1, 1)
    return x * jax.lax.rsqrt(variance + eps)
