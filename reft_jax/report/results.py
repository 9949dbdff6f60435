"""What a run achieved: accuracies with intervals, paired against the warm-up; what it was made with, and its time."""

import dataclasses
import datetime
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from reft_jax.config import Config, to_dict
from reft_jax.records.console import MODELS
from reft_jax.report.curves import costs, flat
from reft_jax.report.folder import LEARNED, STAGES, Completion, Moment, RunFolder
from reft_jax.samples.file import left_out
from reft_jax.samples.measures import Measure, measure, read_answers
from reft_jax.samples.statistics import sign_test

LATEST = "latest"
"""The row of the newest evaluation, where it is of no model that was kept."""


@dataclasses.dataclass(frozen=True)
class Pairing:
    """A model beside the warm-up on the same questions."""

    gained: int
    lost: int
    both: int
    neither: int
    p_value: float
    """Of the two-sided sign test."""


@dataclasses.dataclass(frozen=True)
class Result:
    """A row of the final table; what the records do not have is None."""

    model: str
    split: str
    when: str
    accuracy: float | None
    low: float | None
    high: float | None
    correct: int | None
    total: int | None
    reward: float | None
    pairing: Pairing | None
    dev_accuracy: float | None
    examples: float | None
    seconds: float | None


@dataclasses.dataclass(frozen=True)
class MeanResult:
    """The mean accuracy of a model over the runs of a method, the lowest and the highest of them, and their number."""

    model: str
    split: str
    accuracy: float
    low: float
    high: float
    runs: int


@dataclasses.dataclass(frozen=True)
class Phase:
    """What a part of a run took."""

    stage: str
    phase: str
    seconds: float


@dataclasses.dataclass(frozen=True)
class Setting:
    """A setting that is not the default in some run; the values are JSON texts, one a run."""

    key: str
    default: str
    values: list[str]

    @property
    def differs(self) -> bool:
        """Whether the runs differ in it."""
        return len(set(self.values)) > 1


@dataclasses.dataclass(frozen=True)
class Votes:
    """maj@k and pass@k of a file of samples: for each k value and interval."""

    name: str
    questions: int
    left_out: int
    rows: list[tuple[int, Measure, Measure]]


def pairing(before: Sequence[Completion], after: Sequence[Completion]) -> Pairing | None:
    """What `after` gained and lost on the questions with a gold answer that both were asked; None without any."""
    known = {(c.id, c.question): c.correct for c in before if c.outcome != "no_gold"}
    pairs = [
        (known[c.id, c.question], c.correct) for c in after if (c.id, c.question) in known and c.outcome != "no_gold"
    ]
    if not pairs:
        return None
    count = lambda *pair: pairs.count(pair)
    gained, lost = count(False, True), count(True, False)
    return Pairing(gained, lost, count(True, True), count(False, False), sign_test(gained, lost))


def against_first(runs: Sequence[RunFolder]) -> list[Pairing | None]:
    """What the model that each further run is for gained and lost on test against that of the first."""

    def last(run: RunFolder) -> list[Completion]:
        wanted = [moment for moment in (*run.before, *run.after) if moment.split == "test"][-1:]
        return [completion for completion in run.completions if completion.moment in wanted]

    first = last(runs[0])
    return [pairing(first, last(run)) for run in runs[1:]]


def by_moment(run: RunFolder) -> dict[Moment, list[Completion]]:
    """The completions of a run by moment, in order of time."""
    found: dict[Moment, list[Completion]] = {moment: [] for moment in run.moments}
    for completion in run.completions:
        found[completion.moment].append(completion)
    return found


def model_steps(run: RunFolder) -> dict[str, int]:
    """The run's step of each model that it has made, by its name in `console.MODELS`."""
    warmup, last = run.warmup_step, run.last_step("sft")
    found = {} if warmup is None else {"warmup": warmup, **({"sft": last} if last > warmup else {})}
    return {**found, **{name: step for name, step in run.best.items() if name in MODELS}}


def results(run: RunFolder) -> list[Result]:
    """The final table: the models read on test; where test has not been read those on dev, and the newest."""
    steps, dev = model_steps(run), {r["step"]: r for r in run.metrics if "eval/reward_mean" in r}
    tested = {name: r for r in run.metrics for name in MODELS if f"test/{name}/reward_mean" in r}
    read = tested or {name: dev[steps[name]] for name in MODELS if steps.get(name) in dev}
    if not tested and dev and max(dev) not in {record["step"] for record in read.values()}:
        read[LATEST] = dev[max(dev)]
    order = [name for name in (*MODELS, LATEST) if name in read]
    own, split = by_moment(run), "test" if tested else "dev"
    asked = {name: own.get(Moment(split, read[name]["stage"], read[name]["step"]), []) for name in order}
    return [
        _result(run, name, split, read[name], asked, dev, steps.get(name, 0) if tested else read[name]["step"])
        for name in order
    ]


