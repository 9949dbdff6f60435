"""A run that goes on with something changed: refused, or the run that it would be with the change from there on.

Any setting, or the data, is changed at any of several moments. What goes on is compared with a run that has the change
too, but is handed the state and the progress in memory: no folder, no checkpoint, no question whether it may.
"""

import contextlib
import dataclasses
import json
import os
import random
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args, get_origin

import jax
import pytest
import yaml

from reft_jax.config import Config
from reft_jax.config.changes import ANY_TIME, FROM_HERE_ON, STAGE_FROM_HERE_ON, STAGES, among
from reft_jax.config.faults import fields_of
from reft_jax.config.ranges import range_of
from reft_jax.data.embedded.problems import generate_problems
from reft_jax.parallel.processes import STOPPED
from reft_jax.records.checkpoint import Checkpoints
from reft_jax.training import directory, reinforcement
from reft_jax.training.state import Records
from reft_jax.training.supervised import StepRecorder
from tests.runs import TINY, assert_same_bits, command_line, read, repeatable, restore, run

SHORT = {
    **TINY,
    "sft": {**TINY["sft"], "schedule_epochs": 4, "warmup_epoch": 1, "stop_epoch": 3, "save_every": 1},
    "rl": {**TINY["rl"], "epochs": 2, "rollout_batch_size": 36},
}
SFT, RL = 18, 6
"""Steps and iterations of the run."""
MOMENTS = {"in SFT": ("sft", 2), "after the warm-up": ("sft", 9), "in RL": ("rl", 2), "finished": ("end", 0)}
DATA = "one row of data.train"
LEFT_OUT = ("run_dir", "allow_changed", "distributed", "mesh.fake_cpu_devices", "compilation_cache_dir")
"""What is no change of a run's settings, or would change this process."""


class Begun(NamedTuple):
    """A run that was begun, and what its last resume point holds."""

    run_dir: Path
    step: int
    progress: dict[str, Any]
    state: Any


