"""The folder of a run: one run at a time, of one config, taken up where its last resume point left it."""

import contextlib
import fcntl
import json
import math
import shutil
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

import jax
import yaml
from jax.sharding import Mesh

from reft_jax.algorithms.train_state import TrainState
from reft_jax.config import Config, differences, old_names_in_file, to_dict
from reft_jax.config.changes import ANY_TIME, SOURCES, STAGES, Position, among, matters, refusals
from reft_jax.config.files import read_yaml
from reft_jax.data.buckets import automatic, set_buckets
from reft_jax.files import write_whole
from reft_jax.models.hf import load as hf
from reft_jax.parallel.processes import Interrupted, on_process_zero
from reft_jax.records.checkpoint import Checkpoints, has_models, has_resume_points
from reft_jax.records.console import ProgressDisplay
from reft_jax.records.log import LOG_FILE, append_log, now
from reft_jax.records.provenance import command_line, hardware, run_info
from reft_jax.records.records import MetricsWriter
from reft_jax.training.profile import Profile
from reft_jax.training.state import Records, RunProgress, Stage


@contextlib.contextmanager
def lock_run_dir(directory: Path) -> Iterator[None]:
    """Makes the run's folder and keeps other runs out of it; the lock ends with the process, however that ends.

    A folder that it made is taken away again where the command ends with an error before it has records: nothing in it
    is of a run yet.

    Raises:
        OSError: another run is at work in it, or it cannot be made or written to.
    """
    held: list[TextIO] = []
    made: list[Path] = []

    def lock() -> None:
        made.extend([] if directory.exists() else [directory])
        try:
            directory.mkdir(parents=True, exist_ok=True)
            held.append((directory / ".lock").open("a"))
        except FileExistsError:
            raise OSError(f"run_dir {directory} is a file: name a folder, which need not be there yet") from None
        except OSError as error:
            told = f"run_dir {directory} cannot be made or written to ({error.strerror}): name another folder"
            raise OSError(told) from None
        try:
            fcntl.flock(held[0], fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OSError(f"run_dir {directory} is in use by another run: wait for it, or name another") from None

    try:
        on_process_zero(lock)
        yield
    except BaseException:
        if made and not any((directory / name).exists() for name in ("checkpoints", "metrics.jsonl")):
            shutil.rmtree(directory, ignore_errors=True)
        raise
    finally:
        for file in held:
            file.close()


_CONTENTS = {
    "model.tokenizer": "tokens of its problems (by the tokenizer, or by what is dropped and cut)",
    "reward_model.samples": "samples",
}


def claim_directory(config: Config, tokenizer: Any) -> None:
    """Writes config, versions and tokenizer into the folder of a run that begins; one that goes on has them.

    Raises:
        ValueError: a run was begun there with settings that have been renamed since.
    """
    directory = Path(config.run_dir)
    checkpoints = directory / "checkpoints"
    if checkpoints.exists() and (renamed := old_names_in_file(directory / "config.yaml")):
        raise ValueError(renamed)
    if has_begun(directory):
        return
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "run.json").write_text(json.dumps(run_info(), indent=2) + "\n", encoding="utf-8")
    tokenizer.save_pretrained(directory / "tokenizer")
    if config.model.path:  # an export needs them again
        hf.copy_config_files(hf.resolve(config.model.path, config.model.revision), directory / "model")
    write_settings(config)


@contextlib.contextmanager
def recorded_attempt(directory: Path, mesh: Mesh) -> Iterator[None]:
    """Keeps in `run.json` when this process set to work, on what devices, and when it left off, however that was.

    `attempts` has one entry for each time that the run was started or went on; one without `ended` was killed, or is at
    work. What ends it early stands in the run's log. Process 0 writes, and waits for no other.
    """
    path = directory / "run.json"
    if jax.process_index():
        yield
        return
    began = {"command": command_line(), "started": now(), "ended": None, "hardware": hardware(mesh)}
    _write_attempt(path, began, fresh=True)
    try:
        yield
    except BaseException as error:
        said = "stopped as asked" if isinstance(error, Interrupted) else "".join(traceback.format_exception(error))
        with contextlib.suppress(OSError):  # which would hide the error
            append_log(directory / LOG_FILE, said)
        raise
    finally:
        _write_attempt(path, {**began, "ended": now()}, fresh=False)


def _write_attempt(path: Path, attempt: dict[str, Any], *, fresh: bool) -> None:
    """Appends an entry to `attempts`, or replaces the last."""
    info = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    earlier = info.get("attempts", [])
    info["attempts"] = [*(earlier if fresh else earlier[:-1]), attempt]
    write_whole(path, json.dumps(info, indent=2) + "\n")


def has_begun(directory: Path) -> bool:
    """Whether a run's folder holds anything that it has trained."""
    return has_models(directory / "checkpoints") or has_resume_points(directory / "checkpoints")


