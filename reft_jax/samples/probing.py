"""What the samples of a policy say of reinforcing it: what there is to gain, and which groups would have a signal."""

import collections
import math
from collections.abc import Sequence
from typing import Any

from reft_jax.samples.measures import Measure
from reft_jax.samples.statistics import mean_interval, pass_at_k

HARDLY, NEARLY = 0.05, 0.95
"""A share of questions that is hardly any, and one that is nearly all."""


def powers(most: int, least: int = 1) -> list[int]:
    """Powers of two from `least` to `most`, and `most` itself."""
    return sorted({least * 2**i for i in range(32) if least * 2**i <= most} | ({most} if most >= least else set()))


def pass_curve(right: Sequence[int], samples: int) -> dict[int, Measure]:
    """pass@k by k: powers of two, and all samples; see `statistics.pass_at_k`.

    Args:
        right: of each question, how many of its samples are.
        samples: of each question.
    """
    found = {}
    for k in powers(samples):
        passes = [pass_at_k(samples, count, k) for count in right]
        found[k] = Measure(math.fsum(passes) / len(passes), mean_interval(passes))
    return found


def rate_counts(right: Sequence[int], samples: int) -> list[int]:
    """[samples + 1], how many questions have 0, 1, ... all of their samples right."""
    counts = collections.Counter(right)
    return [counts[i] for i in range(samples + 1)]


def without_signal(rewards: Sequence[Sequence[float]], n: int) -> float:
    """Probability that n samples of a question earn the same, so that comparing them says nothing; without bias.

    With c the samples of k that have a reward, a choice of n of the k has only these with probability
    C(c, n) / C(k, n); summed over rewards, and its mean over the questions. Its expectation is the mean over questions
    of the sum of p^n, p being a reward's probability.

    Args:
        rewards: of each question, those of its k samples.
        n: of a group, at most k.

    Raises:
        ValueError: a question has fewer than n samples.
    """
    shares = []
    for each in rewards:
        if not 1 <= n <= len(each):
            raise ValueError(f"without_signal: groups of {n}, and a question with {len(each)} samples")
        counts = collections.Counter(each).values()
        shares.append(sum(math.comb(count, n) for count in counts) / math.comb(len(each), n))
    return math.fsum(shares) / len(shares)


def figures(rewards: Sequence[Sequence[float]], right: Sequence[int]) -> dict[str, Any]:
    """The figures of a probe that need no gradient, as they go to JSON.

    Args:
        rewards: [questions][samples].
        right: [questions], how many samples of each are.
    """
    samples = len(rewards[0])
    return {
        "questions": len(rewards),
        "samples": samples,
        "reward": math.fsum(map(math.fsum, rewards)) / len(rewards) / samples,
        "pass": {str(k): {"value": v, "interval": list(at)} for k, (v, at) in pass_curve(right, samples).items()},
        "questions_by_right_samples": rate_counts(right, samples),
        "without_signal": {str(n): without_signal(rewards, n) for n in powers(samples, 2)},
    }


def histogram(counts: Sequence[int]) -> list[tuple[str, int]]:
    """Questions by the share of their samples that is right: never, tenths between, always; (label, questions).

    Args:
        counts: of `rate_counts`.
    """
    samples = len(counts) - 1
    bins = collections.Counter(dict.fromkeys(range(10), 0))
    for right, count in enumerate(counts[1:-1], start=1):
        bins[10 * right // samples] += count
    between = [(f"{10 * i} to {10 * i + 10} %", bins[i]) for i in range(10)]
    return [("never", counts[0]), *between, ("always", counts[-1])]


def advice(
    made: dict[str, Any], minibatch: int, annotated: float | None = None, completions: int | None = None
) -> list[str]:
    """What the figures speak for, a sentence each.

    Args:
        made: of `figures`, with `gradients` where they were taken: dictionaries of `algorithm`, `samples`, `ratio`,
            `error`, `behind_error` and `completions`, see `gradient_noise.figures`.
        minibatch: `rl.minibatch_size`.
        annotated: share of the questions with a chain of thought; None where that says nothing.
        completions: of a whole run; None where that is not known.
    """
    said = [_room(made)]
    if annotated is not None and annotated > NEARLY:
        said.append(
            f"{100 * annotated:.0f} % of these questions are annotated: SFT learns from all of them already: "
            "compare a run with SFT that goes on (rl.epochs 0)"
        )
    groups = {int(n): share for n, share in made["without_signal"].items()}
    enough = next((n for n, share in groups.items() if share <= 0.5), None)
    if enough is not None:
        said.append(
            f"samples: of groups of {enough}, {100 * groups[enough]:.0f} % earn all the same: where samples of a "
            f"question are compared (GRPO, RLOO, MaxRL), rl.samples_per_question {enough} gives most questions a signal"
        )
    else:
        most = max(groups)
        said.append(
            f"samples: even of groups of {most}, {100 * groups[most]:.0f} % earn all the same: draw again until they "
            "do not (rl.max_draws), choose questions by their pass rates (rl.question_choice: pass_rate), or compare "
            "nothing (rl.algorithm: reinforce)"
        )
    return said + (_of_gradients(made["gradients"], minibatch, completions) if made.get("gradients") else [])


def _room(made: dict[str, Any]) -> str:
    passes = {int(k): entry["value"] for k, entry in made["pass"].items()}
    k, one, most = max(passes), passes[1], passes[max(passes)]
    if most < HARDLY:
        return (
            f"hardly any of these questions is solved in {k} samples ({100 * most:.1f} %): there is next to nothing "
            "to reinforce; train longer by SFT, or take easier questions"
        )
    if one > NEARLY:
        return f"{100 * one:.0f} % of the samples are right: there is little left to gain here; take harder questions"
    if most - one < HARDLY:
        return (
            f"what is solved in {k} samples is solved in nearly every one ({100 * one:.1f} % of them are right, "
            f"pass@{k} is {100 * most:.1f} %): there is little to gain on these questions"
        )
    return (
        f"{100 * one:.1f} % of the samples are right, and {100 * most:.1f} % of the questions are solved in one of "
        f"{k}: that is the room there is at first for making right answers likelier"
    )


def _of_gradients(rows: Sequence[dict[str, Any]], minibatch: int, completions: int | None) -> list[str]:
    best = max(rows, key=lambda row: float(row["ratio"]))
    if best["ratio"] <= 2 * best["error"]:
        return [
            "gradient: no algorithm's stands out of its noise in the completions probed, which say nothing of "
            "algorithms then; probe more (--questions, --gradient_samples). A run sees more, and may gain, but less"
        ]
    needed, level = (
        best["completions"],
        [row for row in rows if best["ratio"] - row["ratio"] <= 2 * row["behind_error"]],
    )
    names = list(dict.fromkeys(_name(row) for row in level))
    times = completions / needed if completions else 0
    run = f"; a run's {completions:,} are {times:.{0 if times >= 10 else 1}f} times as many" if completions else ""
    return [
        f"gradient: {minibatch} completions know that of {_name(best)} with a ratio of signal to noise of "
        f"{best['ratio']:.2g}, and {needed:.0f} would with 1{run}",
        f"algorithm: {', '.join(names)}" + (" (level within the errors)" if len(names) > 1 else ""),
    ]


def _name(row: dict[str, Any]) -> str:
    return str(row["algorithm"]) + (f" of {row['samples']} samples" if row["samples"] > 1 else "")
