"""`python -m reft_jax.sample CHECKPOINT OUT.jsonl --split train --samples 100`: completions of a set of problems.

CHECKPOINT is one of RUN_DIR/checkpoints; the run's settings are taken, with the command line's over them. Without it,
`--config FILE` names the model by `model.path`, which no run has to have trained; `--few_shot` then shows it how.
The same command continues a file that was interrupted, on whatever devices.
"""

import dataclasses
import hashlib
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from reft_jax.config import SourceConfig, Split, config_parser, to_dict
from reft_jax.config.invocation import program, shell_line, short_path
from reft_jax.config.ranges import GreedyOrTemperature, NonNegativeInt, PositiveInt, Probability
from reft_jax.data.batches import PromptBatch, prompt_batches, sample_rows
from reft_jax.data.chat import with_worked_examples
from reft_jax.data.readers import read_problems
from reft_jax.files import user_path
from reft_jax.models.policy import Params
from reft_jax.parallel.processes import REFUSED, exit_with, on_process_zero
from reft_jax.samples.file import SampleFile
from reft_jax.training.completion import Completion
from reft_jax.training.model_source import ModelSource, drawing, open_model, read_source
from reft_jax.training.sampler import SAMPLE, Sampler


@dataclasses.dataclass(frozen=True)
class Work:
    """What is to be sampled.

    Attributes:
        source: the model, and the split of its problems.
        samples: of each problem.
    """

    source: ModelSource
    samples: int


def begin(file: SampleFile, sampler: Sampler, work: Work) -> int:
    """Takes the file on process 0; returns the number of lines that it has, on all.

    Raises:
        OSError: another process writes to it.
        ValueError: it holds something else.
    """
    prompts, problems = sampler.prompts[work.source.split], sampler.problems[work.source.split]
    order = [(problems[prompts[i].problem].id, int(j)) for i, j in zip(*sample_rows(prompts, work.samples))]
    return on_process_zero(lambda: file.begin(settings(sampler, work), order, lines_together(sampler)))


def lines_together(sampler: Sampler) -> int:
    """Lines that are sampled and written together: several for each slot, since at their end slots stay empty."""
    return 8 * sampler.model.sampling.slots


