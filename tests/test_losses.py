"""Losses against slow loops, closed forms and golden tables, in float64; and the invariances that all of them keep."""

import math
import statistics
from functools import partial
from inspect import unwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

from reft_jax import losses

pytestmark = pytest.mark.compiles

B, R = 4, 5
LENGTHS = (3, 5, 1, 0)  # ended early, filled the row, end token only, filler
NAMES = (
    "log_probs",
    "old_log_probs",
    "reference_log_probs",
    "advantages",
    "values",
    "old_values",
    "returns",
    "rewards",
)

LEVELS = ("token", "sequence_mean", "sequence_product")


def policy_arrays(a):
    return a["log_probs"], a["old_log_probs"], a["advantages"]


# Every function that takes a mask, as a function of named [B, R] arrays.
MASKED = {
    "masked_mean": lambda a, mask: losses.masked_mean(a["values"], mask),
    "masked_mean_rows": lambda a, mask: losses.masked_mean(a["values"], mask, axis=-1),
    "whiten": lambda a, mask: losses.whiten(a["advantages"], mask),
    "kl_penalised_rewards": lambda a, mask: losses.kl_penalised_rewards(
        a["rewards"][:, 0], losses.kl_k1(a["log_probs"], a["reference_log_probs"]), mask, kl_coef=0.05
    ),
    "kl_loss": lambda a, mask: losses.kl_loss(
        a["log_probs"], a["old_log_probs"], a["reference_log_probs"], mask, estimator=losses.kl_k3
    ),
    "gae_advantages": lambda a, mask: losses.gae(a["rewards"], a["values"], mask, discount=0.9, gae_lambda=0.8)[0],
    "gae_returns": lambda a, mask: losses.gae(a["rewards"], a["values"], mask, discount=0.9, gae_lambda=0.8)[1],
    "ppo_policy_loss": lambda a, mask: losses.ppo_policy_loss(
        a["log_probs"], a["old_log_probs"], a["advantages"], mask, clip_range=0.2
    ),
    "ppo_value_loss": lambda a, mask: losses.ppo_value_loss(
        a["values"], a["old_values"], a["returns"], mask, clip_range=0.2
    ),
    "clip_fraction": lambda a, mask: losses.clip_fraction(a["log_probs"], a["old_log_probs"], mask, clip_range=0.2),
    **{
        f"ratio_{level}": lambda a, mask, level=level: losses.importance_ratio(
            a["log_probs"], a["old_log_probs"], mask, level
        )
        for level in LEVELS
    },
    "dual_clip_loss": lambda a, mask: losses.ppo_policy_loss(
        *policy_arrays(a), mask, clip_range=0.2, clip_range_high=0.1, dual_clip=1.1, level="sequence_mean"
    ),
    "reinforce_loss": lambda a, mask: losses.reinforce_policy_loss(a["log_probs"], a["advantages"], mask),
    "cispo_loss": lambda a, mask: losses.cispo_policy_loss(*policy_arrays(a), mask, clip_range=0.3),
    "topr_loss": lambda a, mask: losses.topr_policy_loss(*policy_arrays(a), mask),
    "sampler_weights": lambda a, mask: losses.sampler_weights(a["log_probs"], a["old_log_probs"], mask, cap=1.2),
    "sample_size": lambda a, mask: losses.effective_sample_size(jnp.abs(a["values"]), mask),
    "explained_variance": lambda a, mask: losses.explained_variance(a["values"], a["returns"], mask),
    "sft_loss": lambda a, mask: losses.masked_nll(a["log_probs"], mask)[0],
}


@pytest.fixture(autouse=True, scope="module")
def _strict_float64():
    with jax.enable_x64(True), jax.numpy_dtype_promotion("strict"):
        yield


def mask_of(lengths, width=R):
    return np.arange(width)[None, :] < np.asarray(lengths)[:, None]


def example(seed=0, rows=B):
    """Random [rows, R] arrays; old log-probs near enough that some ratios are clipped and others are not."""
    rng = np.random.default_rng(seed)
    arrays = {name: rng.normal(size=(rows, R)) for name in NAMES}
    arrays["log_probs"] = -rng.uniform(0.1, 3, (rows, R))
    for name in ("old_log_probs", "reference_log_probs"):
        arrays[name] = arrays["log_probs"] + rng.normal(scale=0.3, size=(rows, R))
    arrays["old_values"] = arrays["values"] + rng.normal(scale=0.3, size=(rows, R))
    return arrays


@partial(jax.jit, static_argnums=0)
def value_and_gradients(name, arrays, mask):
    """The function's result, and the gradients of a weighted sum of it in all arrays."""

    def weighted(arrays):
        result = MASKED[name](arrays, mask)
        return jnp.sum(result * jnp.cos(jnp.arange(result.size).reshape(result.shape))), result

    (_, result), gradients = jax.value_and_grad(weighted, has_aux=True)(arrays)
    return result, gradients