def other(key: str, field: "dataclasses.Field[Any]", value: Any) -> Any:
    """Another value that the setting may have; None where there is no other that means something here."""
    allowed = range_of(field)
    kind: Any = get_args(field.type)[0] if allowed else field.type
    if get_origin(kind) is Literal:
        return next(name for name in get_args(kind) if name != value)
    if kind is bool:
        return not value
    if kind == float | Literal["auto"]:
        return 0.5
    if kind in (int, float):
        tried = (value * 2, value / 2 if kind is float else value // 2, value + 1, 0.5)
        return next((kind(x) for x in tried if x != value and (not allowed or allowed.holds(x))), None)
    if kind == tuple[int, ...]:
        return [*value[:-1], value[-1] + 2]
    if kind is str:
        return 2 * value or "x"  # of characters that the tokenizer knows
    return None


def settings_at(settings: dict[str, Any], key: str, default: Any) -> Any:
    for name in key.split("."):
        settings, default = settings.get(name, {}), getattr(default, name)
    return default if isinstance(settings, dict) else settings


def changes() -> dict[str, Any]:
    """Another value for each setting, as it stands on a command line."""
    found = {key: other(key, field, settings_at(SHORT, key, Config())) for key, field in fields_of(Config).items()}
    found |= {"rl.epochs": 3, "sft.stop_epoch": 4}  # not doubled: shorter to run
    return {key: value for key, value in found.items() if value is not None and not among(key, LEFT_OUT)}


HERE = [("sft.batch_size", "in SFT"), (DATA, "in SFT")]
ALSO = [
    ("rl.kl_coef", "in RL"),
    ("sft.optimizer.learning_rate", "in SFT"),
    ("rl.epochs", "finished"),
    (DATA, "in RL"),
    ("sft.stop_epoch", "in SFT"),
]
DRAWN = random.Random(0).sample(sorted((key, moment) for key in (*changes(), DATA) for moment in MOMENTS), 200)
CASES = dict.fromkeys((*HERE, *ALSO, *DRAWN))
"""What `make test` tries, what CI does besides, and four more and 200 that are drawn, for the long tests."""


RECORDS = ("metrics", "evaluations", "rollouts")
OF_THE_DATA = ("longer than the", "the tokenizer has no tokens")
"""What is said of data that do not fit a setting any more; they are read before anything else is looked at."""


def interesting(key: str) -> bool:
    section, _, name = key.partition(".")
    return among(key, (*ANY_TIME, *FROM_HERE_ON)) or (section in STAGES and among(name, STAGE_FROM_HERE_ON))


def tier(case: tuple[str, str]) -> Any:
    return () if case in HERE else pytest.mark.long


@pytest.fixture(scope="module")
def line(tmp_path_factory, compilation_cache) -> Callable[..., list[str]]:
    """Makes the command line of the short run, which reads its problems from files."""
    folder = tmp_path_factory.mktemp("short")
    for split, count in (("train", 120), ("test", 20)):
        rows = [dataclasses.asdict(problem) for problem in generate_problems(split)[:count]]
        write(folder / f"{split}.jsonl", rows)
    make = command_line(folder, compilation_cache)
    data = {name: {"kind": "jsonl", "path": str(folder / f"{name}.jsonl")} for name in ("train", "test")}
    settings = {**SHORT, "data": {**SHORT["data"], **data}, "logging": {**SHORT["logging"], "trackers": []}}
    (folder / "tiny.yaml").write_text(yaml.safe_dump(settings))
    return make


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    keys = ("id", "question", "answer", "cot")
    path.write_text("".join(json.dumps({key: row[key] for key in keys}) + "\n" for row in rows))


@contextlib.contextmanager
def signalled(moment: tuple[str, int]) -> Iterator[None]:
    """A run in this process is asked to stop at a moment."""
    with pytest.MonkeyPatch.context() as patch:

        def watch(owner: Any, name: str, seen: Callable[..., tuple[str, int]]) -> None:
            original = getattr(owner, name)

            def wrapped(*args: Any, **kwargs: Any) -> Any:
                if seen(*args) == moment:
                    os.kill(os.getpid(), signal.SIGTERM)
                return original(*args, **kwargs)

            patch.setattr(owner, name, wrapped)

        watch(StepRecorder, "push", lambda recorder, step, *_: ("sft", step))
        watch(reinforcement, "draw_iteration", lambda sampler, params, stage, number, *_: ("rl", number))
        yield


@pytest.fixture(scope="module")
def begun(line, tmp_path_factory) -> Callable[[str], Begun]:
    """Begins the short run and stops it at a moment; each is made once."""
    made: dict[str, Begun] = {}

    def begin(name: str) -> Begun:
        if name not in made:
            run_dir, saved = tmp_path_factory.mktemp("begun"), []
            with pytest.MonkeyPatch.context() as patch, signalled(MOMENTS[name]):
                save = Records.save

                def keep(records: Records, step: int, state: Any) -> None:
                    saved[:] = [step, dataclasses.asdict(records.progress), jax.device_get(state)]
                    save(records, step, state)

                patch.setattr(Records, "save", keep)
                code, out, err = run(line(run_dir))
            assert code == (0 if name == "finished" else STOPPED), out + err
            made[name] = Begun(run_dir, *saved)
        return made[name]

    return begin


def handed_over(begun: Begun, run_dir: Path, line: list[str]) -> tuple[int, str, str]:
    """Runs on from the state in memory, in a folder of its own that has the models that were saved."""
    shutil.copytree(begun.run_dir, run_dir, symlinks=True, ignore=shutil.ignore_patterns("resume", "*.jsonl"))
    (run_dir / "summary.json").unlink(missing_ok=True)
    lines = (begun.run_dir / "metrics.jsonl").read_text().splitlines(keepends=True)
    kept = [line for line in lines if json.loads(line)["step"] <= begun.step]
    (run_dir / "metrics.jsonl").write_text("".join(kept))  # the accuracies on dev of a summary

    def restored(checkpoints: Checkpoints, step: int, abstract: Any) -> Any:
        return jax.tree.map(lambda x, like: jax.device_put(x, like.sharding), begun.state, abstract)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoints, "latest", lambda _: (begun.step, json.loads(json.dumps(begun.progress))))
        patch.setattr(Checkpoints, "restore", restored)
        patch.setattr(directory, "take_up", lambda *_: [])
        return run(line)


