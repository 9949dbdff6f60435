"""What samples say of accuracies, and how far these can be trusted: pass@k, 95 % intervals of shares, the sign test."""

import math
from collections.abc import Sequence
from statistics import NormalDist


def wilson_interval(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a binomial share, without continuity correction (Wilson 1927, JASA 22:209).

    With p = successes / n and z the (1 + confidence) / 2 quantile of the normal distribution, the two solutions t of
    |p - t| = z sqrt(t (1 - t) / n):

        (p + z^2 / 2n -+ z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n)

    Unlike p -+ z sqrt(p (1 - p) / n) it stays inside [0, 1] and has a width at 0 and n successes.

    Args:
        successes: problems solved.
        n: problems tried.
        confidence: share of such intervals that hold the true share, in (0, 1).

    Returns:
        (low, high), shares in [0, 1].

    Raises:
        ValueError: n is not positive, successes not in [0, n], or confidence not in (0, 1).
    """
    if n <= 0 or not 0 <= successes <= n:
        raise ValueError(
            f"wilson_interval: {successes} successes of {n} trials; expected 0 <= successes <= n and n > 0"
        )
    _check_confidence("wilson_interval", confidence)
    low, high = _score_interval(successes / n, n, confidence)
    # At 0 and n successes one end is exactly 0 or 1, which rounding would miss by 1e-17.
    return (0.0 if successes == 0 else low), (1.0 if successes == n else high)


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """Interval of the mean of values in [0, 1], one for each question: the questions are what was drawn.

    With p the mean and s^2 the mean squared deviation from it, this is Wilson's interval of the share p for as many
    trials as would have the variance s^2 / N of the mean, n = N p (1 - p) / s^2: for values of 0 and 1 n is N, which
    makes it `wilson_interval`; for others, such as shares over samples, n is larger. It stays inside [0, 1]; and it
    approaches p -+ z s / sqrt(N) as N grows. Where all values are 0, or all are 1, n is N; where all are alike and
    between, they show no spread and the interval has no width.

    Args:
        values: [N] of independent questions, each in [0, 1].
        confidence: share of such intervals that hold the true mean, in (0, 1).

    Returns:
        (low, high), in [0, 1].

    Raises:
        ValueError: there are no values, one is outside [0, 1], or confidence is not in (0, 1).
    """
    _check_confidence("mean_interval", confidence)
    if not values or not all(0 <= value <= 1 for value in values):
        raise ValueError("mean_interval: expected one value or more, all between 0 and 1")
    count = len(values)
    mean = math.fsum(values) / count
    if mean in (0, 1):
        return wilson_interval(round(mean * count), count, confidence)
    variance = math.fsum((value - mean) ** 2 for value in values) / count
    if variance == 0:
        return mean, mean
    low, high = _score_interval(mean, count * mean * (1 - mean) / variance, confidence)
    return max(low, 0.0), min(high, 1.0)


def sign_test(gained: int, lost: int) -> float:
    """Two-sided p-value of the exact sign test (McNemar's, exact) on pairs that differ.

    Where neither of two models is better, a question that only one of them answers right is as likely to be either's:
    2 P(X <= min(gained, lost)) for X binomial with gained + lost trials and 1/2, at most 1.

    Args:
        gained: questions that only the second answers right.
        lost: questions that only the first answers right.

    Raises:
        ValueError: one of them is negative.
    """
    if min(gained, lost) < 0:
        raise ValueError(f"sign_test: {gained} gained and {lost} lost; expected 0 or more of each")
    n = gained + lost
    tail = sum(math.comb(n, k) for k in range(min(gained, lost) + 1))
    return min(1.0, 2 * tail / 2**n)  # whole numbers of any length, divided once


def pass_at_k(n: int, correct: int, k: int) -> float:
    """Probability that one or more of k samples is right, from n of which `correct` are, without bias.

    1 - C(n - c, k) / C(n, k): the share of all choices of k among the n that hold a right one (Chen et al. 2021,
    arXiv 2107.03374, eq. 1). The binomials are whole numbers of any length.

    Args:
        n: samples taken.
        correct: of these, the right ones.
        k: samples that would be taken.

    Raises:
        ValueError: not 0 <= correct <= n, or not 1 <= k <= n.
    """
    if not 0 <= correct <= n or not 1 <= k <= n:
        raise ValueError(f"pass_at_k: {correct} right of {n} and k {k}; expected 0 <= right <= n and 1 <= k <= n")
    return (math.comb(n, k) - math.comb(n - correct, k)) / math.comb(n, k)


def _score_interval(share: float, n: float, confidence: float) -> tuple[float, float]:
    """The ends of `wilson_interval`, for n that need not be whole."""
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    centre = share + z**2 / (2 * n)
    half_width = z * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    scale = 1 + z**2 / n
    return (centre - half_width) / scale, (centre + half_width) / scale


def _check_confidence(function: str, confidence: float) -> None:
    if not 0 < confidence < 1:
        raise ValueError(f"{function}: confidence is {confidence}; expected a share between 0 and 1, such as 0.95")
