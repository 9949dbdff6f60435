"""`python -m reft_jax.evaluate`: accuracies on a set of problems, with their 95 % intervals.

    python -m reft_jax.evaluate CHECKPOINT --split test            # asks the model: greedy accuracy
    python -m reft_jax.evaluate --samples FILE.jsonl --k 1 10 100  # asks nobody: maj@k and pass@k of a file of samples

CHECKPOINT is one of RUN_DIR/checkpoints; `--config FILE` names a model without a run. The second way needs no jax.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from reft_jax.config import Split, config_parser
from reft_jax.config.invocation import program
from reft_jax.files import user_path
from reft_jax.samples.file import left_out
from reft_jax.samples.measures import Measure, measure, read_answers


def from_samples(path: Path, ks: Sequence[int]) -> dict[str, Any]:
    """The report on a file of samples; without `ks`, for 1 and for as many samples as every question has.

    Raises:
        FileNotFoundError, ValueError: see `read_answers` and `measure`.
    """
    answers, unasked = read_answers(path), left_out(path)
    fewest = min(len(values) for _, values, _ in answers.values())
    measures = measure(answers, ks or sorted({1, fewest}), len(unasked))
    return {"samples_file": str(path), **report(measures, len(answers) + len(unasked), len(unasked))}


def from_model(arguments: Sequence[str] | None, parser: Any, options: Any) -> dict[str, Any]:
    """The report on a model that is asked now; on the first process only, elsewhere empty.

    Problems without a gold answer do not count; where all are such, it has the mean reward.
    """
    import jax

    from reft_jax.parallel.processes import REFUSED, exit_with
    from reft_jax.training.model_source import open_model, read_source

    try:
        source, _ = read_source(parser, arguments, options.paths, options.split)
    except (ValueError, FileNotFoundError) as error:
        exit_with(f"error: {error}", REFUSED)
    with open_model(source) as (sampler, params):
        evaluation = sampler.evaluate(params, source.split)
        asked = [completion for completion in evaluation.completions if completion.problem.has_gold]
        if evaluation.accuracy is None:
            measures, questions = {}, len(sampler.problems[source.split])
            unasked = questions - len(evaluation.completions)
        else:
            measures = {"accuracy": Measure(evaluation.accuracy, evaluation.interval)}
            questions, unasked = evaluation.total, evaluation.total - len(asked)
        made = {"checkpoint": source.name, "split": source.split, **report(measures, questions, unasked)}
        made |= {"reward": evaluation.reward} if evaluation.accuracy is None else {}
        return made if jax.process_index() == 0 else {}


def report(measures: dict[str, Measure], questions: int, unasked: int) -> dict[str, Any]:
    """What is printed and what goes to `--json`; `left_out` questions, too long to be asked, count as not solved."""
    results = {name: {"value": value, "interval": list(interval)} for name, (value, interval) in measures.items()}
    return {"questions": questions, "left_out": unasked, "results": results}


def show(made: dict[str, Any]) -> None:
    """Prints a report as a table."""
    import rich.console
    import rich.table

    where = made.get("samples_file") or f"{made['checkpoint']}, {made['split']}"
    about = f"{made['questions']:,} questions" + (f", {made['left_out']:,} left out" if made["left_out"] else "")
    terminal = rich.console.Console(highlight=False)
    terminal.print(f"{where}: {about}", markup=False, soft_wrap=True)
    if "reward" in made:
        terminal.print(f"mean reward {made['reward']:.3f}; the problems have no answers, so that there is no accuracy")
        return
    table = rich.table.Table()
    for heading in ("", "accuracy %", "95 % interval"):
        table.add_column(heading, justify="right" if heading else "left")
    for name, result in made["results"].items():
        low, high = result["interval"]
        table.add_row(name, f"{100 * result['value']:.1f}", f"{100 * low:.1f} to {100 * high:.1f}")
    terminal.print(table)


def main(arguments: Sequence[str] | None = None) -> int:
    """Evaluates as `arguments` (or the command line) say; exits with 2 where file, settings or k do not do."""
    parser = config_parser(program("evaluate"), str(__doc__))
    parser.add_argument("paths", nargs="*", metavar="[CHECKPOINT]", help="folder of RUN_DIR/checkpoints")
    parser.add_argument("--split", type=Split, default="test", help="problems to ask a model")
    parser.add_argument("--samples", default="", help="file of samples, in place of a model")
    parser.add_argument("--k", type=int, nargs="+", default=[], help="of maj@k and pass@k; default: 1 and all samples")
    parser.add_argument("--json", default="", help="file that the numbers are written to as well")
    options = parser.parse_args(arguments)
    if len(options.paths) > 1 or (options.samples and options.paths) or (options.k and not options.samples):
        parser.error("give a CHECKPOINT (or --config FILE), or --samples FILE and its --k")
    if options.samples:
        try:
            made = from_samples(user_path(options.samples), options.k)
        except (OSError, ValueError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
    else:
        made = from_model(arguments, parser, options)
    if made:
        show(made)
    if made and options.json:
        try:
            user_path(options.json).write_text(json.dumps(made, indent=2) + "\n", encoding="utf-8")
        except (OSError, ValueError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
