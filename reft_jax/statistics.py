"""How far a share can be trusted: the 95 % intervals that are printed beside every accuracy."""

import math
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
    if not 0 < confidence < 1:
        raise ValueError(f"wilson_interval: confidence is {confidence}; expected a share between 0 and 1, such as 0.95")
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share = successes / n
    centre = share + z**2 / (2 * n)
    half_width = z * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    scale = 1 + z**2 / n
    # At 0 and n successes one end is exactly 0 or 1, which rounding would miss by 1e-17.
    low = 0.0 if successes == 0 else (centre - half_width) / scale
    high = 1.0 if successes == n else (centre + half_width) / scale
    return low, high
