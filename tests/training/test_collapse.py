"""The test that ends a run whose rewards have fallen: its bound beside scipy, and its error rates in simulated runs."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from benchmarks.collapse import Setting, delays, ends_after, unchanged
from reft_jax.config import CollapseConfig
from reft_jax.problem import Problem
from reft_jax.reward.verdicts import Verdict
from reft_jax.training.collapse import FALSE_ALARMS, _evidence, fall, with_iteration
from reft_jax.training.completion import Completion
from reft_jax.training.state import RunProgress


def completions(rewards: dict[str, list[float]]) -> list[Completion]:
    return [
        Completion(Problem(id=name, question="q", answer="1"), "", Verdict(r, "wrong", 1.0), r, tokens=1, ended=True)
        for name, each in rewards.items()
        for r in each
    ]


def test_a_question_counts_once():
    blocks = with_iteration([], completions({"a": [1, 0, 0, 1], "b": [0.1]}), window=2)
    assert blocks == [[1, 2, pytest.approx(0.6), pytest.approx(0.26)]]
    blocks = with_iteration(blocks, completions({"a": [1.0]}), window=2)
    blocks = with_iteration(blocks, completions({"c": [-1.0]}), window=2)
    assert blocks == [[2, 3, pytest.approx(1.6), pytest.approx(1.26)], [1, 1, -1, 1]]


@pytest.mark.parametrize(("n", "m", "share"), [(40, 10, 0.3), (10, 10, 0.5), (60, 20, 0.9)])
def test_the_evidence_bounds_the_probability_of_a_fall(n, m, share):
    """exp(-D) against exact tails: of the hypergeometric, which equal Bernoulli rates give, and of the binomial."""
    right = round(share * (n + m))
    for later in range(right * m // (n + m)):
        earlier = right - later
        evidence = float(_evidence(np.array([[1, n, earlier, earlier]]), np.array([[1, m, later, later]]))[0])
        bound = math.exp(-evidence) * (1 + 1e-12)
        assert stats.hypergeom(n + m, right, m).cdf(later) <= bound
        assert stats.binom(right, m / (n + m)).cdf(later) <= bound
        other = stats.power_divergence(
            [earlier, later], [right * n / (n + m), right * m / (n + m)], lambda_="log-likelihood"
        )
        assert evidence == pytest.approx(other.statistic / 2)


def test_all_stretches_are_compared_and_the_bound_is_shared_among_them():
    """Beside a slow loop over the rewards of single questions."""
    config, drawn = CollapseConfig(window=2, reward_share=0.6), np.random.default_rng(3)
    seen = []
    for _ in range(40):
        rates = np.repeat(drawn.choice([0.1, 0.9], size=drawn.integers(2, 9)), 2)
        iterations = [(drawn.random(12) < rate).astype(float) for rate in rates]
        blocks: list = []
        for number, rewards in enumerate(iterations, start=1):
            named = completions({str(i): [r] for i, r in enumerate(rewards)})
            blocks = with_iteration(blocks, named, config.window)
            found = bool(fall(blocks, config))
            assert found == (number % 2 == 0 and slow(iterations[:number], config))
            seen.append(found)
    assert 20 < sum(seen) < len(seen) - 20, "both occur"


def slow(iterations: list[np.ndarray], config: CollapseConfig) -> bool:
    count, powers = len(iterations) // config.window, [2**i for i in range(10)]
    compared = [
        (start, end, last)
        for start, end, last in itertools.product(range(count + 1), repeat=3)
        if start < end <= last and end - start in powers and count - last in powers
    ]
    for start, end, last in compared:
        earlier = np.concatenate(iterations[start * config.window : end * config.window])
        later = np.concatenate(iterations[last * config.window :])
        if later.mean() < config.reward_share * earlier.mean():
            rate = np.concatenate([earlier, later]).mean()
            evidence = sum(x.sum() * math.log(x.mean() / rate) for x in (earlier, later) if x.any())
            if math.exp(-evidence) < FALSE_ALARMS / len(compared) / count / (count + 1):
                return True
    return False


def test_what_has_no_share_never_falls():
    charged = [[20.0, 100.0, -90.0, 90.0], [20.0, 100.0, -10.0, 10.0], [20.0, 100.0, -90.0, 90.0]]
    assert not fall(charged, CollapseConfig())
    gone = [[20.0, 100.0, 90.0, 90.0], [20.0, 100.0, -90.0, 90.0]]
    assert fall(gone, CollapseConfig())
    assert not fall(gone, CollapseConfig(reward_share=0.0))
    assert not fall([[20.0, 100.0, 0.0, 0.0]] * 9, CollapseConfig())


def test_a_long_run_is_looked_at_quickly_and_its_bound_stays():
    """As many iterations as the paper's longest run; one right answer in a hundred."""
    blocks = [[20.0, 640.0, float(6 + i % 2), float(6 + i % 2)] for i in range(3450)]
    assert not fall(blocks, CollapseConfig())
    assert fall(blocks + [[20.0, 640.0, 0.0, 0.0]] * 8, CollapseConfig())


def test_an_earlier_version_left_other_counts():
    assert RunProgress.of({"stage": "rl", "recent": [0.5], "highest": 0.5}) == RunProgress(stage="rl")


@pytest.mark.ci
@pytest.mark.parametrize(
    ("setting", "factor", "most"),
    [
        (Setting(32, 1, 0.002), 0.0, 1500),
        (Setting(32, 1, 0.01), 0.0, 120),
        (Setting(32, 1, 0.05), 0.5, 300),
        (Setting(256, 1, 0.02), 0.5, 120),
        (Setting(32, 8, 0.02, unequal=True), 0.0, 200),
        (Setting(32, 1, 0.8), 0.5, 100),
    ],
)
def test_error_rates_are_those_of_the_page(setting, factor, most):
    """Of 200 runs of a policy that never changes at most 1 % may end: more than 6 would be by chance in one of 200
    such tests. All runs that fall end in time, but for one of twenty."""
    assert unchanged(setting, runs=200, iterations=1000) <= 6
    assert np.quantile(delays(setting, factor, runs=40, before=500, after=1500), 0.95, method="higher") <= most


def test_runs_of_the_simulation_end_by_the_test():
    assert ends_after(Setting(32, 1, 0.5), np.append(np.ones(100), np.zeros(40)), seed=0) == 120
    assert ends_after(Setting(32, 1, 0.5), np.ones(200), seed=0) == 0
