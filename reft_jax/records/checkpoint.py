"""Checkpoints: what a run resumes from, and the models it chose on the way (Orbax).

    DIRECTORY/resume/STEP       the whole train state and the run's progress; the newest few are kept
    DIRECTORY/NAME              the decoder's parameters alone: pretrain, warmup, sft, reward_model
    DIRECTORY/NAME_step_STEP    the best models on dev, for NAME in sft_best, rl_best and reward_model_best; NAME is a
                                link to the best
    DIRECTORY/..._value_head    the value head of such a policy
    DIRECTORY/..._critic        its critic's decoder, where that is one of its own
    DIRECTORY/..._lora          the adapters, which in the decoder are merged
    DIRECTORY/..._class_head    the head of a reward model, whose decoder has no output projection

Resuming and choosing are kept apart because a best-only policy would delete the newest step when its metric is worse.
All processes of a run call these methods alike.
"""

import contextlib
import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from reft_jax.parallel.processes import on_process_zero

_SIZES = "sizes.json"
PARTS = ("value_head", "critic", "lora", "class_head")
"""What is saved beside a decoder."""

_CHOSEN = re.compile(rf"(?P<chosen>\w+_step_\d+)(_({'|'.join(PARTS)}))?")


class Checkpoints:
    """The checkpoints of one run; a context manager that waits for unfinished writes.

    A resume point is written under another name, with the sizes of its files at last, and renamed when it is complete.
    One that a crash never finished, or that a copy or a failing disk cut short, is not used.

    Args:
        directory: where they are.
        keep_last: resume points to keep.
        say: told of what is left out.
    """

    def __init__(self, directory: Path, *, keep_last: int = 2, say: Callable[[str], None] = lambda _: None) -> None:
        self._directory = directory.absolute()
        self._saving = 0
        self._chosen: set[str] | None = None
        unfinished = on_process_zero(lambda: sorted(path.name for path in (self._directory / "resume").glob("*tmp*")))
        for name in unfinished:
            say(f"checkpoint {name} was never finished: it is left out")
        asynchronous = ocp.AsyncOptions(post_finalization_callback=self._write_sizes)
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep_last, cleanup_tmp_directories=True, async_options=asynchronous
        )
        self._resume = ocp.CheckpointManager(self._directory / "resume", options=options)
        self._params = ocp.StandardCheckpointer()
        for step in sorted(self._resume.all_steps(), reverse=True):
            if on_process_zero(lambda: self._whole(step)):  # noqa: B023 - called at once
                break
            say(f"checkpoint {step} was cut short: it is left out")
            self._resume.delete(step)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with self._writing():
            self._resume.close()
            self._params.close()
        if kind is None and self._chosen is not None:
            self._remove_all_but(self._chosen)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """What the file system refuses comes out of Orbax as one error or another, and some of it a save later."""
        try:
            yield
        except (ValueError, OSError) as error:
            raise OSError(f"a checkpoint in {self._directory} could not be written: {error}") from error

    def latest(self) -> tuple[int, dict[str, Any]] | None:
        """Step and progress of the newest complete resume point, or None."""
        step = self._resume.latest_step()
        if step is None:
            return None
        progress = self._resume.restore(step, args=ocp.args.Composite(progress=ocp.args.JsonRestore()))["progress"]
        return step, progress

    def save(self, step: int, state: Any, progress: dict[str, Any], chosen: set[str]) -> None:
        """Writes a resume point in the background; `state` may be donated at once. A step that is there is kept.

        Chosen models that neither this resume point nor the one before it names (`chosen`) are removed: a crash while
        it is written goes back to that one.

        Raises:
            OSError: it, or the one before, could not be written.
        """
        with self._writing():
            self._resume.wait_until_finished()
            if step in self._resume.all_steps():
                return
            self._saving = step
            parts = ocp.args.Composite(state=ocp.args.StandardSave(state), progress=ocp.args.JsonSave(progress))
            if not self._resume.save(step, args=parts):
                raise ValueError(f"step {step} was declined after step {self._resume.latest_step()}")
        if self._chosen is not None:
            self._remove_all_but(chosen | self._chosen)
        self._chosen = chosen

    def restore(self, step: int, abstract: Any) -> Any:
        """The state of a resume point, laid out as `abstract` says (also on another mesh)."""
        return self._resume.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore(abstract)))["state"]

    def save_params(self, name: str, params: Any) -> None:
        """Writes parameters under a name, replacing those that are there, and waits until they are on disk."""
        with self._writing():
            self._params.save(self._directory / name, params, force=True)
            self._params.wait_until_finished()

    def restore_params(self, name: str, abstract: Any) -> Any:
        """The parameters under a name, laid out as `abstract` says."""
        return restore_params(self._directory / name, abstract)

    def link_best(self, name: str, step: int) -> None:
        """Makes `name`, and the names of its parts, stand for the model that was saved under `chosen_name`."""

        def link() -> None:
            target = chosen_name(name, step)
            for ending in ("", *(part_name("", part) for part in PARTS)):
                if (self._directory / (target + ending)).exists():
                    fresh = self._directory / (name + ending + ".partial")
                    fresh.unlink(missing_ok=True)
                    fresh.symlink_to(target + ending)
                    fresh.replace(self._directory / (name + ending))

        on_process_zero(link)

    def _remove_all_but(self, names: set[str]) -> None:
        def remove() -> None:
            for path in self._directory.iterdir():
                found = _CHOSEN.fullmatch(path.name)
                if found and found["chosen"] not in names:
                    shutil.rmtree(path)

        on_process_zero(remove)

    def _write_sizes(self) -> None:
        """Called by Orbax when all files of a resume point are written, and its folder still has another name."""
        if jax.process_index() == 0:
            (folder,) = (self._directory / "resume").glob(f"{self._saving}.*tmp*")
            (folder / _SIZES).write_text(json.dumps(_sizes(folder)), encoding="utf-8")

    def _whole(self, step: int) -> bool:
        folder = self._directory / "resume" / str(step)
        try:
            expected = json.loads((folder / _SIZES).read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return False
        return expected.items() <= _sizes(folder).items()


def _sizes(folder: Path) -> dict[str, int]:
    """Bytes of each file below a folder, but for Orbax's notes on the whole, which it completes at the end."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != "_CHECKPOINT_METADATA")
    return {str(path.relative_to(folder)): path.stat().st_size for path in files}


def has_models(directory: Path) -> bool:
    """Whether a run's checkpoints have any but resume points."""
    return any(path.name != "resume" for path in directory.glob("*"))


def has_resume_points(directory: Path) -> bool:
    """Whether a run's checkpoints have one to resume from, whole or cut short."""
    return any(path.name.isdigit() for path in (directory / "resume").glob("*"))


def chosen_name(name: str, step: int) -> str:
    """The name of the model that was read on dev at a step and chosen."""
    return f"{name}_step_{step}"


def part_name(name: str, part: str) -> str:
    """The name under which a part, `value_head` or `lora`, of the parameters called `name` is saved."""
    return f"{name}_{part}"


def run_of(checkpoint: Path, *, reward_model: bool = False) -> Path:
    """The folder of the run that a checkpoint of RUN_DIR/checkpoints is of.

    Args:
        checkpoint: its folder.
        reward_model: whether it has to be a reward model; otherwise it must not be one, which predicts no tokens.

    Raises:
        FileNotFoundError: there is no such checkpoint, or its folder is in no run's.
        ValueError: it is a reward model, or is none; or it is a resume point, or a model of Hugging Face's format.
    """
    run_dir = checkpoint.absolute().parent.parent
    for folder in (checkpoint.absolute(), *checkpoint.absolute().parents):
        if (folder.parent.name, folder.name) == ("checkpoints", "resume"):
            raise ValueError(f"{checkpoint}: resume points are no models; {_models(folder.parent)}")
    for folder in (checkpoint / "checkpoints", checkpoint):
        if folder.name == "checkpoints" and folder.is_dir():
            raise ValueError(f"{checkpoint} is a folder of models, or a run's: name one; {_models(folder)}")
    if (checkpoint / "config.json").exists():
        raise ValueError(
            f"{checkpoint} is a model in Hugging Face's format, no checkpoint of a run: name it by model.path in a "
            "config, and give that by --config in place of a checkpoint"
        )
    for path in (checkpoint, run_dir / "config.yaml"):
        if not path.exists():
            example = "reward_model_best" if reward_model else "rl_best"
            raise FileNotFoundError(
                f"no {path}: give a folder of RUN_DIR/checkpoints, such as RUN_DIR/checkpoints/{example}"
            )
    if checkpoint.with_name(part_name(checkpoint.name, "class_head")).exists() != reward_model:
        fault = "is no reward model" if reward_model else "is a reward model, which predicts no tokens"
        raise ValueError(f"{checkpoint} {fault}")
    return run_dir


def _models(checkpoints: Path) -> str:
    """Which folders of RUN_DIR/checkpoints are models, as a message says it."""
    others = re.compile(rf"resume|.*\.partial|{_CHOSEN.pattern}|\w+_({'|'.join(PARTS)})")
    found = checkpoints.iterdir() if checkpoints.exists() else ()
    names = sorted(path.name for path in found if path.is_dir() and not others.fullmatch(path.name))
    return f"models in {checkpoints}: {', '.join(names) or 'none yet'}"


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
