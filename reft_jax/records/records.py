"""The records of a run: where they are written, and how they are cut back on a resume.

The last stop of every batch: the loop hands over plain floats and nothing comes back. Process 0 writes, the others
only check names, so that a mistake stops all of them alike. All records carry `step`, the run's own count of steps
through all its stages, which is what a checkpoint is numbered by: a resume keeps the records up to its step.

    metrics.jsonl      one line a step: {"step": 12, "stage": "rl", "reward/mean": 0.41, ...}
    evaluations.jsonl  one line a problem of an evaluation
    rollouts.jsonl     one line a sampled completion

The scalars of metrics.jsonl go to `trackers` too.

JSON has no number for what is not finite: such a float is written as the string "nan", "inf" or "-inf", which
Python's `float` reads back.
"""

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from reft_jax.files import json_object, replacing, write_whole
from reft_jax.records.metrics import METRICS, documented
from reft_jax.records.trackers import Trackers

RECORD_FILES = ("metrics.jsonl", "evaluations.jsonl", "rollouts.jsonl")
"""The files of a run directory that a resume cuts back; other JSONL files there are left alone."""


class MetricsWriter:
    """Appends a run's records to its folder, and cuts back what an earlier, interrupted attempt left there.

    Args:
        run_dir: the run's folder; made where it is missing.
        write: whether this process writes (process 0 does); the others only check what they are given.
        trackers: names of the trackers that get the scalars too, see `trackers`.
        project: what they call the project.
        settings: of the run, nested, which they show.
        resume_step: step of the checkpoint that the run continues from; records after it are removed. None begins the
            run afresh: records left by an attempt that was interrupted before its first checkpoint are all removed.
        evaluated: whether that checkpoint was written after its step's evaluation; if not, this one's records are
            removed too.

    Raises:
        ValueError: a record file holds a line that cannot be read (see `cut_back`), or a tracker cannot begin.
    """

    def __init__(
        self,
        run_dir: Path,
        *,
        write: bool,
        resume_step: int | None,
        evaluated: bool = True,
        trackers: Sequence[str] = (),
        project: str = "reft_jax",
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self._run_dir = run_dir
        self._writes = write
        if not write:
            return
        run_dir.mkdir(parents=True, exist_ok=True)
        last_step = -1 if resume_step is None else resume_step
        removed = {name: cut_back(run_dir / name, last_step, evaluated=evaluated) for name in RECORD_FILES}
        repeated: dict[int, set[str]] = {}
        for record in removed["metrics.jsonl"]:
            repeated.setdefault(record["step"], set()).update(record)
        self._trackers = Trackers(
            trackers,
            run_dir,
            project=project,
            settings=settings or {},
            first_step=last_step + 1,
            repeated=repeated,
        )

    def write(self, step: int, stage: str, metrics: Mapping[str, float]) -> None:
        """Appends one line to `metrics.jsonl`, and hands the scalars to the trackers.

        Args:
            step: the run's step, counted through all stages.
            stage: such as `sft` or `rl`.
            metrics: numbers by their names in `METRICS`.

        Raises:
            KeyError: a name is not in `METRICS`.
        """
        unknown = sorted(name for name in metrics if documented(name) not in METRICS)
        if unknown:
            raise KeyError(
                f"undocumented metric {', '.join(unknown)}: define it in METRICS (reft_jax/records/metrics.py) "
                "and run `python -m docs.generate`, which writes docs/metrics.md"
            )
        if not self._writes:
            return
        values = {name: float(value) for name, value in metrics.items()}
        append_records(self._run_dir / "metrics.jsonl", [{"step": step, "stage": stage, **values}])
        self._trackers.log(step, values)

    def append(self, kind: Literal["evaluations", "rollouts"], records: Sequence[Mapping[str, object]]) -> None:
        """Appends records, each with its `step`, to `evaluations.jsonl` or `rollouts.jsonl` (see `append_records`)."""
        if self._writes:
            append_records(self._run_dir / f"{kind}.jsonl", records)

    def write_summary(self, summary: Mapping[str, object]) -> None:
        """Writes `summary.json`, which says that the run is finished; it is there as a whole or not at all."""
        if self._writes:
            write_whole(self._run_dir / "summary.json", json.dumps(summary, indent=2) + "\n")

    def flush(self) -> None:
        """Forces records to the disk: called before a checkpoint is committed, so that none before it is lost."""
        if not self._writes:
            return
        for name in RECORD_FILES:
            path = self._run_dir / name
            if path.exists():
                with path.open("ab") as file:
                    os.fsync(file.fileno())
        self._trackers.flush()

    def close(self, *, failed: bool = False) -> None:
        """Flushes and ends writing; nothing may be written afterwards. `failed`: an error ended the run."""
        self.flush()
        if self._writes:
            self._writes = False
            self._trackers.close(failed=failed)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(failed=kind is not None and issubclass(kind, Exception))  # who asks a run to stop makes no error


def append_records(path: Path, records: Iterable[Mapping[str, object]]) -> None:
    """Appends one JSON line a record; a float that is not finite becomes "nan", "inf" or "-inf", at any depth.

    Raises:
        ValueError: a record has no integer `step`; nothing is written then.
    """
    lines = []
    for record in records:
        if not isinstance(record.get("step"), int):
            raise ValueError(f"{path}: record without an integer step: {record!r:.200}; give it the run's step")
        lines.append(json.dumps(json_value(record), allow_nan=False) + "\n")
    with path.open("a", encoding="utf-8") as file:
        file.write("".join(lines))


def cut_back(path: Path, step: int, *, evaluated: bool = True) -> list[dict[str, Any]]:
    """Removes the records after `step` from a JSONL file, and a last line that an interruption tore.

    Where the step was not `evaluated`, the records of its evaluation are removed as well.

    The file is replaced as a whole, so that an interruption here loses nothing. A missing file is left missing.

    Returns:
        The records that were removed, without a torn one.

    Raises:
        ValueError: a line other than a torn last one is not a JSON object with an integer `step`.
    """
    removed: list[dict[str, Any]] = []
    if not path.exists():
        return removed
    with path.open("rb") as source, replacing(path) as kept:
        for number, line in enumerate(source, start=1):
            record = _record(line, f"{path}, line {number}")
            if record is not None and (record["step"], _of_evaluation(record)) <= (step, evaluated):
                # The last record may be whole and lack only its line break.
                kept.write(line.rstrip(b"\n") + b"\n")
            elif record is not None:
                removed.append(record)
    return removed


def _record(line: bytes, where: str) -> dict[str, Any] | None:
    """The record of a line; None where the line is torn: no JSON object, and without its line break."""
    try:
        record = json_object(line, where)
    except ValueError as error:  # JSON that is broken, or a character that is
        if not line.endswith(b"\n"):
            return None
        raise ValueError(f"{error}; mend or delete this line and start again") from error
    if not isinstance(record.get("step"), int):
        raise ValueError(f"{where}: not a record with an integer step; mend or delete this line and start again")
    return record


def _of_evaluation(record: Mapping[str, Any]) -> bool:
    """Whether a record was made by the evaluation after its step."""
    return not {"split", "eval/accuracy", "eval/reward_mean", "rerank/accuracy"}.isdisjoint(record)


def json_value(value: object) -> object:
    """`value` with each float that JSON cannot hold replaced by its name, and halves of surrogate pairs by theirs.

    A program may return such a half, and `files.json_lines` refuses it.
    """
    if isinstance(value, str):
        return value.encode(errors="backslashreplace").decode()
    if isinstance(value, float) and not math.isfinite(value):
        return str(float(value))
    if isinstance(value, Mapping):
        return {key: json_value(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_value(item) for item in value]
    return value
