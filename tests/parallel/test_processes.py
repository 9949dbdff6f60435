"""Several processes: they compute what one would, each judges its own rows, and none is left hanging or behind."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from reft_jax.config import DistributedConfig, load_config
from reft_jax.parallel import processes
from reft_jax.parallel.processes import STOPPED, gather, on_process_zero
from tests.runs import ITERATIONS, RECORDS, SFT_STEPS, assert_same_run, end, read, repeatable, steps, wait_for_step

ROOT = Path(__file__).parents[2]
MESH = {"mesh__fsdp": 2, "mesh__tensor": 2, "mesh__fake_cpu_devices": 2}  # of each of two processes


def launch(arguments: list[str], count: int = 2) -> subprocess.Popen:
    """The run in some processes, as `launch/local.sh` starts it; the first two arguments name its config."""
    environment = {**os.environ, "PYTHON": sys.executable, "PYTHONWARNINGS": "ignore", "GRACE": "60"}
    return subprocess.Popen(
        ["bash", str(ROOT / "launch/local.sh"), str(count), *arguments[1:]],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def members(run_dir: Path) -> dict[int, int]:
    """Process ids of a run by process index, from the system's list."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            line = (folder / "cmdline").read_bytes().decode().split("\0")
        except (FileNotFoundError, ProcessLookupError):
            continue
        if str(run_dir) in line and "reft_jax.train" in line and "--distributed.process_id" in line:
            found[int(line[line.index("--distributed.process_id") + 1])] = int(folder.name)
    return found


def assert_like_one_process(run_dir: Path, one: Path) -> None:
    """All data in the same order, the first samples and rewards the same; later ones may differ by rounding."""
    assert [r["step"] for r in steps(run_dir, "sft")] == list(range(1, SFT_STEPS + 1))
    for stage, name, count in (("sft", "sft/loss", SFT_STEPS), ("rl", "rl/total_loss", 3)):
        expected, got = ([r[name] for r in steps(folder, stage)[:count]] for folder in (one, run_dir))
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-4, err_msg=name)
    expected, got = (repeatable(folder, "rollouts") for folder in (one, run_dir))
    assert [(r["step"], r["id"]) for r in got] == [(r["step"], r["id"]) for r in expected]
    first = [[dict(record) for record in rows[:36]] for rows in (got, expected)]
    for own, other in zip(*([record.pop("per_token") for record in rows] for rows in first), strict=True):
        assert own["text"] == other["text"]
        for name in ("value", "advantage", "log_ratio"):
            np.testing.assert_allclose(own[name], other[name], rtol=0.01, atol=0.01, err_msg=name)
    assert first[0] == first[1], "the first iteration: completions, rewards and all"
    assert len(read(run_dir, "evaluations")) == len(read(one, "evaluations"))
    assert set(json.loads((run_dir / "summary.json").read_text())) == {"warmup", "sft", "sft_best", "rl_best"}


@pytest.mark.long
def test_two_processes_are_one_run(finished, arguments, tmp_path):
    end(launch(arguments(tmp_path / "two", **MESH)), 0)
    assert_like_one_process(tmp_path / "two", finished[0])


@pytest.mark.long
def test_two_processes_that_are_interrupted_are_one_run(finished, arguments, tmp_path):
    """One of the two is asked to stop, then one process alone goes on for a while, and is asked to stop as well."""
    run_dir = tmp_path / "two"
    process = launch(arguments(run_dir, **MESH))
    wait_for_step(process, run_dir, 30)
    os.kill(members(run_dir)[1], signal.SIGTERM)
    assert "stopped as asked; the same command continues" in end(process, STOPPED)
    process = launch(arguments(run_dir), 1)
    wait_for_step(process, run_dir, 45)
    process.terminate()
    end(process, STOPPED)
    output = end(launch(arguments(run_dir, **MESH)), 0)
    assert re.search(r"continuing after step (4|5)\d: sft", output)
    assert not members(run_dir)
    assert_like_one_process(run_dir, finished[0])


def test_a_process_that_is_alone_may_run_several_commands():
    """JAX looks for other processes once: it will not when it has been at work."""
    code = """
import jax
from reft_jax.config import DistributedConfig
from reft_jax.parallel.processes import connect
connect(DistributedConfig())
jax.devices()
connect(DistributedConfig())
print("again", jax.process_count())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "again 1\n"), done.stderr


@pytest.mark.compiles
@pytest.mark.parametrize("victim", [pytest.param(0, marks=pytest.mark.ci), pytest.param(1, marks=pytest.mark.long)])
def test_the_death_of_a_peer_ends_the_others(arguments, tmp_path, victim):
    """Within `distributed.heartbeat_timeout_seconds` and a little, with an error, and without orphans."""
    run_dir = tmp_path / "dead"
    process = launch(arguments(run_dir, distributed__heartbeat_timeout_seconds=10))
    wait_for_step(process, run_dir, 20)
    os.kill(members(run_dir)[victim], signal.SIGKILL)
    killed = time.monotonic()
    while members(run_dir):
        assert time.monotonic() - killed < 10 + 20, "a survivor hangs"
        time.sleep(0.1)
    output, _ = process.communicate(timeout=60)
    assert process.returncode not in (0, STOPPED), output
    assert re.search("error: process|heartbeat|coordination|closed|reset", output, re.IGNORECASE), output
    assert not (run_dir / "summary.json").exists()


@pytest.mark.compiles
@pytest.mark.ci
def test_an_error_of_one_process_ends_the_others(arguments, tmp_path):
    """A user's reward function fails where process 1 calls it."""
    (tmp_path / "their_rewards.py").write_text(
        "import jax\n"
        "def picky(completions, **columns):\n"
        "    assert jax.process_index() == 0, 'not here'\n"
        "    return [0.0] * len(completions)\n"
    )
    run_dir = tmp_path / "failing"
    overrides = {"sft__schedule_epochs": 1, "sft__warmup_epoch": 1, "sft__stop_epoch": 1}
    overrides["distributed__heartbeat_timeout_seconds"] = 10
    line = arguments(run_dir, **overrides, reward__functions='{"their_rewards.picky": 1.0}')
    os.environ["PYTHONPATH"] = str(tmp_path)
    try:
        process = launch(line)
    finally:
        del os.environ["PYTHONPATH"]
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 1, output
    assert "their_rewards.picky" in output
    assert "not here" in output
    assert not members(run_dir)


