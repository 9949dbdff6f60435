"""Metrics as lines: what they are drawn over, how they are thinned, and the mean of the runs of a method."""

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from reft_jax.config import Config, to_dict
from reft_jax.config.changes import ANY_TIME, SOURCES, among
from reft_jax.records.console import ALGORITHMS
from reft_jax.records.metrics import METRICS, documented
from reft_jax.report.folder import LEARNED, SUPERVISED, RunFolder

POINTS = 600
"""Points of a line, at most."""

TOGETHER = 2400
"""Points of the lines of one metric, at most, but for `FEWEST` of each."""

FEWEST = 60
"""Points that a line keeps however many runs are shown."""

GROUPS = ("dev_sft", "dev_rl", "rl", "supervised")
"""Lines over the same points: evaluations during SFT, those during reinforcement, its iterations, supervised steps."""


@dataclasses.dataclass(frozen=True)
class Chart:
    """What is drawn in one picture: one metric of all runs, or several metrics of one run."""

    title: str
    group: str
    """`dev`, which stands for both groups of evaluations, `rl` or `supervised`."""
    metrics: tuple[str, ...]
    meaning: str
    share: bool
    """Whether the values are shares, shown in per cent."""
    unit: str


@dataclasses.dataclass(frozen=True)
class Lines:
    """Metrics of one group of a run; all lists have one entry a point.

    Attributes:
        step: iterations in `rl`, the run's steps elsewhere.
        sequences: trained on since the base model, every pass counted.
        seconds: of training steps since then, evaluations left out.
        values: by metric; None where there is no finite number.
        mean_of: steps that a point is the mean of.
    """

    step: list[float]
    sequences: list[float]
    seconds: list[float]
    values: dict[str, list[float | None]]
    mean_of: int


@dataclasses.dataclass(frozen=True)
class Mark:
    """A moment that is marked in the charts of a group, by its place on each of the axes."""

    group: str
    label: str
    step: float
    sequences: float
    seconds: float


@dataclasses.dataclass(frozen=True)
class Method:
    """Runs whose settings differ in nothing but the seed, and what may differ between the parts of one run."""

    name: str
    short: str
    """For the end of a line."""
    runs: list[int]
    means: dict[str, Lines]
    """By group; empty where there is one run."""


_TITLES: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "dev": {
        "Accuracy on dev": ("eval/accuracy",),
        "Reward on dev": ("eval/reward_mean",),
        "Right choices on dev": ("rerank/accuracy",),
    },
    "rl": {
        "Reward": ("reward/mean",),
        "Right answers": ("reward/correct",),
        "KL to the reference": ("rl/sequence_kl",),
        "Entropy": ("rl/entropy",),
        "Length": ("response/length_mean",),
        "Cut at the longest length": ("response/truncated",),
        "Outcomes other than right": tuple(name for name in METRICS if name.startswith("reward/outcome_")),
        "Suspicious": ("reward/suspicious",),
        "Explained variance": ("rl/explained_variance",),
        "Value loss": ("rl/value_loss",),
        "Clip fraction": ("rl/clip_fraction",),
        "Policy loss": ("rl/policy_loss",),
        "Loss on right samples": ("rl/sampled_loss",),
        "Loss on annotations": ("rl/gold_loss",),
        "Gradient norm": ("optimizer/gradient_norm",),
        "Throughput": ("throughput/rollout_tokens_per_s", "throughput/update_tokens_per_s"),
    },
    "supervised": {
        "Loss": ("pretrain/loss", "sft/loss"),
        "Loss of the reward model": ("reward_model/loss",),
        "Gradient norm": ("optimizer/gradient_norm",),
        "Throughput": ("throughput/train_tokens_per_s",),
    },
}


def charts(lines: Sequence[Mapping[str, Lines]]) -> list[Chart]:
    """The pictures that some run has values for, of outcomes those that occurred; a reward function has its own."""
    found = []
    for group, titles in _TITLES.items():
        own = [
            values for run in lines for name, part in run.items() if name.startswith(group) for values in [part.values]
        ]
        present = {metric: any(any(values.get(metric, ())) for values in own) for values in own for metric in values}
        functions = {f"Function {name.partition('/function/')[2]}": (name,) for name in present if "/function/" in name}
        for title, metrics in {**titles, **functions}.items():
            kept = tuple(name for name in metrics if present.get(name, False) or (name in present and not _rare(name)))
            if kept:
                named = METRICS[documented(kept[0])]
                meaning = named.meaning if len(kept) == 1 else ""
                found.append(Chart(title, group, kept, meaning, named.unit == "share", named.unit))
    return found