# Log-probs and entropy


@pytest.mark.parametrize("shape", [(7,), (3, 7), (2, 3, 7)])
def test_token_log_probs_are_those_of_a_float64_softmax(shape):
    rng = np.random.default_rng(1)
    logits = rng.normal(scale=3, size=shape) + 1e4  # a naive exp overflows
    logits[..., 6] = -np.inf  # a padded column of the vocabulary
    tokens = rng.integers(0, 6, shape[:-1])
    exact = np.exp(logits - 1e4)
    expected = np.log(np.take_along_axis(exact, tokens[..., None], -1)[..., 0] / exact.sum(-1))
    np.testing.assert_allclose(losses.token_log_probs(logits, tokens), expected, rtol=1e-10)


def test_token_log_probs_of_bfloat16_are_computed_in_float32():
    logits = jnp.asarray(np.random.default_rng(2).normal(size=(4, 500)), jnp.bfloat16)
    tokens = np.arange(4)
    result = losses.token_log_probs(logits, tokens)
    exact = np.asarray(logits, np.float64)
    expected = exact[tokens, tokens] - np.log(np.exp(exact).sum(-1))
    assert result.dtype == jnp.float32
    np.testing.assert_allclose(result, expected, rtol=1e-6)


def test_token_beyond_the_vocabulary_is_nan_not_a_neighbour():
    assert np.isnan(losses.token_log_probs(jnp.zeros((2, 3)), jnp.array([2, 3]))).tolist() == [False, True]


def test_entropy_by_definition_and_with_impossible_tokens():
    p = np.array([0.5, 0.25, 0.125, 0.125])
    np.testing.assert_allclose(losses.entropy(np.log(p) + 5), 1.75 * math.log(2), rtol=1e-12)
    padded = np.array([0.0, 0.0, 0.0, -np.inf])
    np.testing.assert_allclose(losses.entropy(padded), math.log(3), rtol=1e-12)
    np.testing.assert_allclose(jax.grad(losses.entropy)(padded), np.zeros(4), atol=1e-12)  # uniform is the maximum


# KL


@given(st.lists(st.tuples(st.floats(-4, 4), st.floats(-4, 4)), min_size=6, max_size=6))
@settings(deadline=None, max_examples=50)
def test_kl_estimators_are_exact_in_expectation_and_k3_is_never_negative(logits):
    p, q = np.exp(np.array(logits).T)
    p, q = p / p.sum(), q / q.sum()
    exact = np.sum(p * (np.log(p) - np.log(q)))
    k1 = losses.kl_k1(np.log(p), np.log(q))
    k3 = losses.kl_k3(np.log(p), np.log(q))
    np.testing.assert_allclose(np.sum(p * k1), exact, atol=1e-12)
    np.testing.assert_allclose(np.sum(p * k3), exact, atol=1e-12)
    assert np.min(k3) >= -1e-15


def test_kl_signs():
    p, q = np.log([0.8, 0.2]), np.log([0.4, 0.4])
    np.testing.assert_allclose(losses.kl_k1(p, q), [math.log(2), -math.log(2)])
    np.testing.assert_allclose(losses.kl_k3(p, q), [0.5 - 1 + math.log(2), 2 - 1 - math.log(2)])


# Means and whitening


def test_masked_mean_against_a_loop_and_empty_rows():
    x, mask = example()["values"], mask_of(LENGTHS)
    rows = [sum(row[:n]) / n if n else 0.0 for row, n in zip(x, LENGTHS)]
    np.testing.assert_allclose(losses.masked_mean(x, mask, axis=-1), rows, rtol=1e-12)
    np.testing.assert_allclose(losses.masked_mean(x, mask), np.mean(x[mask]), rtol=1e-12)
    assert losses.masked_mean(x, np.zeros_like(mask)) == 0
    assert losses.masked_mean(np.array([True, False, True, True]), np.ones(4, bool)) == 0.75


@pytest.mark.parametrize("scale", [1.0, 1e-4])  # at 1e-4 the variance is as small as eps
def test_whiten_against_numpy_with_unbiased_variance(scale):
    x, mask = example()["advantages"] * scale + 3, mask_of(LENGTHS)
    expected = np.where(mask, (x - np.mean(x[mask])) / np.sqrt(np.var(x[mask], ddof=1) + 1e-8), 0)
    np.testing.assert_allclose(losses.whiten(x, mask), expected, rtol=1e-9)


