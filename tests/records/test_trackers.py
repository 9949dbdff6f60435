"""Trackers: the real clients, offline, have the run's scalars, each once, after a resume too."""

import importlib.util
import json
import math
import os
import re
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from reft_jax.records import trackers
from reft_jax.records.records import MetricsWriter, append_records
from reft_jax.records.trackers import NAMES_FILE, Trackers, require_trackers

OFFLINE = {"WANDB_MODE": "offline", "WANDB_SILENT": "true"}
TWICE = """
import sys
from pathlib import Path
from reft_jax.records.records import MetricsWriter

run_dir, tracker, resume_step, evaluated, first, last = sys.argv[1:]
with MetricsWriter(
    Path(run_dir),
    write=True,
    resume_step=int(resume_step) if resume_step else None,
    evaluated=evaluated == "True",
    trackers=[tracker],
    project="tests",
    settings={"seed": 3, "rl": {"kl_coef": 0.01}},
) as writer:
    for step in range(int(first), int(last)):
        if step > int(first) or evaluated == "True":
            writer.write(step, "rl", {"reward/mean": step / 4})
        if step % 2 == 0:
            writer.write(step, "rl", {"eval/accuracy": step / 8})
    if int(last) == 8:
        writer.write(8, "rl_best", {"test/rl_best/accuracy": 0.5, "test/rl_best/reward_mean": float("nan")})
"""
PARTS = (("", True, 0, 6), ("4", True, 5, 6), ("4", False, 4, 8))
"""A run that is begun, resumed twice; the second resume begins with the evaluation of the step that it resumes from."""
MEANS = [(step, step / 4) for step in range(8)]
ACCURACIES = [(step, step / 8) for step in range(0, 8, 2)]


def log_in_parts(run_dir: Path, tracker: str) -> None:
    """Each part in a process of its own, as a run that goes on is."""
    for part in PARTS:
        arguments = [str(run_dir), tracker, *map(str, part)]
        done = subprocess.run([sys.executable, "-c", TWICE, *arguments], env=environment(run_dir), capture_output=True)
        assert done.returncode == 0, done.stderr.decode()


def environment(run_dir: Path) -> dict[str, str]:
    return {**os.environ, **OFFLINE, "TRACKIO_DIR": str(run_dir.parent / "trackio"), "PYTHONWARNINGS": "ignore"}


def need(extra: str) -> None:
    if importlib.util.find_spec(extra) is None:
        pytest.skip(f"{extra} is not installed: pip install 'reft_jax[{extra}]'")


def called(run_dir: Path, tracker: str) -> str:
    return json.loads((run_dir / NAMES_FILE).read_text())[tracker]


@pytest.mark.ci
def test_wandb_has_each_scalar_once(tmp_path):
    need("wandb")
    run_dir = tmp_path / "run"
    log_in_parts(run_dir, "wandb")
    rows, names, settings = wandb_records(run_dir)
    assert names == [called(run_dir, "wandb")] * len(PARTS), "each part went on with the same run"
    assert scalars(rows, "reward/mean") == MEANS
    assert scalars(rows, "eval/accuracy") == ACCURACIES
    assert scalars(rows, "test/rl_best/accuracy") == [(8, 0.5)]
    assert settings["seed"] == 3
    assert settings["rl"] == {"kl_coef": 0.01}


