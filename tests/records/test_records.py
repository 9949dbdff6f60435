"""Records: names and documentation agree, files stay valid JSON, and a resume leaves what an unbroken run would."""

import importlib.util
import json
import math
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import jax
import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from reft_jax.records.metrics import METRICS
from reft_jax.records.provenance import git_state, run_info
from reft_jax.records.records import MetricsWriter, append_records, cut_back, json_value

DOCUMENT = Path(__file__).parents[2] / "docs" / "metrics.md"


def _refuse_constant(name: str) -> float:
    raise AssertionError(f"{name} is not JSON")


def _read(path: Path) -> list[dict]:
    """The records of a file, by a reader that takes nothing but strict JSON."""
    return [json.loads(line, parse_constant=_refuse_constant) for line in path.read_text().splitlines()]


def _scalars(run_dir: Path, name: str) -> list[tuple[int, float]]:
    """What TensorBoard shows of a metric, purged as TensorBoard does."""
    events = EventAccumulator(str(run_dir / "tensorboard"), purge_orphaned_data=True)
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(name)]


def test_every_metric_is_documented_and_every_documented_metric_exists() -> None:
    rows = re.findall(r"^\| `([a-z_]+/[\w/*]+)` \| (.+?) \| (.+) \|$", DOCUMENT.read_text(), flags=re.MULTILINE)
    assert len(rows) == len(METRICS), "a metric stands twice in docs/metrics.md, or is missing"
    assert {name: (unit, meaning) for name, unit, meaning in rows} == METRICS


def test_a_step_becomes_one_line_and_scalars(tmp_path: Path) -> None:
    with MetricsWriter(tmp_path / "run", write=True, trackers=["tensorboard"], resume_step=None) as writer:
        writer.write(1, "sft", {"sft/loss": numpy.float32(2.5)})
        writer.write(2, "rl", {"reward/mean": 0.25, "run/compilations": 7})
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == (
        '{"step": 1, "stage": "sft", "sft/loss": 2.5}\n'
        '{"step": 2, "stage": "rl", "reward/mean": 0.25, "run/compilations": 7.0}\n'
    )
    assert _scalars(tmp_path / "run", "reward/mean") == [(2, 0.25)]


@pytest.mark.parametrize("write", [True, False])
def test_an_unknown_name_stops_every_process_and_says_where_to_define_it(tmp_path: Path, write: bool) -> None:
    writer = MetricsWriter(tmp_path, write=write, resume_step=None)
    with pytest.raises(KeyError, match=r"reward/maen.*METRICS.*docs/metrics\.md"):
        writer.write(1, "rl", {"reward/mean": 0.5, "reward/maen": 0.5})
    assert not (tmp_path / "metrics.jsonl").exists()


def test_other_processes_leave_no_trace(tmp_path: Path) -> None:
    with MetricsWriter(tmp_path / "run", write=False, trackers=["tensorboard"], resume_step=3) as writer:
        writer.write(4, "rl", {"reward/mean": 0.5})
        writer.append("rollouts", [{"step": 4}])
        writer.flush()
    assert not (tmp_path / "run").exists()


def test_what_is_not_finite_stays_readable(tmp_path: Path) -> None:
    with MetricsWriter(tmp_path, write=True, resume_step=None) as writer:
        writer.write(1, "sft", {"sft/loss": math.nan, "optimizer/gradient_norm": math.inf})
        writer.append("rollouts", [{"step": 1, "log_probs": [-0.5, -math.inf]}])
    record = _read(tmp_path / "metrics.jsonl")[0]
    assert math.isnan(float(record["sft/loss"]))
    assert float(record["optimizer/gradient_norm"]) == math.inf
    assert [float(x) for x in _read(tmp_path / "rollouts.jsonl")[0]["log_probs"]] == [-0.5, -math.inf]


def test_half_of_a_surrogate_pair_is_written_as_its_name() -> None:
    """A program may return one; the readers of these files refuse it."""
    assert json_value({"value": ["\ud83d", "\U0001f600 é", 1]}) == {"value": [r"\ud83d", "\U0001f600 é", 1]}


def test_a_record_without_a_step_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="without an integer step"):
        append_records(tmp_path / "rollouts.jsonl", [{"step": 1}, {"text": "no step"}])
    assert not (tmp_path / "rollouts.jsonl").exists()


def _record(writer: MetricsWriter, steps: range) -> None:
    for step in steps:
        writer.write(step, "rl", {"reward/mean": step / 4})
        writer.append("rollouts", [{"step": step, "text": f"line one\nline two é {i}"} for i in range(2)])
        if step % 2 == 0:
            writer.append("evaluations", [{"step": step, "id": "a"}])


