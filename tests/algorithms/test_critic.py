"""A critic of its own: it values as the shared one does while it is its copy, and the two losses do not mix."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from reft_jax.algorithms.ppo import build_experience, build_update, make_optimizers
from reft_jax.algorithms.rollout import Rollout
from reft_jax.algorithms.train_state import abstract_params, copy_params, init_params, init_state, make_optimizer
from reft_jax.config import DecoderConfig, ModelConfig, OptimizerConfig, RlConfig
from reft_jax.data.batches import Sequences
from reft_jax.models.policy import Policy, response_hidden
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
    return RlConfig(critic=critic, **{"optimizer": OPTIMIZER, **sizes, **settings})


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
    host = (rollout, rng.normal(size=BATCH), np.ones(BATCH, bool))
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
    optimizer = make_optimizer(settings.get("optimizer", OPTIMIZER), 9)
    state = init_state(copy_params(params), optimizer, mesh())
    return before, jax.tree.map(np.asarray, step(state, experience, np.arange(BATCH, dtype=np.int32))[0].params)


def same(one: dict, other: dict) -> bool:
    return all(np.allclose(a, b, rtol=0, atol=1e-13) for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other)))


@pytest.mark.parametrize("critic", ["shared", "detached", "separate"])
def test_the_value_loss_moves_the_policy_only_where_they_share_a_body(critic):
    before, light = updated(critic, vf_coef=0.5)
    _, heavy = updated(critic, vf_coef=5.0)
    assert not same(before["decoder"], light["decoder"])
    assert same(light["decoder"], heavy["decoder"]) is (critic != "shared")
    assert not same(light["value_head"], heavy["value_head"])
    if critic == "separate":
        assert not same(before["critic"]["blocks"], light["critic"]["blocks"])
        assert not same(light["critic"], heavy["critic"])


def test_the_policy_loss_never_moves_the_critic():
    """Without value loss the critic and its head stay where they are."""
    before, after = updated("separate", vf_coef=0.0)
    assert same({"c": before["critic"], "v": before["value_head"]}, {"c": after["critic"], "v": after["value_head"]})
    assert not same(before["decoder"], after["decoder"])


def test_a_detached_critics_head_learns_as_a_shared_ones():
    """Its own gradient is the same; the body moves by the policy loss alone, as with no value loss at all."""
    (_, detached), (_, shared), (_, alone) = (
        updated("detached"),
        updated("shared"),
        updated("shared", vf_coef=0.0),
    )
    assert same(detached["value_head"], shared["value_head"])
    assert same(detached["decoder"], alone["decoder"])


OWN = OptimizerConfig(learning_rate=0.25, schedule="linear", lr_warmup_fraction=0.0, max_grad_norm=1e-2, eps=1e-3)


def with_own(critic: str, steps: int, alone: int, **settings) -> tuple[list, dict]:
    """States after each of some steps, the first of which the critic makes alone; and its experience, on the host."""
    params, (experience, _) = score(critic)
    own = config(critic, critic_optimizer=OWN, critic_warmup=alone, **settings)
    sizes = {"temperature": 1.0, "total_steps": 9, "critic_steps": 8, "prompt": PROMPT, "response": RESPONSE}
    build = lambda only: build_update(MODEL, own, mesh(), critic_alone=only, **sizes)[0]
    state = init_state(copy_params(params), make_optimizers(own, 9, 8), mesh())
    states, rows = [jax.tree.map(np.array, state)], np.arange(BATCH, dtype=np.int32)
    update = {only: build(only) for only in {True, False} if (alone if only else steps - alone)}
    for k in range(steps):
        state, metrics = update[k < alone](state, experience, rows)
        states.append(jax.tree.map(np.array, state))
        assert np.isfinite(metrics["rl/value_loss"])
    return states, experience


class OwnAdam:
    """The critic's optimizer, written out for one array."""

    def __init__(self) -> None:
        self.m = self.v = self.t = 0

    def step(self, x: np.ndarray, gradient: np.ndarray, norm: float) -> np.ndarray:
        gradient = gradient * min(1.0, OWN.max_grad_norm / norm)
        rate = OWN.learning_rate * (1 - self.t / 8)  # exact in float32, as optax has it
        self.t += 1
        self.m = OWN.beta1 * self.m + (1 - OWN.beta1) * gradient
        self.v = OWN.beta2 * self.v + (1 - OWN.beta2) * gradient**2
        m, v = self.m / (1 - OWN.beta1**self.t), self.v / (1 - OWN.beta2**self.t)
        return x - rate * m / (np.sqrt(v) + OWN.eps)