def test_whiten_of_one_entry_or_none_is_zero():
    x = example()["advantages"]
    for lengths in ((0, 1, 0, 0), (0, 0, 0, 0)):
        np.testing.assert_array_equal(losses.whiten(x, mask_of(lengths)), np.zeros((B, R)))


def test_whiten_is_global_over_devices():
    if jax.device_count() < 2:
        pytest.skip("needs two devices")
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:2])
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    x, mask = example()["advantages"], mask_of(LENGTHS)
    x[:2] += 10  # whitened device by device, this offset would vanish
    split = jax.jit(losses.whiten)(*jax.device_put((x, mask), rows))
    assert split.sharding.is_equivalent_to(rows, 2)
    np.testing.assert_allclose(split, losses.whiten(x, mask), atol=1e-12)


# Rewards


def test_score_stands_on_the_last_action_and_a_tenth_stays_a_tenth():
    scores = np.array([1.0, 0.1, 0.1, 0.7], np.float32)
    expected = [[0, 0, 1, 0, 0], [0, 0, 0, 0, 0.1], [0.1, 0, 0, 0, 0], [0, 0, 0, 0, 0]]
    placed = losses.place_reward(scores, mask_of(LENGTHS))
    assert placed.dtype == jnp.float32
    np.testing.assert_array_equal(placed, np.array(expected, np.float32))


def test_rewards_are_never_integers():
    placed = losses.place_reward(np.array([1, 0, 1, 0]), mask_of(LENGTHS))
    assert jnp.issubdtype(placed.dtype, jnp.floating)


def test_kl_penalised_rewards_against_a_loop():
    a, scores = example(), np.array([1.0, 0.1, 0.0, 0.5])
    expected = np.zeros((B, R))
    for b, length in enumerate(LENGTHS):
        for t in range(length):
            expected[b, t] = -0.05 * (a["log_probs"][b, t] - a["reference_log_probs"][b, t])
            if t == length - 1:
                expected[b, t] += scores[b]
    kl = losses.kl_k1(a["log_probs"], a["reference_log_probs"])
    rewards = losses.kl_penalised_rewards(scores, kl, mask_of(LENGTHS), kl_coef=0.05)
    np.testing.assert_allclose(rewards, expected, rtol=1e-12)


@pytest.mark.parametrize("estimator", [losses.kl_k1, losses.kl_k3])
def test_kl_loss_and_its_gradient_are_unbiased(estimator):
    """Weighted by the probability that the old policy draws each token, they add up to the KL and its gradient."""
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        new, old, reference = (jnp.asarray(rng.normal(size=7)) for _ in range(3))
        log = jax.nn.log_softmax
        drawn = jnp.exp(log(old))  # one row for each of the seven tokens that may be drawn
        column = lambda logits: log(logits)[:, None]
        loss = lambda logits: losses.kl_loss(
            column(logits), column(old), column(reference), jnp.ones((7, 1), bool), estimator=estimator
        )
        expected = lambda logits: jnp.sum(jnp.exp(log(logits)) * (log(logits) - log(reference)))
        mean = lambda logits: jnp.sum(drawn * loss(logits))
        assert mean(new) == pytest.approx(float(expected(new)), rel=1e-12)
        np.testing.assert_allclose(jax.grad(mean)(new), jax.grad(expected)(new), rtol=1e-11)


# Advantages

jitted_gae = jax.jit(losses.gae)


@given(st.tuples(*[st.integers(0, R)] * B), st.floats(0, 1), st.floats(0, 1), st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=50)
def test_gae_is_the_defining_sum_of_discounted_errors(lengths, discount, gae_lambda, seed):
    a, mask = example(seed), mask_of(lengths)
    expected = np.zeros((B, R))
    for b, length in enumerate(lengths):
        r, v = a["rewards"][b, :length], np.append(a["values"][b, :length], 0.0)
        for t in range(length):
            for k in range(length - t):
                delta = r[t + k] + discount * v[t + k + 1] - v[t + k]
                expected[b, t] += (discount * gae_lambda) ** k * delta
    advantages, returns = jitted_gae(a["rewards"], a["values"], mask, discount=discount, gae_lambda=gae_lambda)
    np.testing.assert_allclose(advantages, expected, atol=1e-12)
    np.testing.assert_allclose(returns, expected + np.where(mask, a["values"], 0), atol=1e-12)


