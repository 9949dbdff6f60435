"""Whole runs for the tests: the settings of a tiny one, how to run it here or as a process, how to read what it wrote.

The model is tiny, the problems are the embedded ones; all runs share a folder of compiled programs. A run of one device
is given the first of eight, as many as this process has: programs compiled for one in a process of one are others.

`python -m tests.runs COMMAND ARGUMENTS` is `python -m reft_jax.COMMAND ARGUMENTS` on the first of eight devices.
"""

import contextlib
import importlib
import io
import json
import os
import re
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
import yaml

from reft_jax.parallel.sharding import fake_cpu_devices

OPTIMIZER = {"beta2": 0.98, "weight_decay": 0.01}
TINY = {
    "seed": 3,
    "model": {
        "tokenizer": "embedded",
        "decoder": {
            "vocab_multiple": 8,
            "embed_dim": 16,
            "num_layers": 2,
            "num_heads": 2,
            "num_kv_heads": 2,
            "head_dim": 8,
            "rotary_dim": 8,
            "mlp_dim": 32,
            "max_positions": 128,
            "initializer_range": 0.1,
        },
    },
    "data": {
        "train": {"kind": "generated", "path": "train", "limit": 120},
        "test": {"kind": "generated", "path": "test", "limit": 20},
        "dev_fraction": 0.2,
    },
    "sft": {
        "schedule_epochs": 16,
        "warmup_epoch": 9,
        "stop_epoch": 11,
        "evaluate_every": 4,
        "save_every": 3,
        "batch_size": 16,
        "microbatch_size": 8,
        "prompt_buckets": [34, 36, 48],
        "response_buckets": [56],
        "optimizer": {"learning_rate": 0.02, **OPTIMIZER},
    },
    "rl": {
        "epochs": 3,
        "rollout_batch_size": 36,
        "minibatch_size": 12,
        "microbatch_size": 12,
        "evaluate_every": 3,
        "save_every": 2,
        "optimizer": {"learning_rate": 0.005, "schedule": "constant", **OPTIMIZER},
    },
    "generation": {"prompt_buckets": [60, 72], "max_new_tokens": 20, "scan_layers": True},
    "reward": {"program_timeout_s": 5.0},
    "logging": {"rollouts_every": 1, "rollouts_limit": 36, "tokens_limit": 36},
}
TRAIN, DEV, TEST = 96, 24, 20  # problems, after dev is carved out
SFT_STEPS, ITERATIONS = 66, 9  # 6 steps an epoch, 11 epochs; 3 iterations an epoch, the last one with filler rows
UNREPEATABLE = re.compile("time/|throughput/|run/compilations")
RECORDS = ("metrics", "evaluations", "rollouts")


def command_line(folder: Path, compilation_cache: str) -> Callable[..., list[str]]:
    """Makes the command line of the tiny run, with overrides as `sft__stop_epoch=9`."""
    (folder / "tiny.yaml").write_text(yaml.safe_dump(TINY))

    def make(run_dir: Path, **overrides: Any) -> list[str]:
        line = ["--config", str(folder / "tiny.yaml"), "--run_dir", str(run_dir)]
        line += ["--compilation_cache_dir", compilation_cache]
        for key, value in overrides.items():
            line += ["--" + key.replace("__", "."), str(value)]
        return line

    return make


@contextlib.contextmanager
def on_devices(count: int) -> Iterator[None]:
    """This process seems to have its first few devices only."""
    all_devices = jax.devices
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "devices", lambda *platform: all_devices(*platform)[:count])
        yield


def run(arguments: list[str], devices: int = 1, command: str = "train") -> tuple[int, str, str]:
    """Runs a command in this process; returns its exit code, and what it wrote to stdout and stderr."""
    main = importlib.import_module(f"reft_jax.{command}").main
    code, out, err = 0, io.StringIO(), io.StringIO()
    with on_devices(devices), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main([*arguments, "--distributed.detect", "false"])  # JAX is at work here already
        except SystemExit as left:
            code = left.code
        except Exception:
            traceback.print_exc()
            code = 1
    return code or 0, out.getvalue(), err.getvalue()


def complete(arguments: list[str], code: int = 0, devices: int = 1, command: str = "train") -> str:
    """Runs to the end, which is to have an exit code, in this process; returns what it printed."""
    found, out, err = run(arguments, devices, command)
    assert found == code, out + err
    return out + err


def start(arguments: list[str], command: tuple[str, ...] = ("tests.runs", "train")) -> subprocess.Popen:
    """Starts a run as a process, on the first of eight devices, or the command itself: `("reft_jax.train",)`."""
    return subprocess.Popen(
        [sys.executable, "-m", *command, *arguments],
        cwd=Path(__file__).parents[1],
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def end(process: subprocess.Popen, code: int, timeout: float = 400) -> str:
    """Waits for a process, which is to have an exit code; returns what it printed."""
    try:
        output, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.terminate()
        raise
    assert process.returncode == code, output
    return output


def wait_for_step(process: subprocess.Popen, run_dir: Path, step: int) -> None:
    """Returns once `metrics.jsonl` shows a step."""
    path, deadline = run_dir / "metrics.jsonl", time.monotonic() + 300
    while not path.exists() or f'"step": {step},' not in path.read_text():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.005)


def read(run_dir: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / f"{name}.jsonl").read_text().splitlines()]


def repeatable(run_dir: Path, name: str) -> list[dict[str, Any]]:
    """Records without what depends on the clock or the process."""
    return [{k: v for k, v in record.items() if not UNREPEATABLE.match(k)} for record in read(run_dir, name)]


def steps(run_dir: Path, stage: str) -> list[dict[str, Any]]:
    """A stage's training metrics, one record a step."""
    return [r for r in read(run_dir, "metrics") if r["stage"] == stage and "optimizer/gradient_norm" in r]


def restore(path: Path) -> Any:
    """The arrays of a checkpoint, whatever devices and processes it was written by."""
    with ocp.StandardCheckpointer() as checkpointer:
        saved = checkpointer.metadata(path).item_metadata.tree
        return checkpointer.restore(path, jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), saved))


def assert_same_bits(one: Any, other: Any) -> None:
    jax.tree.map(np.testing.assert_array_equal, one, other)
    assert jax.tree.structure(one) == jax.tree.structure(other)


def assert_same_run(one: Path, other: Path) -> None:
    """Two finished runs wrote the same records, models, last state and summary, but for what depends on the clock."""
    for name in RECORDS:
        for found, wanted in zip(repeatable(one, name), repeatable(other, name), strict=True):
            assert found == wanted, name
    for name in ("warmup", "sft", "sft_best", "rl_best", f"resume/{SFT_STEPS + ITERATIONS}/state"):
        assert_same_bits(*(restore(folder / "checkpoints" / name) for folder in (one, other)))
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in (one, other)]
    for facts in (*summaries[0].values(), *summaries[1].values()):
        del facts["seconds"]
    assert summaries[0] == summaries[1]


if __name__ == "__main__":
    fake_cpu_devices(8)
    with on_devices(1):
        sys.exit(importlib.import_module(f"reft_jax.{sys.argv[1]}").main(sys.argv[2:]))
