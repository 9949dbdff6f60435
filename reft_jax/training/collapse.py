"""Whether rewards have fallen: a sequential test of the counts behind them.

Chance alone halves a mean of few rewards: of 2 % right answers, 20 iterations of 32 completions have 13, and in a
thousand iterations there are twenty such with less than half of some others. So what is compared are counts, and how
unlikely a fall has to be follows from how often a run is looked at.
"""

import functools
import math
from collections.abc import Sequence

import numpy as np

from reft_jax.config import CollapseConfig
from reft_jax.training.completion import Completion

FALSE_ALARMS = 0.01
"""At most this share of runs with a policy that does not change is ended, however long they are."""

Block = list[float]
"""Iterations, questions, sum over questions of their mean reward, and sum of its squares."""


def with_iteration(blocks: Sequence[Block], completions: Sequence[Completion], window: int) -> list[Block]:
    """The blocks with one more iteration, in the last one until that has `window` iterations.

    A question counts once, by the mean reward of its completions: these are alike, so that their number says little.

    Args:
        blocks: of the iterations before.
        completions: of the iteration.
        window: `rl.collapse.window`.
    """
    rewards: dict[str, list[float]] = {}
    for completion in completions:
        rewards.setdefault(completion.problem.id, []).append(completion.reward)
    means = [math.fsum(each) / len(each) for each in rewards.values()]
    added = [1.0, float(len(means)), math.fsum(means), math.fsum(mean**2 for mean in means)]
    if blocks and blocks[-1][0] < window:
        return [*blocks[:-1], [a + b for a, b in zip(blocks[-1], added)]]
    return [*blocks, added]


def fall(blocks: Sequence[Block], config: CollapseConfig) -> str:
    """Why rewards have fallen, once the last block is full; else nothing.

    Stretches of 1, 2, 4, ... blocks at the end are compared with all such stretches before them. With n questions and
    rewards of s together in the earlier one and n', s' in the later, and phi their sum of squares over their sum, the
    counts are k = s / phi and k' = s' / phi: those of right answers, where rewards are 0 and 1 and questions are
    sampled once. Under one rate for both, e = (k + k') n / (n + n') and e' = (k + k') n' / (n + n') are expected, and

        D = k log(k / e) + k' log(k' / e')

    bounds the probability of so small a k' by exp(-D) (Chernoff; Hoeffding 1963 for Bernoulli counts). A later stretch
    with less than `reward_share` of the earlier one's mean ends the run if exp(-D) is below `FALSE_ALARMS`, divided by
    the comparisons that are made with b blocks, and by b (b + 1): the sum of all these, over a run of any length, is
    `FALSE_ALARMS`. phi bounds the variance, Var(sum of y) <= sum of E y^2, for whatever rewards.

    Args:
        blocks: of `with_iteration`.
        config: `rl.collapse`.
    """
    count = len(blocks)
    if not config.reward_share or count < 2 or blocks[-1][0] < config.window:
        return ""
    sums = np.concatenate([np.zeros((1, 4)), np.cumsum(np.array(blocks), axis=0)])
    start, end, last = _stretches(count)
    earlier, later = sums[end] - sums[start], sums[count] - sums[last]
    fallen = later[:, 2] * earlier[:, 1] < config.reward_share * earlier[:, 2] * later[:, 1]
    evidence = np.where(fallen, _evidence(earlier, later), 0)
    best = int(np.argmax(evidence))
    if evidence[best] <= math.log(len(start) * count * (count + 1) / FALSE_ALARMS):
        return ""
    earlier, later = earlier[best], later[best]
    return (
        f"the mean reward of the last {later[0]:.0f} iterations is {later[2] / later[1]:.3g}, less than "
        f"{config.reward_share:g} of the {earlier[2] / earlier[1]:.3g} of {earlier[0]:.0f} iterations before, which is "
        "no chance (rl.collapse.reward_share)"
    )


@functools.lru_cache(maxsize=128)
def _stretches(count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All that are compared: [n] where the earlier one starts and ends, and where the later one begins, in blocks."""
    lengths = [2**i for i in range(count.bit_length()) if 2**i < count]
    pairs = [(first, last) for first in lengths for last in lengths if first + last <= count]
    start = np.concatenate([np.arange(count - first - last + 1) for first, last in pairs])
    sizes = [count - first - last + 1 for first, last in pairs]
    first, last = (np.repeat(each, sizes) for each in zip(*pairs))
    return start, start + first, count - last


def _evidence(earlier: np.ndarray, later: np.ndarray) -> np.ndarray:
    """[n] D of each pair of stretches, sums [n, 4] each; 0 where the earlier has no reward to lose."""
    s, lost = np.maximum(earlier[:, 2], 0), np.maximum(later[:, 2], 0)
    squares = earlier[:, 3] + later[:, 3]
    phi = np.where(s > 0, squares, 1) / np.where(s > 0, s + lost, 1)
    k, k_later = s / phi, lost / phi
    expected = (k + k_later) / (earlier[:, 1] + later[:, 1])
    part = lambda k, e: k * np.log(np.where(k > 0, k, 1) / np.where(k > 0, e, 1))
    return np.where(s > 0, part(k, expected * earlier[:, 1]) + part(k_later, expected * later[:, 1]), 0)
