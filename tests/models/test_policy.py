"""Scoring of responses against a full [B, T, V] log-softmax in float64 numpy, and the value head by hand."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.extend.core import jaxprs_in_params

from reft_jax.config import DecoderConfig, ModelConfig
from reft_jax.data.batches import Sequences
from reft_jax.models.policy import Policy, response_hidden, score_responses
from tests.tiers import few

pytestmark = pytest.mark.compiles

MODEL = ModelConfig(
    decoder=DecoderConfig(
        vocab_size=17,
        vocab_multiple=4,
        embed_dim=12,
        num_layers=2,
        num_heads=2,
        num_kv_heads=1,
        head_dim=6,
        rotary_dim=4,
        mlp_dim=20,
        initializer_range=0.5,
    ),
    dtype="float64",
    param_dtype="float64",
)
TEMPERATURE = 0.8
PROMPT, RESPONSE, PAD = 5, 7, 2
PROMPT_LENGTHS = np.array([5, 1, 3, 4, 1, 1], np.int32)
RESPONSE_LENGTHS = np.array([7, 7, 4, 1, 3, 0], np.int32)  # the last row is filler
MASK = np.arange(RESPONSE)[None] < RESPONSE_LENGTHS[:, None]


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def make_rows(pad: int = PAD, width: int = PROMPT + RESPONSE, response_width: int = RESPONSE) -> Sequences:
    """Six rows of every kind: both parts full, both short, one token, filler; `pad` stands wherever nothing does."""
    rng = np.random.default_rng(0)
    tokens, responses = np.full((6, width), pad, np.int32), np.full((6, response_width), pad, np.int32)
    for i, (p, r) in enumerate(zip(PROMPT_LENGTHS, RESPONSE_LENGTHS)):
        row = rng.integers(0, 17, p + r)
        if r:
            tokens[i, : p + r] = row
        responses[i, :r] = row[p:]
    return Sequences(tokens, PROMPT_LENGTHS, responses, RESPONSE_LENGTHS)


@functools.cache
def params():
    """Random parameters, the value head's too."""
    tree = nn.meta.unbox(Policy(MODEL).init(jax.random.key(1), jnp.zeros((1, 1), jnp.int32))["params"])
    rng = np.random.default_rng(2)
    tree["value_head"] = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape)), tree["value_head"])
    return tree


def score(rows: Sequences, chunk: int = 0, temperature: float = TEMPERATURE):
    policy = Policy(dataclasses.replace(MODEL, logits_chunk=chunk))
    return jax.jit(lambda p, r: score_responses(policy, p, r, temperature))(params(), rows)


@functools.cache
def full_log_softmax(temperature: float = TEMPERATURE) -> np.ndarray:
    """[B, T, V] log-probs of whatever may come next, float64 numpy."""
    hidden = Policy(MODEL).apply({"params": params()}, make_rows().tokens, method="hidden")
    logits = np.asarray(hidden) @ np.asarray(params()["decoder"]["embed"][:17]).T / temperature
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


@pytest.mark.parametrize("temperature", few([1.0, TEMPERATURE], [TEMPERATURE]))
def test_scores_equal_a_full_log_softmax(temperature):
    rows, scores, table = make_rows(), score(make_rows(), temperature=temperature), full_log_softmax(temperature)
    for i, (p, r) in enumerate(zip(PROMPT_LENGTHS, RESPONSE_LENGTHS)):
        for t in range(r):
            before = table[i, p + t - 1]  # what the token before it says
            assert scores.log_probs[i, t] == pytest.approx(before[rows.tokens[i, p + t]], abs=1e-12)
            assert scores.entropy[i, t] == pytest.approx(-np.sum(np.exp(before) * before), abs=1e-12)


@functools.cache
def loss_and_gradient(chunk: int):
    policy, rng = Policy(dataclasses.replace(MODEL, logits_chunk=chunk)), np.random.default_rng(3)
    a, b, c = (np.where(MASK, rng.normal(size=MASK.shape), 0) for _ in range(3))

    def loss(params):
        scores = score_responses(policy, params, make_rows(), TEMPERATURE)
        values = policy.apply({"params": params}, scores.hidden, method="values")
        return jnp.sum(a * scores.log_probs + b * scores.entropy + c * values)

    return jax.jit(jax.value_and_grad(loss))(params())


