"""What a reward model is worth: choosing among a question's completions, beside voting and the best that could be."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from reft_jax.config import RewardModelConfig
from reft_jax.data.batches import evaluation_batches
from reft_jax.data.samples import SampleSet
from reft_jax.models.params import Params
from reft_jax.parallel.compilation import CompiledSteps
from reft_jax.parallel.dispatch import one_ahead
from reft_jax.parallel.sharding import batch_shardings, to_global
from reft_jax.samples.file import Sample
from reft_jax.samples.statistics import wilson_interval
from reft_jax.samples.voting import is_answer, majority

CorrectProbs = Mapping[tuple[str, str], float]
"""P(correct) by the id of the question and the completion; one that was not classified, being too long, is missing."""


def correct_probs(
    compiled: CompiledSteps,
    params: Params,
    samples: SampleSet,
    settings: RewardModelConfig,
    *,
    mesh: Mesh,
    pad: int,
    check: Callable[[], None] = lambda: None,
) -> CorrectProbs:
    """P(correct) of each unique completion, `reward_model.microbatch_size` at a time.

    Args:
        compiled: has the step `classify`.
        params: {"decoder", "class_head"}.
        samples: all but dropped ones are classified.
        settings: batch size and buckets.
        mesh: where the steps run.
        pad: id that fills rows.
        check: called before each batch; may raise.
    """

    def dispatched() -> Iterator[tuple[np.ndarray, jax.Array]]:
        size, buckets = settings.microbatch_size, settings.row_buckets
        for batch in evaluation_batches(samples.rows, batch_size=size, prompt_buckets=buckets, pad_id=pad):
            check()
            rows = (batch.tokens, batch.lengths)
            classify = compiled.get("classify", batch.tokens.shape[1])
            yield batch.problem, classify(params, *to_global(rows, batch_shardings(rows, mesh)))

    found = np.zeros(len(samples.unique))
    for row, probs in one_ahead(dispatched()):
        found[row[row >= 0]] = np.asarray(probs)[row >= 0]
    return {key(samples.unique[row.problem]): float(found[row.problem]) for row in samples.rows}


def best(samples: Sequence[Sample], probs: CorrectProbs) -> Sample | None:
    """The sample with the highest probability, the first of equals, of those that are classified and have an answer."""
    candidates = [sample for sample in samples if is_answer(sample.value, sample.answer_kind) and key(sample) in probs]
    return max(candidates, key=lambda sample: probs[key(sample)], default=None)


def vote(samples: Sequence[Sample]) -> Sample | None:
    """The first sample with the most frequent answer of a question's, see `majority`; equal completions count."""
    winner = majority([sample.value for sample in samples], samples[0].answer_kind)
    return None if winner is None else samples[winner]


def key(sample: Sample) -> tuple[str, str]:
    """Where a sample stands in `CorrectProbs`."""
    return sample.id, sample.completion


def by_question(samples: Sequence[Sample]) -> list[list[Sample]]:
    """The samples of each question."""
    found: dict[str, list[Sample]] = {}
    for sample in samples:
        found.setdefault(sample.id, []).append(sample)
    return list(found.values())


def require_samples(questions: Sequence[Sequence[Sample]], k: int | None) -> None:
    """Refuses to choose among `k` samples where a question has fewer; None asks for no number.

    Raises:
        ValueError: naming the questions.
    """
    if short := [samples for samples in questions if len(samples) < (k or 0)]:
        named = ", ".join(f"`{samples[0].id}` ({len(samples)})" for samples in short[:5])
        raise ValueError(f"{len(short)} questions have fewer than {k} samples: {named}; give a smaller --k")


def evaluate_choices(
    questions: Sequence[Sequence[Sample]], probs: CorrectProbs, k: int | None = None, unasked: int = 0
) -> dict[str, Any]:
    """Shares of the questions that are answered right by their first `k` samples, or by all.

    Args:
        questions: the samples of each.
        probs: of unique completions.
        k: how many samples are chosen among.
        unasked: questions without samples, which count as wrong.

    Returns:
        `rerank` (the completion with the highest P(correct) is right), `vote` (the most frequent answer is) and
        `upper_bound` (any completion is), each with `accuracy`, 95 % Wilson `interval`, `correct` and `total`. A
        question without an answer counts as wrong.

    Raises:
        ValueError: a question has fewer samples.
    """
    require_samples(questions, k)
    first, total = [samples[:k] for samples in questions], len(questions) + unasked
    right = lambda choice: choice is not None and choice.correct
    return {
        "rerank": share(sum(right(best(samples, probs)) for samples in first), total),
        "vote": share(sum(right(vote(samples)) for samples in first), total),
        "upper_bound": share(sum(any(sample.correct for sample in samples) for samples in first), total),
    }


def evaluate_classification(samples: Sequence[Sample], probs: CorrectProbs) -> dict[str, Any]:
    """How well unique `samples` are told right from wrong, those above 0.5 being taken for right.

    There is no interval: completions of one question are not independent.

    Returns:
        `accuracy`, and `majority`, that of always naming the more frequent class; `completions` that were
        classified, and how many of them are `correct`.
    """
    classified = [sample for sample in samples if key(sample) in probs]
    told = sum((probs[key(sample)] > 0.5) == sample.correct for sample in classified)
    correct, count = sum(sample.correct for sample in classified), len(classified)
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