def sample(file: SampleFile, done: int, sampler: Sampler, params: Params, work: Work) -> int:
    """Writes the lines that the file lacks: `work.samples` completions of each problem, drawn by `config.evaluation`.

    A line depends on the seed, its problem and its number alone, but for rounding; the lines go by length of the
    prompt, the longest first.

    Args:
        file: process 0 has begun it.
        done: lines that it has, whole batches of `lines_together`.
        sampler: with the problems.
        params: {"decoder"}.
        work: what is sampled.

    Returns:
        The number of lines.

    Raises:
        OSError: they cannot be written.
        Interrupted: as asked, after a batch.
    """
    config, split = sampler.config, work.source.split
    lines, size = work.samples * len(sampler.prompts[split]), lines_together(sampler)
    if done == lines:
        return lines
    batches = prompt_batches(
        sampler.prompts[split],
        samples=work.samples,
        batch_size=size,
        prompt_buckets=config.generation.prompt_buckets,
        pad_id=sampler.model.ids.pad,
        first=done // size,
    )
    answers = sampler.sample(params, split, batches, SAMPLE, work.samples)
    sampler.display.stage("sample", -(-lines // size), done // size)
    judged: list[bool] = []
    tokens, started = 0, time.monotonic()
    for number, (batch, completions) in enumerate(answers, start=done // size + 1):
        file.append(records(batch, completions))
        judged += [completion.verdict.outcome == "correct" for completion in completions if completion.problem.has_gold]
        tokens += sum(completion.tokens for completion in completions)
        pace = tokens / (time.monotonic() - started)
        right = {"reward/correct": sum(judged) / len(judged)} if judged else {}
        sampler.display.advance(number, {**right, "throughput/rollout_tokens_per_s": pace})
    return lines


def write(out: Path, sampler: Sampler, params: Params, work: Work) -> int:
    """Begins or continues the file, see `begin` and `sample`; one that holds something else is refused."""
    with SampleFile(out) as file:
        try:
            done = begin(file, sampler, work)
        except ValueError as error:
            exit_with(f"error: {error}", REFUSED)
        return sample(file, done, sampler, params, work)


def records(batch: PromptBatch, completions: Sequence[Completion]) -> list[dict[str, Any]]:
    """The lines of a batch; filler, which comes last, has none."""
    pairs = zip(batch.sample.tolist(), completions)
    return [{**completion.record(), "sample": i, "log_prob": completion.log_prob} for i, completion in pairs]


def settings(sampler: Sampler, work: Work) -> dict[str, Any]:
    """What determines the lines, but for rounding: not the devices, nor how many rows go together."""
    config = to_dict(sampler.config)
    kept = {key: config[key] for key in ("seed", "model", "data", "generation", "reward", "evaluation")}
    free = {"generation": ("weight_layout", "scan_layers", "slots"), "reward": ("workers",)}
    for key, names in free.items():
        for name in names:
            del kept[key][name]
    problems, prompts = sampler.problems[work.source.split], sampler.prompts[work.source.split]
    asked = {prompt.problem for prompt in prompts}
    texts = [[problem.id, problem.question, problem.answer] for problem in problems]
    return {
        "checkpoint": work.source.name,
        "split": work.source.split,
        "samples": work.samples,
        "lines": work.samples * len(prompts),
        "left_out": [problem.id for i, problem in enumerate(problems) if i not in asked],
        "problems": _digest(json.dumps(texts)),
        **kept,
    }


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def shown_how(source: ModelSource, path: str, separator: str | None) -> ModelSource:
    """The source with the worked examples of a file before each question: `data.train.kind: jsonl` or, as .json,
    `reft_json`.

    Between strings stands the separator, by default a blank line, at which a response ends too; in a chat they are
    turns, which end by themselves.

    Raises:
        FileNotFoundError: there is no such file, or no tokenizer.
        ValueError: naming the row, or the example, that cannot be one; or a chat is given a separator.
    """
    config = source.config
    kind = "reft_json" if path.endswith(".json") else "jsonl"
    rows = SourceConfig(kind=kind, path=str(user_path(path)))  # type: ignore[arg-type]
    examples = read_problems(rows, answer=config.data.answer)
    chat = config.data.templates.kind == "chat"
    if chat and separator is not None:
        raise ValueError("--separator is set and data.templates.kind is chat: examples are turns there, leave it out")
    separator = "\n\n" if separator is None else separator
    config = with_worked_examples(config, source.tokenizer(), examples, separator)
    stop = config.generation.stop if chat else tuple(dict.fromkeys((*config.generation.stop, separator)))
    config = dataclasses.replace(config, generation=dataclasses.replace(config.generation, stop=stop))
    return dataclasses.replace(source, config=config)


def main(arguments: Sequence[str] | None = None) -> int:
    """Samples as `arguments` (or the command line) say; exits as a run does, see `processes`."""
    parser = config_parser(program("sample"), str(__doc__))
    parser.add_argument("paths", nargs="+", metavar="[CHECKPOINT] OUT", help="folder of RUN_DIR/checkpoints, and file")
    parser.add_argument("--split", type=Split, required=True, help="problems: data.train but its dev part, dev, test")
    parser.add_argument("--samples", type=PositiveInt, required=True, help="completions of each problem")
    parser.add_argument("--temperature", type=GreedyOrTemperature, default=1.0, help="divides the logits; 0 is greedy")
    parser.add_argument(
        "--top_k", type=NonNegativeInt, default=0, help="draw only among the k most likely tokens; 0 among all"
    )
    parser.add_argument(
        "--top_p", type=Probability, default=1.0, help="draw only among the likeliest with this probability"
    )
    parser.add_argument("--few_shot", default="", help="file of worked examples that stand before each prompt")
    parser.add_argument(
        "--separator",
        type=str,
        help="after a worked example, and a text of generation.stop; default: a blank line, and in a chat nothing",
    )
    given = parser.parse_args(arguments)
    try:
        out = user_path(given.paths[-1])
        if len(given.paths) > 2:
            raise ValueError(f"give CHECKPOINT OUT, or OUT with --config FILE, not {' '.join(given.paths)}")
        source, _ = read_source(parser, arguments, given.paths[:-1], given.split)
        source = drawing(source, given.samples, given.temperature, given.top_k, given.top_p)
        source = shown_how(source, given.few_shot, given.separator) if given.few_shot else source
    except (ValueError, FileNotFoundError) as error:
        exit_with(f"error: {error}", REFUSED)
    work = Work(source, given.samples)
    line = shell_line("sample", sys.argv[1:] if arguments is None else arguments)
    stopped = f"stopped as asked; the same command continues {out}:\n  {line}"
    with open_model(source, stopped=stopped) as (sampler, params):
        lines = write(out, sampler, params, work)
        if jax.process_index() == 0:
            print(f"{out}: {lines:,} completions")
            print(f"next: {shell_line('evaluate', ['--samples', short_path(out)])}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