def _rare(metric: str) -> bool:
    """Whether a metric is left out where it is 0 throughout."""
    return "/outcome_" in metric


def costs(run: RunFolder) -> dict[int, tuple[float, float]]:
    """Sequences and seconds since the base model by the run's step; reinforcement goes on from the warm-up's."""
    found: dict[int, tuple[float, float]] = {}
    warmup, seconds, stage = (0.0, 0.0), 0.0, ""
    for record in run.metrics:
        if LEARNED not in record:
            continue
        if record["stage"] != stage:
            stage, seconds = record["stage"], warmup[1] if record["stage"] == "rl" else 0.0
        seconds += record.get("time/step_s", 0.0)
        examples = record.get("run/examples", 0.0) + (warmup[0] if stage == "rl" else 0.0)
        found[record["step"]] = examples, seconds
        if record["step"] == run.warmup_step:
            warmup = examples, seconds
    return found


def lines_of(run: RunFolder, points: int) -> dict[str, Lines]:
    """The lines of a run by group, those groups that have any, each thinned to so many points."""
    return {group: thinned(lines, points) for group, lines in _all_lines(run).items()}


def points_of(runs: int) -> int:
    """How many points a line has where so many runs are shown."""
    return min(POINTS, max(FEWEST, TOGETHER // runs))


def _all_lines(run: RunFolder) -> dict[str, Lines]:
    spent = costs(run)
    pretrained = max(
        (spent[r["step"]] for r in run.metrics if r["stage"] == "pretrain" and r["step"] in spent), default=(0, 0)
    )
    groups: dict[str, list[tuple[float, float, float, Mapping[str, Any]]]] = {group: [] for group in GROUPS}
    for record in run.metrics:
        step, stage = record["step"], record["stage"]
        if step not in spent:
            continue
        sequences, seconds = spent[step]
        if any(name in record for name in ("eval/accuracy", "eval/reward_mean", "rerank/accuracy")):
            groups["dev_rl" if stage == "rl" else "dev_sft"].append((step, sequences, seconds, record))
            if step == run.warmup_step:
                groups["dev_rl"].append((step, sequences, seconds, record))
        elif stage == "rl":
            groups["rl"].append((step - run.rl_offset, sequences, seconds, record))
        elif stage in SUPERVISED:
            later = stage != "pretrain"
            groups["supervised"].append(
                (step, sequences + later * pretrained[0], seconds + later * pretrained[1], record)
            )
    if len(groups["dev_rl"]) == 1 and run.last_step("rl") == 0:
        groups["dev_rl"] = []
    return {group: _lines(rows) for group, rows in groups.items() if rows}


def _lines(rows: Sequence[tuple[float, float, float, Mapping[str, Any]]]) -> Lines:
    wanted = {metric for titles in _TITLES.values() for metrics in titles.values() for metric in metrics}
    names = [
        name
        for name in dict.fromkeys(name for *_, record in rows for name in record)
        if name in wanted or "/function/" in name
    ]
    value = lambda record, name: _finite(record.get(name, 0.0 if "/outcome_" in name else math.nan))
    return Lines(
        step=[float(step) for step, *_ in rows],
        sequences=[sequences for _, sequences, *_ in rows],
        seconds=[seconds for _, _, seconds, _ in rows],
        values={name: [value(record, name) for *_, record in rows] for name in names},
        mean_of=1,
    )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known else None


def thinned(lines: Lines, points: int) -> Lines:
    """Means of so many neighbours that no more than `points` are left; a mean stands where its last one stood."""
    size = math.ceil(len(lines.step) / points)
    if size <= 1:
        return lines
    starts = range(0, len(lines.step), size)
    last = lambda values: [values[min(start + size, len(values)) - 1] for start in starts]
    return Lines(
        step=last(lines.step),
        sequences=last(lines.sequences),
        seconds=last(lines.seconds),
        values={name: [_mean(own[start : start + size]) for start in starts] for name, own in lines.values.items()},
        mean_of=size,
    )


def mean_lines(runs: Sequence[RunFolder], points: int) -> dict[str, Lines]:
    """The mean of some runs by group, at the steps that all of them have come to, thinned."""
    own = [_all_lines(run) for run in runs]
    shared = [group for group in GROUPS if all(group in lines for lines in own)]
    return {group: thinned(_mean_of([lines[group] for lines in own]), points) for group in shared}


def _mean_of(parts: Sequence[Lines]) -> Lines:
    """The mean of lines where they have a point at the same step; None where one of them has no number there."""
    places = [{step: place for place, step in enumerate(part.step)} for part in parts]
    steps = [step for step in parts[0].step if all(step in place for place in places)]
    at = lambda columns: list(zip(*([column[place[s]] for s in steps] for column, place in zip(columns, places))))
    whole = lambda row: None if None in row else _mean(row)
    names = [name for name in parts[0].values if all(name in part.values for part in parts)]
    return Lines(
        step=steps,
        sequences=[math.fsum(row) / len(row) for row in at([part.sequences for part in parts])],
        seconds=[math.fsum(row) / len(row) for row in at([part.seconds for part in parts])],
        values={name: [whole(row) for row in at([part.values[name] for part in parts])] for name in names},
        mean_of=1,
    )


def marks(run: RunFolder) -> list[Mark]:
    """Where a run's stages begin and end, and where the chosen model was."""
    spent, pretrain, warmup, best = costs(run), run.last_step("pretrain"), run.warmup_step, run.best.get("rl_best")
    before = spent.get(pretrain, (0.0, 0.0))
    found = []
    if pretrain and run.last_step("sft"):
        found.append(Mark("supervised", "SFT begins", pretrain, *before))
    if warmup in spent:
        sequences, seconds = spent[warmup]
        found.append(Mark("dev", "warm-up ends", warmup, sequences, seconds))
        found.append(Mark("supervised", "warm-up ends", warmup, sequences + before[0], seconds + before[1]))
    if best in spent:
        found.append(Mark("dev", "chosen", best, *spent[best]))
        found.append(Mark("rl", "chosen", best - run.rl_offset, *spent[best]))
    return found


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted key."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        name = f"{prefix}.{key}" if prefix else str(key)
        found |= flat(value, name) if isinstance(value, Mapping) and value else {name: value}
    return found


def methods(runs: Sequence[RunFolder]) -> list[Method]:
    """The runs by method, in the order given, each method with its means."""
    groups: dict[str, list[int]] = {}
    own = [_method_settings(run) for run in runs]
    for number, settings in enumerate(own):
        groups.setdefault(repr(sorted(settings.items())), []).append(number)
    found, points = [], points_of(len(runs))
    others = [own[numbers[0]] for numbers in groups.values()]
    for numbers in groups.values():
        run = runs[numbers[0]]
        name = short = run.name
        if len(numbers) > 1:
            label = ALGORITHMS.get(run.algorithm, run.algorithm)
            short = _what_differs(own[numbers[0]], others) or label
            name = f"{', '.join(dict.fromkeys((label, short)))}: mean of {len(numbers)}"
        means = mean_lines([runs[number] for number in numbers], points) if len(numbers) > 1 else {}
        found.append(Method(name, short, numbers, means))
    return found


def _method_settings(run: RunFolder) -> dict[str, str]:
    """The settings that make a run one of its method, as texts."""
    matters = lambda key: key != "seed" and (among(key, SOURCES) or not among(key, ANY_TIME))
    settings = flat(to_dict(Config())) | flat(run.config)
    return {key: json.dumps(value) for key, value in settings.items() if matters(key)}


def _what_differs(own: Mapping[str, str], others: Sequence[Mapping[str, str]]) -> str:
    """As few settings as tell a method from the others, those of reinforcement first; nothing where it is alone."""
    order = ("rl", "sft", "reward", "generation", "data", "pretrain", "model")
    rank = lambda key: next((place for place, section in enumerate(order) if among(key, (section,))), len(order))
    left, said = [settings for settings in others if settings != own], []
    for key in sorted(own, key=rank):
        alike = [settings for settings in left if settings.get(key) == own[key]]
        if len(alike) < len(left):
            left = alike
            said.append(f"{key} {own[key]}")
    return ", ".join(said)
