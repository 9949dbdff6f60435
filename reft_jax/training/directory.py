"""The folder of a run: one run at a time, of one config, taken up where its last resume point left it."""

import contextlib
import fcntl
import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import jax
import yaml

from reft_jax.algorithms.train_state import TrainState
from reft_jax.config import Config, differences, old_names_in_file, to_dict
from reft_jax.files import write_whole
from reft_jax.models.hf import load as hf
from reft_jax.parallel.processes import on_process_zero
from reft_jax.records.checkpoint import Checkpoints
from reft_jax.records.console import ProgressDisplay
from reft_jax.records.provenance import run_info
from reft_jax.records.records import MetricsWriter
from reft_jax.training.state import Records, RunProgress

FREE_KEYS = (
    *("run_dir", "mesh", "distributed", "checkpoint", "logging", "allow_changed", "generation.weight_layout"),
    "compilation_cache_dir",
)
"""Settings that may change between the parts of one run: they do not change what it computes, but for rounding."""


@contextlib.contextmanager
def lock_run_dir(directory: Path) -> Iterator[None]:
    """Makes the run's folder and keeps other runs out of it; the lock ends with the process, however that ends.

    Raises:
        OSError: another run is at work in it, or it cannot be made or written to.
    """
    held: list[TextIO] = []

    def lock() -> None:
        directory.mkdir(parents=True, exist_ok=True)
        held.append((directory / ".lock").open("a"))
        try:
            fcntl.flock(held[0], fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OSError(f"run_dir {directory} is in use by another run: wait for it, or name another") from None

    try:
        on_process_zero(lock)
        yield
    finally:
        for file in held:
            file.close()


def claim_directory(config: Config, tokenizer: Any) -> None:
    """Writes config, versions and tokenizer into the run's folder; a run that has checkpoints there must have the same.

    Raises:
        ValueError: naming the keys that differ and are not allowed to, or that an earlier version called otherwise.
    """
    directory, settings = Path(config.run_dir), to_dict(config)
    path = directory / "config.yaml"
    if path.exists() and (directory / "checkpoints").exists():
        if renamed := old_names_in_file(path):
            raise ValueError(renamed)
        among = lambda key, names: any(key == name or key.startswith(name + ".") for name in names)
        old = yaml.safe_load(path.read_text(encoding="utf-8"))
        changed = [key for key in differences(old, settings) if not among(key, FREE_KEYS)]
        refused = [key for key in changed if not among(key, config.allow_changed)]
        if refused:
            raise ValueError(
                f"{directory} holds a run with other settings ({', '.join(refused)}): name a fresh run_dir, or name "
                "these keys in allow_changed to go on with the new values"
            )
        if not changed:
            return
    else:
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "run.json").write_text(json.dumps(run_info(), indent=2) + "\n", encoding="utf-8")
        tokenizer.save_pretrained(directory / "tokenizer")
        if config.model.path:  # an export needs them again
            hf.copy_config_files(hf.resolve(config.model.path, config.model.revision), directory / "model")
    write_whole(path, yaml.safe_dump(settings, sort_keys=False))


def read_summary(run_dir: str) -> dict[str, Any] | None:
    """The summary of a run that is finished, on every process; None of one that is not."""
    path = Path(run_dir) / "summary.json"
    return on_process_zero(lambda: json.loads(path.read_text(encoding="utf-8")) if path.exists() else None)


@contextlib.contextmanager
def open_records(config: Config, display: ProgressDisplay, *, state: TrainState, models: int) -> Iterator[Records]:
    """Takes up the last resume point of the run's folder, and cuts its records back to it.

    Args:
        config: says where the folder is and what is kept.
        display: told where the run goes on.
        state: abstract, the largest that the run saves.
        models: how many it keeps at most besides.

    Raises:
        ValueError: a record file holds a line that cannot be read.
        OSError: no room for the checkpoints.
    """
    directory, keep = Path(config.run_dir), config.checkpoint.keep_last
    with contextlib.ExitStack() as stack:
        checkpoints = stack.enter_context(Checkpoints(directory / "checkpoints", keep_last=keep, say=display.message))
        step, progress = None, RunProgress()
        if (latest := checkpoints.latest()) is not None:
            step, progress = latest[0], RunProgress(**latest[1])
            display.message(f"continuing after step {step}: {progress.stage}, {progress.stage_step} steps done")
        else:
            on_process_zero(lambda: check_space(directory, state, points=keep + 1, models=models))
        board, first = config.logging.tensorboard, jax.process_index() == 0
        evaluated = not progress.evaluation_pending
        writer = stack.enter_context(
            MetricsWriter(directory, write=first, tensorboard=board, resume_step=step, evaluated=evaluated)
        )
        records = Records(
            run_dir=directory,
            keep_best=config.checkpoint.keep_best,
            lora=config.model.lora,
            checkpoints=checkpoints,
            writer=writer,
            progress=progress,
            resumed_step=step,
            display=display,
        )
        records.link_best()
        yield records


def check_space(directory: Path, state: TrainState, *, points: int, models: int) -> None:
    """Refuses a disk that the run's checkpoints will not fit on: `points` states, and parameters of `models`.

    Raises:
        OSError: naming the folder, what is free and what is needed.
    """
    size = lambda tree: sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))
    needed = points * size(state) + models * size(state.params)
    free = shutil.disk_usage(directory).free
    if free < needed:
        gigabytes = "{:.1f} GB".format
        raise OSError(
            f"run_dir {directory} has {gigabytes(free / 1e9)} free and the run's checkpoints take up to "
            f"{gigabytes(needed / 1e9)} ({points} resume points of {gigabytes(size(state) / 1e9)}, {models} models of "
            f"{gigabytes(size(state.params) / 1e9)}): make room, name another run_dir, or lower checkpoint.keep_last"
        )