def wandb_records(run_dir: Path) -> tuple[list[dict], list[str], dict]:
    """The rows of W&B's own files, the run's id in each file, and the settings."""
    from wandb.proto import wandb_internal_pb2

    rows: list[dict] = []
    names, settings = [], {}
    for path in sorted(run_dir.glob("wandb/offline-run-*/*.wandb"), key=lambda path: path.stat().st_mtime):
        records = [wandb_internal_pb2.Record.FromString(data) for data in log_records(path.read_bytes())]
        runs = [record.run for record in records if record.HasField("run")]
        names.append(runs[0].run_id)
        settings |= {item.key: json.loads(item.value_json) for run in runs for item in run.config.update}
        for record in records:
            if record.HasField("history"):
                items = record.history.item
                rows.append({"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in items})
    return rows, names, settings


def log_records(data: bytes) -> Iterator[bytes]:
    """What a file in LevelDB's log format holds, behind W&B's own head of 7 bytes, which lies in the first block."""
    assert data.startswith(b":W&B")
    place, parts = 7, b""
    while place + 7 <= len(data):
        if place % 2**15 > 2**15 - 7:  # no head of a record fits into the rest of the block
            place += 2**15 - place % 2**15
            continue
        length, kind = struct.unpack("<HB", data[place + 4 : place + 7])
        parts += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield parts
            parts = b""


def scalars(rows: list[dict], name: str) -> list[tuple[int, float]]:
    return [(row["step"], row[name]) for row in rows if name in row]


@pytest.mark.ci
def test_trackio_has_each_scalar_once(tmp_path):
    need("trackio")
    run_dir = tmp_path / "run"
    log_in_parts(run_dir, "trackio")
    code = """
import json, sys, trackio
from trackio.sqlite_storage import SQLiteStorage
(run,) = trackio.Api().runs("tests")
print(json.dumps([run.name, run.config["seed"], SQLiteStorage.get_logs("tests", run.name, run_id=run.id)]))
"""
    done = subprocess.run([sys.executable, "-c", code], env=environment(run_dir), capture_output=True, check=True)
    name, seed, rows = json.loads(done.stdout.splitlines()[-1])
    assert (name, seed) == (called(run_dir, "trackio"), 3)
    assert scalars(rows, "reward/mean") == MEANS
    assert scalars(rows, "eval/accuracy") == ACCURACIES
    assert scalars(rows, "test/rl_best/accuracy") == [(8, 0.5)]
    assert math.isnan(float(scalars(rows, "test/rl_best/reward_mean")[0][1]))


class Noted:
    """A tracker that notes what it is given."""

    def __init__(self, setup: trackers.Setup) -> None:
        self.setup, self.ended = setup, None
        self.logged: list[tuple[int, dict[str, float]]] = []
        made.append(self)

    def log(self, step: int, scalars: dict[str, float]) -> None:
        self.logged.append((step, dict(scalars)))

    def flush(self) -> None:
        pass

    def close(self, *, failed: bool) -> None:
        self.ended = failed


made: list[Noted] = []


@pytest.fixture
def noted(monkeypatch):
    monkeypatch.setattr(trackers, "TRACKERS", dict.fromkeys(trackers.TRACKERS, Noted))
    made.clear()
    return made


def test_a_tracker_that_is_switched_on_later_gets_what_is_repeated(noted, tmp_path):
    with MetricsWriter(tmp_path, write=True, resume_step=None, trackers=["wandb"]) as writer:
        for step in (1, 2, 3):
            writer.write(step, "rl", {"reward/mean": 0.5})
    with MetricsWriter(tmp_path, write=True, resume_step=1, trackers=["tensorboard", "wandb", "trackio"]) as writer:
        for step in (2, 3, 4):
            writer.write(step, "rl", {"reward/mean": 0.5})
    first, board, second, trackio = noted
    assert [step for step, _ in first.logged] == [1, 2, 3]
    assert [step for step, _ in board.logged] == [2, 3, 4], "it is told to hide what it has"
    assert board.setup.first_step == 2
    assert [step for step, _ in second.logged] == [4]
    assert [step for step, _ in trackio.logged] == [2, 3, 4]
    assert first.setup.name == second.setup.name == called(tmp_path, "wandb") != trackio.setup.name


def test_a_run_has_a_name_that_all_of_them_take(noted, tmp_path):
    run_dir = tmp_path / f"50 % of a:b#{'c' * 150}"
    MetricsWriter(run_dir, write=True, resume_step=None, trackers=["wandb"]).close()
    assert re.fullmatch(r"50-of-a-b-c+-[0-9a-f]{8}", noted[0].setup.name)
    assert len(noted[0].setup.name) < 128


@pytest.mark.parametrize(("error", "failed"), [(None, False), (KeyboardInterrupt, False), (FloatingPointError, True)])
def test_a_tracker_is_told_whether_an_error_ended_the_run(noted, tmp_path, error, failed):
    try:
        with MetricsWriter(tmp_path, write=True, resume_step=None, trackers=["wandb"]):
            if error:
                raise error
    except (KeyboardInterrupt, FloatingPointError):
        pass
    assert noted[0].ended is failed


def test_only_the_process_that_writes_opens_trackers(noted, tmp_path):
    with MetricsWriter(tmp_path, write=False, resume_step=None, trackers=["wandb"]) as writer:
        writer.write(1, "rl", {"reward/mean": 0.5})
    assert noted == []
    assert list(tmp_path.iterdir()) == []


def test_one_that_cannot_begin_leaves_the_others_closed_and_no_name(noted, tmp_path, monkeypatch):
    def refuse(setup):
        raise ValueError("no key")

    monkeypatch.setitem(trackers.TRACKERS, "trackio", refuse)
    with pytest.raises(ValueError, match="no key"):
        Trackers(["wandb", "trackio"], tmp_path, project="p", settings={}, first_step=0, repeated={})
    assert noted[0].ended is True
    assert not (tmp_path / NAMES_FILE).exists()


def test_a_package_that_is_missing_is_refused_with_the_command(monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "wandb" else found(name))
    require_trackers(["tensorboard"])
    with pytest.raises(ValueError, match=r"has wandb, not installed here: pip install 'reft_jax\[wandb\]'"):
        require_trackers(["tensorboard", "wandb"])


def test_what_is_repeated_is_read_before_it_is_cut_back(noted, tmp_path):
    """The evaluation alone, where the step that the run goes on from was not evaluated."""
    append_records(
        tmp_path / "metrics.jsonl",
        [
            {"step": 4, "stage": "rl", "reward/mean": 0.5},
            {"step": 4, "stage": "rl", "eval/accuracy": 0.5, "eval/reward_mean": 0.5},
        ],
    )
    (tmp_path / NAMES_FILE).write_text('{"wandb": "run-1"}')
    with MetricsWriter(tmp_path, write=True, resume_step=4, evaluated=False, trackers=["wandb"]) as writer:
        writer.write(4, "rl", {"eval/accuracy": 0.5, "eval/truncated": 0.0})
        writer.write(5, "rl", {"reward/mean": 0.5})
    assert noted[0].logged == [(4, {"eval/truncated": 0.0}), (5, {"reward/mean": 0.5})]
