"""Majority voting over the samples of a question, as the reference does it (sampling.py of lqtrung1998/mwp_ReFT).

Values vote as they were read, under whichever rules: two are the same answer where they are equal, so that 18 and 18.0
are and 0.33 and 0.333 are not, and nan is equal to nothing. Only the verdict on the winner knows a tolerance.
"""

from collections.abc import Sequence

from reft_jax.problem import AnswerKind

Value = str | int | float | None


def is_answer(value: Value, kind: AnswerKind) -> bool:
    """Whether something was answered that may be voted for or chosen: where the problem is a choice, one letter."""
    return value is not None and (kind != "choice" or (isinstance(value, str) and len(value) == 1))


def majority(values: Sequence[Value], kind: AnswerKind) -> int | None:
    """The most frequent answer of some samples: the index of the first that gave it, None where there is none.

    Of answers with as many votes the one seen first wins; only what `is_answer` votes.
    """
    first: dict[Value, int] = {}
    votes: dict[Value, int] = {}
    for index, value in enumerate(values):
        if is_answer(value, kind):
            first.setdefault(value, index)
            votes[value] = votes.get(value, 0) + 1
    return first[max(votes, key=votes.__getitem__)] if votes else None  # max takes the first of equals


def maj_at_k(values: Sequence[Value], correct: Sequence[bool], k: int, kind: AnswerKind) -> float:
    """How often the majority of k samples is right: the mean over the n // k runs of k samples that follow each other.

    These runs share no sample, so that the mean has no bias as the accuracy of voting over k fresh samples, and needs
    no random numbers. With k = n there is one, which is the reference's number; with k = 1 it is the share of right
    samples.

    Args:
        values: [n] answers in the order of the samples.
        correct: [n] whether each is right.
        k: samples that vote.
        kind: of the problem.

    Raises:
        ValueError: not 1 <= k <= n.
    """
    if not 1 <= k <= len(values):
        raise ValueError(f"maj_at_k: k is {k} and there are {len(values)} samples; expected 1 <= k <= samples")
    starts = range(0, len(values) - k + 1, k)
    winners = [(start, majority(values[start : start + k], kind)) for start in starts]
    return sum(winner is not None and correct[start + winner] for start, winner in winners) / len(winners)