def with_kept_buckets(config: Config) -> Config:
    """The config with the buckets that a run began with in the place of `auto`.

    Raises:
        ValueError: what was written cannot be read.
    """
    if not has_begun(Path(config.run_dir)):
        return config
    written = _written(config)
    kept = {key: written.get(key[0], {}).get(key[1], "auto") for key in automatic(config)}
    return set_buckets(config, {key: tuple(sizes) for key, sizes in kept.items() if sizes != "auto"})


def write_settings(config: Config) -> None:
    """Writes `config.yaml` of the run."""
    write_whole(Path(config.run_dir) / "config.yaml", yaml.safe_dump(to_dict(config), sort_keys=False))


def changed_settings(config: Config) -> dict[str, tuple[Any, Any]]:
    """Old and new value of the settings that are not those of the run's folder, by key.

    What an earlier version wrote has not all keys: it had what is the default now.

    Raises:
        ValueError: what was written cannot be read.
    """
    return differences(_filled(to_dict(Config()), _written(config)), to_dict(config))


def _written(config: Config) -> dict[str, Any]:
    """The settings in the run's folder.

    Raises:
        ValueError: what was written cannot be read.
    """
    try:
        return read_yaml(Path(config.run_dir) / "config.yaml")
    except TypeError as error:
        raise ValueError(str(error)) from None


