"""Weights in bfloat16: which steps they lose, and how gradients are summed for them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from reft_jax.algorithms.train_state import accumulate, make_optimizer
from reft_jax.config import OptimizerConfig
from reft_jax.config.validation import BFLOAT16_STEP

pytestmark = pytest.mark.compiles


def share_of_movement(learning_rate: float) -> float:
    """How far 100 steps in one direction move bfloat16 weights of size 0.02, over how far they move float32 ones."""
    start = 0.02 * np.random.default_rng(0).standard_normal(4096)
    optimizer = make_optimizer(OptimizerConfig(learning_rate=learning_rate, schedule="constant"), 100)
    moved = []
    for dtype in (jnp.bfloat16, jnp.float32):
        params = first = {"kernel": jnp.asarray(start, dtype)}
        gradient, state = jax.tree.map(jnp.ones_like, params), optimizer.init(params)
        step = jax.jit(lambda gradient, state, params: optimizer.update(gradient, state, params))
        for _ in range(100):
            updates, state = step(gradient, state, params)
            params = optax.apply_updates(params, updates)
        moved.append(float(jnp.abs(params["kernel"].astype(jnp.float32) - first["kernel"].astype(jnp.float32)).mean()))
    return moved[0] / moved[1]


def test_smaller_steps_than_those_that_are_refused_are_lost_in_bfloat16():
    assert share_of_movement(BFLOAT16_STEP) > 0.85
    assert share_of_movement(2e-5) < 0.4
    assert share_of_movement(3e-7) < 0.02


def test_gradients_of_many_microbatches_are_not_summed_in_bfloat16():
    """256 micro-batches; the sum is rounded once, by 2^-9 of its size at most."""
    rows = np.random.default_rng(0).uniform(1, 2, (256, 8)).astype(np.float32)
    params = {"kernel": jnp.ones(8, jnp.bfloat16)}
    loss = lambda params, batch: ((batch @ params["kernel"].astype(jnp.float32)).sum(), {})
    gradient, _ = accumulate(loss, params, jnp.asarray(rows), 256, None)
    exact = jnp.asarray(rows, jnp.bfloat16).astype(np.float32).sum(0)
    assert gradient["kernel"].dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(gradient["kernel"], np.float32), exact, rtol=2**-8)