@pytest.mark.compiles
@pytest.mark.ci
def test_two_processes_refuse_bad_settings_before_anything_is_computed(arguments, tmp_path):
    output = end(launch(arguments(tmp_path / "bad", rl__microbatch_size=3, rl__minibatch_size=3)), 2)
    assert "rl.microbatch_size (3) must be a multiple of mesh.data * mesh.fsdp (2)" in output


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--distributed.coordinator_address", "h:1"],
            "distributed.process_id (0) must be less than distributed.num_processes (0)",
        ),
        (["--distributed.num_processes", "2"], "distributed.coordinator_address is empty"),
        (["--distributed.heartbeat_timeout_seconds", "0"], "distributed.heartbeat_timeout_seconds is 0"),
    ],
)
def test_flags_that_name_no_process_are_refused(arguments, tmp_path, flags, message, capsys):
    with pytest.raises(SystemExit):
        load_config([*arguments(tmp_path), *flags])
    assert message in capsys.readouterr().err


WHOLE = """
import sys, jax, numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from reft_jax.parallel.processes import to_host
jax.config.update("jax_num_cpu_devices", 2)
jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
mesh, whole = jax.make_mesh((4,), ("data",)), np.arange(32, dtype=np.float32).reshape(8, 4)
place = lambda spec: jax.make_array_from_callback(whole.shape, NamedSharding(mesh, spec), lambda index: whole[index])
for array in to_host([place(PartitionSpec("data")), place(PartitionSpec())]):
    np.testing.assert_array_equal(array, whole)
"""


@pytest.mark.ci
def test_arrays_of_all_processes_come_whole_to_each():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONWARNINGS": "ignore"}
    processes = [subprocess.Popen([sys.executable, "-c", WHOLE, address, str(n)], env=environment) for n in (0, 1)]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]


# The pieces, in one process


def test_one_process_speaks_to_itself_for_nothing(monkeypatch):
    monkeypatch.setattr(processes.multihost_utils, "process_allgather", None)
    marker = object()
    assert gather(marker) == [marker]
    assert on_process_zero(lambda: marker) is marker
    with pytest.raises(KeyError, match="mine"):
        on_process_zero(lambda: {}["mine"])


def test_processes_that_have_other_data_do_not_start(monkeypatch):
    seen: list[dict] = []
    monkeypatch.setattr(processes, "gather", lambda item: seen.append(item) or [item, seen[0]])
    processes.require_equal({"settings": {"a": 1}, "problems": ["x", "y"]})
    processes.require_equal({"settings": {"a": 1}, "problems": ["x", "y"]})
    with pytest.raises(ValueError, match=r"process 1 has other problems than process 0.*the same files"):
        processes.require_equal({"settings": {"a": 1}, "problems": ["x", "z"]})


def test_a_cluster_is_asked_unless_told_otherwise(monkeypatch):
    """What `jax.distributed.initialize` is given, and that a machine without a cluster is a run of one."""
    asked: list[tuple[tuple, dict]] = []

    def initialize(*args, **kwargs):
        asked.append((args, kwargs))
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(processes.jax.distributed, "initialize", initialize)
    monkeypatch.setattr(processes.jax.config, "update", lambda *_: None)
    processes.connect(DistributedConfig(detect=False))
    assert not asked
    processes.connect(DistributedConfig(heartbeat_timeout_seconds=7))
    assert asked[0][0] == (None, None, None)
    assert asked[0][1]["cluster_detection_method"] is None
    assert asked[0][1]["heartbeat_timeout_seconds"] == 7
    with pytest.raises(ValueError, match="coordinator_address"):
        processes.connect(DistributedConfig(coordinator_address="h:1", num_processes=2, process_id=1))
    assert asked[1][0] == ("h:1", 2, 1)
    assert asked[1][1]["cluster_detection_method"] == "deactivate"


@pytest.mark.long
@pytest.mark.parametrize("count", [1, 2])
def test_twenty_kills_change_nothing(finished, arguments, tmp_path, count, capsys):
    """Every process killed as hard as can be at twenty random moments, at least one in each thing that a run does."""
    from tests.kills import kill_twenty_times  # prints where each kill struck

    line = arguments(tmp_path / "killed", **({} if count == 1 else {"mesh__fsdp": 2}))
    reference = finished[0]
    if count == 2:
        reference = tmp_path / "whole"
        end(launch(arguments(reference, mesh__fsdp=2)), 0)
    with capsys.disabled():
        kill_twenty_times(lambda: launch(line, count), members, tmp_path / "killed")
    assert_same_run(tmp_path / "killed", reference)
    for name in RECORDS:
        records = (tmp_path / "killed" / f"{name}.jsonl").read_text()
        assert records.endswith("\n")
    assert len(steps(tmp_path / "killed", "rl")) == ITERATIONS
    shutil.rmtree(tmp_path / "killed")
