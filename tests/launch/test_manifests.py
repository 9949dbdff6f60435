"""launch/gke_jobset.yaml, launch/Dockerfile and launch/skypilot.yaml."""

import json
import os
import re
import signal
import tomllib
from pathlib import Path

import pytest
import yaml

from reft_jax.config import DistributedConfig

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
DOCKERFILE = (ROOT / "launch" / "Dockerfile").read_text()
JOBSET = yaml.safe_load((ROOT / "launch" / "gke_jobset.yaml").read_text())
SKYPILOT = yaml.safe_load((ROOT / "launch" / "skypilot.yaml").read_text())
NAME = JOBSET["metadata"]["name"]
ROLE = JOBSET["spec"]["replicatedJobs"][0]["name"]
JOB = JOBSET["spec"]["replicatedJobs"][0]["template"]["spec"]
CONTAINER = JOB["template"]["spec"]["containers"][0]


@pytest.mark.parametrize(("name", "manifest"), [("jobset", JOBSET), ("skypilot", SKYPILOT)])
def test_manifest_has_the_form_of_its_format(name, manifest):
    jsonschema = pytest.importorskip("jsonschema")
    schema = yaml.safe_load((HERE / "schemas.yaml").read_text())[name]
    jsonschema.Draft202012Validator.check_schema(schema)
    errors = jsonschema.Draft202012Validator(schema).iter_errors(manifest)
    assert [f"{error.json_path}: {error.message}" for error in errors] == []


def test_gke_pods_compute_their_place(stage, monkeypatch):
    hosts = JOB["completions"]
    values = {item["name"]: item.get("value") for item in CONTAINER["env"]}
    assert JOB["parallelism"] == int(values["HOSTS"]) == hosts
    assert JOBSET["spec"]["coordinator"] == {"replicatedJob": ROLE, "jobIndex": 0, "podIndex": 0}
    coordinator = f"{NAME}-{ROLE}-0-0.{NAME}"  # JobSet's annotation: the name of pod 0 in the headless service
    values |= {"COORDINATOR": coordinator, "JOB_COMPLETION_INDEX": "1"}
    arguments = [re.sub(r"\$\((\w+)\)", lambda match: values[match[1]], word) for word in CONTAINER["args"]]
    init, separator, *entry = json.loads(re.search(r"^ENTRYPOINT (.*)$", DOCKERFILE, re.M)[1])
    assert (init, separator) == ("tini", "--")
    assert stage.run(*entry, *arguments).returncode == 0
    monkeypatch.chdir(ROOT)  # the image has configs/ in its working directory
    [config] = stage.configs()
    assert config.distributed == DistributedConfig(f"{coordinator}:8476", hosts, 1)
    assert config.run_dir.startswith(tuple(mount["mountPath"] for mount in CONTAINER["volumeMounts"]))


def reaction(code: int, disrupted: bool) -> str:
    """What JobSet does after a pod ended so, by the rules of batch/v1 and JobSet (first match wins)."""
    reason, message = "BackoffLimitExceeded", "Job has reached the specified backoff limit"
    for index, rule in enumerate(JOB["podFailurePolicy"]["rules"]):
        end = f"matching {rule['action']} rule at index {index}"
        if code in rule.get("onExitCodes", {"values": []})["values"]:
            reason, message = "PodFailurePolicy", f"Container reft for pod a/b failed with exit code {code} {end}"
            break
        if disrupted and "onPodConditions" in rule:
            reason, message = "PodFailurePolicy", f"Pod a/b has condition DisruptionTarget {end}"
            break
    for rule in JOBSET["spec"]["failurePolicy"]["rules"]:
        patterns = rule["onJobFailureMessagePatterns"]
        if reason in rule["onJobFailureReasons"] and any(re.search(pattern, message) for pattern in patterns):
            return rule["action"]
    return "RestartJobSet"


@pytest.mark.parametrize(
    ("code", "disrupted", "action"),
    [
        (75, False, "RestartJobSetAndIgnoreMaxRestarts"),
        (75, True, "RestartJobSetAndIgnoreMaxRestarts"),
        (137, True, "RestartJobSetAndIgnoreMaxRestarts"),
        (2, False, "FailJobSet"),
        (3, False, "FailJobSet"),
        (1, False, "RestartJobSet"),
        (13, False, "RestartJobSet"),
        (134, False, "RestartJobSet"),
    ],
)
def test_gke_counts_failures_but_not_interruptions(code, disrupted, action):
    by_code = [rule["onExitCodes"] for rule in JOB["podFailurePolicy"]["rules"] if "onExitCodes" in rule]
    assert {rule["containerName"] for rule in by_code} == {CONTAINER["name"]}
    assert JOB["backoffLimit"] == 0
    assert reaction(code, disrupted) == action


def test_image_is_built_from_what_is_there():
    copied = [word for line in re.findall(r"^COPY (.*)$", DOCKERFILE, re.M) for word in line.split()[:-1]]
    assert copied
    assert all((ROOT / path).exists() for path in copied)
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert re.search(r"^ARG EXTRA=(\w+)$", DOCKERFILE, re.M)[1] in extras
    assert {"cuda12", "cuda13", "tpu"} <= set(extras)


def test_skypilot_nodes_compute_their_place(stage):
    nodes = {"SKYPILOT_NODE_IPS": "10.0.0.5\n10.0.0.6", "SKYPILOT_NUM_NODES": "2", "SKYPILOT_NODE_RANK": "1"}
    environment = SKYPILOT["envs"] | nodes | {"CONFIG": stage.config, "OVERRIDES": "--seed 7"}
    assert stage.run("bash", "-c", SKYPILOT["run"], ACTS="exit=75", **environment).returncode == 75
    [config] = stage.configs()
    assert config.distributed == DistributedConfig("10.0.0.5:8476", 2, 1)
    assert (config.seed, config.run_dir) == (7, SKYPILOT["envs"]["RUN_DIR"])
    assert config.run_dir.startswith(tuple(SKYPILOT["file_mounts"]))
    assert SKYPILOT["resources"]["job_recovery"]["recover_on_exit_codes"] == [75]


NODE = SKYPILOT["envs"] | {"SKYPILOT_NODE_IPS": "10.0.0.5", "SKYPILOT_NUM_NODES": "1", "SKYPILOT_NODE_RANK": "0"}


@pytest.mark.parametrize(("code", "seen"), [(0, 0), (1, 1), (2, 2), (3, 0), (75, 75)])
def test_skypilot_sees_no_failure_in_a_collapsed_run(stage, code, seen):
    """Any code but 0 and 75 would be restarted three times."""
    result = stage.run("bash", "-c", SKYPILOT["run"], ACTS=f"exit={code}", **NODE)
    assert (result.returncode, "collapsed" in result.stdout) == (seen, code == 3)


def test_skypilot_hands_a_signal_on_to_the_run(stage):
    process = stage.start("bash", "-c", SKYPILOT["run"], ACTS="stop", **NODE)
    stage.wait_for_processes(1)
    process.terminate()
    assert process.wait(timeout=10) == 75
    assert [record["signals"] for record in stage.read()] == [[signal.SIGTERM]]
    os.kill(stage.pids()[1], signal.SIGKILL)
    process.communicate()
