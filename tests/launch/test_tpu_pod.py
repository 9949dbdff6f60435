"""launch/tpu_pod.sh: the commands it prints, the states it waits for, and what reaches the workers."""

import shlex
from pathlib import Path

import pytest

from reft_jax.config import DistributedConfig

TPU = {"NAME": "pod", "ZONE": "z1", "ACCELERATOR": "v5litepod-16", "RUNTIME": "image"}


def test_dry_run_prints_and_does_nothing(stage):
    stage.program(stage.bin / "gcloud", 'touch "$RECORDS/called"')
    steps = ["create", "wait", "install", "logs", "status", "stop", "delete", "run", stage.config, "--seed", "7"]
    result = stage.run("tpu_pod.sh", "--dry-run", *steps, SETUP="sudo mount here", **TPU)
    assert result.returncode == 0, result.stderr
    assert list(stage.records.iterdir()) == []
    commands = [shlex.split(line) for line in result.stdout.splitlines()]
    queued, ssh = "gcloud compute tpus queued-resources", "gcloud compute tpus tpu-vm ssh pod --zone=z1"
    machine = "--node-id=pod --accelerator-type=v5litepod-16 --runtime-version=image --spot"
    archive = f"{stage.scratch}/reft_jax-pod.tar.gz"
    assert commands[0] == f"{queued} create pod --zone=z1 {machine}".split()
    assert commands[1] == f"{queued} describe pod --zone=z1 --format=value(state.state)".split()
    assert commands[2] == [*f"{ssh} --worker=all".split(), "--command=sudo mount here"]
    assert commands[3] == f"git -C {Path(__file__).parents[2]} archive --format=tar.gz --output={archive} HEAD".split()
    assert commands[4] == f"gcloud compute tpus tpu-vm scp {archive} pod:reft_jax.tar.gz --zone=z1 --worker=all".split()
    assert [command[:8] for command in commands[5:9]] == [f"{ssh} --worker=all".split()] * 4
    assert commands[9][:8] == f"{ssh} --worker=0".split()
    assert commands[10] == commands[1]
    assert [command[:8] for command in commands[11:13]] == [f"{ssh} --worker=all".split()] * 2
    assert commands[13] == f"{queued} delete pod --zone=z1 --force --quiet".split()
    assert commands[14][:8] == f"{ssh} --worker=all".split()
    assert len(commands) == 15


def test_on_demand(stage):
    assert "--spot" not in stage.run("tpu_pod.sh", "--dry-run", "create", SPOT="0", **TPU).stdout


@pytest.mark.parametrize(("last", "code"), [("ACTIVE", 0), ("SUSPENDED", 1), ("FAILED", 1)])
def test_waits_for_the_slice(stage, last, code):
    asked = '[ -e "$RECORDS/asked" ]'
    stage.program(stage.bin / "gcloud", f'{asked} && echo {last} || {{ touch "$RECORDS/asked"; echo PROVISIONING; }}')
    result = stage.run("tpu_pod.sh", "wait", POLL="0", **TPU)
    assert (result.returncode, result.stdout.split()) == (code, ["PROVISIONING", last])


def test_workers_get_the_command_as_it_was_given(stage):
    stage.program(stage.bin / "sudo", 'exec "$@"')
    stage.program(stage.bin / "systemctl", "exit 1")
    stage.program(stage.bin / "systemd-run", 'while case $1 in --*) ;; *) false ;; esac do shift; done\nexec "$@"')
    stage.program(stage.bin / "gcloud", 'for word; do :; done; exec bash -c "${word#--command=}"')  # ssh, all the way
    functions = '{"my_rewards.brevity": 0.1}'
    result = stage.run("tpu_pod.sh", "run", stage.config, "--reward.functions", functions, ACTS="exit=75", **TPU)
    assert result.returncode == 75, result.stderr
    config = stage.configs()[0]
    assert config.reward.functions == {"my_rewards.brevity": 0.1}
    assert config.distributed == DistributedConfig()


@pytest.mark.parametrize("arguments", [[], ["fly"], ["run"]])
def test_usage(stage, arguments):
    result = stage.run("tpu_pod.sh", "--dry-run", *arguments, **TPU)
    assert result.returncode != 0
    assert result.stdout == ""
