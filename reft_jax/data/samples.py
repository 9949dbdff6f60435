"""Sampled completions as what a reward model reads: those of several files, split by question, padded, with labels.

`list[Sample]`, split by question -> unique ones -> rows of tokens -> `LabelledRows`, one batch a step. As everywhere,
lengths say which tokens are real.
"""

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Generic

import flax.struct
import numpy as np

from reft_jax.config import Overlong, TemplateConfig
from reft_jax.data.batches import ArrayT, prompt_batch
from reft_jax.data.encoding import OverlongCount, Prompt, encode_completions
from reft_jax.data.readers import question_hash
from reft_jax.problem import Problem
from reft_jax.samples.file import Sample, read_samples

if TYPE_CHECKING:
    from jaxtyping import Int
    from transformers import PreTrainedTokenizerBase


@flax.struct.dataclass
class LabelledRows(Generic[ArrayT]):
    """Rows of prompt and completion, right-padded, with what is to be told of them.

    Attributes:
        tokens: int32.
        lengths: int32, at least 1.
        labels: int32, 1 where the completion is correct, 0 where it is not; -1 in filler.
    """

    tokens: "Int[ArrayT, 'B T']"
    lengths: "Int[ArrayT, ' B']"
    labels: "Int[ArrayT, ' B']"

    @property
    def row_count(self) -> int:
        """Rows of a host batch that are not filler."""
        return int(np.sum(self.labels >= 0))

    @property
    def token_count(self) -> int:
        """Tokens of a host batch."""
        return int(np.sum(np.where(self.labels >= 0, self.lengths, 0)))


@dataclasses.dataclass(frozen=True)
class SampleSet:
    """Samples and what a reward model reads of them.

    Attributes:
        drawn: all of them.
        unique: the first of each question's equal completions.
        rows: theirs, but for dropped ones; a row's `problem` is the index of its sample in `unique`.
    """

    drawn: list[Sample]
    unique: list[Sample]
    rows: list[Prompt]

    def digest(self) -> str:
        """A hash of all that a run makes of them."""
        found = hashlib.sha256()
        for sample in self.drawn:
            found.update(repr(sample).encode())
        for row in self.rows:
            found.update(row.tokens.tobytes())
        return found.hexdigest()


def read_files(paths: Sequence[str | Path]) -> list[Sample]:
    """The samples of some files, questions in the order of their first line and each one's samples by number.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: see `read_samples`; or naming a sample whose question or gold answer is another than that of the
            samples before it with its id, or that a file before its own has too.
    """
    questions: dict[str, dict[int, Sample]] = {}
    for path in map(Path, paths):
        for sample in read_samples(path):
            others = questions.setdefault(sample.id, {})
            first = next(iter(others.values()), sample)
            if (sample.question, sample.gold) != (first.question, first.gold):
                raise ValueError(
                    f"{path}: sample {sample.sample} of `{sample.id}` has another question or gold answer than the "
                    "samples before it"
                )
            if sample.sample in others:
                raise ValueError(f"{path}: sample {sample.sample} of `{sample.id}` is in a file before this one too")
            others[sample.sample] = sample
    return [others[number] for others in questions.values() for number in sorted(others)]


def unique_samples(samples: Sequence[Sample]) -> list[Sample]:
    """The first of each question's equal completions, in their order."""
    first: dict[tuple[str, str], Sample] = {}
    for sample in samples:
        first.setdefault((sample.id, sample.completion), sample)
    return list(first.values())


def split_samples(
    samples: Sequence[Sample], fraction: float, dev: Sequence[Problem] = ()
) -> tuple[list[Sample], list[Sample]]:
    """Splits samples by question into (train, dev), as a run splits its problems.

    In dev are the questions of `dev`, a source of its own, or where there is none those that `readers.split_dev` takes.
    Where the samples have no such question, as those of a training set that dev was taken out of, dev is that share of
    their questions, at least one, whose `question_hash` is lowest.

    Args:
        samples: of any questions.
        fraction: share of the questions in dev.
        dev: problems of `data.dev`.
    """
    hashes = {sample.question: question_hash(sample.question) for sample in samples}
    ordered = sorted(set(hashes.values()))
    asked = {question_hash(problem.question) for problem in dev}
    chosen = {found for found in ordered if (found in asked if dev else found < fraction * 2.0**256)}
    chosen = chosen or set(ordered[: max(1, round(fraction * len(ordered)))])
    in_dev = [hashes[sample.question] in chosen for sample in samples]
    train = [sample for sample, dev in zip(samples, in_dev) if not dev]
    return train, [sample for sample, dev in zip(samples, in_dev) if dev]


def problem_of(sample: Sample) -> Problem:
    """What a sample answers."""
    return Problem(sample.id, sample.question, sample.gold, sample.answer_kind)


def encode_samples(
    drawn: Sequence[Sample],
    tokenizer: "PreTrainedTokenizerBase",
    templates: TemplateConfig,
    *,
    max_length: int,
    overlong: Overlong,
) -> tuple[SampleSet, OverlongCount]:
    """The unique samples as rows, see `encode_completions`, which says what is raised."""
    unique = unique_samples(drawn)
    rows, count = encode_completions(
        [problem_of(sample) for sample in unique],
        [sample.completion for sample in unique],
        tokenizer,
        templates,
        max_length=max_length,
        overlong=overlong,
        stage="reward_model",
    )
    return SampleSet(list(drawn), unique, rows), count


def labelled_batch(
    samples: SampleSet, indices: Sequence[int] | np.ndarray, batch_size: int, row_buckets: Sequence[int], pad_id: int
) -> LabelledRows[np.ndarray]:
    """The rows at `indices` as a batch of `batch_size` rows, the rest filler."""
    batch = prompt_batch(samples.rows, indices, batch_size, row_buckets, pad_id)
    labels = [samples.unique[i].correct if i >= 0 else -1 for i in batch.problem]
    return LabelledRows(batch.tokens, batch.lengths, np.asarray(labels, np.int32))