@pytest.mark.parametrize("resume_step", [None, 1, 4, 7])
def test_a_resumed_run_leaves_the_records_of_an_unbroken_one(tmp_path: Path, resume_step: int | None) -> None:
    unbroken, killed = tmp_path / "unbroken", tmp_path / "killed"
    with MetricsWriter(unbroken, write=True, trackers=["tensorboard"], resume_step=None) as writer:
        _record(writer, range(11))
    with MetricsWriter(killed, write=True, trackers=["tensorboard"], resume_step=None) as writer:
        _record(writer, range(8))
    with (killed / "metrics.jsonl").open("a") as file:
        file.write('{"step": 8, "stage": "pp')
    (killed / "samples.jsonl").write_text("somebody else's\n")

    with MetricsWriter(killed, write=True, trackers=["tensorboard"], resume_step=resume_step) as writer:
        _record(writer, range(0 if resume_step is None else resume_step + 1, 11))

    for name in ("metrics.jsonl", "rollouts.jsonl", "evaluations.jsonl"):
        assert (killed / name).read_bytes() == (unbroken / name).read_bytes(), name
    assert _scalars(killed, "reward/mean") == _scalars(unbroken, "reward/mean") == [(s, s / 4) for s in range(11)]
    assert (killed / "samples.jsonl").read_text() == "somebody else's\n"


@given(
    steps=st.lists(st.integers(0, 9), max_size=8),
    text=st.text(max_size=5),
    missing=st.integers(0, 400),
    cut=st.integers(-1, 9),
)
def test_cutting_back_keeps_each_whole_record_up_to_the_step(
    steps: list[int], text: str, missing: int, cut: int
) -> None:
    """Whatever byte the file was torn at."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "metrics.jsonl"
        path.touch()
        ends = []
        for step in steps:
            append_records(path, [{"step": step, "text": text}])
            ends.append(path.stat().st_size - 1)  # without its line break
        size = max(0, path.stat().st_size - missing)
        os.truncate(path, size)

        cut_back(path, cut)

        whole = [step for step, end in zip(steps, ends) if end <= size]
        assert _read(path) == [{"step": step, "text": text} for step in whole if step <= cut]
        assert [entry.name for entry in Path(folder).iterdir()] == ["metrics.jsonl"]
        append_records(path, [{"step": 10}])
        assert _read(path)[-1] == {"step": 10}


@pytest.mark.parametrize(
    ("second_line", "message"),
    [(b'{"step": 2', "not JSON"), (b'{"step": 2, "text": "\xff"}', "not JSON"), (b'{"text": ""}', "integer step")],
)
def test_a_broken_line_in_the_middle_is_named_and_nothing_is_changed(
    tmp_path: Path, second_line: bytes, message: str
) -> None:
    path = tmp_path / "rollouts.jsonl"
    path.write_bytes(b'{"step": 1}\n' + second_line + b'\n{"step": 3}\n')
    before = path.read_bytes()
    with pytest.raises(ValueError, match=rf"rollouts\.jsonl, line 2: .*{message}"):
        cut_back(path, 1)
    assert path.read_bytes() == before


def test_an_interrupted_cut_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "metrics.jsonl"
    append_records(path, [{"step": step} for step in range(5)])

    def power_cut(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", power_cut)
        with pytest.raises(KeyboardInterrupt):
            cut_back(path, 2)
    assert [record["step"] for record in _read(path)] == [0, 1, 2, 3, 4]
    assert [record["step"] for record in cut_back(path, 2)] == [3, 4]
    assert [record["step"] for record in _read(path)] == [0, 1, 2]


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_git_state_of_a_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)  # set when git itself runs the tests, from a hook

    def git(*arguments: str) -> str:
        identity = ("-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false")
        done = subprocess.run(["git", "-C", str(tmp_path), *identity, *arguments], capture_output=True, check=True)
        return done.stdout.decode().strip()

    module = tmp_path / "package" / "metrics.py"
    module.parent.mkdir()
    module.write_text("1\n")
    assert git_state(module) == (None, None), "no checkout"
    git("init")
    assert git_state(module) == (None, None), "inside a checkout, but not tracked by it"
    git("add", ".")
    assert git_state(module) == (None, None), "no commit yet"
    git("commit", "-m", "first")
    commit = git("rev-parse", "HEAD")
    assert re.fullmatch(r"[0-9a-f]{40,64}", commit)
    assert git_state(module) == (commit, False)
    other = tmp_path / "other.py"
    other.write_text("2\n")
    assert git_state(module) == (commit, True), "a file that is not in the commit"
    assert git_state(other) == (None, None), "beside tracked files, as an installed package may be"
    other.unlink()
    module.write_text("3\n")
    assert git_state(module) == (commit, True), "a file that differs from the commit"


def test_run_info_names_versions_and_no_machine() -> None:
    info = run_info()
    assert info["versions"]["jax"] == jax.__version__
    assert info["versions"]["numpy"] == numpy.__version__
    assert set(info) == {"command", "versions", "python", "platform", "commit", "dirty"}
    assert socket.gethostname() not in info["platform"].split()


@pytest.mark.parametrize(
    ("module", "program"),
    [
        ("reft_jax.train", "python -m reft_jax.train"),
        ("reft_jax.reward_model.__main__", "python -m reft_jax.reward_model"),
    ],
)
def test_the_command_of_a_run_is_what_a_shell_takes(module, program, monkeypatch) -> None:
    arguments = ["--config", "my file.yaml", "--reward_model.samples", '["a.jsonl"]']
    monkeypatch.setattr(sys, "argv", ["/home/someone/reft_jax/train.py", *arguments])
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", importlib.util.find_spec(module))
    assert run_info()["command"].startswith(program + " --config")
    assert shlex.split(run_info()["command"]) == [*program.split(), *arguments]
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", None)
    assert shlex.split(run_info()["command"]) == ["/home/someone/reft_jax/train.py", *arguments]