@pytest.mark.parametrize("discount", [1.0, 0.9])
def test_gae_closed_forms_at_both_ends_of_lambda(discount):
    a, mask = example(), mask_of(LENGTHS)
    rewards, values = a["rewards"] * mask, a["values"] * mask
    to_go = np.zeros((B, R))
    for t in range(R):
        to_go[:, t] = sum(discount ** (k - t) * rewards[:, k] for k in range(t, R))
    advantages, returns = losses.gae(a["rewards"], a["values"], mask, discount=discount, gae_lambda=1.0)
    np.testing.assert_allclose(advantages, (to_go - values) * mask, atol=1e-12)
    np.testing.assert_allclose(returns, to_go * mask, atol=1e-12)
    one_step = rewards + discount * np.append(values[:, 1:], np.zeros((B, 1)), axis=1) - values
    advantages, _ = losses.gae(a["rewards"], a["values"], mask, discount=discount, gae_lambda=0.0)
    np.testing.assert_allclose(advantages, one_step * mask, atol=1e-12)


REWARD_GROUPS = st.integers(2, 5).flatmap(
    lambda n: st.lists(
        st.lists(st.sampled_from([0.0, 0.1, 1.0, -0.37]), min_size=n, max_size=n), min_size=1, max_size=4
    )
)


@given(REWARD_GROUPS)
@settings(deadline=None, max_examples=40)
def test_what_groups_say_against_the_statistics_module(groups):
    rewards, samples = np.array(groups, np.float64).reshape(-1), len(groups[0])
    with jax.enable_x64(True):
        means = losses.group_means(rewards, samples=samples)
        others = losses.leave_one_out_means(rewards, samples=samples)
        spread = losses.group_deviations(rewards, samples=samples)
        mixed = losses.mixed_groups(rewards, samples=samples)
    for i in range(len(rewards)):
        group = groups[i // samples]
        assert means[i] == pytest.approx(statistics.mean(group), abs=1e-12)
        assert spread[i] == pytest.approx(statistics.stdev(group), abs=1e-12)
        assert others[i] == pytest.approx(statistics.mean(group[: i % samples] + group[i % samples + 1 :]), abs=1e-12)
        assert bool(mixed[i]) == (len(set(group)) > 1)


def test_what_groups_say_is_refused_of_rows_that_are_no_groups():
    for of_groups in (losses.group_means, losses.leave_one_out_means, losses.group_deviations, losses.mixed_groups):
        with pytest.raises(AssertionError):
            of_groups(np.zeros(7), samples=2)
        with pytest.raises(AssertionError):
            of_groups(np.zeros(6), samples=1)


def test_weights_by_sign():
    advantages = np.array([[2.0, -3.0, 0.0], [0.5, -0.5, -0.0]])
    weighted = losses.sign_weighted(advantages, positive=0.1, negative=2.0)
    np.testing.assert_allclose(weighted, [[0.2, -6, 0], [0.05, -1, 0]], rtol=1e-12)
    np.testing.assert_array_equal(losses.sign_weighted(advantages, positive=1.0, negative=1.0), advantages)


def test_the_decay_by_length_and_its_floor():
    lengths = np.array([0.0, 1, 20, 40, 400, 4000])
    free = losses.adaptive_lambda(lengths, alpha=0.05, floor=-100.0)
    np.testing.assert_allclose(free, [-19, -19, 0, 0.5, 0.95, 0.995], rtol=1e-12)
    np.testing.assert_allclose(
        losses.adaptive_lambda(lengths, alpha=0.05, floor=0.9), [0.9, 0.9, 0.9, 0.9, 0.95, 0.995], rtol=1e-12
    )
    for length, decay in zip(lengths[3:], free[3:]):  # what the factors of all later steps come to
        assert np.sum(np.asarray(decay) ** np.arange(100_000)) == pytest.approx(0.05 * length, rel=1e-9)


def test_gae_with_a_decay_for_each_row_is_that_of_the_rows_alone():
    a, mask, decays = example(), mask_of(LENGTHS), np.array([0.2, 0.9, 0.5, 1.0])
    both = losses.gae(a["rewards"], a["values"], mask, discount=0.9, gae_lambda=decays)
    for i, decay in enumerate(decays):
        row = slice(i, i + 1)
        alone = losses.gae(a["rewards"][row], a["values"][row], mask[row], discount=0.9, gae_lambda=decay)
        for got, expected in zip(both, alone):
            np.testing.assert_allclose(got[row], expected, rtol=1e-12)


def test_the_penalty_of_long_responses():
    """As the paper has it: three cases, with a longest response of 10 tokens and a buffer of 4."""
    for length in range(11):
        soft = 0.0 if length <= 6 else (10 - 4 - length) / 4
        penalty = losses.overlong_penalty(np.array([float(length)]), longest=10, buffer=4)
        assert penalty[0] == pytest.approx(-soft, abs=1e-12)
    np.testing.assert_array_equal(losses.overlong_penalty(np.array([3, 4]), longest=4, buffer=1), [0, 1])


# PPO losses: golden tables, clip range 0.2


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient"),
    [
        (1.0, 2.0, -2.0, -2.0),  # the first update: minus the advantage
        (1.0, -2.0, 2.0, 2.0),
        (1.1, 2.0, -2.2, -2.2),  # inside the range: gradient -A ratio
        (0.9, -2.0, 1.8, 1.8),
        (1.5, 2.0, -2.4, 0.0),  # good action already much likelier: no further
        (0.5, -2.0, 1.6, 0.0),  # bad action already much rarer: no further
        (0.5, 2.0, -1.0, -1.0),  # good action that became rarer: bring it back
        (1.5, -2.0, 3.0, 3.0),  # bad action that became likelier: bring it back
        (1.5, 0.0, 0.0, 0.0),
    ],
)
def test_policy_loss_golden(ratio, advantage, loss, gradient):
    old = np.array([[-1.3]])

    def policy_loss(log_probs):
        return losses.ppo_policy_loss(log_probs, old, np.array([[advantage]]), np.array([[True]]), clip_range=0.2).sum()

    value, slope = jax.value_and_grad(policy_loss)(old + np.log(ratio))
    np.testing.assert_allclose([value, slope[0, 0]], [loss, gradient], atol=1e-12)


