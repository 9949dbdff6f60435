"""launch/slurm.sh: what SLURM is asked for, and when the job is queued again."""

import json
import os
import re
import signal
import sys
import time
from pathlib import Path

import pytest

from reft_jax.config import DistributedConfig

LAUNCHER = Path(__file__).parents[2] / "launch" / "slurm.sh"
JOB = {
    "SLURM_JOB_ID": "4711",
    "SLURM_NTASKS": "2",
    "SLURM_CPUS_PER_TASK": "8",
    "SLURM_JOB_NODELIST": "n[1-2]",
    "JOB_STATE": "RUNNING",
}


@pytest.fixture
def cluster(stage):
    for name in ("srun", "squeue", "scontrol"):
        stage.program(stage.bin / name, f'exec {sys.executable} -S {Path(__file__).with_name("slurm.py")} {name} "$@"')
    return stage


def test_header():
    header = re.findall(r"^#SBATCH --([a-z-]+)(?:=(.*))?$", LAUNCHER.read_text(), re.M)
    options = dict(header)
    assert options["ntasks-per-node"] == options["gpus-per-node"] == "8"  # JAX gives a process the GPU of its local id
    assert "gpus-per-task" not in options
    assert "requeue" in options
    assert re.fullmatch(r"TERM@\d+", options["signal"])  # `B:` would keep it from the processes
    assert options["open-mode"] == "append"


def test_needs_no_flags_and_keeps_logs_apart(cluster):
    result = cluster.run("slurm.sh", cluster.config, "--seed", 7, SLURM_RESTART_COUNT="2", **JOB)
    assert result.returncode == 0, result.stderr
    assert [config.distributed for config in cluster.configs()] == [DistributedConfig()] * 2
    logs = cluster.scratch / "logs" / "4711-2"
    assert {path.name: path.read_text() for path in logs.iterdir()} == {
        f"{task}.log": f"process {task} speaks\n" for task in range(2)
    }
    options = json.loads((cluster.records / "srun").read_text())
    assert {"--cpus-per-task=8", "--kill-on-bad-exit=0"} <= set(options)


@pytest.mark.parametrize(
    ("acts", "state", "code", "requeued"),
    [
        ("exit=75", "RUNNING", 75, True),
        ("exit=143", "RUNNING", 143, True),
        ("exit=75", "COMPLETING", 75, False),  # cancelled, or out of time
        ("exit=1", "RUNNING", 1, False),
        ("exit=3", "RUNNING", 3, False),
        ("exit=0", "RUNNING", 0, False),
    ],
)
def test_requeues_what_was_interrupted(cluster, acts, state, code, requeued):
    result = cluster.run("slurm.sh", cluster.config, ACTS=acts, **(JOB | {"JOB_STATE": state}))
    assert result.returncode == code
    calls = cluster.records / "scontrol"
    assert (json.loads(calls.read_text()) if calls.exists() else None) == (["requeue", "4711"] if requeued else None)


def test_says_that_a_run_collapsed(cluster):
    result = cluster.run("slurm.sh", cluster.config, ACTS="exit=3", **JOB)
    assert "reinforcement collapsed" in result.stderr
    assert "failed" not in result.stderr


def test_script_outlives_a_signal_of_its_own(cluster):
    process = cluster.start("slurm.sh", cluster.config, ACTS="stop", **JOB)
    cluster.wait_for_processes(2)
    process.terminate()
    time.sleep(0.2)
    assert process.poll() is None
    for record in cluster.read():
        os.kill(record["pids"][0], signal.SIGTERM)
    process.communicate(timeout=10)
    assert process.returncode == 75
    assert (cluster.records / "scontrol").exists()
    for pid in cluster.pids()[1::2]:
        os.kill(pid, signal.SIGKILL)