def _result(
    run: RunFolder,
    name: str,
    split: str,
    record: Mapping[str, Any],
    asked: Mapping[str, Sequence[Completion]],
    dev: Mapping[int, Mapping[str, Any]],
    step: int,
) -> Result:
    """The row of a model, read as a record says, and made at a step of the run; 0 is not known."""
    facts, completions = (run.summary or {}).get(name, {}), asked[name]
    prefix = f"test/{name}" if split == "test" else "eval"
    accuracy = record.get(f"{prefix}/accuracy")
    correct = sum(completion.correct for completion in completions)
    answered = sum(completion.outcome != "no_gold" for completion in completions)
    # Questions that were too long to be asked count too, and have no completion.
    total = facts.get("total") or (round(correct / accuracy) if correct and accuracy else answered)
    examples, seconds = costs(run).get(step, (None, None))
    return Result(
        model=LATEST if name == LATEST else run.label(name),
        split=split,
        when=run.when(step) if step else "",
        accuracy=accuracy,
        low=record.get(f"{prefix}/interval_low"),
        high=record.get(f"{prefix}/interval_high"),
        correct=None if accuracy is None else correct,
        total=None if accuracy is None else total,
        reward=record.get(f"{prefix}/reward_mean"),
        pairing=pairing(asked.get("warmup", []), completions) if name != "warmup" else None,
        dev_accuracy=dev.get(step, {}).get("eval/accuracy"),
        examples=facts.get("examples", examples),
        seconds=facts.get("seconds", seconds),
    )


def mean_results(runs: Sequence[RunFolder]) -> list[MeanResult]:
    """What the models of some runs reach together, on the set that all of them were read on."""
    rows = [row for run in runs for row in results(run) if row.accuracy is not None]
    found = []
    for model, split in dict.fromkeys((row.model, row.split) for row in rows):
        values = [row.accuracy for row in rows if (row.model, row.split) == (model, split) and row.accuracy is not None]
        if len(values) == len(runs):
            found.append(MeanResult(model, split, statistics.fmean(values), min(values), max(values), len(values)))
    return found


def status(run: RunFolder) -> str:
    """How far a run is, in a sentence."""
    if run.summary is not None:
        reason = run.summary.get("collapse")
        return f"finished; reinforcement ended early: {reason}" if reason else "finished"
    steps = [record for record in run.metrics if LEARNED in record]
    if not steps:
        return "no step is recorded yet"
    return f"not finished: {run.when(steps[-1]['step'])}, step {steps[-1]['step']:,}"


def phases(run: RunFolder) -> list[Phase]:
    """Seconds by stage and phase, as recorded; and those at work besides, where begin and end are known."""
    found = []
    total = lambda rows, name: sum(record.get(name, 0.0) for record in rows)
    for stage in run.stages:
        records = [record for record in run.metrics if record["stage"] == stage]
        rest = total(records, "time/step_s")
        if stage == "rl":
            named = {"sampling": "rollout", "rewards": "reward", "scoring": "experience", "updates": "update"}
            parts = {phase: total(records, f"time/{name}_s") for phase, name in named.items()}
            found += [Phase(STAGES.get(stage, stage), phase, seconds) for phase, seconds in parts.items()]
            rest -= sum(parts.values())
        else:
            found.append(Phase(STAGES.get(stage, stage), "steps", rest))
        found.append(Phase(STAGES.get(stage, stage), "evaluations on dev", total(records, "time/evaluation_s")))
    work = [_seconds(attempt) for attempt in run.info.get("attempts", [])]
    known = [seconds for seconds in work if seconds is not None]
    if known and len(known) == len(work):
        besides = sum(known) - sum(phase.seconds for phase in found)
        found.append(Phase("", "everything else", max(0.0, besides)))
    return [phase for phase in found if phase.seconds]


def _seconds(attempt: Mapping[str, Any]) -> float | None:
    """How long one attempt was at work; None where its end is not known."""
    if not attempt.get("ended"):
        return None
    began, ended = (datetime.datetime.fromisoformat(attempt[name]) for name in ("started", "ended"))
    return (ended - began).total_seconds()


def settings(runs: Sequence[RunFolder]) -> list[Setting]:
    """The settings in which some run is not as the defaults are, but for its folder."""
    defaults = flat(to_dict(Config()))
    own = [flat(run.config) for run in runs]
    text = lambda value: json.dumps(value, ensure_ascii=False)
    found = []
    for key in dict.fromkeys(key for values in (defaults, *own) for key in values):
        values = [text(values.get(key, defaults.get(key))) for values in own]
        default = text(defaults.get(key))
        if key != "run_dir" and any(value != default for value in values):
            found.append(Setting(key, default, values))
    return found


def votes(path: Path) -> Votes:
    """maj@k and pass@k of a file of samples, for k = 1, 2, 4, ... and all.

    Raises:
        FileNotFoundError, ValueError: see `samples.read_samples`.
    """
    answers, unasked = read_answers(path), len(left_out(path))
    fewest = min(len(answer.values) for answer in answers.values())
    ks = sorted({*(2**power for power in range(fewest.bit_length())), fewest})
    measures = measure(answers, ks, unasked)
    rows = [(k, measures[f"maj@{k}"], measures[f"pass@{k}"]) for k in ks]
    return Votes(path.name, len(answers) + unasked, unasked, rows)
