"""Voting and pass@k against slow loops over everything that could happen, intervals against how often they hold."""

import itertools
import math
from collections import Counter
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reft_jax.samples.statistics import mean_interval, pass_at_k, wilson_interval
from reft_jax.samples.voting import maj_at_k, majority

NUMBERS = st.lists(
    st.one_of(st.none(), st.sampled_from([18, 18.0, 17, 0.33, 0.333, 2**53, 2**53 + 1, math.inf])), max_size=9
)
LETTERS = st.lists(st.one_of(st.none(), st.sampled_from(["a", "b", "none", "", "(c)", "c"])), max_size=9)


def slow_majority(values, kind):
    """The reference: a Counter over what is left, whose `most_common` keeps the order of insertion among equals."""
    kept = [v for v in values if v is not None and (kind == "number" or len(v) == 1)]
    return Counter(kept).most_common(1)[0][0] if kept else None


@given(st.one_of(st.tuples(NUMBERS, st.just("number")), st.tuples(LETTERS, st.just("choice"))))
def test_the_majority_is_the_references(case):
    values, kind = case
    winner, expected = majority(values, kind), slow_majority(values, kind)
    assert (winner is None) == (expected is None)
    if winner is not None:
        assert values[winner] == expected
        assert values.index(expected) == winner, "the first that gave it"


def test_nan_is_no_ones_vote_but_its_own():
    nan = [float("nan") for _ in range(3)]
    assert majority([*nan, 7.0, 7.0], "number") == 3
    assert majority([nan[0], 7.0], "number") == 0, "first seen"


def test_whole_numbers_beyond_doubles_are_different_answers():
    assert majority([2**53 + 1, 2**53, 2.0**53], "number") == 1


@given(st.lists(st.tuples(st.sampled_from([None, 1, 2, 3]), st.booleans()), min_size=1, max_size=12), st.data())
def test_maj_at_k_is_the_mean_of_separate_votes(samples, data):
    values, right = [v for v, _ in samples], {1: True, 2: False, 3: True}
    correct = [right.get(value, False) for value in values]
    k = data.draw(st.integers(1, len(values)))
    votes = []
    while len(values[len(votes) * k :]) >= k:
        winner = slow_majority(values[len(votes) * k :][:k], "number")
        votes.append(right.get(winner, False))
    assert maj_at_k(values, correct, k, "number") == pytest.approx(np.mean(votes))
    assert maj_at_k(values, correct, 1, "number") == pytest.approx(pass_at_k(len(values), sum(correct), 1))
    with pytest.raises(ValueError, match=f"k is {len(values) + 1} and there are {len(values)} samples"):
        maj_at_k(values, correct, len(values) + 1, "number")


@given(st.lists(st.booleans(), min_size=1, max_size=9), st.data())
def test_pass_at_k_is_the_share_of_choices_with_a_right_one(correct, data):
    k = data.draw(st.integers(1, len(correct)))
    choices = [any(choice) for choice in itertools.combinations(correct, k)]
    assert pass_at_k(len(correct), sum(correct), k) == sum(choices) / len(choices)


def test_pass_at_k_of_many_samples_is_exact():
    assert pass_at_k(5000, 1, 100) == 0.02
    assert pass_at_k(5000, 4901, 100) == 1.0
    for n, c, k in ((0, 0, 1), (5, 6, 1), (5, -1, 1), (5, 2, 0), (5, 2, 6)):
        with pytest.raises(ValueError, match="expected 0 <= right <= n and 1 <= k <= n"):
            pass_at_k(n, c, k)


@given(st.lists(st.integers(0, 1), min_size=1, max_size=200))
def test_the_interval_of_right_and_wrong_is_wilsons(scores):
    assert mean_interval(scores) == pytest.approx(wilson_interval(sum(scores), len(scores)), abs=1e-12)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=50), st.floats(0.5, 0.999))
def test_the_interval_holds_the_mean_and_stays_inside(scores, confidence):
    low, high = mean_interval(scores, confidence)
    mean = math.fsum(scores) / len(scores)
    assert 0 <= low <= mean + 1e-12
    assert mean - 1e-12 <= high <= 1


def test_the_interval_of_many_scores_is_the_normal_one():
    scores = np.random.default_rng(0).beta(2, 1, 20_000)
    half = NormalDist().inv_cdf(0.975) * scores.std() / math.sqrt(len(scores))
    assert mean_interval(scores.tolist()) == pytest.approx((scores.mean() - half, scores.mean() + half), abs=half / 200)


@pytest.mark.parametrize(("samples", "k"), [(1, 1), (10, 1), (10, 5)])
def test_the_interval_holds_the_truth_as_often_as_it_says(samples, k):
    """Over questions of varied difficulty; the truth is pass@k over all such questions."""
    draw, hits, rounds = np.random.default_rng(1), 0, 1500
    truth = 1 - np.prod([(1.5 + i) / (2.0 + i) for i in range(k)])  # 1 - E[(1 - p)^k] for p ~ Beta(0.5, 1.5)
    for _ in range(rounds):
        right = draw.binomial(samples, draw.beta(0.5, 1.5, 80))
        low, high = mean_interval([pass_at_k(samples, int(c), k) for c in right])
        hits += low <= truth <= high
    assert 0.935 <= hits / rounds <= 0.968


@pytest.mark.parametrize("scores", [[], [1.5], [-0.1, 0.2], [math.nan]])
def test_impossible_scores_are_refused(scores):
    with pytest.raises(ValueError, match="all between 0 and 1"):
        mean_interval(scores)