def resume_points(run_dir: Path) -> list[Path]:
    found = [path for path in (run_dir / "checkpoints/resume").iterdir() if path.name.isdigit()]
    return sorted(found, key=lambda path: int(path.name))


def parted(run_dir: Path, name: str, step: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Records up to a step, and those after it."""
    found = repeatable(run_dir, name) if (run_dir / f"{name}.jsonl").exists() else []
    return [r for r in found if r["step"] <= step], [r for r in found if r["step"] > step]


def summary(run_dir: Path) -> dict[str, Any]:
    found = json.loads((run_dir / "summary.json").read_text())
    return {name: {key: x for key, x in facts.items() if key != "seconds"} for name, facts in found.items()}


@pytest.mark.compiles
@pytest.mark.parametrize(("key", "moment"), [pytest.param(*case, marks=tier(case)) for case in CASES])
def test_a_change_is_refused_or_the_run_goes_on_as_one_that_has_it(line, begun, tmp_path, key, moment):
    before = begun(moment)
    run_dir = shutil.copytree(before.run_dir, tmp_path / "run", symlinks=True)
    overrides: dict[str, Any] = {}
    if key == DATA:
        rows = [dataclasses.asdict(problem) for problem in generate_problems("train")[:120]]
        rows[7]["answer"] += "0"
        write(tmp_path / "train.jsonl", rows)
        overrides["data.train.path"] = tmp_path / "train.jsonl"
    else:
        value = changes()[key]
        overrides = {key: json.dumps(value) if isinstance(value, list) else value, "allow_changed": json.dumps([key])}
    other_line = lambda folder: line(folder, **{name.replace(".", "__"): value for name, value in overrides.items()})
    code, out, err = run(other_line(run_dir))
    if code == 2:
        names = ("data.train",) if key == DATA else (*key.rpartition(".")[::2], str(value), *OF_THE_DATA)
        assert any(name in err for name in names), "the refusal names it, or what it makes of the data"
        assert (run_dir / "config.yaml").read_text() == (before.run_dir / "config.yaml").read_text()
        return
    assert code == 0, out + err
    assert key != DATA
    assert interesting(key) or key.partition(".")[0] in STAGES, "what is not in a table is refused"
    expected = tmp_path / "expected"
    code, _, err = handed_over(before, expected, other_line(expected))
    if code == 2 and moment == "finished":  # what is finished is shown on any machine, and changes no more
        assert key.startswith("mesh."), err
        assert all(parted(run_dir, name, 0) == parted(before.run_dir, name, 0) for name in RECORDS)
        assert summary(run_dir) == summary(before.run_dir)
        return
    assert code == 0, err
    for name in RECORDS:
        earlier, later = parted(run_dir, name, before.step)
        assert later == parted(expected, name, before.step)[1], name
        assert earlier == parted(before.run_dir, name, before.step)[0], "nothing is lost or doubled"
    assert summary(run_dir) == summary(expected)
    if resume_points(expected):  # else nothing was left to do
        assert_same_bits(*(restore(resume_points(folder)[-1] / "state") for folder in (run_dir, expected)))
    steps = [record["step"] for record in read(run_dir, "metrics") if "optimizer/gradient_norm" in record]
    assert steps == list(range(1, len(steps) + 1)), "no step is left out, none is done twice"
    if key == "rl.epochs":
        assert len(steps) == SFT + RL // 2 * 3
