"""What a run left behind, read while it may still be written: settings, metrics, and the completions that are shown."""

import dataclasses
import functools
import json
import math
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from reft_jax.config.files import read_yaml
from reft_jax.files import json_line, json_object, numbered_lines
from reft_jax.records.console import MODELS, model_label

MOMENTS = 12
"""Evaluations on dev whose completions are shown, at most, the warm-up's and those of the chosen models among them."""

STAGES = {"pretrain": "pretraining", "sft": "SFT", "rl": "reinforcement", "reward_model": "reward model"}
"""What stages are called."""

LEARNED = "optimizer/learning_rate"
"""A metric of the records of all steps that learn, and of no other."""

SUPERVISED = ("pretrain", "sft", "reward_model")
"""Stages whose steps are optimizer steps on given texts."""


class Moment(NamedTuple):
    """When a model answered: at one evaluation, or in one iteration of reinforcement."""

    split: str
    """`dev` or `test`; `train` for what was sampled to learn from."""
    model: str
    """The stage, or, of test, a name of `console.MODELS`."""
    step: int
    """The run's."""


SCORES = ("value", "advantage", "log_ratio")
"""What records may have of each token."""


@dataclasses.dataclass(frozen=True, slots=True)
class Tokens:
    """A completion token by token; `head` is what it has before the first, and each list of scores has one a token."""

    head: str
    texts: Sequence[str]
    scores: Mapping[str, Sequence[float | None]]


@dataclasses.dataclass(frozen=True, slots=True)
class Completion:
    """A judged completion, as the records have it; `detail` says why there is no answer, where that is known."""

    moment: Moment
    id: str
    question: str
    gold: str
    text: str
    outcome: str
    reward: float
    value: str
    suspicious: bool | None
    tokens: int
    ended: bool
    detail: str
    functions: Mapping[str, float | None]
    scored: Tokens | None = None

    @property
    def correct(self) -> bool:
        """Whether its answer is right."""
        return self.outcome == "correct"

    @property
    def cause(self) -> str:
        """Why it is not right: the outcome, of an exception its kind; empty where it is right or nothing could be."""
        if self.outcome in ("correct", "no_gold"):
            return ""
        kind = re.match(r"[A-Za-z_][\w.]*(?=:)", self.detail)
        return f"{self.outcome}: {kind[0]}" if self.outcome == "error" and kind else self.outcome