@pytest.mark.parametrize("chunk", few([1, 13, 40, 1000], [13]))
def test_chunks_change_neither_value_nor_gradient(chunk):
    """From one position at a time to more than there are; 13 and 40 logits do not divide the 6 x 7."""
    whole, chunked = loss_and_gradient(0), loss_and_gradient(chunk)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-12, atol=1e-12), whole, chunked)
    assert all(np.abs(x).max() > 1e-3 for x in jax.tree.leaves(whole[1]) if x.ndim > 1), "every matrix takes part"


def test_gradient_equals_that_of_a_full_log_softmax():
    def naive(params):
        """[B, T, V] log-softmax of the negative log-likelihood, row by row and token by token."""
        policy, rows = Policy(MODEL), make_rows()
        hidden = policy.apply({"params": params}, rows.tokens, method="hidden")
        table = jax.nn.log_softmax(hidden @ params["decoder"]["embed"][:17].T / TEMPERATURE, axis=-1)
        total = 0.0
        for i, (p, r) in enumerate(zip(PROMPT_LENGTHS, RESPONSE_LENGTHS)):
            for t in range(r):
                total = total - table[i, p + t - 1, rows.tokens[i, p + t]]
        return total

    def ours(params):
        policy = Policy(dataclasses.replace(MODEL, logits_chunk=12))
        return -jnp.sum(jnp.where(MASK, score_responses(policy, params, make_rows(), TEMPERATURE).log_probs, 0))

    decoder = {"decoder": params()["decoder"]}
    expected, got = jax.jit(jax.grad(naive))(decoder), jax.jit(jax.grad(ours))(decoder)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-11, atol=1e-12), expected, got)


def sizes(jaxpr):
    """Number of elements of everything that a jaxpr computes, inner jaxprs included."""
    for equation in jaxpr.eqns:
        yield from (variable.aval.size for variable in equation.outvars)
        for inner in jaxprs_in_params(equation.params):
            yield from sizes(inner)


def test_chunked_logits_never_exist_together():
    """Nothing of [B, R, V] is made, forward or backward; without chunks it is, so that this can tell."""
    wide = dataclasses.replace(MODEL.decoder, vocab_size=4001, vocab_multiple=1)

    def largest(chunk: int) -> int:
        policy = Policy(dataclasses.replace(MODEL, decoder=wide, logits_chunk=chunk))
        weights = jax.eval_shape(policy.init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
        loss = lambda params: jnp.sum(score_responses(policy, params, make_rows()).log_probs)
        return max(sizes(jax.make_jaxpr(jax.grad(loss))(nn.meta.unbox(weights)).jaxpr))

    assert largest(0) == 6 * RESPONSE * 4001
    assert largest(12) == max(12 * 4001, 4001 * MODEL.decoder.embed_dim)


def test_what_pads_a_row_never_matters():
    """Other padding ids, longer buckets, and another filler row leave scores and values what they are."""
    policy = Policy(MODEL)

    @jax.jit
    def run(weights, rows):
        scores = score_responses(policy, weights, rows)
        return scores, policy.apply({"params": weights}, scores.hidden, method="values")

    one, values = run(params(), make_rows())
    other, other_values = run(params(), make_rows(pad=13, width=21, response_width=11))
    for x, y in ((one.log_probs, other.log_probs), (one.entropy, other.entropy), (values, other_values)):
        np.testing.assert_allclose(np.where(MASK, x, 0), np.where(MASK, y[:, :RESPONSE], 0), rtol=0, atol=1e-12)


def test_values_are_a_linear_map_of_the_states_before_the_tokens():
    rows = make_rows()
    states = response_hidden(Policy(MODEL), params(), rows)
    values = Policy(MODEL).apply({"params": params()}, states, method="values")
    hidden = np.asarray(Policy(MODEL).apply({"params": params()}, rows.tokens, method="hidden"))
    head = jax.tree.map(np.asarray, params()["value_head"])
    for i, (p, r) in enumerate(zip(PROMPT_LENGTHS, RESPONSE_LENGTHS)):
        for t in range(r):
            expected = hidden[i, p + t - 1] @ head["kernel"][:, 0] + head["bias"][0]
            assert values[i, t] == pytest.approx(expected, abs=1e-12)


def test_a_fresh_value_head_predicts_nothing():
    fresh = nn.meta.unbox(Policy(MODEL).init(jax.random.key(1), jnp.zeros((1, 1), jnp.int32))["params"])
    assert set(fresh) == {"decoder", "value_head"}
    states = np.random.default_rng(0).normal(size=(3, 12))
    np.testing.assert_array_equal(Policy(MODEL).apply({"params": fresh}, states, method="values"), np.zeros(3))
