"""Runs that are killed, stopped, cut short or moved: they end like the uninterrupted one, or say what is in the way."""

import fcntl
import functools
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import jax
import numpy as np
import pytest
import yaml

from reft_jax.data.embedded.problems import generate_problems
from reft_jax.data.readers import split_dev
from reft_jax.parallel.processes import ASKED, STOPPED
from reft_jax.training import reinforcement
from reft_jax.training.directory import positions_in
from reft_jax.training.sampler import Sampler
from reft_jax.training.state import Records, RunProgress, Stage
from reft_jax.training.supervised import StepRecorder
from tests.runs import (
    ITERATIONS,
    SFT_STEPS,
    TRAIN,
    assert_same_bits,
    assert_same_run,
    complete,
    end,
    read,
    repeatable,
    restore,
    start,
    steps,
    wait_for_step,
)

pytestmark = pytest.mark.compiles


def resume_points(run_dir: Path) -> list[int]:
    return sorted(int(path.name) for path in (run_dir / "checkpoints/resume").iterdir() if path.name.isdigit())


def kill_at(arguments: list[str], run_dir: Path, step: int) -> int:
    """Kills the run as hard as can be once it shows a step; returns that of its last checkpoint."""
    process = start(arguments)
    wait_for_step(process, run_dir, step)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not (run_dir / "summary.json").exists()
    return max(resume_points(run_dir), default=0)


@pytest.mark.ci
def test_a_killed_run_ends_like_an_uninterrupted_one(finished, arguments, tmp_path):
    """Killed before the first checkpoint, in the middle of SFT, and in the middle of PPO."""
    run_dir, line = tmp_path / "killed", arguments(tmp_path / "killed")
    assert kill_at(line, run_dir, 2) == 0
    assert 0 < kill_at(line, run_dir, 40) < SFT_STEPS
    assert SFT_STEPS < kill_at(line, run_dir, SFT_STEPS + 6) < SFT_STEPS + ITERATIONS
    output = complete(line)
    resumed = int(re.search(r"continuing after step (\d+): rl", output)[1])
    assert SFT_STEPS < resumed < SFT_STEPS + ITERATIONS
    assert_same_run(run_dir, finished[0])


# Asked to stop


@pytest.fixture
def signal_at(monkeypatch):
    """Sends this process a signal in the middle of a run, at the next of some moments; returns how many are left."""
    moments: list[tuple[str, int]] = []

    def watch(place: str, step: int) -> None:
        if moments and moments[0] == (place, step):
            del moments[0]
            os.kill(os.getpid(), signal.SIGINT if len(moments) % 2 else signal.SIGTERM)

    def wrap(owner, name: str, seen) -> None:
        original = getattr(owner, name)

        def wrapped(*args, **kwargs):
            seen(*args, **kwargs)
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, wrapped)

    wrap(StepRecorder, "push", lambda recorder, step, *_: watch("sft", step))
    wrap(reinforcement, "draw_iteration", lambda sampler, params, stage, number, *_: watch("rl", number))
    open_records: list[Records] = []
    wrap(Records, "resume", lambda records, *_: open_records.append(records))
    wrap(Sampler, "evaluate", lambda sampler, _, split: watch(split, open_records[-1].progress.stage_step))
    return moments


MOMENTS = {  # and the step that is then saved
    ("sft", 20): 21,  # what the step before asked is heard after this one
    ("dev", 48): 48,
    ("dev", 54): 54,
    ("rl", 0): SFT_STEPS,
    ("rl", 4): SFT_STEPS + 4,
    ("dev", 6): SFT_STEPS + 6,
    ("test", 9): SFT_STEPS + 9,
}


@pytest.mark.long
def test_a_run_that_is_asked_to_stop_saves_where_it_is(finished, arguments, here, signal_at, tmp_path):
    """In SFT, in evaluations of both stages, while sampling, and while test is read; it loses no step by that."""
    run_dir = tmp_path / "stopped"
    for moment in MOMENTS:
        signal_at[:] = [moment]
        with pytest.raises(SystemExit) as stopped:
            here(arguments(run_dir, checkpoint__keep_last=1))
        assert (stopped.value.code, signal_at) == (STOPPED, []), moment
        assert resume_points(run_dir) == [MOMENTS[moment]], moment
    here(arguments(run_dir))
    assert_same_run(run_dir, finished[0])


