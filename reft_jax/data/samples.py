"""Sampled completions that are told right from wrong: from files, and as padded rows with labels.

The files are those of `python -m reft_jax.sample`: JSON lines, one completion each. `list[Sample]`, split by question
-> unique ones -> rows of tokens -> `LabelledRows`, one batch a step. As everywhere, lengths say which tokens are real.
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import flax.struct
import numpy as np

from reft_jax.config import TemplateConfig
from reft_jax.data.batches import Array, Overlong, OverlongCount, Prompt, encode_completions, prompt_batch
from reft_jax.data.readers import question_hash
from reft_jax.problem import Problem

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FIELDS: dict[str, tuple[type, ...]] = {
    "id": (str,),
    "sample": (int,),
    "question": (str,),
    "gold": (str,),
    "completion": (str,),
    "outcome": (str,),
    "value": (str, int, float, type(None)),
}
"""What a line must have, and its types; other fields are not read."""


@dataclasses.dataclass(frozen=True)
class Sample:
    """One completion with its verdict.

    Attributes:
        problem: what was asked; its `id` tells questions apart.
        number: which of the question's samples it is, from 0.
        completion: the chain of thought; of a program all of it, forced header included.
        outcome: of the verdict, such as `correct`.
        value: the answer that was read, None where there was none.
    """

    problem: Problem
    number: int
    completion: str
    outcome: str
    value: str | int | float | None

    @property
    def correct(self) -> bool:
        """Whether its answer is right: the label."""
        return self.outcome == "correct"

    @property
    def answered(self) -> bool:
        """Whether it has an answer that may be chosen or voted for; in multiple choice that is one letter."""
        if self.problem.answer_kind == "choice":
            return isinstance(self.value, str) and len(self.value) == 1
        return self.value is not None


@flax.struct.dataclass
class LabelledRows:
    """Rows of prompt and completion, right-padded, with what is to be told of them.

    Attributes:
        tokens: [B, T] int32.
        lengths: [B] int32, at least 1.
        labels: [B] int32, 1 where the completion is correct, 0 where it is not; -1 in filler.
    """

    tokens: Array
    lengths: Array
    labels: Array

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
            found.update(repr((sample.problem, sample.number, sample.outcome, sample.value)).encode())
        for row in self.rows:
            found.update(row.tokens.tobytes())
        return found.hexdigest()


def read_samples(paths: Sequence[str | Path]) -> list[Sample]:
    """The samples of some files, questions in the order of their first line and each one's samples by number.

    A gold answer that is one letter makes a multiple-choice problem.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: naming the line, and the field that is missing, of a wrong type, or that an earlier line has too; or
            there are no lines at all.
    """
    questions: dict[str, dict[int, Sample]] = {}
    problems: dict[str, Problem] = {}
    for path in map(Path, paths):
        if not path.is_file():
            raise FileNotFoundError(f"no file `{path}`: samples are JSON lines, made by `python -m reft_jax.sample`")
        for place, fields in _lines(path):
            sample = _sample(fields, place)
            problem = problems.setdefault(sample.problem.id, sample.problem)
            if sample.problem != problem:
                raise ValueError(f"{place}: `{problem.id}` has another question or answer than on an earlier line")
            others = questions.setdefault(problem.id, {})
            if sample.number in others:
                raise ValueError(f"{place}: sample {sample.number} of `{sample.problem.id}` is on an earlier line too")
            others[sample.number] = dataclasses.replace(sample, problem=problem)  # held once
    if not questions:
        raise ValueError(f"no samples in {', '.join(map(str, paths))}")
    return [others[number] for others in questions.values() for number in sorted(others)]


def _lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            place = f"{path}: line {number}"
            try:
                fields = json.loads(line)
            except ValueError as error:
                raise ValueError(f"{place}: not JSON: {error}") from error
            if not isinstance(fields, dict):
                raise ValueError(f"{place}: should be a JSON object, is a {type(fields).__name__}")
            yield place, fields


def _sample(fields: dict[str, Any], place: str) -> Sample:
    for name, types in FIELDS.items():
        if name not in fields:
            raise ValueError(f"{place}: field `{name}` is missing; there are {', '.join(fields)}")
        if not isinstance(fields[name], types) or isinstance(fields[name], bool):
            raise ValueError(f"{place}: field `{name}` is {fields[name]!r:.100}, of type {type(fields[name]).__name__}")
    gold = fields["gold"].strip(" \n'\"")
    kind = "choice" if len(gold) == 1 and gold.isalpha() else "number"
    problem = Problem(fields["id"], fields["question"], fields["gold"], kind)  # type: ignore[arg-type]
    return Sample(problem, fields["sample"], fields["completion"], fields["outcome"], fields["value"])


def unique_samples(samples: Sequence[Sample]) -> list[Sample]:
    """The first of each question's equal completions, in their order."""
    first: dict[tuple[str, str], Sample] = {}
    for sample in samples:
        first.setdefault((sample.problem.id, sample.completion), sample)
    return list(first.values())


def split_samples(samples: Sequence[Sample], fraction: float) -> tuple[list[Sample], list[Sample]]:
    """Splits samples by question into (train, dev), as `readers.split_dev` splits problems with this `fraction`.

    Where it has none in dev, as in samples of a training set that dev was taken out of, dev is that share of the
    questions, at least one, whose `question_hash` is lowest.
    """
    hashes = {sample.problem.question: question_hash(sample.problem.question) for sample in samples}
    limit, ordered = fraction * 2.0**256, sorted(set(hashes.values()))
    if ordered[0] >= limit:
        limit = ([*ordered, math.inf])[max(1, round(fraction * len(ordered)))]
    in_dev = [hashes[sample.problem.question] < limit for sample in samples]
    train = [sample for sample, dev in zip(samples, in_dev) if not dev]
    return train, [sample for sample, dev in zip(samples, in_dev) if dev]


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
        [sample.problem for sample in unique],
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
) -> LabelledRows:
    """The rows at `indices` as a batch of `batch_size` rows, the rest filler."""
    batch = prompt_batch(samples.rows, indices, batch_size, row_buckets, pad_id)
    labels = [samples.unique[i].correct if i >= 0 else -1 for i in batch.problem]
    return LabelledRows(batch.tokens, batch.lengths, np.asarray(labels, np.int32))
