"""How often `rl.collapse` ends runs of a policy that never changes, and how soon those of one that falls.

    python -m benchmarks.collapse            # five minutes of one core; writes docs/collapse.md

Rewards are 0 and 1 and simulated, the test is the package's own.
"""

import argparse
from pathlib import Path
from typing import NamedTuple

import numpy as np

from reft_jax.config import CollapseConfig
from reft_jax.training.collapse import fall

PAGE = Path(__file__).parents[1] / "docs" / "collapse.md"


class Setting(NamedTuple):
    """Who is asked how often."""

    questions: int
    """Of an iteration."""
    samples: int
    """Of a question."""
    right: float
    """Share of completions that are."""
    unequal: bool = False
    """A tenth of the questions have all the right answers, and of the others none is ever solved."""


def ends_after(setting: Setting, factors: np.ndarray, seed: int, config: CollapseConfig = CollapseConfig()) -> int:
    """The iteration after which a run is ended, 0 where it is not.

    Args:
        setting: of the run.
        factors: [iterations] of the share that is right; whole windows.
        seed: of the draws.
        config: `rl.collapse`.
    """
    drawn, blocks = np.random.default_rng(seed), []
    for number, window in enumerate(factors.reshape(-1, config.window)):
        share = np.repeat(window, setting.questions) * setting.right
        if setting.unequal:
            share = np.minimum(10 * share, 1) * (drawn.random(share.size) < 0.1)
        means = drawn.binomial(setting.samples, share) / setting.samples
        blocks.append([float(config.window), float(means.size), float(means.sum()), float((means**2).sum())])
        if fall(blocks, config):
            return (number + 1) * config.window
    return 0


def unchanged(setting: Setting, runs: int, iterations: int) -> int:
    """How many of the runs of a policy that never changes are ended."""
    return sum(ends_after(setting, np.ones(iterations), seed) > 0 for seed in range(runs))


def delays(setting: Setting, factor: float, runs: int, before: int, after: int) -> list[float]:
    """Iterations from a fall to the end of each run; infinite where it is not ended, or was before the fall."""
    factors = np.append(np.ones(before), np.full(after, factor))
    ends = [ends_after(setting, factors, seed) for seed in range(runs)]
    return [end - before if end > before else np.inf for end in ends]


def rows(runs: int, iterations: int) -> list[str]:
    """The lines of the table."""
    settings = [Setting(q, 1, p) for q in (32, 256) for p in (0.002, 0.005, 0.01, 0.02, 0.05, 0.2, 0.8)]
    settings += [Setting(32, 8, p, unequal=True) for p in (0.005, 0.02, 0.05)]
    lines = []
    for setting in settings:
        asked = f"{setting.questions} x {setting.samples}" + (", unequal" if setting.unequal else "")
        cells = [asked, f"{100 * setting.right:g}", f"{unchanged(setting, runs, iterations)} of {runs}"]
        for factor in (0.5, 0.3, 0.0):
            late = delays(setting, factor, runs // 4, 500, 1500)
            shown = [f"{x:.0f}" if np.isfinite(x) else "-" for x in np.quantile(late, (0.5, 0.95), method="higher")]
            cells.append(", ".join(shown))
        lines.append("| " + " | ".join(cells) + " |")
        print(lines[-1], flush=True)
    return lines


TEXT = """# When reinforcement is ended

`rl.collapse` ends a run whose rewards have fallen for good; the model that was best on dev is what is left. Every
`rl.collapse.window` iterations the last ones are compared with earlier ones, in stretches of 1, 2, 4, ... windows. A
run ends where the mean reward is less than `rl.collapse.reward_share` of what it was **and** the counts behind the
two means say that it is no chance. With one right answer in 500 that takes many iterations, with one in two a single
window.

What is no chance: the probability of so few rewards, if the policy had not changed, is bounded by exp(-D), the
likelihood ratio of two rates against one (`reft_jax/training/collapse.py` has the formula). It must be below 1 %,
divided by the number of all comparisons that the run has made and will make. So at most 1 % of runs whose policy
never changes are ended, however long they are: that is proven for rewards 0 and 1 and one completion a question; in
other cases the rewards' sum of squares stands for their variance, which it is never less than, and a question counts
once, however often it is sampled.

A mean reward that is 0 or less has no share; `rl.collapse.max_kl` may bound the KL instead. A policy that loses a
third of its rewards goes on, as do rewards that were never there. Where questions are chosen by their pass rates
(`rl.question_choice`), rewards follow the choice, so that `reward_share` must be 0.

## Measured

`python -m benchmarks.collapse` simulates it and writes this page: {runs} runs of {iterations} iterations of a policy
that never changes, and {fewer} each of one that falls after 500 iterations to a half, to three tenths, and to
nothing. The delays are in iterations, median and 95 % quantile; - is more than 1,500. Unequal: a tenth of the
questions earn all the rewards.

| questions x samples | right % | ended, unchanged | fall to 0.5 | to 0.3 | to 0 |
|---|---|---|---|---|---|
{rows}

A fall to exactly the share is on the border: it ends a run when chance brings the mean below it. One that is farther,
or whose counts are larger, is seen at the next look.
"""


def main() -> None:
    """Simulates, and writes the page."""
    parser = argparse.ArgumentParser("python -m benchmarks.collapse", description=__doc__)
    parser.add_argument("--runs", type=int, default=400, help="of a policy that never changes, for each line")
    parser.add_argument("--iterations", type=int, default=1000, help="of each; a multiple of 20")
    given = parser.parse_args()
    table = "\n".join(rows(given.runs, given.iterations))
    text = TEXT.format(runs=given.runs, fewer=given.runs // 4, iterations=f"{given.iterations:,}", rows=table)
    PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