@pytest.mark.parametrize(
    ("value", "target", "loss", "gradient"),  # the old value is 1, so the trusted interval is [0.8, 1.2]
    [
        (1.1, 2.0, 0.405, -0.9),  # inside: the plain squared error
        (0.9, 0.0, 0.405, 0.9),
        (1.5, 2.0, 0.32, 0.0),  # beyond the interval towards the target: (1.2 - 2)^2 is larger, no gradient
        (0.5, 0.0, 0.32, 0.0),
        (2.5, 2.0, 0.32, 0.0),  # past the target, but nearer to it than the interval's end
        (3.0, 2.0, 0.5, 1.0),  # past the target and farther
        (1.5, 0.5, 0.5, 1.0),  # beyond the interval away from the target: the plain error pulls back
        (0.5, 2.0, 1.125, -1.5),
    ],
)
def test_value_loss_golden(value, target, loss, gradient):
    def value_loss(values):
        return losses.ppo_value_loss(
            values, np.array([[1.0]]), np.array([[target]]), np.array([[True]]), clip_range=0.2
        ).sum()

    result, slope = jax.value_and_grad(value_loss)(np.array([[value]]))
    np.testing.assert_allclose([result, slope[0, 0]], [loss, gradient], atol=1e-12)


@pytest.mark.parametrize(
    ("advantage", "low", "high"),  # ratios where a gradient begins and ends; the range is 0.2 below and 0.5 above
    [(1.0, 0.0, 1.5), (-1.0, 0.8, 3.0)],
)
def test_where_a_token_has_a_gradient_between_two_clips(advantage, low, high):
    """Beyond, it has none: too likely for a good one; too rare, or far too likely, for a bad one."""

    def loss(log_probs):
        arrays = np.array([[advantage]]), np.array([[True]])
        clip = {"clip_range": 0.2, "clip_range_high": 0.5, "dual_clip": 3.0}
        return losses.ppo_policy_loss(log_probs, np.zeros((1, 1)), *arrays, **clip).sum()

    for ratio in (0.1, 0.79, 0.81, 1.0, 1.49, 1.51, 2.9, 3.1, 9.0):
        value, slope = jax.value_and_grad(loss)(np.log([[ratio]]))
        inside = low < ratio < high
        bounded = ratio if inside else (high if ratio > high else low)
        assert value == pytest.approx(-advantage * bounded, rel=1e-12)
        assert slope[0, 0] == pytest.approx(-advantage * ratio if inside else 0.0, rel=1e-12)


def naive_ratios(new, old, length, level):
    """Of one row's tokens, by products of probabilities."""
    each = [math.exp(new[t]) / math.exp(old[t]) for t in range(length)]
    whole = math.prod(each)
    return {"token": each, "sequence_product": [whole] * length, "sequence_mean": [whole ** (1 / length)] * length}[
        level
    ]


@pytest.mark.parametrize("level", LEVELS)
def test_ratios_and_their_gradients(level):
    """The gradient of a response's ratio, summed over its tokens: each token's own log-prob carries that ratio."""
    a, mask = example(8), mask_of(LENGTHS)
    ratio = lambda x: losses.importance_ratio(x, a["old_log_probs"], mask, level)
    got, slopes = ratio(a["log_probs"]), jax.grad(lambda x: jnp.sum(ratio(x)))(a["log_probs"])
    for i, n in enumerate(LENGTHS):
        expected = naive_ratios(a["log_probs"][i], a["old_log_probs"][i], n, level) if n else []
        np.testing.assert_allclose(got[i, :n], expected, rtol=1e-12)
        np.testing.assert_allclose(slopes[i, :n], expected, rtol=1e-12)
        np.testing.assert_array_equal(got[i, n:], 1)


