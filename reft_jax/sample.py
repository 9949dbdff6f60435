"""`python -m reft_jax.sample CHECKPOINT OUT.jsonl --split train --samples 100`: completions of a set of problems.

CHECKPOINT is one of RUN_DIR/checkpoints; the run's settings are taken, with the command line's over them. Without it,
`--config FILE` names the model by `model.path`, which no run has to have trained; `--few_shot` then shows it how.
The same command continues a file that was interrupted, on whatever devices.
"""

import dataclasses
import hashlib
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from reft_jax.completion import Completion
from reft_jax.config import Config, SourceConfig, config_parser, to_dict
from reft_jax.data.batches import PromptBatch, sample_batches, sample_rows
from reft_jax.data.prompts import few_shot_prefix
from reft_jax.data.readers import read_problems
from reft_jax.evaluation import ask
from reft_jax.model_source import ModelSource, Split, asking, read_source
from reft_jax.models.policy import Params
from reft_jax.processes import REFUSED, leave, on_first
from reft_jax.rollout import Sampling
from reft_jax.sample_file import SampleFile
from reft_jax.sampler import Sampler
from reft_jax.validation import validate

STEP = -2
"""The step of these random numbers, which are neither an iteration's nor an evaluation's."""


def sample(sampler: Sampler, params: Params, out: Path, *, source: ModelSource, samples: int, prefix: str = "") -> int:
    """Writes `samples` completions of every problem of the source's split, or those that `out` lacks.

    They are drawn as `config.evaluation` says. A line depends on the seed, its problem and its number alone, but for
    rounding; the lines go by length of the prompt, the longest first.

    Args:
        sampler: with the split's problems.
        params: {"decoder"}.
        out: file of samples, which process 0 writes.
        source: what `params` are.
        samples: of each problem.
        prefix: what the prompts begin with.

    Returns:
        The number of lines.

    Raises:
        OSError: another process writes to `out`.
        ValueError: `out` holds something else.
        Interrupted: as asked, after a batch.
    """
    config, prompts, problems = sampler.config, sampler.prompts[source.split], sampler.problems[source.split]
    size = config.evaluation.batch_size
    order = [(problems[prompts[i].problem].id, int(j)) for i, j in zip(*sample_rows(prompts, samples))]
    with SampleFile(out) as file:
        made = settings(sampler, source, samples, prefix)
        done = on_first(lambda: file.begin(made, order, size))
        if done == len(order):
            return done
        batches = sample_batches(
            prompts,
            samples=samples,
            batch_size=size,
            prompt_buckets=config.generation.prompt_buckets,
            pad_id=sampler.ids.pad,
            first=done // size,
        )
        how = Sampling(config.evaluation.temperature, config.evaluation.top_k, config.evaluation.top_p)
        answers = ask(
            sampler.generate("sample", size, how),
            sampler.sampling_params(params),
            batches,
            seed=config.seed,
            step=STEP,
            mesh=sampler.mesh,
            judge=lambda rows, rollout: sampler.judge(rollout, problems, rows),
        )
        total = -(-len(order) // size)
        sampler.console.stage("sample", total, done // size)
        right, tokens, count, started = 0, 0, 0, time.monotonic()
        for number, (batch, completions) in enumerate(answers, start=done // size + 1):
            file.append(records(batch, completions))
            count += len(completions)
            right += sum(completion.verdict.outcome == "correct" for completion in completions)
            tokens += sum(completion.tokens for completion in completions)
            pace = tokens / (time.monotonic() - started)
            fields = {"reward/correct": right / count, "throughput/rollout_tokens_per_s": pace}
            sampler.console.advance(number, fields)
    return len(order)


def records(batch: PromptBatch, completions: Sequence[Completion]) -> list[dict[str, Any]]:
    """The lines of a batch; filler, which comes last, has none."""
    pairs = zip(batch.sample.tolist(), completions)
    return [{**completion.record(), "sample": i, "log_prob": completion.log_prob} for i, completion in pairs]


def settings(sampler: Sampler, source: ModelSource, samples: int, prefix: str) -> dict[str, Any]:
    """What determines the lines, but for rounding: not the devices, nor how many rows go together."""
    config = to_dict(sampler.config)
    kept = {key: config[key] for key in ("seed", "model", "data", "generation", "reward", "evaluation")}
    free = {"generation": ("weights", "scan_layers"), "evaluation": ("batch_size",), "reward": ("workers",)}
    for key, names in free.items():
        for name in names:
            del kept[key][name]
    problems, prompts = sampler.problems[source.split], sampler.prompts[source.split]
    asked = {prompt.problem for prompt in prompts}
    texts = [[problem.id, problem.question, problem.answer] for problem in problems]
    return {
        "checkpoint": source.name,
        "split": source.split,
        "samples": samples,
        "lines": samples * len(prompts),
        "left_out": [problem.id for i, problem in enumerate(problems) if i not in asked],
        "problems": _digest(json.dumps(texts)),
        "few_shot": _digest(prefix) if prefix else "",
        "end_before": sampler.end_before,
        **kept,
    }


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def worked_examples(path: str, config: Config, separator: str) -> str:
    """What stands before every prompt: the worked examples of a file, `data.train.kind: jsonl` or, as .json, `reft`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: naming the row, or the example, that cannot be one.
    """
    kind = "reft" if path.endswith(".json") else "jsonl"
    examples = read_problems(SourceConfig(kind=kind, path=path))  # type: ignore[arg-type]
    return few_shot_prefix(examples, config.data.templates, config.data.cot, separator)


def drawing(source: ModelSource, temperature: float, top_k: int, top_p: float) -> ModelSource:
    """The source with another way to draw tokens.

    Raises:
        ValueError: naming the number that is out of its range.
    """
    how = dataclasses.replace(source.config.evaluation, temperature=temperature, top_k=top_k, top_p=top_p)
    config = dataclasses.replace(source.config, evaluation=how)
    validate(config, training=False)
    return dataclasses.replace(source, config=config)


def main(arguments: Sequence[str] | None = None) -> None:
    """Samples as `arguments` (or the command line) say; exits as a run does, see `processes`."""
    parser = config_parser("python -m reft_jax.sample", str(__doc__))
    parser.add_argument("paths", nargs="+", metavar="[CHECKPOINT] OUT", help="folder of RUN_DIR/checkpoints, and file")
    parser.add_argument("--split", type=Split, required=True, help="problems: data.train but its dev part, dev, test")
    parser.add_argument("--samples", type=int, required=True, help="completions of each problem")
    parser.add_argument("--temperature", type=float, default=1.0, help="divides the logits; 0 is greedy")
    parser.add_argument("--top_k", type=int, default=0, help="draw only among the k most likely tokens; 0 among all")
    parser.add_argument("--top_p", type=float, default=1.0, help="draw only among the likeliest with this probability")
    parser.add_argument("--few_shot", default="", help="file of worked examples that stand before each prompt")
    parser.add_argument("--separator", default="\n\n", help="after a worked example; a completion ends before it")
    try:
        given = parser.parse_args(arguments)
        if len(given.paths) > 2:
            raise ValueError(f"give CHECKPOINT OUT, or OUT with --config FILE, not {' '.join(given.paths)}")
        if given.samples < 1:
            raise ValueError(f"--samples is {given.samples}: it must be 1 or more")
        source, _ = read_source(parser, arguments, given.paths[:-1], given.split)
        source = drawing(source, given.temperature, given.top_k, given.top_p)
        prefix = worked_examples(given.few_shot, source.config, given.separator) if given.few_shot else ""
    except (ValueError, FileNotFoundError) as error:
        leave(f"error: {error}", REFUSED)
    out = Path(given.paths[-1])
    end_before = given.separator if prefix else ""
    stopped = f"stopped as asked; the same command continues {out}"
    with asking(source, prefix=prefix, end_before=end_before, stopped=stopped) as (sampler, params):
        try:
            lines = sample(sampler, params, out, source=source, samples=given.samples, prefix=prefix)
        except ValueError as error:
            leave(f"error: {error}", REFUSED)
        if jax.process_index() == 0:
            print(f"{out}: {lines:,} completions")


if __name__ == "__main__":
    main()