def _filled(defaults: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """The values, with defaults for those that are missing."""
    inner = {
        key: _filled(default, values.get(key, {})) for key, default in defaults.items() if isinstance(default, dict)
    }
    return {**defaults, **values, **inner}


def read_summary(config: Config) -> dict[str, Any] | None:
    """The summary of a run that is finished, on every process; None of one that is not.

    None also where settings are others now: whether there is more to do, `open_records` finds out.
    """

    def read() -> dict[str, Any] | None:
        path = Path(config.run_dir) / "summary.json"
        if not path.exists():
            return None
        if any(among(key, SOURCES) or not among(key, ANY_TIME) for key in changed_settings(config)):
            return None
        return json.loads(path.read_text(encoding="utf-8"))

    return on_process_zero(read)


@contextlib.contextmanager
def open_records(
    config: Config,
    display: ProgressDisplay,
    *,
    stages: Mapping[str, Stage],
    contents: Mapping[str, str],
    state: TrainState,
    models: int,
) -> Iterator[Records]:
    """Takes up the last resume point of the run's folder, and cuts its records back to it.

    Args:
        config: says where the folder is and what is kept.
        display: told where the run goes on.
        stages: of the run, in order.
        contents: digests of what was read, by the key that names it.
        state: abstract, the largest that the run saves.
        models: how many it keeps at most besides.

    Raises:
        ValueError: the run would go on as another, see `take_up`; a record file holds a line that cannot be read; or a
            tracker cannot begin.
        OSError: no room for the checkpoints.
    """
    directory, keep = Path(config.run_dir), config.checkpoint.keep_last
    with contextlib.ExitStack() as stack:
        checkpoints = stack.enter_context(Checkpoints(directory / "checkpoints", keep_last=keep, say=display.message))
        step, progress = None, RunProgress()
        if (latest := checkpoints.latest()) is not None:
            step, progress = latest[0], RunProgress.of(latest[1])
            for line in on_process_zero(lambda: take_up(config, latest[0], progress, stages, contents)):
                display.message(line)
            display.message(f"continuing after step {step}: {progress.stage}, {progress.stage_step} steps done")
        else:
            for line in on_process_zero(lambda: begin_anew(config)):
                display.message(line)
            on_process_zero(lambda: check_space(directory, state, points=keep + 1, models=models))
        progress.plan = {name: [stage.epoch, stage.stop] for name, stage in stages.items()}
        progress.contents = dict(contents)
        writer = stack.enter_context(
            MetricsWriter(
                directory,
                write=jax.process_index() == 0,
                resume_step=step,
                evaluated=not progress.evaluation_pending,
                trackers=config.logging.trackers,
                project=config.logging.project,
                settings=to_dict(config),
            )
        )
        last = [name for name, stage in stages.items() if stage.stop][-1:]
        traced = config.logging.profile if jax.process_index() == 0 else 0
        profile = stack.enter_context(Profile(directory, "".join(last), traced, display.message))
        records = Records(
            run_dir=directory,
            keep_best=config.checkpoint.keep_best,
            lora=config.model.lora,
            checkpoints=checkpoints,
            writer=writer,
            progress=progress,
            resumed_step=step,
            display=display,
            profile=profile,
        )
        records.link_best()
        yield records


def begin_anew(config: Config) -> list[str]:
    """Keeps the settings of a run that has no resume point, and begins at its first step, over what is there.

    Returns:
        A line that says so where a run was begun before.

    Raises:
        ValueError: there are models of a run that is finished, or had other settings.
    """
    directory, left = Path(config.run_dir), "and no resume point to go on from: name a fresh run_dir"
    changed = [key for key in changed_settings(config) if among(key, SOURCES) or not among(key, ANY_TIME)]
    if (directory / "summary.json").exists():
        raise ValueError(f"{directory} holds a run that is finished, {left}")
    models = has_models(directory / "checkpoints")
    if changed and models:
        raise ValueError(f"{directory} holds models of a run with other settings ({', '.join(changed)}), {left}")
    write_settings(config)
    again = "no resume point is left: the run begins again at its first step, over its records and models"
    return [again] if models or (directory / "metrics.jsonl").exists() else []


def take_up(
    config: Config, step: int, progress: RunProgress, stages: Mapping[str, Stage], contents: Mapping[str, str]
) -> list[str]:
    """Refuses to go on with a run as another one; else keeps the settings that it goes on with.

    `config.yaml` has the settings as they are now, and `run.json` what changed after which step.

    Args:
        config: as it is now.
        step: of the resume point.
        progress: of the resume point.
        stages: as they are now, in order.
        contents: digests of what was read now, by key.

    Returns:
        What has changed, a line each.

    Raises:
        ValueError: a line for each setting that cannot change, see `config.changes`; each source whose content is
            another; each stage that would be cut short; or the run is finished, and no change gives it more to do.
    """
    directory, changed, positions = Path(config.run_dir), changed_settings(config), positions_in(progress, stages)
    faults = list(refusals(changed, config.allow_changed, positions))
    differ = [key for key in contents if progress.contents.get(key, contents[key]) != contents[key]]
    differ = [key for key in differ if key != "model.tokenizer"] or differ  # other problems have other tokens
    faults += [f"{key}: the {_CONTENTS.get(key, 'problems')} are not those that the run began with" for key in differ]
    faults = faults or list(_cut_short(progress, stages, positions))  # which would only follow from the others
    if faults:
        again = "name a fresh run_dir, or mend"
        raise ValueError("\n".join((f"{directory} holds a run that cannot go on like this: {again}", *faults)))
    kept = {key: values for key, values in changed.items() if matters(key, positions)}
    if (summary := directory / "summary.json").exists():
        done = {"absent": 0, "done": math.inf, "begun": progress.stage_step, "ahead": 0}
        if kept and all(stage.stop <= done[positions[name]] for name, stage in stages.items()):
            raise ValueError(
                f"{directory} holds a run that is finished, and {', '.join(kept)} gives it nothing more to do: more "
                "epochs would (rl.epochs, or sft.stop_epoch where there is no reinforcement yet)"
            )
        summary.unlink()
    if kept:
        info = json.loads((directory / "run.json").read_text(encoding="utf-8"))
        info.setdefault("changes", []).append({"after_step": step, "settings": {k: list(v) for k, v in kept.items()}})
        write_whole(directory / "run.json", json.dumps(info, indent=2) + "\n")
    if changed:
        write_settings(config)
    return [f"from here on {key} is {new!r} (was {old!r})" for key, (old, new) in kept.items()]


def positions_in(progress: RunProgress, stages: Mapping[str, Stage]) -> dict[str, Position]:
    """How far the run is in each stage that there can be; one that is and was switched off is none.

    Raises:
        ValueError: it is in a stage that is none of these.
    """
    order = list(stages)
    if progress.stage not in order:
        raise ValueError(f"run_dir holds a run whose stage is {progress.stage}, of another command: name another")
    here = order.index(progress.stage)
    own: dict[str, Position] = {
        name: "done" if place < here else "begun" if place == here else "ahead" for place, name in enumerate(order)
    }
    off = {name for name in own if stages[name].stop == progress.plan.get(name, [0, 0])[1] == 0}
    return {name: "absent" if name in off else own.get(name, "absent") for name in STAGES}


def _cut_short(progress: RunProgress, stages: Mapping[str, Stage], positions: Mapping[str, Position]) -> Iterator[str]:
    """Yields a line for each stage that was begun and would not be what it was."""
    for name, (epoch, stop) in progress.plan.items():
        now = stages[name]
        if positions[name] == "done" and [now.epoch, now.stop] != [epoch, stop]:
            yield f"{name} ended after {stop} steps of {epoch} an epoch, and would after {now.stop} of {now.epoch} now"
        if positions[name] == "begun" and now.epoch != epoch:
            yield f"an epoch of {name} had {epoch} steps and would have {now.epoch} now"
        elif positions[name] == "begun" and now.stop < progress.stage_step:
            yield f"{name} has done {progress.stage_step} steps and would end after {now.stop} now"


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