def test_a_warm_up_is_least_squares_of_the_head_on_frozen_states():
    """Two steps by Adam written out, on the squared error of every token; the policy, its moments and step stay 0."""
    states, experience = with_own("shared", 2, 2)
    params, rows = states[0].params, experience.sequences
    hidden = np.asarray(response_hidden(Policy(MODEL, mesh()), params, rows)).reshape(-1, 8)
    targets, head = np.asarray(experience.returns).reshape(-1), params["value_head"]
    kernel, bias, adams = head["kernel"], head["bias"], (OwnAdam(), OwnAdam())
    for state in states[1:]:
        errors = hidden @ kernel[:, 0] + bias[0] - targets
        gradients = (hidden.T @ errors / len(errors))[:, None], np.array([errors.mean()])
        norm = float(np.sqrt(sum(np.sum(g**2) for g in gradients)))
        assert norm > OWN.max_grad_norm, "the case must clip"
        kernel, bias = (adam.step(x, g, norm) for adam, x, g in zip(adams, (kernel, bias), gradients))
        np.testing.assert_allclose(state.params["value_head"]["kernel"], kernel, rtol=0, atol=1e-12)
        np.testing.assert_allclose(state.params["value_head"]["bias"], bias, rtol=0, atol=1e-12)
        assert same(state.params["decoder"], params["decoder"])
        assert state.step == 0
        jax.tree.map(np.testing.assert_array_equal, state.opt_state["policy"], states[0].opt_state["policy"])


def test_a_warm_up_of_a_separate_critic_moves_its_body_too():
    states, _ = with_own("separate", 1, 1)
    before, after = states[0].params, states[1].params
    assert same(before["decoder"], after["decoder"])
    assert not same(before["critic"], after["critic"])
    assert not same(before["value_head"], after["value_head"])


@pytest.mark.parametrize("critic", ["shared", "separate"])
def test_the_policys_first_step_after_a_warm_up_is_a_first_step(critic):
    """By the policy's own moments and schedule, as if nothing had been before; only its critic says something else."""
    (*_, warm, after), _ = with_own(critic, 3, 2, vf_coef=0.0)
    (_, first), _ = with_own(critic, 1, 0, vf_coef=0.0)
    assert same(warm.params["decoder"], first_params(critic)["decoder"])
    assert same(after.params["decoder"], first.params["decoder"])
    assert after.step == first.step == 1


def first_params(critic: str) -> dict:
    return jax.tree.map(np.array, score(critic)[0])


def test_each_optimizer_clips_its_own_gradient():
    """However large the value loss, a separate critic's gradient shares no norm with the policy's."""
    tight = dataclasses.replace(OPTIMIZER, max_grad_norm=1e-3)
    (_, one), _ = with_own("separate", 1, 0, vf_coef=1.0, optimizer=tight)
    (_, other), _ = with_own("separate", 1, 0, vf_coef=1e3, optimizer=tight)
    assert same(one.params["decoder"], other.params["decoder"])
    _, shared = updated("separate", vf_coef=1.0, optimizer=tight)
    _, drowned = updated("separate", vf_coef=1e3, optimizer=tight)
    assert not same(shared["decoder"], drowned["decoder"]), "with one optimizer it does"


@pytest.mark.ci
def test_with_adapters_a_warm_up_moves_the_head_and_an_update_these_two():
    model = dataclasses.replace(MODEL, lora=dataclasses.replace(MODEL.lora, rank=2))
    _, (experience, _) = score("shared")
    own = config("shared", critic_optimizer=OWN, critic_warmup=1)
    sizes = {"temperature": 1.0, "total_steps": 9, "critic_steps": 8, "prompt": PROMPT, "response": RESPONSE}
    rows = np.arange(BATCH, dtype=np.int32)
    for alone, moved in ((True, {"value_head"}), (False, {"value_head", "lora"})):
        params = init_params(Policy(model, mesh()), mesh(), jax.random.key(0), value_head=True)
        before = jax.tree.map(np.array, params)
        step, args = build_update(model, own, mesh(), critic_alone=alone, **sizes)
        state = init_state(params, make_optimizers(own, 9, 8), mesh())
        assert jax.tree.structure(state) == jax.tree.structure(args[0])
        after = jax.tree.map(np.asarray, step(state, experience, rows)[0].params)
        assert {part for part in before if not same(before[part], after[part])} == moved


def test_shapes_without_a_critic_are_as_they_were():
    shared = abstract_params(Policy(MODEL, mesh()), mesh(), value_head=True)
    separate = abstract_params(Policy(MODEL, mesh(), separate_critic=True), mesh(), value_head=True)
    assert set(shared) == {"decoder", "value_head"}
    assert set(separate) == {"decoder", "value_head", "critic"}
    assert jax.tree.map(lambda x: x.shape, separate["critic"]) == jax.tree.map(lambda x: x.shape, shared["decoder"])
    with_adapters = dataclasses.replace(MODEL, lora=dataclasses.replace(MODEL.lora, rank=2))
    adapted = abstract_params(Policy(with_adapters, mesh(), separate_critic=True), mesh(), value_head=True)
    assert set(adapted) == {"decoder", "value_head", "critic", "lora"}
