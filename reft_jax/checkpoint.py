"""Checkpoints: what a run resumes from, and the models it chose on the way (Orbax).

    DIRECTORY/resume/STEP       the whole train state and the run's progress; the newest two are kept
    DIRECTORY/NAME              the decoder's parameters alone: pretrain, warmup, sft, sft_best, reft (the best on dev)
    DIRECTORY/NAME_value_head   the value head of the best policy
    DIRECTORY/NAME_critic       its critic's decoder, where that is one of its own
    DIRECTORY/NAME_lora         the adapters, which in NAME are merged into the decoder

Resuming and choosing are kept apart because a best-only policy would delete the newest step when its metric is worse.
"""

import shutil
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp


class Checkpoints:
    """The checkpoints of one run; a context manager that waits for unfinished writes."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory.absolute()
        options = ocp.CheckpointManagerOptions(max_to_keep=2, cleanup_tmp_directories=True)
        self._resume = ocp.CheckpointManager(self._directory / "resume", options=options)
        self._params = ocp.StandardCheckpointer()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self._resume.close()
        self._params.close()

    def latest(self) -> tuple[int, dict[str, Any]] | None:
        """Step and progress of the newest complete resume point, or None."""
        step = self._resume.latest_step()
        if step is None:
            return None
        progress = self._resume.restore(step, args=ocp.args.Composite(progress=ocp.args.JsonRestore()))["progress"]
        return step, progress

    def save(self, step: int, state: Any, progress: dict[str, Any]) -> None:
        """Writes a resume point in the background; `state` may be donated at once. A step that is there is kept."""
        if step in self._resume.all_steps():
            return
        self._resume.save(
            step, args=ocp.args.Composite(state=ocp.args.StandardSave(state), progress=ocp.args.JsonSave(progress))
        )

    def restore(self, step: int, abstract: Any) -> Any:
        """The state of a resume point, laid out as `abstract` says (also on another mesh)."""
        return self._resume.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore(abstract)))["state"]

    def save_params(self, name: str, params: Any) -> None:
        """Writes parameters under a name, replacing those that are there, and waits until they are on disk."""
        self._params.save(self._directory / name, params, force=True)
        self._params.wait_until_finished()

    def restore_params(self, name: str, abstract: Any) -> Any:
        """The parameters under a name, laid out as `abstract` says."""
        return restore_params(self._directory / name, abstract)

    def copy_params(self, source: str, target: str) -> None:
        """Puts the parameters of `source` under `target` too."""
        shutil.rmtree(self._directory / target, ignore_errors=True)
        shutil.copytree(self._directory / source, self._directory / target)


def part_name(name: str, part: str) -> str:
    """The name under which a part, `value_head` or `lora`, of the parameters called `name` is saved."""
    return f"{name}_{part}"


def restore_params(directory: Path, abstract: Any) -> Any:
    """Parameters saved by `Checkpoints.save_params`, laid out as `abstract` says.

    Raises:
        FileNotFoundError: there is no checkpoint.
        ValueError: its tree or its shapes are others than `abstract`'s.
    """
    with ocp.StandardCheckpointer() as checkpointer:
        params = checkpointer.restore(directory.absolute(), abstract)
    jax.block_until_ready(params)
    return params
