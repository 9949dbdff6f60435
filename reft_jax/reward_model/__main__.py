"""The outcome reward model: a classifier of completions into right and wrong, and the choice of the likeliest by it.

    python -m reft_jax.reward_model train --config FILE --run_dir OUT --reward_model.samples '["SAMPLES.jsonl"]'
        --reward_model.init_from RUN_DIR/checkpoints/sft_best
    python -m reft_jax.reward_model rerank OUT/checkpoints/reward_model_best SAMPLES.jsonl

`train` takes what `reft_jax.train` does and makes a run of its own, with the same records, checkpoints and resume; its
samples are those of the warm-up on train questions. `rerank` reads it on samples of a test set.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import jax
from rich.console import Console
from rich.table import Table

from reft_jax.algorithms.steps import steps
from reft_jax.algorithms.train_state import abstract_params
from reft_jax.config import CommandParser, Config, load_config
from reft_jax.config.invocation import named, program, shell_line
from reft_jax.config.validation import check_batches, check_lengths
from reft_jax.data.chat import with_templates
from reft_jax.data.samples import read_files
from reft_jax.data.tokenizers import load_tokenizer, special_ids
from reft_jax.files import user_path
from reft_jax.models.classifier import Classifier
from reft_jax.models.params import Params, in_form_of, select, stacked
from reft_jax.parallel.compilation import CompiledSteps
from reft_jax.parallel.processes import REFUSED
from reft_jax.parallel.sharding import make_mesh, shard_count
from reft_jax.records.checkpoint import part_name, restore_params, run_of
from reft_jax.records.records import json_value
from reft_jax.reward_model.reranking import (
    CorrectProbs,
    by_question,
    correct_probs,
    evaluate_choices,
    evaluate_classification,
    key,
    require_samples,
)
from reft_jax.reward_model.training import BEST, encode, open_reward_run, reward_model_only, train
from reft_jax.samples.file import Sample, left_out
from reft_jax.training.announcements import continuation
from reft_jax.training.directory import recorded_attempt
from reft_jax.training.lifecycle import Lifecycle, lifecycle
from reft_jax.training.model_source import own_devices
from reft_jax.training.startup import claim_run


def rerank(
    config: Config, checkpoint: Path, path: Path, ks: Sequence[int], command: Lifecycle
) -> tuple[dict[str, Any], list[Any]]:
    """Reads a reward model on a file of samples.

    Args:
        config: of the run that trained it.
        checkpoint: a folder of its checkpoints.
        path: the samples.
        ks: how many samples of a question it may choose among; empty takes all.
        command: begins when all is read.

    Returns:
        The figures: `questions`, of which `left_out` were too long to be asked and count as wrong, `samples`,
        `classification` of `evaluate_classification`, and under `first` for each k (`all` where none was given) those
        of `evaluate_choices`; and a record with P(correct) of each unique completion.

    Raises:
        FileNotFoundError: there is no such checkpoint, or no such file.
        ValueError: it is no reward model's; bad samples, rows that are too long, or too few samples.
    """
    run_dir = run_of(checkpoint, reward_model=True)
    check_lengths(config)
    mesh = make_mesh(config.mesh, jax.devices())
    check_batches(config, shard_count(mesh, "batch"))
    tokenizer = load_tokenizer(str(run_dir / "tokenizer"), "main")
    config = with_templates(config, tokenizer)
    say = lambda text: print(text, file=sys.stderr) if jax.process_index() == 0 else None
    samples = encode(read_files([path]), config, tokenizer, "given", say)
    questions, unasked = by_question(samples.drawn), len(left_out(path))
    abstract = abstract_params(Classifier(config.model, mesh), mesh, value_head=False)
    parts = {"decoder": checkpoint, "class_head": checkpoint.with_name(part_name(checkpoint.name, "class_head"))}
    saved = stacked(abstract)
    read = {name: restore_params(where, select(saved, {name}))[name] for name, where in parts.items()}
    params = in_form_of(cast(Params, read), abstract)
    require_samples(questions, max(ks, default=None))
    compiled, pad = CompiledSteps(steps(config, mesh)), special_ids(tokenizer).pad
    command.begin(mesh)
    probs = correct_probs(compiled, params, samples, config.reward_model, mesh=mesh, pad=pad, check=command.stop.check)
    figures = {
        "questions": len(questions) + unasked,
        "left_out": unasked,
        "samples": len(samples.drawn),
        "classification": evaluate_classification(samples.unique, probs),
        "first": {str(k or "all"): evaluate_choices(questions, probs, k, unasked) for k in (ks or (None,))},
    }
    return figures, [record(sample, probs) for sample in samples.unique if key(sample) in probs]


def record(sample: Sample, probs: CorrectProbs) -> dict[str, Any]:
    """A classified completion as a JSON object."""
    return {
        "id": sample.id,
        "sample": sample.sample,
        "completion": sample.completion,
        "correct": sample.correct,
        "value": sample.value,
        "p_correct": probs[key(sample)],
    }


def show(figures: dict[str, Any], console: Console) -> None:
    """Prints the figures of `rerank`."""
    classes = figures["classification"]
    console.print(
        f"{classes['completions']:,} unique completions: {classes['accuracy']:.1%} are told right from wrong "
        f"({classes['majority']:.1%} by always naming the more frequent)",
        highlight=False,
        soft_wrap=True,
    )
    unasked = f", {figures['left_out']:,} left out" if figures["left_out"] else ""
    table = Table(title=f"Right of {figures['questions']:,} questions{unasked}, % (95 % interval)")
    for heading in ("samples", "reward model", "vote", "upper bound"):
        table.add_column(heading, justify="right")
    for k, choices in figures["first"].items():
        table.add_row(k, *(share_text(choices[name]) for name in ("rerank", "vote", "upper_bound")))
    console.print(table)


def share_text(share: dict[str, Any]) -> str:
    low, high = share["interval"]
    return f"{100 * share['accuracy']:.1f} ({100 * low:.1f} to {100 * high:.1f})"


def train_command(arguments: Sequence[str]) -> int:
    """Trains; of a run that is finished it prints the result again. Exits as `reft_jax.train` does."""
    prog, description = f"{program('reward-model')} train", "Trains a reward model, see --reward_model in --help-all."
    config = load_config(arguments, prog=prog, description=description, adapt=reward_model_only)
    line = shell_line("reward-model", ["train", *arguments])
    with lifecycle(config, f"stopped as asked; {continuation(config, line)}") as command:
        config, tokenizer, summary = claim_run(command, config)
        if summary is None:
            run = command.open(open_reward_run(config, tokenizer, command.stop))
            command.open(recorded_attempt(run.records.run_dir, run.model.mesh))
            command.begin(run.model.mesh)
            summary = train(run)
            run.records.writer.write_summary(summary)
            run.records.display.log(result_line(config, summary))
    if jax.process_index() == 0:
        print(result_line(config, summary))
    return 0


def result_line(config: Config, summary: dict[str, Any]) -> str:
    """What a run that is finished says of its model."""
    best = summary[BEST]
    return (
        f"best on {'test (test-best)' if 'test_best' in best else 'dev'} after step {best['step']}: "
        f"{best['dev_accuracy']:.1%} of the questions right by its choice; {config.run_dir}/checkpoints/{BEST}"
    )


def rerank_command(arguments: Sequence[str]) -> int:
    """Reads the command line, chooses, prints and writes; returns 2 where something is wrong."""
    prog = f"{program('reward-model')} rerank"
    parser = CommandParser(
        prog=prog,
        description="Scores samples by a reward model, and chooses by it, by vote, and by who knows the answer.",
        epilog="All other arguments override the settings of its run, but for its devices, which were the training's: "
        "--mesh.data 8, --data.overlong drop; --help-all shows them.",
        allow_abbrev=False,
    )
    parser.add_argument("checkpoint", type=user_path, help=f"folder of RUN_DIR/checkpoints, such as {BEST}")
    parser.add_argument("samples", type=user_path, help="JSONL file of python -m reft_jax.sample")
    parser.add_argument("--k", type=int, nargs="+", default=[], help="choose among a question's first k; default: all")
    parser.add_argument(
        "--probs", type=user_path, help="JSONL file that each unique completion is written to, with its P(correct)"
    )
    parser.add_argument("--json", type=user_path, help="file that all figures are written to")
    own, rest = parser.parse_known_args(arguments)
    try:
        if min(own.k, default=1) < 1:
            raise ValueError(f"--k is {own.k}: each must be 1 or more")
        settings = run_of(own.checkpoint, reward_model=True) / "config.yaml"
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return REFUSED
    config = load_config(["--config", str(settings), *own_devices(), *rest], prog=prog, adapt=reward_model_only)
    with lifecycle(config) as command:
        figures, records = rerank(config, own.checkpoint.absolute(), own.samples, own.k, command)
        if jax.process_index() == 0:
            show(figures, Console())
            if own.probs:
                lines = "".join(json.dumps(json_value(row)) + "\n" for row in records)
                own.probs.write_text(lines, encoding="utf-8")
            if own.json:
                own.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """`train` or `rerank`; returns 2 for anything else."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    commands = {"train": train_command, "rerank": rerank_command}
    if given[:1] in (["-h"], ["--help"]):
        print(named(str(__doc__)))
        return 0
    if not given or given[0] not in commands:
        what = f"{given[0]} is no such command" if given else "name what it does"
        print(
            f"usage: {program('reward-model')} {{{','.join(commands)}}} ... (--help)\nerror: {what}: train, or rerank",
            file=sys.stderr,
        )
        return REFUSED
    return commands[given[0]](given[1:])


if __name__ == "__main__":
    sys.exit(main())