def test_a_product_of_many_ratios_stays_finite():
    """Also where nothing is to be learned from it; in float32 it would be infinite."""
    new, old, mask = np.zeros((1, 200), np.float32), np.full((1, 200), -1, np.float32), np.ones((1, 200), bool)
    zeros, level = np.zeros((1, 200), np.float32), {"level": "sequence_product"}
    for loss in (partial(losses.ppo_policy_loss, clip_range=0.2), losses.topr_policy_loss):
        value, slopes = jax.value_and_grad(lambda x, loss=loss: loss(x, old, zeros, mask, **level)[0])(new)
        assert value == 0
        assert not np.any(slopes)


def test_the_surrogate_of_a_sequences_ratio_is_gspos():
    """Mean over the tokens of what stands at each is `-min(s A, clip(s) A)` with the gradient of s by the log-probs."""
    a, mask, clip = example(9), mask_of(LENGTHS), {"clip_range": 0.1, "clip_range_high": 0.3}
    a["advantages"] = np.broadcast_to(np.array([[1.0], [-2.0], [3.0], [4.0]]), (B, R))

    def gspo(x):
        total = 0.0
        for i, n in enumerate(LENGTHS[:3]):
            s = jnp.exp(sum(x[i, t] - a["old_log_probs"][i, t] for t in range(n)) / n)
            total -= jnp.minimum(s * a["advantages"][i, 0], jnp.clip(s, 0.9, 1.3) * a["advantages"][i, 0])
        return total

    ours = lambda x: jnp.sum(
        losses.ppo_policy_loss(x, a["old_log_probs"], a["advantages"], mask, level="sequence_mean", **clip)
    )
    for got, expected in zip(jax.value_and_grad(ours)(a["log_probs"]), jax.value_and_grad(gspo)(a["log_probs"])):
        np.testing.assert_allclose(got, expected, rtol=1e-11, atol=1e-12)


WEIGHTED = {
    "reinforce": (lambda a, mask: losses.reinforce_policy_loss(a["log_probs"], a["advantages"], mask), None),
    "cispo": (lambda a, mask: losses.cispo_policy_loss(*policy_arrays(a), mask, clip_range=0.1, clip_range_high=0.2),
              lambda ratio, advantage: min(max(ratio, 0.9), 1.2)),
    "topr": (lambda a, mask: losses.topr_policy_loss(*policy_arrays(a), mask),
             lambda ratio, advantage: min(ratio, 1.0) if advantage < 0 else 1.0),
}  # fmt: skip


@pytest.mark.parametrize("name", WEIGHTED)
def test_weighted_likelihoods_against_loops(name):
    """Values, and gradients: that of a log-prob is minus its weight times its advantage, by the response's length."""
    function, weight = WEIGHTED[name]
    a, mask = example(11), mask_of(LENGTHS)
    loss = lambda x: function(a | {"log_probs": x}, mask)
    got, slopes = loss(a["log_probs"]), jax.grad(lambda x: jnp.sum(loss(x)))(a["log_probs"])
    seen = set()
    for i, n in enumerate(LENGTHS):
        total = 0.0
        level = "sequence_product" if name == "topr" else "token"
        ratios = naive_ratios(a["log_probs"][i], a["old_log_probs"][i], n, level) if n else []
        for t, ratio in enumerate(ratios):
            advantage = a["advantages"][i, t]
            w = weight(ratio, advantage) if weight else 1.0
            seen.add((w == ratio, advantage < 0))
            total -= w * advantage * a["log_probs"][i, t] / n
            assert slopes[i, t] == pytest.approx(-w * advantage / n, rel=1e-11)
        assert got[i] == pytest.approx(total, rel=1e-11, abs=1e-12)
    assert len(seen) > 1, "the case has weights of both kinds"


def test_topr_leaves_good_completions_as_they_are_and_tapers_bad_ones():
    old, mask, good = np.log([[0.5, 0.5]]), np.ones((1, 2), bool), np.array([[1.0, 1.0]])
    slope = lambda x, a: jax.grad(lambda x: losses.topr_policy_loss(x, old, a, mask).sum())(x)[0, 0]
    rarer, likelier = old - 1, old + 0.5
    assert slope(rarer, good) == slope(likelier, good) == pytest.approx(-0.5)
    assert slope(rarer, -good) == pytest.approx(0.5 * math.exp(-2)), "the ratio of both tokens together"
    assert slope(likelier, -good) == pytest.approx(0.5)


