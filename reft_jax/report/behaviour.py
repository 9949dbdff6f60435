"""How a run answers: failures by cause, signs of reward hacking, length against correctness."""

import collections
import dataclasses
import itertools
import statistics
from collections.abc import Mapping, Sequence

from reft_jax.report.folder import Completion, Moment, RunFolder
from reft_jax.report.results import by_moment
from reft_jax.samples.statistics import wilson_interval

BINS = 8
"""Classes of length, at most."""

EXAMPLES = 3
"""Completions that are shown of each cause, at most."""


@dataclasses.dataclass(frozen=True)
class Group:
    """Completions that are looked at together, such as those of one evaluation."""

    name: str
    completions: Sequence[Completion]


@dataclasses.dataclass(frozen=True)
class Failure:
    """How many completions of each group fail for a cause, and some that do, by index into `RunFolder.completions`."""

    cause: str
    counts: list[int]
    examples: list[int]


@dataclasses.dataclass(frozen=True)
class Signs:
    """What the completions of a group have of the things that a reward that is being fooled brings about.

    Attributes:
        count: of completions.
        correct: share of right answers, None without gold answers.
        suspicious: share of `Verdict.suspicious`, of those for which it applies; None where it never does.
        cut: share cut at the longest length.
        tokens: mean length.
        unearned: mean reward of those that are not right; None where all are.
        commonest: the most frequent answer.
        commonest_share: its share of all.
        distinct: share of different texts.
    """

    group: str
    count: int
    correct: float | None
    suspicious: float | None
    cut: float
    tokens: float
    unearned: float | None
    commonest: str
    commonest_share: float
    distinct: float


@dataclasses.dataclass(frozen=True)
class LengthClass:
    """Completions whose lengths are between two bounds, both included: tokens, and the share that is right."""

    low: int
    high: int
    mean: float
    count: int
    correct: int
    interval: tuple[float, float]


def groups(run: RunFolder) -> list[Group]:
    """The evaluations at the warm-up and at the end, on test where it was read, else on dev; and the sampled ones.

    Of these the first recorded iteration, the last, and all together.
    """
    own = by_moment(run)
    split = "test" if any(moment.split == "test" for moment in own) else "dev"
    shown = [moment for moment in (*run.before, *run.after) if moment.split == split]
    found = [Group(f"{run.describe(moment)} on {split}", own[moment]) for moment in shown]
    sampled = [moment for moment in own if moment.split == "train"]
    if sampled:
        ends: Mapping[str, Moment] = {"first": sampled[0], "last": sampled[-1]}
        found += [
            Group(f"sampled, {end} recorded ({run.when(moment.step)})", own[moment]) for end, moment in ends.items()
        ]
        found.append(Group("sampled, all recorded", [c for moment in sampled for c in own[moment]]))
    return found


def failures(run: RunFolder) -> list[Failure]:
    """Causes by their number in all groups together, the most frequent first."""
    columns = [collections.Counter(completion.cause for completion in group.completions) for group in groups(run)]
    total = sum(columns, collections.Counter())
    order = run.moments
    places = sorted(range(len(run.completions)), key=lambda i: order.index(run.completions[i].moment), reverse=True)
    examples: dict[str, list[int]] = collections.defaultdict(list)
    for place in places:  # the end of the run first
        own = examples[run.completions[place].cause]
        if len(own) < EXAMPLES:
            own.append(place)
    return [
        Failure(cause, [column[cause] for column in columns], examples[cause])
        for cause, _ in total.most_common()
        if cause
    ]


def signs(group: Group) -> Signs:
    """See `Signs`; a group has one completion or more."""
    own = group.completions
    gold = [completion.correct for completion in own if completion.outcome != "no_gold"]
    judged = [completion.suspicious for completion in own if completion.suspicious is not None]
    wrong = [completion.reward for completion in own if not completion.correct]
    answers = collections.Counter(completion.value for completion in own if completion.value)
    commonest, votes = answers.most_common(1)[0] if answers else ("", 0)
    share = lambda flags: sum(flags) / len(flags) if flags else None
    return Signs(
        group=group.name,
        count=len(own),
        correct=share(gold),
        suspicious=share(judged),
        cut=sum(not completion.ended for completion in own) / len(own),
        tokens=statistics.fmean(completion.tokens for completion in own),
        unearned=statistics.fmean(wrong) if wrong else None,
        commonest=commonest,
        commonest_share=votes / len(own),
        distinct=len({completion.text for completion in own}) / len(own),
    )


def lengths(group: Group) -> list[LengthClass]:
    """Classes of about as many completions with a gold answer, by length; all of one length are in one class."""
    rows = sorted((c.tokens, c.correct) for c in group.completions if c.outcome != "no_gold")
    classes: dict[int, int] = {}
    for place, (tokens, _) in enumerate(rows):
        classes.setdefault(tokens, place * BINS // len(rows))
    return [_length_class(list(own)) for _, own in itertools.groupby(rows, key=lambda row: classes[row[0]])]


def _length_class(rows: Sequence[tuple[int, bool]]) -> LengthClass:
    tokens, correct = [length for length, _ in rows], sum(right for _, right in rows)
    interval = wilson_interval(correct, len(rows))
    return LengthClass(tokens[0], tokens[-1], statistics.fmean(tokens), len(rows), correct, interval)