@dataclasses.dataclass(frozen=True)
class RunFolder:
    """One run as it is on the disk now.

    Attributes:
        path: its folder.
        name: of the folder, told from those of the other runs.
        config: `config.yaml`; empty where it is missing.
        info: `run.json`; empty where it is missing.
        summary: `summary.json`; None where the run is not finished.
        metrics: the lines of `metrics.jsonl`, numbers that are not finite as NaN or infinity.
        completions: on test, on dev at some `MOMENTS`, and of the iterations that were recorded.
        best: the run's step of the models that were chosen, by their name.
        left_out: evaluations on dev that are not among the completions.
    """

    path: Path
    name: str
    config: Mapping[str, Any]
    info: Mapping[str, Any]
    summary: Mapping[str, Any] | None
    metrics: Sequence[Mapping[str, Any]]
    completions: Sequence[Completion]
    best: Mapping[str, int]
    left_out: int

    @property
    def algorithm(self) -> str:
        """Of reinforcement."""
        return str(self.setting("rl", "algorithm") or "ppo")

    def setting(self, section: str, key: str) -> Any:
        """A setting; None where it is not written."""
        return (self.config.get(section) or {}).get(key)

    @functools.cached_property
    def stages(self) -> dict[str, int]:
        """The stages that trained, in order, each with its last step so far."""
        return {r["stage"]: r["step"] for r in self.metrics if LEARNED in r}

    def last_step(self, *stages: str) -> int:
        """The last step of any of the stages; 0 where there is none."""
        return max((self.stages.get(stage, 0) for stage in stages), default=0)

    @functools.cached_property
    def warmup_step(self) -> int | None:
        """The run's step at which the warm-up was over; None where there was none, or it is not over."""
        epoch = self.setting("sft", "warmup_epoch")
        steps = (r["step"] for r in self.metrics if r["stage"] == "sft" and r.get("run/epoch") == epoch)
        return next(steps, None)

    @functools.cached_property
    def rl_offset(self) -> int:
        """The run's step before the first iteration of reinforcement."""
        first = next((r["step"] for r in self.metrics if r["stage"] == "rl"), None)
        return self.last_step(*SUPERVISED) if first is None else first - 1

    @property
    def chosen_on_test(self) -> bool:
        """Whether models were chosen by the test set itself."""
        return any(isinstance(model, dict) and model.get("test_best") for model in (self.summary or {}).values())

    def label(self, model: str) -> str:
        """What a model of `console.MODELS` is called."""
        return model_label(model, self.algorithm, test_best=self.chosen_on_test)

    def when(self, step: int) -> str:
        """A step of the run in its stage's own count."""
        if step > self.rl_offset and self.last_step("rl"):
            return f"iteration {step - self.rl_offset:,}"
        record = next((r for r in self.metrics if r["step"] == step and "run/epoch" in r), None)
        if record is None:
            return f"step {step:,}"
        stage = record["stage"]
        return f"{STAGES.get(stage, stage)} epoch {record['run/epoch']:.4g}"

    def describe(self, moment: Moment) -> str:
        """What is shown of a moment."""
        if moment.split == "test":
            return self.label(moment.model) if moment.model in MODELS else moment.model
        names = [self.label(name) for name, step in self.best.items() if step == moment.step and name in MODELS]
        if moment.split == "dev" and moment.step == self.warmup_step:
            names.insert(0, self.label("warmup"))
        return ", ".join([self.when(moment.step), *(names if moment.split == "dev" else [])])

    @functools.cached_property
    def before(self) -> Sequence[Moment]:
        """The moments of the warm-up, on test and on dev."""
        return [
            moment
            for moment in self.moments
            if (moment.split, moment.model) == ("test", "warmup")
            or (moment.split == "dev" and moment.step == self.warmup_step)
        ]

    @functools.cached_property
    def after(self) -> Sequence[Moment]:
        """The moments of what the run is for, on test and on dev: the chosen model, else the last that was asked."""
        best = next((name for name in ("rl_best", "sft_best") if name in self.best), None)
        found = {}
        for split, wanted in (
            ("test", [m for m in self.moments if m.split == "test" and m.model == best]),
            ("dev", [m for m in self.moments if m.split == "dev" and best and m.step == self.best[best]]),
        ):
            own = wanted or [moment for moment in self.moments if moment.split == split]
            if own:
                found[split] = own[-1]
        return [moment for moment in found.values() if moment not in self.before]

    @functools.cached_property
    def moments(self) -> list[Moment]:
        """All moments of the completions, in order of time; of one step in the order of `console.MODELS`."""
        order = list(MODELS)
        place = lambda moment: (moment.step, order.index(moment.model) if moment.model in order else len(order))
        return sorted(dict.fromkeys(completion.moment for completion in self.completions), key=place)


def read_run(path: Path, name: str) -> RunFolder:
    """Reads a run's folder; a last line that is being written is left for the next time.

    Args:
        path: of the folder.
        name: what the run is called.

    Raises:
        FileNotFoundError: there is no such folder, or it is none of a run.
        ValueError: a file cannot be read, or lacks a field; names the file and the line.
    """
    if not path.is_dir():
        raise FileNotFoundError(f"there is no folder {path}: name the run_dir of a run")
    if not any((path / file).exists() for file in ("config.yaml", "metrics.jsonl")):
        raise FileNotFoundError(
            f"{path} is no folder of a run, it has neither config.yaml nor metrics.jsonl: name the run_dir of a run"
        )
    metrics = [_metrics_line(record, place) for place, record in _whole_lines(path / "metrics.jsonl")]
    summary = _json_file(path / "summary.json")
    best = _best_steps(path / "checkpoints", summary or {})
    base = RunFolder(
        path=path,
        name=name,
        config=_settings(path / "config.yaml"),
        info=_json_file(path / "run.json") or {},
        summary=summary,
        metrics=metrics,
        completions=(),
        best=best,
        left_out=0,
    )
    steps = list(dict.fromkeys(r["step"] for r in metrics if "eval/accuracy" in r or "eval/reward_mean" in r))
    kept = _spread(steps, [base.warmup_step, *best.values()])
    completions = [
        _completion(record, place, "train", "rl") for place, record in _whole_lines(path / "rollouts.jsonl")
    ] + [
        _completion(record, place, _split(record, place), str(record.get("model")))
        for place, record in _whole_lines(path / "evaluations.jsonl")
        if record.get("split") != "dev" or record["step"] in kept
    ]
    return dataclasses.replace(base, completions=completions, left_out=len(steps) - len(kept))


