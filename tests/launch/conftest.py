"""A folder with stand-ins for the trainer, SLURM and whatever a test adds, and what starts a launcher among them."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from reft_jax.config import Config, load_config

HERE = Path(__file__).parent
LAUNCH = HERE.parents[1] / "launch"


class Stage:
    """The folder: `bin` is searched first for programs, `home` is the user's, `scratch` is where a launcher starts."""

    config = str(HERE.parents[1] / "configs" / "quickstart.yaml")

    def __init__(self, folder: Path) -> None:
        self.bin, self.home, self.records, self.scratch = (
            folder / name for name in ("bin", "home", "records", "scratch")
        )
        for path in (self.records, self.scratch):
            path.mkdir()
        trainer = f'exec {sys.executable} -S {HERE / "stand_in.py"} "$@"'
        python = self.program(self.bin / "python", trainer)
        self.program(self.home / ".reft_jax" / "bin" / "python", trainer)
        self.environment = {
            "PATH": f"{self.bin}:{os.environ['PATH']}",
            "HOME": str(self.home),
            "TMPDIR": str(self.scratch),
            "RECORDS": str(self.records),
            "PYTHON": str(python),
        }

    def program(self, path: Path, text: str) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
        return path

    def start(self, launcher: str, *arguments: object, **environment: str) -> subprocess.Popen:
        """Starts a launcher, or any program, as the leader of a session."""
        before = signal.signal(signal.SIGINT, signal.default_int_handler)  # where it is ignored, children ignore it too
        try:
            return subprocess.Popen(
                [str(LAUNCH / launcher) if launcher.endswith(".sh") else launcher, *map(str, arguments)],
                env=self.environment | environment,
                cwd=self.scratch,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
        finally:
            signal.signal(signal.SIGINT, before)

    def run(self, launcher: str, *arguments: object, **environment: str) -> subprocess.CompletedProcess:
        process = self.start(launcher, *arguments, **environment)
        out, err = process.communicate(timeout=20)
        return subprocess.CompletedProcess([launcher, *arguments], process.returncode, out, err)

    def read(self) -> list[dict]:
        """What the stand-ins of the trainer wrote down, in the order of their indices."""
        return [json.loads(path.read_text()) for path in sorted(self.records.glob("*.json"))]

    def configs(self) -> list[Config]:
        """The settings that the trainer would have read from its command line."""
        commands = [record["arguments"] for record in self.read()]
        assert all(command[:2] == ["-m", "reft_jax.train"] for command in commands)
        return [load_config(command[2:]) for command in commands]

    def pids(self) -> list[int]:
        return [pid for record in self.read() for pid in record["pids"]]

    def alive(self) -> list[int]:
        """Those of the trainers and their children that still run."""
        states = subprocess.run(["ps", "-A", "-o", "pid=,stat="], capture_output=True, text=True).stdout.split("\n")
        running = {int(line.split()[0]) for line in states if line.strip() and not line.split()[1].startswith("Z")}
        return [pid for pid in self.pids() if pid in running]

    def wait_until(self, condition: Callable[[], bool]) -> None:
        end = time.monotonic() + 10
        while not condition():
            assert time.monotonic() < end, "waited 10 s"
            time.sleep(0.02)

    def wait_for_processes(self, count: int) -> None:
        """Waits until that many trainers have a child and listen to signals."""
        self.wait_until(lambda: len(self.pids()) == 2 * count)


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path)
