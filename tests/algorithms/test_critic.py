"""A critic of its own: it values as the shared one does while it is its copy, and the two losses do not mix."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from reft_jax.algorithms.ppo import build_experience, build_update
from reft_jax.algorithms.rollout import Rollout
from reft_jax.algorithms.train_state import abstract_params, copy_params, init_params, init_state, make_optimizer
from reft_jax.config import DecoderConfig, ModelConfig, OptimizerConfig, RlConfig
from reft_jax.data.batches import Sequences
from reft_jax.models.policy import Policy
from reft_jax.parallel.sharding import to_global
from tests.devices import mesh

pytestmark = pytest.mark.compiles

PROMPT, RESPONSE, BATCH = 3, 4, 4
MODEL = ModelConfig(
    decoder=DecoderConfig(
        vocab_size=11, embed_dim=8, num_layers=2, num_heads=2, num_kv_heads=2, head_dim=4, rotary_dim=4, mlp_dim=16
    ),
    dtype="float64",
    param_dtype="float64",
)
OPTIMIZER = OptimizerConfig(learning_rate=0.1, schedule="constant", lr_warmup_fraction=0.0, max_grad_norm=1e9, eps=1.0)


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def config(critic: str, **settings) -> RlConfig:
    sizes = {"rollout_batch_size": BATCH, "minibatch_size": BATCH, "microbatch_size": 2}
    return RlConfig(critic=critic, optimizer=OPTIMIZER, **sizes, **settings)


def make_params(critic: str) -> dict:
    """Random parameters; the critic is a copy of the decoder."""
    params = init_params(Policy(MODEL, mesh()), mesh(), jax.random.key(0), value_head=True)
    head = jax.tree.map(
        lambda x: x + 0.5 * jax.random.normal(jax.random.key(1), x.shape, x.dtype), params["value_head"]
    )
    params = {**params, "value_head": head}
    return {**params, "critic": copy_params(params["decoder"])} if critic == "separate" else params


@functools.cache
def score(critic: str):
    """Parameters, and the experience and its metrics that they give."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 11, (BATCH, PROMPT + RESPONSE)).astype(np.int32)
    lengths = np.full(BATCH, PROMPT, np.int32), np.full(BATCH, RESPONSE, np.int32)
    sequences = Sequences(tokens, lengths[0], tokens[:, PROMPT:], lengths[1])
    rollout = Rollout(sequences, np.zeros((BATCH, RESPONSE)), np.ones(BATCH, bool))
    step, args = build_experience(MODEL, config(critic), mesh(), temperature=1.0, prompt=PROMPT, response=RESPONSE)
    params = make_params(critic)
    host = (rollout, rng.normal(size=BATCH))
    on_device = to_global(host, jax.tree.map(lambda x: x.sharding, args[2:]))
    return params, step(params, {"decoder": params["decoder"]}, *on_device)


def test_a_copy_of_the_body_values_as_the_body_does():
    _, (shared, _) = score("shared")
    _, (separate, _) = score("separate")
    assert np.any(np.asarray(shared.values))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12), shared, separate)


def updated(critic: str, **settings) -> tuple[dict, dict]:
    """Parameters before and after one step."""
    params, (experience, _) = score(critic)
    before = jax.tree.map(np.array, params)
    step, _ = build_update(
        MODEL, config(critic, **settings), mesh(), temperature=1.0, total_steps=9, prompt=PROMPT, response=RESPONSE
    )
    state = init_state(copy_params(params), make_optimizer(OPTIMIZER, 9), mesh())
    return before, jax.tree.map(np.asarray, step(state, experience, np.arange(BATCH, dtype=np.int32))[0].params)


def same(one: dict, other: dict) -> bool:
    return all(np.allclose(a, b, rtol=0, atol=1e-13) for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other)))


@pytest.mark.parametrize("critic", ["shared", "separate"])
def test_the_value_loss_moves_the_policy_only_where_they_share_a_body(critic):
    before, light = updated(critic, vf_coef=0.5)
    _, heavy = updated(critic, vf_coef=5.0)
    assert not same(before["decoder"], light["decoder"])
    assert same(light["decoder"], heavy["decoder"]) is (critic == "separate")
    assert not same(light["value_head"], heavy["value_head"])
    if critic == "separate":
        assert not same(before["critic"]["blocks"], light["critic"]["blocks"])
        assert not same(light["critic"], heavy["critic"])


def test_the_policy_loss_never_moves_the_critic():
    """Without value loss the critic and its head stay where they are."""
    before, after = updated("separate", vf_coef=0.0)
    assert same({"c": before["critic"], "v": before["value_head"]}, {"c": after["critic"], "v": after["value_head"]})
    assert not same(before["decoder"], after["decoder"])


def test_shapes_without_a_critic_are_as_they_were():
    shared = abstract_params(Policy(MODEL, mesh()), mesh(), value_head=True)
    separate = abstract_params(Policy(MODEL, mesh(), separate_critic=True), mesh(), value_head=True)
    assert set(shared) == {"decoder", "value_head"}
    assert set(separate) == {"decoder", "value_head", "critic"}
    assert jax.tree.map(lambda x: x.shape, separate["critic"]) == jax.tree.map(lambda x: x.shape, shared["decoder"])
    with_adapters = dataclasses.replace(MODEL, lora=dataclasses.replace(MODEL.lora, rank=2))
    adapted = abstract_params(Policy(with_adapters, mesh(), separate_critic=True), mesh(), value_head=True)
    assert set(adapted) == {"decoder", "value_head", "critic", "lora"}
