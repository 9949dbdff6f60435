"""Wilson's interval against published values, scipy, and the equation that defines it."""

import math
from statistics import NormalDist

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from reft_jax.samples.statistics import sign_test, wilson_interval


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_published_values(successes: int, n: int, low: float, high: float) -> None:
    """Newcombe 1998, Statistics in Medicine 17:857, table I, method 3."""
    assert wilson_interval(successes, n) == pytest.approx((low, high), abs=5e-5)


def _bisect_end(share: float, n: int, z: float, inside: float, outside: float) -> float:
    """The share t between `inside` and `outside` where |share - t| passes z standard errors of t."""
    for _ in range(200):
        middle = (inside + outside) / 2
        if abs(share - middle) <= z * math.sqrt(middle * (1 - middle) / n):
            inside = middle
        else:
            outside = middle
    return inside


counts = st.integers(1, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


@given(counts, st.floats(0.5, 0.999))
def test_ends_solve_the_score_equation(count: tuple[int, int], confidence: float) -> None:
    successes, n = count
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share = successes / n
    expected = (_bisect_end(share, n, z, share, 0.0), _bisect_end(share, n, z, share, 1.0))
    assert wilson_interval(successes, n, confidence) == pytest.approx(expected, abs=1e-9)


@given(counts)
def test_agrees_with_scipy(count: tuple[int, int]) -> None:
    successes, n = count
    expected = binomtest(successes, n).proportion_ci(method="wilson")
    assert wilson_interval(successes, n) == pytest.approx((expected.low, expected.high), abs=1e-12)


@given(counts)
def test_contains_the_share_inside_zero_and_one(count: tuple[int, int]) -> None:
    successes, n = count
    low, high = wilson_interval(successes, n)
    assert 0 <= low <= successes / n <= high <= 1
    assert low < high


@pytest.mark.parametrize(("successes", "n", "confidence"), [(0, 0, 0.95), (-1, 5, 0.95), (6, 5, 0.95), (1, 5, 1.0)])
def test_impossible_counts_are_refused(successes: int, n: int, confidence: float) -> None:
    with pytest.raises(ValueError, match="expected"):
        wilson_interval(successes, n, confidence)


@given(st.integers(0, 700), st.integers(0, 700))
def test_sign_test_is_scipys_binomial_test(gained: int, lost: int) -> None:
    expected = binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
    assert sign_test(gained, lost) == pytest.approx(expected, rel=1e-9)
    assert sign_test(gained, lost) == sign_test(lost, gained)


def test_sign_test_of_no_counts_is_refused() -> None:
    with pytest.raises(ValueError, match="-1 gained and 3 lost; expected 0 or more of each"):
        sign_test(-1, 3)
