"""Where the scalars of `metrics.jsonl` go besides: TensorBoard, Weights & Biases, trackio; one small adapter each.

What a run is called there is kept in `trackers.json` of its folder, so that a resume goes on with the same run. A
resume also repeats steps that were logged before. TensorBoard is told to hide these; the other two cannot take back
what they have, so that such scalars are not logged again. `metrics.jsonl` is the record, a tracker is a copy.

Each library is imported where it is opened: that takes seconds, and the extras need not be installed.
"""

import importlib.util
import json
import re
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from reft_jax.files import json_object, write_whole

NAMES_FILE = "trackers.json"
"""In a run's folder: what the run is called, by tracker."""

Scalars = Mapping[str, float]


class Tracker(Protocol):
    """One tracker at work."""

    def log(self, step: int, scalars: Scalars) -> None:
        """Takes scalars by name; `step` is the run's, and may be given several times."""

    def flush(self) -> None:
        """Writes what it holds back, where the library has a way to ask for that."""

    def close(self, *, failed: bool) -> None:
        """Ends the run there; `failed` says whether an error ended it."""


class Setup(NamedTuple):
    """What a tracker is opened with."""

    run_dir: Path
    project: str
    name: str
    """Of the run, no other run's."""
    settings: Mapping[str, Any]
    """Of the run, nested."""
    first_step: int
    """The first step that is logged from now on."""


class TensorBoard:
    """Event files in `tensorboard/` of the run's folder."""

    def __init__(self, setup: Setup) -> None:
        from tensorboardX import SummaryWriter

        # The suffix keeps a quick restart from reopening the old file, which is named by the second.
        self._writer = SummaryWriter(
            str(setup.run_dir / "tensorboard"),
            purge_step=setup.first_step,
            flush_secs=10,
            filename_suffix=f".from_step_{setup.first_step}",
        )

    def log(self, step: int, scalars: Scalars) -> None:
        """See `Tracker`."""
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, step)

    def flush(self) -> None:
        """See `Tracker`."""
        self._writer.flush()

    def close(self, *, failed: bool) -> None:
        """See `Tracker`."""
        self._writer.close()


class Wandb:
    """Weights & Biases; its own variables say where and how: WANDB_MODE=offline, WANDB_ENTITY, WANDB_BASE_URL."""

    def __init__(self, setup: Setup) -> None:
        import wandb

        try:
            self._run = wandb.init(
                project=setup.project,
                id=setup.name,
                name=setup.name,
                resume="allow",
                dir=str(setup.run_dir),
                config=dict(setup.settings),
                settings=wandb.Settings(console="off"),  # which would be wrapped; `log.txt` has what it says
            )
        except wandb.Error as error:
            raise ValueError(
                f"logging.trackers has wandb, which cannot begin ({error}): log in by `wandb login`, or set "
                "WANDB_MODE=offline and send the run later by `wandb sync`"
            ) from error
        # A step of its own, for that of W&B never goes back: what is evaluated late would be dropped.
        self._run.define_metric("*", step_metric="step")

    def log(self, step: int, scalars: Scalars) -> None:
        """See `Tracker`."""
        self._run.log({"step": step, **scalars})

    def flush(self) -> None:
        """See `Tracker`; W&B sends on its own."""

    def close(self, *, failed: bool) -> None:
        """See `Tracker`."""
        self._run.finish(exit_code=int(failed))


class Trackio:
    """trackio, in its folder on this machine (TRACKIO_DIR) or where TRACKIO_SPACE_ID or TRACKIO_SERVER_URL says."""

    def __init__(self, setup: Setup) -> None:
        import trackio

        self._run = trackio.init(
            project=setup.project,
            name=setup.name,
            resume="allow",
            config={"run_dir": str(setup.run_dir), **setup.settings},
            embed=False,
        )

    def log(self, step: int, scalars: Scalars) -> None:
        """See `Tracker`."""
        self._run.log(dict(scalars), step=step)

    def flush(self) -> None:
        """See `Tracker`; trackio writes twice a second on its own."""

    def close(self, *, failed: bool) -> None:
        """See `Tracker`."""
        self._run.finish()


TRACKERS: Mapping[str, type[TensorBoard] | type[Wandb] | type[Trackio]] = {
    "tensorboard": TensorBoard,
    "wandb": Wandb,
    "trackio": Trackio,
}
"""Trackers by their name in `logging.trackers`."""

FORGETFUL = ("tensorboard",)
"""Those that can be told to hide what they have; they lie in the run's folder and have no name of it."""


def require_trackers(names: Sequence[str]) -> None:
    """Refuses a tracker whose package is not installed.

    Raises:
        ValueError: with the command that installs it.
    """
    packages = {"tensorboard": "tensorboardX"}
    missing = [name for name in names if importlib.util.find_spec(packages.get(name, name)) is None]
    if missing:
        raise ValueError(
            f"logging.trackers has {', '.join(missing)}, not installed here: pip install "
            f"'reft_jax[{','.join(missing)}]'"
        )


class Trackers:
    """The trackers of a run, which all take the same scalars.

    Args:
        names: of `TRACKERS`.
        run_dir: the run's folder.
        project: what the runs of one project share.
        settings: of the run, nested.
        first_step: the first step that is logged from now on.
        repeated: names of the scalars of steps that the run had logged before, and will log again.

    Raises:
        ValueError: one cannot begin.
    """

    def __init__(
        self,
        names: Sequence[str],
        run_dir: Path,
        *,
        project: str,
        settings: Mapping[str, Any],
        first_step: int,
        repeated: Mapping[int, set[str]],
    ) -> None:
        self._repeated: dict[str, Mapping[int, set[str]]] = {}
        self._open: dict[str, Tracker] = {}
        path = run_dir / NAMES_FILE
        called = json_object(path.read_bytes(), str(path)) if path.exists() else {}
        for name in names:
            begun = name in called  # a tracker that was switched on later has nothing yet
            self._repeated[name] = repeated if begun else {}
            if name not in FORGETFUL:
                readable = re.sub(r"[^\w.-]+", "-", run_dir.name)[:100]  # W&B takes no / \\ # ? % :, and 128 characters
                called.setdefault(name, f"{readable}-{secrets.token_hex(4)}")
            setup = Setup(run_dir, project, called.get(name, run_dir.name), settings, first_step)
            try:
                self._open[name] = TRACKERS[name](setup)
            except BaseException:
                self.close(failed=True)
                raise
        if called:
            write_whole(path, json.dumps(called, indent=2) + "\n")

    def log(self, step: int, scalars: Scalars) -> None:
        """Hands scalars to each tracker, but for those that it has."""
        for name, tracker in self._open.items():
            had = self._repeated[name].get(step, set())
            if new := {key: value for key, value in scalars.items() if key not in had}:
                tracker.log(step, new)

    def flush(self) -> None:
        """See `Tracker`."""
        for tracker in self._open.values():
            tracker.flush()

    def close(self, *, failed: bool = False) -> None:
        """See `Tracker`."""
        while self._open:
            self._open.popitem()[1].close(failed=failed)
