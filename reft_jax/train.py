"""`python -m reft_jax.train --config FILE`: pretrain (optional), SFT with its warm-up, PPO, and one reading of test.

Here stands the order of the stages; their loops are `supervised` and `reinforcement`. Steps are counted through all
stages, so that a run's records are ordered by one number; every stage continues where a resume point left it.
"""

import contextlib
import dataclasses
import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax

from reft_jax.config import Config, RlConfig, load_config
from reft_jax.config.validation import require_files
from reft_jax.data.batches import steps_per_epoch
from reft_jax.data.readers import is_within
from reft_jax.parallel.processes import (
    COLLAPSED,
    REFUSED,
    STOPPED,
    Interrupted,
    StopRequest,
    configure_jax,
    connect,
    exit_with,
    exit_without_waiting,
    on_process_zero,
)
from reft_jax.records.console import print_closing_table
from reft_jax.training.directory import lock_run_dir
from reft_jax.training.reinforcement import reinforce
from reft_jax.training.startup import open_run, prepare
from reft_jax.training.state import Run, Stage
from reft_jax.training.supervised import supervised

R = TypeVar("R", bound=Run)
Opened = Callable[[Config, Any, StopRequest], contextlib.AbstractContextManager[R]]


def stages(run: Run) -> dict[str, Stage]:
    """The stages of the run in order, those that are switched off with no steps."""
    config = run.config
    pretrain = steps_per_epoch(len(run.examples["pretrain"]), config.pretrain.batch_size)
    sft = steps_per_epoch(len(run.examples["sft"]), config.sft.batch_size)
    rl = steps_per_epoch(len(run.prompts["train"]), config.rl.rollout_batch_size)
    first = Stage("pretrain", 0, pretrain, pretrain * config.pretrain.epochs, pretrain * config.pretrain.epochs)
    second = Stage("sft", first.stop, sft, sft * config.sft.schedule_epochs, sft * config.sft.stop_epoch)
    if not config.sft.schedule_epochs:
        second = dataclasses.replace(second, stop=0)
    third = Stage(
        "rl", second.offset + second.stop, rl, rl * config.rl.epochs * updates(config.rl), rl * config.rl.epochs
    )
    return {stage.name: stage for stage in (first, second, third)}


def updates(config: RlConfig) -> int:
    """Optimizer steps of an iteration."""
    return config.update_epochs * config.rollout_batch_size * config.samples_per_question // config.minibatch_size


def train(run: Run) -> dict[str, Any]:
    """All stages that are not done yet, then the test set; returns the summary."""
    plan = stages(run)
    order = list(plan)
    todo = {name: plan[name].stop and order.index(name) >= order.index(run.progress.stage) for name in order}
    first = run.start_params
    if todo["pretrain"]:
        supervised(run, plan["pretrain"], run.config.pretrain, run.examples["pretrain"], first)
    if plan["pretrain"].stop:
        first = functools.partial(run.saved_params, "pretrain")
    if todo["sft"]:
        supervised(run, plan["sft"], run.config.sft, run.examples["sft"], first)
    if plan["sft"].stop:
        first = functools.partial(run.saved_params, "warmup")
    elif run.config.rl.init_from:
        first = functools.partial(run.params_from_checkpoint, run.config.rl.init_from)
    if todo["rl"]:
        reinforce(run, plan["rl"], run.prompts["train"], first)
    return evaluate_test(run, plan)


def evaluate_test(run: Run, plan: dict[str, Stage]) -> dict[str, Any]:
    """Reads the test set once, with the models that the run has made and those that it chose on dev.

    Where dev is part of test, what was chosen is `test_best`: the highest of many readings of test, and no estimate.
    """
    spent = run.progress.spent
    made: dict[str, dict[str, Any]] = {}
    if plan["sft"].stop:
        made["warmup"] = spent("warmup")
        if run.config.sft.stop_epoch > run.config.sft.warmup_epoch:
            made["sft"] = spent("warmup", "sft")
    test_best = is_within(run.problems["dev"], run.problems["test"])
    for name, ranking in run.progress.best.items():
        made[name] = {"dev_accuracy" if key == "accuracy" else key: value for key, value in ranking[0].items()}
        made[name] |= {"test_best": True} if test_best else {}
    step = plan["rl"].offset + plan["rl"].stop + 1
    summary: dict[str, Any] = {}
    for name, facts in made.items() if run.problems["test"] else ():
        reading = run.evaluate(run.saved_params(name), "test")
        run.writer.append("evaluations", reading.records(step, split="test", model=name))
        run.writer.write(step, name, reading.metrics("test"))
        counts = {"correct": reading.correct, "total": reading.total}
        summary[name] = {"accuracy": reading.accuracy, "interval": list(reading.interval), **counts, **facts}
    return summary | ({"collapse": run.progress.collapse} if run.progress.collapse else {})


def main(args: Sequence[str] | None = None) -> None:
    """Trains what `args` (or the command line) say; of a run that is finished it prints the table again.

    Exits with `processes.STOPPED` where it was asked to stop, so that the same command continues, with
    `processes.REFUSED` where that is no use, with `processes.COLLAPSED` where `rl.collapse` ended the run, and with 1
    after any other error.
    """
    summary = complete(load_config(args), open_run, train)
    if jax.process_index() == 0:
        print_closing_table(summary)
    if reason := summary.get("collapse"):
        exit_with(f"reinforcement ended early: {reason}", COLLAPSED, together=True)


def complete(config: Config, opened: Opened[R], work: Callable[[R], dict[str, Any]]) -> dict[str, Any]:
    """The summary of a run: of a finished one that which is there, else what its work gives; does not return otherwise.

    Args:
        config: as loaded.
        opened: (config, tokenizer, stop request) -> the run at work.
        work: all that the run does; its result is written to `summary.json`.
    """
    with StopRequest() as stop:
        try:
            return _complete(config, opened, work, stop)
        except Interrupted:
            message = f"stopped as asked; the same command continues in {config.run_dir}"
            exit_with(message, STOPPED, together=stop.deferred)
        except OSError as error:  # a full disk, say
            exit_with(f"error: {error}")
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            exit_with(
                f"error: the devices have too little memory: {str(error).splitlines()[0]}\n"
                "Lower the microbatch_size of the stage or evaluation.batch_size, or set model.remat or "
                "model.logits_chunk; python -m reft_jax.preflight says how full each step makes a device"
            )


def _complete(
    config: Config, opened: Opened[R], work: Callable[[R], dict[str, Any]], stop: StopRequest
) -> dict[str, Any]:
    summary = Path(config.run_dir) / "summary.json"
    with contextlib.ExitStack() as stack:
        try:
            connect(config.distributed)
            configure_jax(config)
            require_files(config)  # before a folder is made
            stack.enter_context(lock_run_dir(summary.parent))
            config, tokenizer = prepare(config)
            if on_process_zero(summary.exists):
                return json.loads(summary.read_text(encoding="utf-8"))
            run = stack.enter_context(opened(config, tokenizer, stop))
        except (ValueError, FileNotFoundError) as error:
            exit_with(f"error: {error}", REFUSED)
        stop.defer(run.mesh)
        with exit_without_waiting():
            made = work(run)
            run.writer.write_summary(made)
    return made


if __name__ == "__main__":
    main()
