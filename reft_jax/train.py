"""`python -m reft_jax.train --config FILE`: pretrain (optional), SFT with its warm-up, reinforcement, then test, once.

Here stands the order of the stages; their loops are `supervised` and `reinforcement`. Steps are counted through all
stages, so that a run's records are ordered by one number; every stage continues where a resume point left it.
"""

import functools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from reft_jax.config import load_config
from reft_jax.config.invocation import shell_line
from reft_jax.data.readers import is_within
from reft_jax.files import json_lines
from reft_jax.parallel.processes import COLLAPSED, on_process_zero
from reft_jax.records.console import closing_text, print_closing_table
from reft_jax.training.announcements import beginning, continuation, what_next
from reft_jax.training.directory import recorded_attempt
from reft_jax.training.lifecycle import lifecycle
from reft_jax.training.reinforcement import BEST, reinforce
from reft_jax.training.startup import Run, claim_run, open_run
from reft_jax.training.supervised import supervised


def train(run: Run) -> dict[str, Any]:
    """All stages that are not done yet, then the test set; returns the summary.

    Raises:
        Interrupted: the run was asked to stop, and has saved where it was.
    """
    records, sampler, stages, model = run.records, run.sampler, run.stages, run.sampler.model
    saved = lambda name: functools.partial(model.params_from_checkpoint, records.run_dir / "checkpoints" / name)
    order = list(stages)
    ahead = order[order.index(records.progress.stage) :]
    todo = [name for name in ahead if stages[name].stop]

    start_from = model.start_params
    if "pretrain" in todo:
        supervised(records, sampler, stages["pretrain"], model.config.pretrain, run.examples["pretrain"], start_from)
    if stages["pretrain"].stop:
        start_from = saved("pretrain")
    if "sft" in todo:
        supervised(records, sampler, stages["sft"], model.config.sft, run.examples["sft"], start_from)
    if stages["sft"].stop:
        start_from = saved("warmup")
    elif model.config.rl.init_from:
        start_from = functools.partial(model.params_from_checkpoint, Path(model.config.rl.init_from))
    if "rl" in todo:
        reinforce(records, sampler, stages["rl"], run.examples["sft"], start_from)
    return evaluate_test(run)


def evaluate_test(run: Run) -> dict[str, Any]:
    """Evaluates on test, once, the models that the run has made and those that it chose on dev.

    Without a test set the summary has what the models cost, and their accuracy on dev; of problems without gold answers
    it has the mean reward. Where dev is part of test, what was chosen is `test_best`: the highest of many evaluations
    on test, and no estimate.
    """
    records, sampler, stages = run.records, run.sampler, run.stages
    sft, progress = sampler.config.sft, records.progress
    made: dict[str, dict[str, Any]] = {}
    if stages["sft"].stop:
        made["warmup"] = progress.spent("warmup")
        if sft.stop_epoch > sft.warmup_epoch:
            made["sft"] = progress.spent("warmup", "sft")
        records.writer.flush()
        measured = on_process_zero(lambda: dev_accuracies(records.run_dir))
        for name, epoch in (("warmup", sft.warmup_epoch), ("sft", sft.stop_epoch)):
            step = stages["sft"].offset + epoch * stages["sft"].epoch
            if name in made and step in measured:
                made[name]["dev_accuracy"] = measured[step]
    test_best = is_within(sampler.problems["dev"], sampler.problems["test"])
    for name, ranking in progress.best.items():
        figures = {"accuracy", sampler.config.select_by}
        made[name] = {f"dev_{key}" if key in figures else key: value for key, value in ranking[0].items()}
        made[name] |= {"algorithm": sampler.config.rl.algorithm} if name == BEST else {}
        made[name] |= {"test_best": True} if test_best else {}
    step = stages["rl"].offset + stages["rl"].stop + 1
    summary: dict[str, Any] = {}
    if not sampler.problems["test"]:
        records.display.message("no test set (data.test.kind is `none`): the accuracies are those on dev")
        summary, made = made, {}
    for name, facts in made.items():
        params = sampler.model.params_from_checkpoint(records.run_dir / "checkpoints" / name)
        evaluation = sampler.evaluate(params, "test")
        records.writer.append("evaluations", evaluation.records(step, split="test", model=name))
        records.writer.write(step, name, evaluation.metrics(f"test/{name}"))
        tested: dict[str, Any] = {"reward": evaluation.reward}
        if evaluation.accuracy is not None:
            counts = {"correct": evaluation.correct, "total": evaluation.total}
            tested = {"accuracy": evaluation.accuracy, "interval": list(evaluation.interval), **counts}
        summary[name] = {**tested, **facts}
    return summary | ({"collapse": progress.collapse} if progress.collapse else {})


def dev_accuracies(run_dir: Path) -> dict[int, float]:
    """The accuracies on dev that a run recorded, by its step."""
    records = (record for _, _, record in json_lines(run_dir / "metrics.jsonl"))
    return {record["step"]: float(record["eval/accuracy"]) for record in records if "eval/accuracy" in record}


def say_what_begins(run: Run, line: str) -> None:
    """Says what the run works with, and by which command line it is continued."""
    model = run.sampler.model
    rows = {split: len(problems) for split, problems in run.sampler.problems.items()}
    for said in beginning(model, model.abstract_decoder(), rows, list(run.stages.values()), line):
        run.records.display.message(said)


def main(arguments: Sequence[str] | None = None) -> int:
    """Trains what `arguments` (or the command line) say; of a run that is finished it prints the table again.

    Returns 0, or `processes.COLLAPSED` where `rl.collapse` ended the run. Exits with `processes.STOPPED` where it was
    asked to stop, so that the same command continues, with `processes.REFUSED` where that is no use, and with 1 after
    any other error.
    """
    config = load_config(arguments)
    line = shell_line("train", sys.argv[1:] if arguments is None else arguments)
    with lifecycle(config, f"stopped as asked; {continuation(config, line)}") as command:
        config, tokenizer, summary = claim_run(command, config)
        if summary is None:
            run = command.open(open_run(config, tokenizer, command.stop))
            say_what_begins(run, line)
            command.open(recorded_attempt(run.records.run_dir, run.sampler.model.mesh))
            command.begin(run.sampler.model.mesh)
            summary = train(run)
            run.records.writer.write_summary(summary)
            run.records.display.log("\n".join((closing_text(summary), *what_next(config))))
    if jax.process_index() == 0:
        print_closing_table(summary)
        print("\n".join(what_next(config)), flush=True)
    if reason := summary.get("collapse"):
        print(f"reinforcement ended early: {reason}", file=sys.stderr, flush=True)
        return COLLAPSED
    return 0


if __name__ == "__main__":
    sys.exit(main())
