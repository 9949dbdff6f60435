"""launch/local.sh: places, exit codes, signals, and that nothing stays behind."""

import os
import re
import signal

import pytest

from reft_jax.config import DistributedConfig


def test_tells_each_process_its_place(stage):
    result = stage.run("local.sh", 3, stage.config, "--seed", 7)
    assert (result.returncode, result.stdout, result.stderr) == (0, "process 0 speaks\n", "")
    configs = stage.configs()
    coordinator = configs[0].distributed.coordinator_address
    assert re.fullmatch(r"127\.0\.0\.1:\d+", coordinator)
    assert [config.distributed for config in configs] == [DistributedConfig(coordinator, 3, i) for i in range(3)]
    assert {config.seed for config in configs} == {7}
    assert {record["platforms"] for record in stage.read()} == {"cpu"}
    assert list(stage.scratch.iterdir()) == []


def test_leaves_the_platform_to_the_caller(stage):
    stage.run("local.sh", 1, stage.config, JAX_PLATFORMS="cuda")
    assert stage.read()[0]["platforms"] == "cuda"


@pytest.mark.parametrize(
    ("acts", "code"), [("exit=75", 75), ("exit=0 exit=75", 75), ("exit=75 exit=2", 2), ("exit=143 exit=0", 143)]
)
def test_exit_code(stage, acts, code):
    assert stage.run("local.sh", 2, stage.config, ACTS=acts).returncode == code


@pytest.mark.parametrize("arguments", [[], ["2"], ["0", "config.yaml"], ["two", "config.yaml"]])
def test_usage(stage, arguments):
    result = stage.run("local.sh", *arguments)
    assert result.returncode == 2
    assert "usage" in result.stderr


def test_failure_ends_the_others_and_is_shown(stage):
    result = stage.run("local.sh", 3, stage.config, ACTS="deaf exit=3 deaf", GRACE="1")
    assert result.returncode == 3
    assert "process 1 failed with exit code 3\n[process 1] process 1 speaks\n" in result.stderr
    assert "[process 2]" not in result.stderr
    [folder] = stage.scratch.iterdir()
    assert str(folder) in result.stderr
    assert len(stage.pids()) == 5
    stage.wait_until(lambda: not stage.alive())  # a process that is killed is gone a moment later


def test_what_all_refuse_is_said_once(stage):
    result = stage.run("local.sh", 3, stage.config, ACTS="exit=2")
    assert (result.returncode, result.stdout, result.stderr) == (2, "process 0 speaks\n", "")
    assert list(stage.scratch.iterdir()) == []


def test_a_collapse_is_no_failure_where_all_processes_saw_it(stage):
    result = stage.run("local.sh", 3, stage.config, ACTS="exit=3")
    assert (result.returncode, result.stdout, result.stderr) == (3, "process 0 speaks\n", "")
    assert list(stage.scratch.iterdir()) == []
    result = stage.run("local.sh", 2, stage.config, ACTS="exit=3 exit=1")
    assert result.returncode in (1, 3)
    assert "process 1 failed with exit code 1" in result.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_passes_a_signal_on_once(stage, number):
    process = stage.start("local.sh", 3, stage.config, ACTS="stop stop early")
    stage.wait_for_processes(3)
    os.killpg(process.pid, number)  # as a terminal does
    process.communicate(timeout=10)
    assert process.returncode == 75
    assert [record["signals"] for record in stage.read()] == [[number], [number], []]
    stage.wait_until(lambda: not stage.alive())  # a process that is killed is gone a moment later
    assert list(stage.scratch.iterdir()) == []


def test_kills_what_ignores_two_signals(stage):
    process = stage.start("local.sh", 2, stage.config, ACTS="deaf", GRACE="0")
    stage.wait_for_processes(2)
    process.terminate()
    stage.wait_until(lambda: all(record["signals"] for record in stage.read()))
    process.terminate()
    process.communicate(timeout=10)
    assert process.returncode == 75
    stage.wait_until(lambda: not stage.alive())  # a process that is killed is gone a moment later


def test_leaves_nothing_behind_when_it_is_killed(stage):
    process = stage.start("local.sh", 2, stage.config, ACTS="stop")
    stage.wait_for_processes(2)
    process.kill()
    stage.wait_until(lambda: not stage.alive())
    process.communicate()