@pytest.mark.ci
def test_a_process_that_is_asked_to_stop_exits_with_its_own_code(arguments, tmp_path):
    run_dir = tmp_path / "asked"
    process = start(arguments(run_dir), ("reft_jax.train",))
    wait_for_step(process, run_dir, 5)
    process.send_signal(signal.SIGTERM)
    assert STOPPED == 75
    output = end(process, STOPPED)
    assert output.index(ASKED) < output.index(f"stopped as asked; the same command continues in {run_dir}:\n  ")
    assert output.endswith(f" -m reft_jax.train {shlex.join(arguments(run_dir))}\n"), "as a shell takes it"
    assert "Traceback" not in output
    assert resume_points(run_dir) == [max(r["step"] for r in read(run_dir, "metrics"))]


def test_a_second_signal_stops_at_once():
    code = """
import signal, time, jax
from reft_jax.parallel.processes import StopRequest
from reft_jax.config import MeshConfig
from reft_jax.parallel.sharding import make_mesh
with StopRequest() as stop:
    stop.defer(make_mesh(MeshConfig(), jax.devices()))
    print("ready", flush=True)
    while not stop.ask(): time.sleep(0.01)
    print("asked", flush=True)
    time.sleep(300)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == "asked\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=5) == -signal.SIGTERM


# Going on after damage, with other settings, on other devices


@pytest.fixture
def unfinished(copied):
    """A copy of the finished run that was interrupted after its last step, before test was read."""
    (copied / "summary.json").unlink()
    return copied


@pytest.mark.ci
def test_a_checkpoint_that_was_cut_short_is_left_out(finished, unfinished, arguments, here):
    before, last = resume_points(unfinished)
    files = (unfinished / f"checkpoints/resume/{last}/state").rglob("*")
    largest = max((path for path in files if path.is_file()), key=lambda path: path.stat().st_size)
    os.truncate(largest, largest.stat().st_size - 1)
    (unfinished / f"checkpoints/resume/{last + 1}.orbax-checkpoint-tmp").mkdir()
    output = here(arguments(unfinished))
    assert f"checkpoint {last + 1}.orbax-checkpoint-tmp was never finished" in output
    assert f"checkpoint {last} was cut short: it is left out" in output
    assert f"continuing after step {before}" in output
    assert_same_run(unfinished, finished[0])


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("rl.kl_coef", 0.5, "rl.kl_coef is 0.5 and was 0.01: name it in allow_changed"),
        ("rl.minibatch_size", 36, "rl.minibatch_size is 36 and was 12: it cannot change, for rl has begun"),
        ("sft.batch_size", 8, "sft.batch_size is 8 and was 16: it cannot change, for the run is past sft"),
        ("seed", 4, "seed is 4 and was 3: it cannot change, for it draws"),
        ("data.train.limit", 121, "data.train: the problems are not those that the run began with"),
        ("evaluation.dev_limit", 3, "evaluation.dev_limit is 3 and was 0: it cannot change, for accuracies"),
        ("model.lora.rank", 2, "model.lora.rank is 2 and was 0: it cannot change, for the parameters"),
    ],
)
def test_other_settings_in_the_same_folder_are_refused_with_the_reason(copied, arguments, here, key, value, reason):
    """Of those that cannot change, `allow_changed` changes nothing."""
    allow = [] if "allow_changed" in reason else [key]
    before = (copied / "config.yaml").read_text()
    with pytest.raises(SystemExit, match=f"holds a run that cannot go on like this.*\n{re.escape(reason)}"):
        here(arguments(copied, **{key.replace(".", "__"): value}, allow_changed=json.dumps(allow)))
    assert (copied / "config.yaml").read_text() == before
    assert (copied / "summary.json").exists()


def test_other_settings_that_are_allowed_are_taken_over(unfinished, arguments, here):
    overrides = {"rl__kl_coef": 0.5, "rl__optimizer__beta2": 0.9}
    with pytest.raises(SystemExit, match=r"rl\.optimizer\.beta2 is 0\.9 and was 0\.98: name it in allow_changed"):
        here(arguments(unfinished, **overrides, allow_changed='["rl.kl_coef"]'))
    said = here(arguments(unfinished, **overrides, allow_changed='["rl.optimizer", "rl.kl_coef"]'))
    assert "from here on rl.kl_coef is 0.5 (was 0.01)" in said
    assert yaml.safe_load((unfinished / "config.yaml").read_text())["rl"]["kl_coef"] == 0.5
    changes = {"rl.kl_coef": [0.01, 0.5], "rl.optimizer.beta2": [0.98, 0.9]}
    step = SFT_STEPS + ITERATIONS
    assert json.loads((unfinished / "run.json").read_text())["changes"] == [{"after_step": step, "settings": changes}]
    here(arguments(unfinished, **overrides))


@pytest.mark.parametrize(
    ("first", "last", "devices", "mesh"),
    [
        pytest.param(30, 45, 2, {"mesh__fsdp": 2, "model__scan_layers": "false"}, marks=pytest.mark.ci),
        pytest.param(14, 61, 8, {"mesh__fsdp": 4, "mesh__tensor": 2}, marks=pytest.mark.long),
    ],
)
def test_a_run_goes_on_on_other_devices(finished, arguments, here, signal_at, tmp_path, first, last, devices, mesh):
    """From one device to several in the middle of SFT, and back before PPO: the same data and nearly the same numbers.

    In one case layers are unrolled in between, and weights are in the other form.

    Between steps 30 and 45 nothing is evaluated, so that little is compiled for two devices.
    """
    run_dir = tmp_path / "moved"
    untested = functools.partial(arguments, run_dir, data__test__kind="none")
    for step, line, count in ((first, untested(), 1), (last, untested(**mesh), devices)):
        signal_at[:] = [("sft", step)]
        with pytest.raises(SystemExit) as stopped:
            here(line, devices=count)
        assert stopped.value.code == STOPPED
    complete(untested())
    for stage, name, count in (("sft", "sft/loss", SFT_STEPS), ("rl", "rl/value_loss", 1)):
        one, moved = ([r[name] for r in steps(folder, stage)[:count]] for folder in (finished[0], run_dir))
        np.testing.assert_allclose(moved, one, rtol=0, atol=1e-4, err_msg=name)
    asked = lambda folder: [(r["step"], r["id"]) for r in read(folder, "rollouts")]
    assert asked(run_dir) == asked(finished[0])


@pytest.mark.ci
def test_the_best_few_models_are_kept(arguments, here, tmp_path, monkeypatch):
    """Dev accuracies are dictated; of two alike the earlier one is better."""
    accuracies = {4: 0.2, 8: 0.5, 9: 0.3, 11: 0.5}
    save_if_best = Records.save_if_best
    dictated = lambda records, params, step, _, **kind: save_if_best(
        records, params, step, {"accuracy": accuracies[step // 6]}, **kind
    )
    monkeypatch.setattr(Records, "save_if_best", dictated)
    run_dir = tmp_path / "best"
    here(arguments(run_dir, rl__epochs=0, checkpoint__keep_best=2, sft__save_every=1, data__test__kind="none"))
    entries = {path.name for path in (run_dir / "checkpoints").iterdir()}
    assert {name for name in entries if "best" in name} == {"sft_best", "sft_best_step_48", "sft_best_step_66"}
    assert str((run_dir / "checkpoints/sft_best").readlink()) == "sft_best_step_48"
    ranking = json.loads((run_dir / "checkpoints/resume/66/progress/metadata").read_text())["best"]["sft_best"]
    assert [(entry["step"], entry["accuracy"]) for entry in ranking] == [(48, 0.5), (66, 0.5)]


# What is in the way is said


def test_a_folder_in_use_is_refused(copied, arguments, here):
    with (copied / ".lock").open("a") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(SystemExit, match=f"error: run_dir {copied} is in use by another run"):
            here(arguments(copied))
    here(arguments(copied))


def test_a_folder_that_cannot_be_made_is_named(arguments, here, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(
        SystemExit, match=rf"error: run_dir {tmp_path}/file/run cannot be made .*Not a directory.*: name another"
    ):
        here(arguments(tmp_path / "file" / "run"))


@pytest.mark.ci
def test_a_disk_too_small_for_the_checkpoints_is_refused(finished, arguments, here, tmp_path, monkeypatch):
    decoder, head = (restore(finished[0] / "checkpoints" / name) for name in ("rl_best", "rl_best_value_head"))
    weights = 4 * sum(x.size for x in jax.tree.leaves((decoder, head)))
    state = restore(finished[0] / f"checkpoints/resume/{SFT_STEPS + ITERATIONS}/state")
    needed = 3 * sum(x.nbytes for x in jax.tree.leaves(state)) + 6 * weights
    usage = namedtuple("usage", "total used free")
    for free, fits in ((needed, True), (needed - 1, False)):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: usage(free, 0, free))
        if fits:
            short = {"sft__schedule_epochs": 1, "sft__warmup_epoch": 1, "sft__stop_epoch": 1}
            here(arguments(tmp_path / "fits", rl__epochs=0, data__test__kind="none", **short))
        else:
            with pytest.raises(SystemExit, match=r"GB free and the run's checkpoints take up to .*make room"):
                here(arguments(tmp_path / "full"))
            assert not (tmp_path / "full" / "metrics.jsonl").exists()


@pytest.mark.long
def test_a_disk_that_runs_full_ends_the_run_with_an_error(arguments, tmp_path):
    """No file may pass 40 kB: the first checkpoint cannot be written."""
    command = [sys.executable, "-m", "reft_jax.train", *arguments(tmp_path / "full", logging__trackers="[]")]
    limited = ["bash", "-c", 'ulimit -f 40; exec "$@"', "bash", *command]
    done = subprocess.run(limited, capture_output=True, text=True, timeout=300, cwd=Path(__file__).parents[2])
    assert done.returncode == 1
    where = tmp_path / "full" / "checkpoints"
    assert re.search(rf"^error: a checkpoint in {where} could not be written: .*File too large", done.stderr, re.M)


# Without a resume point


def test_a_finished_run_without_its_resume_points_is_not_begun_over(copied, arguments, here):
    """Its table is printed again; with a source that is elsewhere, nobody can say whether that is the same run."""
    shutil.rmtree(copied / "checkpoints/resume")
    assert "Accuracy on test" in here(arguments(copied))
    with pytest.raises(SystemExit, match="holds a run that is finished, and no resume point to go on from"):
        here(arguments(copied, data__train__limit=119))
    assert (copied / "summary.json").exists()
    assert len(steps(copied, "sft")) == SFT_STEPS


def test_models_without_a_resume_point_are_not_written_over_with_other_settings(unfinished, arguments, here):
    shutil.rmtree(unfinished / "checkpoints/resume")
    for key in ("data__train__limit", "seed"):
        name = key.replace("__", ".")
        with pytest.raises(SystemExit, match=rf"models of a run with other settings \({name}\), and no resume point"):
            here(arguments(unfinished, **{key: 119}, allow_changed=json.dumps([name])))
    assert len(steps(unfinished, "sft")) == SFT_STEPS


def test_a_run_of_another_command_is_named():
    """The stage of its resume points is none of this command's."""
    stage = Stage(name="reward_model", offset=0, epoch=1, schedule=1, stop=1)
    with pytest.raises(ValueError, match="holds a run whose stage is rl, of another command"):
        positions_in(RunProgress(stage="rl"), {"reward_model": stage})


