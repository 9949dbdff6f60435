"""What a reward model is worth: choosing among a question's completions, beside voting and the best that could be."""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from reft_jax.algorithms.classification import build_scoring
from reft_jax.config import Config
from reft_jax.data.batches import evaluation_batches
from reft_jax.data.samples import SampleSet
from reft_jax.models.policy import Params
from reft_jax.parallel.compilation import Programs
from reft_jax.parallel.sharding import batch_shardings, to_global
from reft_jax.samples.file import Sample
from reft_jax.samples.statistics import wilson_interval
from reft_jax.samples.voting import is_answer, majority

Scores = Mapping[tuple[str, str], float]
"""P(correct) by the id of the question and the completion; one that was not scored, being too long, is not there."""


def scoring(config: Config, mesh: Mesh) -> Callable[[int], Any]:
    """Builds the scoring program of a bucket."""
    rows = config.reward_model.microbatch_size
    return lambda length: build_scoring(config.model, mesh, batch=rows, length=length)


def score(
    programs: Programs,
    params: Params,
    samples: SampleSet,
    *,
    config: Config,
    mesh: Mesh,
    pad: int,
    check: Callable[[], None] = lambda: None,
) -> Scores:
    """P(correct) of each unique completion, `reward_model.microbatch_size` at a time.

    Args:
        programs: of `scoring`.
        params: {"decoder", "class_head"}.
        samples: all but dropped ones are scored.
        config: batch size and buckets.
        mesh: where the programs run.
        pad: id that fills rows.
        check: called before each batch; may raise.
    """
    settings, found = config.reward_model, np.zeros(len(samples.unique))

    def take(row: np.ndarray, values: jax.Array) -> None:
        found[row[row >= 0]] = np.asarray(values)[row >= 0]

    ahead: deque[tuple[np.ndarray, jax.Array]] = deque()  # the next batch is computed while one is read
    size, buckets = settings.microbatch_size, settings.row_buckets
    for batch in evaluation_batches(samples.rows, batch_size=size, prompt_buckets=buckets, pad_id=pad):
        check()
        rows = (batch.tokens, batch.lengths)
        program = programs[batch.tokens.shape[1:]]
        ahead.append((batch.problem, program(params, *to_global(rows, batch_shardings(rows, mesh)))))
        if len(ahead) == 2:
            take(*ahead.popleft())
    for row, values in ahead:
        take(row, values)
    return {key(samples.unique[row.problem]): float(found[row.problem]) for row in samples.rows}


def best(samples: Sequence[Sample], scores: Scores) -> Sample | None:
    """The sample with the highest score, the first of equals, of those that are scored and have an answer."""
    candidates = [sample for sample in samples if is_answer(sample.value, sample.answer_kind) and key(sample) in scores]
    return max(candidates, key=lambda sample: scores[key(sample)], default=None)


def vote(samples: Sequence[Sample]) -> Sample | None:
    """The first sample with the most frequent answer of a question's, see `majority`; equal completions count."""
    winner = majority([sample.value for sample in samples], samples[0].answer_kind)
    return None if winner is None else samples[winner]


def key(sample: Sample) -> tuple[str, str]:
    """Where a sample's score stands in `Scores`."""
    return sample.id, sample.completion


def by_question(samples: Sequence[Sample]) -> list[list[Sample]]:
    """The samples of each question."""
    found: dict[str, list[Sample]] = {}
    for sample in samples:
        found.setdefault(sample.id, []).append(sample)
    return list(found.values())


def evaluate_choices(
    questions: Sequence[Sequence[Sample]], scores: Scores, k: int | None = None, unasked: int = 0
) -> dict[str, Any]:
    """Shares of the questions that are answered right by their first `k` samples, or by all.

    Args:
        questions: the samples of each.
        scores: of unique completions.
        k: how many samples are chosen among.
        unasked: questions without samples, which count as wrong.

    Returns:
        `rerank` (the completion with the highest P(correct) is right), `vote` (the most frequent answer is) and
        `upper_bound` (any completion is), each with `accuracy`, 95 % Wilson `interval`, `correct` and `total`. A
        question without an answer counts as wrong.

    Raises:
        ValueError: a question has fewer samples.
    """
    if short := [samples for samples in questions if len(samples) < (k or 0)]:
        named = ", ".join(f"`{samples[0].id}` ({len(samples)})" for samples in short[:5])
        raise ValueError(f"{len(short)} questions have fewer than {k} samples: {named}; give a smaller --k")
    first, total = [samples[:k] for samples in questions], len(questions) + unasked
    right = lambda choice: choice is not None and choice.correct
    return {
        "rerank": share(sum(right(best(samples, scores)) for samples in first), total),
        "vote": share(sum(right(vote(samples)) for samples in first), total),
        "upper_bound": share(sum(any(sample.correct for sample in samples) for samples in first), total),
    }


def evaluate_classification(samples: Sequence[Sample], scores: Scores) -> dict[str, Any]:
    """How well unique `samples` are told right from wrong, those above 0.5 being taken for right.

    There is no interval: completions of one question are not independent.

    Returns:
        `accuracy`, and `majority`, that of always naming the more frequent class; `completions` that were scored, and
        how many of them are `correct`.
    """
    scored = [sample for sample in samples if key(sample) in scores]
    told = sum((scores[key(sample)] > 0.5) == sample.correct for sample in scored)
    correct, count = sum(sample.correct for sample in scored), len(scored)
    majority = max(correct, count - correct) / count
    return {"accuracy": told / count, "majority": majority, "completions": count, "correct": correct}


def share(correct: int, total: int) -> dict[str, Any]:
    """A share with its 95 % interval, as in `summary.json`."""
    return {
        "accuracy": correct / total,
        "interval": list(wilson_interval(correct, total)),
        "correct": correct,
        "total": total,
    }
