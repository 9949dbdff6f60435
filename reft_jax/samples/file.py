"""The file of samples: one JSON object a completion, in an order that is fixed beforehand, and settings beside it.

`sample` writes it; `select`, `evaluate`, `reward_model` and the audit `reft_jax.reward` read it. A file that was
interrupted is cut back to its last whole batch and continued; FILE.settings.json says what it was made with: nothing
else may join it.
"""

import dataclasses
import fcntl
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, get_args

from reft_jax.config import differences
from reft_jax.files import json_lines, json_object, write_whole
from reft_jax.problem import AnswerKind
from reft_jax.records.records import json_value
from reft_jax.reward.answers import likely_answer_kind

FIELDS = (
    *("id", "sample", "question", "gold", "answer_kind", "completion", "outcome", "reward", "value", "suspicious"),
    *("tokens", "ended", "log_prob"),
)
"""The fields of a line, in this order."""

Value = str | int | float | None


@dataclasses.dataclass(frozen=True)
class Sample:
    """A line as it is read back.

    Attributes:
        id: of the problem.
        sample: which of the problem's samples this is, from 0.
        question, gold: the problem's.
        answer_kind: of `gold`; in older files one letter makes a choice, as in the audit.
        completion: its text, of a program all of it.
        correct: whether its outcome is `correct`.
        value: the answer that was read, the same number, to the last digit, that it was when it was written.
    """

    id: str
    sample: int
    question: str
    gold: str
    answer_kind: AnswerKind
    completion: str
    correct: bool
    value: Value


class SampleFile:
    """A file of samples that is being written, by one process; a context manager that closes it.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: BinaryIO | None = None

    def begin(self, settings: Mapping[str, Any], order: Sequence[tuple[str, int]], batch_size: int) -> int:
        """Takes the file, keeps of it what is whole, and returns the number of lines that are there.

        That is a multiple of `batch_size`, so that what follows is sampled in the same batches as without the
        interruption, or all lines.

        Args:
            settings: what determines the lines.
            order: problem id and sample of all lines.
            batch_size: lines that are appended together.

        Raises:
            OSError: another process writes to it.
            ValueError: it was begun with other settings, which are named, or is no file of samples.
        """
        beside = settings_path(self._path)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._path.open("a+b")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OSError(f"{self._path} is being written by another process: wait for it, or name another") from None
        if self._path.stat().st_size:
            old = read_settings(self._path)
            if old is None:
                raise ValueError(f"{self._path} is not empty, and there is no {beside}: name a fresh file")
            if changed := differences(old, json.loads(json.dumps(settings))):
                raise ValueError(
                    f"{self._path} holds samples of other settings ({', '.join(changed)}): name a fresh file"
                )
        else:
            write_whole(beside, json.dumps(settings, indent=2) + "\n")
        return self._cut_back(order, batch_size)

    def append(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Writes lines and forces them to the disk; does nothing in a process that has not begun the file."""
        if self._file is not None:
            lines = (json.dumps(json_value({name: record[name] for name in FIELDS})) + "\n" for record in records)
            self._file.write("".join(lines).encode())
            self._file.flush()
            os.fsync(self._file.fileno())

    def _cut_back(self, order: Sequence[tuple[str, int]], batch_size: int) -> int:
        assert self._file is not None
        self._file.seek(0)
        ends = [0]  # bytes up to the end of each whole line
        for line in self._file:
            if not line.endswith(b"\n"):
                break
            place = f"{self._path}, line {len(ends)}"
            record = json_object(line, place)
            found = record.get("id"), record.get("sample")
            if len(ends) > len(order) or found != order[len(ends) - 1]:
                expected = order[len(ends) - 1] if len(ends) <= len(order) else "the end"
                raise ValueError(f"{place}: {found} stands where {expected} should: name a fresh file")
            ends.append(ends[-1] + len(line))
        lines = len(ends) - 1
        whole = lines if lines == len(order) else lines - lines % batch_size
        if self._path.stat().st_size != ends[whole]:
            self._file.truncate(ends[whole])
        return whole

    def __enter__(self) -> "SampleFile":
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()


def settings_path(path: Path) -> Path:
    """Where the settings of a file of samples are."""
    return path.with_suffix(".settings.json")


def read_settings(path: Path) -> dict[str, Any] | None:
    """The settings beside a file of samples, or None."""
    beside = settings_path(path)
    return json.loads(beside.read_text(encoding="utf-8")) if beside.exists() else None


def read_samples(path: Path) -> Iterator[Sample]:
    """Yields the samples of a file that is whole, but for those of questions without a gold answer.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: naming the line and the field of what is missing or of a wrong type; or the file is empty, or has
            fewer lines than its settings promise: it was interrupted, and what it lacks is no random part; or no
            question has a gold answer, so that no sample is right or wrong.
    """
    if not path.exists():
        raise FileNotFoundError(f"there is no file {path}: give one that the command `sample` wrote")
    seen: set[tuple[str, int]] = set()
    answered = False
    for _, place, record in json_lines(path):
        sample = _sample(record, place)
        if (sample.id, sample.sample) in seen:
            raise ValueError(f"{place}: sample {sample.sample} of `{sample.id}` stands twice")
        seen.add((sample.id, sample.sample))
        if sample.answer_kind != "none":
            answered = True
            yield sample
    if seen and not answered:
        raise ValueError(
            f"{path}: none of its questions has a gold answer, so that no sample is right or wrong: there is "
            "nothing to vote for, to choose or to learn by"
        )
    if not seen:
        raise ValueError(f"{path}: holds no samples")
    settings = read_settings(path)
    if settings and len(seen) != settings["lines"]:
        raise ValueError(
            f"{path}: holds {len(seen):,} of {settings['lines']:,} samples: run the command that made it again, which "
            "continues it"
        )


def left_out(path: Path) -> list[str]:
    """Ids of the problems that were to be asked and have no samples, since their prompts were too long."""
    return (read_settings(path) or {}).get("left_out", [])


def _sample(record: Mapping[str, Any], place: str) -> Sample:
    texts = dict.fromkeys(("id", "question", "gold", "completion", "outcome"), (str,))
    for name, kinds in {**texts, "sample": (int,), "value": (str, int, float, type(None))}.items():
        if name not in record:
            raise ValueError(f"{place}: field `{name}` is missing; there are {', '.join(record)}")
        if not isinstance(record[name], kinds) or isinstance(record[name], bool):
            raise ValueError(f"{place}: field `{name}` is a {type(record[name]).__name__}")
    gold, value = record["gold"], record["value"]
    kind = record.get("answer_kind", likely_answer_kind(gold))
    if kind not in get_args(AnswerKind):
        raise ValueError(f"{place}: field `answer_kind` is {kind!r}; there are {', '.join(get_args(AnswerKind))}")
    if isinstance(value, str) and kind == "number":
        try:
            value = float(value)  # a float that JSON cannot hold: nan, inf or -inf
        except ValueError as error:
            raise ValueError(f"{place}: field `value` is {value!r}, and the gold answer {gold!r} a number") from error
    return Sample(
        id=sys.intern(record["id"]),  # held once, and not once a line
        sample=record["sample"],
        question=sys.intern(record["question"]),
        gold=sys.intern(gold),
        answer_kind=kind,
        completion=record["completion"],
        correct=record["outcome"] == "correct",
        value=value,
    )