# Questions without a chain of thought


def half_annotated(arguments, run_dir: Path, limit: int = 60) -> list[str]:
    """The tiny run made short, the first 60 of its 120 questions annotated."""
    short = {"sft__schedule_epochs": 2, "sft__warmup_epoch": 1, "sft__stop_epoch": 2, "sft__evaluate_every": 2}
    short |= {"sft__prompt_buckets": "[48]", "generation__prompt_buckets": "[72]", "data__test__kind": "none"}
    kept = {"sft__save_every": 1, "checkpoint__keep_last": 9}
    return arguments(run_dir, data__train__cot_limit=limit, rl__epochs=1, **short, **kept)


@pytest.mark.ci
def test_questions_without_a_chain_of_thought_are_for_reinforcement_alone(arguments, here, tmp_path):
    """SFT has the steps of the rows that have one, and PPO asks all."""
    train, _ = split_dev(generate_problems("train")[:120], 0.2)
    having = sum(int(problem.id.rpartition("_")[2]) < 60 for problem in train)
    assert having < len(train) == TRAIN
    output = here(half_annotated(arguments, tmp_path))
    assert f"sft: {having} of {TRAIN} problems have a chain of thought" in output
    epoch = -(-having // 16)
    assert resume_points(tmp_path) == [epoch, 2 * epoch, 2 * epoch + 2, 2 * epoch + 3]
    assert len(steps(tmp_path, "sft")) == 2 * epoch < 2 * SFT_STEPS / 11
    assert json.loads((tmp_path / "summary.json").read_text())["warmup"]["examples"] == having
    asked = [record["id"] for record in read(tmp_path, "rollouts")]
    assert sorted(asked) == sorted(problem.id for problem in train)


@pytest.mark.long
def test_a_run_with_few_annotations_goes_on_from_its_resume_points(arguments, here, tmp_path):
    """From that after an epoch of SFT it ends with the same bits; with another annotation it is another run."""
    whole, again = tmp_path / "whole", tmp_path / "again"
    here(half_annotated(arguments, whole))
    shutil.copytree(whole, again, symlinks=True)
    (again / "summary.json").unlink()
    first, *later = resume_points(again)
    for step in later:
        shutil.rmtree(again / f"checkpoints/resume/{step}")
    with pytest.raises(SystemExit, match=r"data\.train: the problems are not those that the run began with"):
        here(half_annotated(arguments, again, limit=61))
    assert f"continuing after step {first}: sft" in here(half_annotated(arguments, again))
    for name in ("metrics", "rollouts", "evaluations"):
        assert repeatable(again, name) == repeatable(whole, name), name
    assert_same_bits(*(restore(folder / "checkpoints/rl_best") for folder in (again, whole)))