def test_sampler_weights_and_what_they_are_worth():
    sampler, mask = np.log([[0.5, 0.2, 0.4], [0.1, 0.3, 0.9]]), mask_of((3, 1), 3)
    trainer = np.log([[0.25, 0.6, 0.4], [0.4, 0.9, 0.1]])
    weights = losses.sampler_weights(trainer, sampler, mask, cap=2.0)
    np.testing.assert_allclose(weights, [[0.5, 2, 1], [2, 0, 0]], rtol=1e-12)
    assert losses.effective_sample_size(weights, mask) == pytest.approx((0.5 + 2 + 1 + 2) ** 2 / (4 * 9.25))
    assert losses.effective_sample_size(np.full((2, 3), 0.3), mask) == pytest.approx(1)
    assert losses.effective_sample_size(np.array([[7.0, 0, 0], [0, 0, 0]]), mask) == pytest.approx(1 / 4)
    assert losses.effective_sample_size(weights, np.zeros((2, 3), bool)) == 0


def test_losses_average_over_each_response_so_long_ones_weigh_no_more():
    zeros, mask = np.zeros((B, R)), mask_of(LENGTHS)
    advantages = np.array([[3.0, 0, 0, 9, 9], [5, 0, 0, 0, 0], [7, 9, 9, 9, 9], [9, 9, 9, 9, 9]])
    np.testing.assert_allclose(losses.ppo_policy_loss(zeros, zeros, advantages, mask, clip_range=0.2), [-1, -1, -7, 0])
    squares = losses.ppo_value_loss(zeros, zeros, np.sqrt(2 * advantages), mask, clip_range=0.2)
    np.testing.assert_allclose(squares, [1, 1, 7, 0], rtol=1e-12)


def test_clip_fraction_counts_both_sides():
    ratio = np.array([[1.3, 0.7, 1.1, 9, 9], [1.3, 1, 1, 1, 1], [1.19, 9, 9, 9, 9], [9, 9, 9, 9, 9]])
    fraction = losses.clip_fraction(np.log(ratio), np.zeros((B, R)), mask_of(LENGTHS), clip_range=0.2)
    np.testing.assert_allclose(fraction, [2 / 3, 1 / 5, 0, 0])


def test_explained_variance():
    a, mask = example(), mask_of(LENGTHS)
    v, r = a["values"], a["returns"]
    expected = 1 - np.var((r - v)[mask]) / np.var(r[mask])
    np.testing.assert_allclose(losses.explained_variance(v, r, mask), expected, rtol=1e-12)
    np.testing.assert_allclose(losses.explained_variance(r + 3, r, mask), 1, rtol=1e-12)
    np.testing.assert_allclose(losses.explained_variance(np.full((B, R), 0.3), r, mask), 0, atol=1e-12)
    tenth = np.full((B, R), 0.1, np.float32)  # whose mean in float32 is not 0.1 for every count
    for lengths in [(n, R, m, 0) for n in range(R) for m in range(R)]:
        assert losses.explained_variance(v.astype(np.float32), tenth, mask_of(lengths)) == 0


@given(st.lists(st.integers(0, 12), min_size=1, max_size=5), st.integers(1, 5))
@settings(deadline=None, max_examples=40)
def test_the_parts_of_a_response_are_all_of_it_and_as_equal_as_can_be(lengths, parts):
    mask = mask_of(lengths, 12)
    found = np.stack([losses.within_part(mask, part, parts=parts) for part in range(parts)])
    np.testing.assert_array_equal(found.sum(0), mask)
    for row, n in zip(found.transpose(1, 2, 0), lengths):
        sizes = row.sum(0)
        assert sizes.max() - sizes.min() <= 1
        assert row[:n].argmax(1).tolist() == sorted(row[:n].argmax(1).tolist()), "in order"


def test_sft_loss_sums_and_counts():
    log_probs, mask = example()["log_probs"], mask_of(LENGTHS)
    total, count = losses.masked_nll(log_probs, mask)
    np.testing.assert_allclose(total, -np.sum(log_probs[mask]), rtol=1e-12)
    assert count == 9


# What all of them keep


@pytest.mark.parametrize("junk", [1e30, -1e30, np.inf, np.nan])
@pytest.mark.parametrize("name", MASKED)
def test_what_the_mask_hides_never_matters(name, junk):
    arrays, mask = example(3), mask_of(LENGTHS)
    # `rewards[:, 0]` serves as the scores: a score is hidden only in a filler row, as is every first action.
    hidden = {key: np.where(mask, x, junk) for key, x in arrays.items()}
    expected, expected_gradients = value_and_gradients(name, arrays, mask)
    result, gradients = value_and_gradients(name, hidden, mask)
    assert np.all(np.isfinite(expected))
    np.testing.assert_array_equal(result, expected)
    for key in NAMES:
        np.testing.assert_array_equal(gradients[key], expected_gradients[key], err_msg=key)
        assert np.all(np.asarray(gradients[key])[~mask] == 0), key