def _settings(path: Path) -> dict[str, Any]:
    try:
        found = read_yaml(path) if path.exists() else {}
    except TypeError as error:
        raise ValueError(str(error)) from None
    if not isinstance(found, dict):
        raise ValueError(f"{path}: should be keys with values, is a {type(found).__name__}")
    return found


def _json_file(path: Path) -> dict[str, Any] | None:
    return json_object(path.read_bytes(), str(path)) if path.exists() else None


def _whole_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Place and record of each line that is whole; nothing where the file is missing."""
    if path.exists():
        for _, place, line in numbered_lines(path):
            if line.endswith(b"\n"):
                record = json_line(line, place)
                if not isinstance(record.get("step"), int):
                    raise ValueError(f"{place}: field `step` is missing, or no whole number")
                yield place, record


def _metrics_line(record: dict[str, Any], place: str) -> dict[str, Any]:
    """A line of metrics with all its numbers as such: what is not finite is written as a text."""
    if not isinstance(record.get("stage"), str):
        raise ValueError(f"{place}: field `stage` is missing, or no text")
    try:
        # A run of before the models' names stood in those of the metrics of test has them as its stages alone.
        named = {re.sub(r"^test/(?=[^/]+$)", f"test/{record['stage']}/", key): value for key, value in record.items()}
        numbers = {key: float(value) for key, value in named.items() if key not in ("step", "stage")}
    except (TypeError, ValueError) as error:
        raise ValueError(f"{place}: {error}") from None
    return {"step": record["step"], "stage": record["stage"], **numbers}


def _split(record: dict[str, Any], place: str) -> str:
    if record.get("split") not in ("dev", "test"):
        raise ValueError(f"{place}: field `split` is {record.get('split')!r}, and neither dev nor test")
    return str(record["split"])


_TEXTS = ("id", "question", "gold", "completion", "outcome")


def _completion(record: dict[str, Any], place: str, split: str, model: str) -> Completion:
    for name in _TEXTS:
        if not isinstance(record.get(name), str):
            raise ValueError(f"{place}: field `{name}` is missing, or no text")
    try:
        reward, tokens = float(record["reward"]), int(record["tokens"])
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"{place}: fields `reward` and `tokens` must be numbers") from None
    value = record.get("value")
    return Completion(
        moment=Moment(split, sys.intern(model), record["step"]),
        id=sys.intern(record["id"]),  # held once, and not once a completion
        question=sys.intern(record["question"]),
        gold=sys.intern(record["gold"]),
        text=record["completion"],
        outcome=sys.intern(record["outcome"]),
        reward=reward,
        value="" if value is None else value if isinstance(value, str) else json.dumps(value),
        suspicious=record.get("suspicious"),
        tokens=tokens,
        ended=bool(record.get("ended", True)),
        detail=str(record.get("detail", "")),
        functions=record.get("functions") or {},
        scored=_tokens(record["per_token"], place) if "per_token" in record else None,
    )


def _tokens(given: Any, place: str) -> Tokens:
    """The field `per_token` of a record; a number that is not finite becomes None."""
    try:
        texts, own = [str(text) for text in given["text"]], {name: given[name] for name in SCORES if name in given}
        scores = {name: [x if math.isfinite(x) else None for x in map(float, row)] for name, row in own.items()}
        head = str(given["head"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{place}: field `per_token` lacks or has no list of {error}") from None
    if wrong := [name for name, row in scores.items() if len(row) != len(texts)]:
        raise ValueError(f"{place}: field `per_token` has {len(texts)} texts, and another number of {wrong[0]}")
    return Tokens(head, texts, scores)


def _best_steps(checkpoints: Path, summary: Mapping[str, Any]) -> dict[str, int]:
    """The run's step of each chosen model: as the summary says, else as the links to the checkpoints do."""
    found = {}
    for name in ("sft_best", "rl_best", "reward_model_best"):
        step = (summary.get(name) or {}).get("step")
        link = checkpoints / name
        if step is None and link.is_symlink():
            step = link.readlink().name.rpartition("_step_")[2]
        if step is not None and str(step).removesuffix(".0").isdecimal():
            found[name] = int(float(step))
    return found


def _spread(steps: Sequence[int], wanted: Sequence[int | None]) -> set[int]:
    """At most `MOMENTS` of the steps, evenly spread, and among them the first, the last and those that are wanted."""
    kept = {step for step in (*wanted, *steps[:1], *steps[-1:]) if step is not None and step in steps}
    rest = [step for step in steps if step not in kept]
    room = min(len(rest), max(0, MOMENTS - len(kept)))
    return kept | {rest[len(rest) * (2 * place + 1) // (2 * room)] for place in range(room)}
