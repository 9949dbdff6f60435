"""maj@k and pass@k of a file of samples, with their 95 % intervals."""

import collections
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from reft_jax.problem import AnswerKind
from reft_jax.samples.file import read_samples
from reft_jax.samples.statistics import mean_interval, pass_at_k
from reft_jax.samples.voting import Value, maj_at_k


class Measure(NamedTuple):
    """An accuracy with its 95 % interval."""

    value: float
    interval: tuple[float, float]


class Answers(NamedTuple):
    """The samples of one question in their order: what was answered, and whether that is right."""

    kind: AnswerKind
    values: list[Value]
    correct: list[bool]


def read_answers(path: Path) -> dict[str, Answers]:
    """The answers in a file of samples by problem id.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: see `read_samples`.
    """
    rows: dict[str, list[tuple[int, Value, bool]]] = collections.defaultdict(list)
    kinds: dict[str, AnswerKind] = {}
    for sample in read_samples(path):
        rows[sample.id].append((sample.sample, sample.value, sample.correct))
        kinds[sample.id] = sample.answer_kind
    found = {}
    for identity, unsorted in rows.items():
        _, values, correct = zip(*sorted(unsorted, key=lambda row: row[0]))
        found[identity] = Answers(kinds[identity], list(values), list(correct))
    return found


def measure(answers: dict[str, Answers], ks: Sequence[int], unasked: int = 0) -> dict[str, Measure]:
    """maj@k and pass@k for each k: means over all questions, see `voting.maj_at_k` and `statistics.pass_at_k`.

    Args:
        answers: by problem id.
        ks: numbers of samples.
        unasked: questions without samples, which count as not solved.

    Raises:
        ValueError: naming the first question that has fewer than k samples, or a k below 1.
    """
    found = {}
    for k in ks:
        for identity, (_, values, _) in answers.items():
            if not 1 <= k <= len(values):
                raise ValueError(
                    f"--k {k}: question `{identity}` has {len(values)} samples; k must be 1 or more and every question "
                    "needs k samples: take more, or lower k"
                )
        votes = [maj_at_k(values, correct, k, kind) for kind, values, correct in answers.values()]
        passes = [pass_at_k(len(correct), sum(correct), k) for _, _, correct in answers.values()]
        for name, shares in (("maj", votes), ("pass", passes)):
            shares += [0.0] * unasked
            found[f"{name}@{k}"] = Measure(sum(shares) / len(shares), mean_interval(shares))
    return found