@given(st.tuples(*[st.integers(0, R)] * B), st.sampled_from(sorted(MASKED)), st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=100)
def test_hidden_entries_do_not_matter_for_any_lengths(lengths, name, seed):
    mask = mask_of(lengths)
    mine, other = example(seed), example(seed + 1)
    changed = {key: np.where(mask, mine[key], other[key]) for key in NAMES}
    for a, b in zip(
        jax.tree.leaves(value_and_gradients(name, mine, mask)),
        jax.tree.leaves(value_and_gradients(name, changed, mask)),
    ):
        np.testing.assert_array_equal(a, b)
        assert np.all(np.isfinite(a))


@pytest.mark.parametrize(
    ("given_dtype", "expected"),
    [(jnp.float64, jnp.float64), (jnp.float32, jnp.float32), (jnp.bfloat16, jnp.float32)],
)
@pytest.mark.parametrize("name", MASKED)
def test_dtypes_are_kept_and_half_precision_is_raised(name, given_dtype, expected):
    arrays = {key: jnp.asarray(x, given_dtype) for key, x in example().items()}
    assert MASKED[name](arrays, mask_of(LENGTHS)).dtype == expected
    assert losses.entropy(arrays["values"]).dtype == expected
    assert losses.kl_k3(arrays["log_probs"], arrays["old_log_probs"]).dtype == expected


# Differentiated by the updates. `example` keeps away from the kinks of clip and max, where differences say nothing.
@pytest.mark.parametrize(
    ("name", "argument"),
    [
        ("ppo_policy_loss", "log_probs"),
        ("ppo_value_loss", "values"),
        ("sft_loss", "log_probs"),
        ("reinforce_loss", "log_probs"),
    ],
)
def test_gradients_of_losses_against_differences(name, argument):
    arrays, mask = example(5), mask_of(LENGTHS)
    check_grads(jax.jit(lambda x: MASKED[name](arrays | {argument: x}, mask)), (arrays[argument],), order=1)


def test_gradients_of_log_probs_entropy_and_k3_against_differences():
    rng = np.random.default_rng(6)
    logits, tokens = rng.normal(size=(3, 7)), np.array([0, 6, 2])
    check_grads(jax.jit(lambda x: losses.token_log_probs(x, tokens)), (logits,), order=1)
    check_grads(jax.jit(losses.entropy), (logits,), order=1)
    check_grads(jax.jit(lambda x: losses.kl_k3(x, logits)), (logits + 0.3,), order=1)


def test_micro_batches_add_up_to_the_whole_batch():
    rows, sequences = 6, 5
    batch = example(7, rows) | {"mask": mask_of((3, 5, 1, 0, 4, 2))}
    weights = {"shift": np.linspace(-0.1, 0.1, R), "scale": np.array(1.1)}

    @jax.jit
    @jax.value_and_grad
    def total(weights, a):
        log_probs = a["log_probs"] * weights["scale"] + weights["shift"][None, :]
        values = a["values"] * weights["scale"] - weights["shift"][None, :]
        policy = losses.ppo_policy_loss(log_probs, a["old_log_probs"], a["advantages"], a["mask"], clip_range=0.2)
        value = losses.ppo_value_loss(values, a["old_values"], a["returns"], a["mask"], clip_range=0.2)
        nll, _ = losses.masked_nll(log_probs, a["mask"])
        return jnp.sum(policy + 5 * value) / sequences + nll / int(batch["mask"].sum())

    whole = total(weights, batch)
    for pieces in (2, 6):
        parts = [{key: x[part] for key, x in batch.items()} for part in np.split(np.arange(rows), pieces)]
        summed = jax.tree.map(lambda *xs: sum(xs), *(total(weights, part) for part in parts))
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-12, atol=1e-12), summed, whole)


def test_wrong_shapes_and_masks_are_refused():
    """By the functions themselves, as users have them; in this session their annotations would be first."""
    x, mask = example()["values"], mask_of(LENGTHS)
    with pytest.raises(AssertionError):
        unwrap(losses.ppo_policy_loss)(x, x, x[:, :1], mask, clip_range=0.2)  # would broadcast
    with pytest.raises(AssertionError):
        unwrap(losses.gae)(x, x, mask.astype(np.float32), discount=1.0, gae_lambda=1.0)
    with pytest.raises(AssertionError):
        unwrap(losses.place_reward)(np.ones((B, 1)), mask)
    with pytest.raises(AssertionError):
        unwrap(losses.token_log_probs)(np.zeros((B, R, 7)), np.zeros((B, R - 1), int))
