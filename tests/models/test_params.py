"""The two forms of weights: stacked over the layers, and an array for each."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from reft_jax.algorithms.train_state import (
    abstract_params,
    abstract_state,
    init_params,
    init_state,
    make_optimizer,
)
from reft_jax.config import DecoderConfig, LoraConfig, ModelConfig, OptimizerConfig
from reft_jax.models.params import in_form_of, is_stacked, stacked, unstacked
from reft_jax.models.policy import Policy
from tests.devices import mesh

pytestmark = pytest.mark.compiles

DECODER = DecoderConfig(
    vocab_size=24, embed_dim=16, num_layers=3, num_heads=4, num_kv_heads=2, head_dim=4, rotary_dim=4, mlp_dim=24
)
SHAPES = [(1, 1), (4, 2)]


@functools.cache
def policy(scan_layers: bool, shape: tuple[int, int]) -> Policy:
    """With a critic of its own and adapters: all that has layers."""
    model = ModelConfig(decoder=DECODER, lora=LoraConfig(rank=2), scan_layers=scan_layers)
    return Policy(model, mesh(*shape), separate_critic=True)


@pytest.mark.parametrize("shape", SHAPES)
def test_fresh_parameters_are_the_same_in_either_form(shape):
    one, other = (
        init_params(policy(scan, shape), mesh(*shape), jax.random.key(3), value_head=True) for scan in (True, False)
    )
    assert is_stacked(one)
    assert not is_stacked(other)
    for layer in range(3):
        for part in ("decoder", "critic", "lora"):
            own = jax.tree.map(lambda x, layer=layer: x[layer], one[part]["blocks"])
            jax.tree.map(np.testing.assert_array_equal, own, other[part][f"layers_{layer}"])
    assert np.ptp(np.asarray(other["decoder"]["layers_1"]["mlp"]["up"]["kernel"])) > 0


@pytest.mark.parametrize("shape", SHAPES)
def test_a_train_state_goes_from_one_form_to_the_other_and_back(shape):
    """Weights, moments and shapes, each where the model of that form wants it."""
    where, optimizer = mesh(*shape), make_optimizer(OptimizerConfig(), 10)
    wanted = {
        scan: abstract_state(abstract_params(policy(scan, shape), where, value_head=True), optimizer, where)
        for scan in (True, False)
    }
    params = init_params(policy(False, shape), where, jax.random.key(0), value_head=True)
    state = init_state(params, optimizer, where)
    together = stacked(state)
    for got, expected in ((together, wanted[True]), (unstacked(together), wanted[False])):
        assert jax.tree.structure(got) == jax.tree.structure(expected)
        jax.tree.map(assert_placed, got, expected)
    jax.tree.map(np.testing.assert_array_equal, unstacked(together), state)
    for got, expected in ((stacked(wanted[False]), wanted[True]), (unstacked(wanted[True]), wanted[False])):
        assert jax.tree.structure(got) == jax.tree.structure(expected)
        jax.tree.map(assert_placed, got, expected)


def assert_placed(got, expected):
    assert (got.shape, got.dtype) == (expected.shape, expected.dtype)
    assert got.sharding.is_equivalent_to(expected.sharding, len(expected.shape))


def test_what_has_the_form_is_left_alone():
    tree = {"decoder": {"embed": jnp.ones(2), "layers_0": {"w": jnp.ones(3)}, "layers_1": {"w": jnp.zeros(3)}}}
    assert in_form_of(tree, tree) is tree
    together = in_form_of(tree, {"decoder": {"blocks": {"w": 0}}})
    np.testing.assert_array_equal(together["decoder"]["blocks"]["w"], [[1, 1, 1], [0, 0, 0]])
    jax.tree.map(np.testing.assert_array_equal, in_form_of(together, tree), tree)
    assert is_stacked({"value_head": {"kernel": jnp.ones(2)}}), "what has no layers is in any form"
    jax.tree.map(np.testing.assert_array_equal, jax.jit(stacked)(tree), together)
    state = optax.adam(1e-3).init(tree)
    assert jax.tree.structure(unstacked(stacked(state))) == jax.tree.structure(state)
