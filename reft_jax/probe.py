"""`python -m reft_jax.probe CHECKPOINT`: will reinforcement help it, before that is paid for?

    python -m reft_jax.probe runs/mine/checkpoints/warmup --samples 8 --json probe.json

Samples some completions of training questions, as reinforcement would, and says what there is to gain (pass@k), how
many groups of samples would say nothing, how well a minibatch would know the gradient, by algorithm, and what that
speaks for. CHECKPOINT is one of RUN_DIR/checkpoints; without it, `--config FILE` names the model by `model.path`.
"""

import dataclasses
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import jax
import numpy as np

from reft_jax.algorithms.gradient_noise import build_gradients, figures
from reft_jax.algorithms.rollout import SamplingParams
from reft_jax.algorithms.train_state import cut_lengths
from reft_jax.config import config_parser
from reft_jax.config.invocation import program
from reft_jax.config.ranges import NonNegativeInt, TwoOrMore
from reft_jax.data.batches import Sequences, epoch_order, prompt_batches
from reft_jax.data.encoding import Prompt
from reft_jax.files import user_path
from reft_jax.models.params import Params, stacked
from reft_jax.parallel.processes import REFUSED, exit_with
from reft_jax.parallel.sharding import replicated, to_global, to_host
from reft_jax.samples import probing
from reft_jax.training.completion import Completion
from reft_jax.training.model_source import ModelSource, drawing, open_model, read_source
from reft_jax.training.sampler import SAMPLE, Sampler

LEAST_QUESTIONS = 8
"""Questions that gradients are taken of, at least: fewer say nothing of the spread between them."""


@dataclasses.dataclass(frozen=True)
class Work:
    """What is to be probed.

    Attributes:
        source: the model, and the split of its problems.
        questions: most questions that are asked.
        samples: completions of each.
        gradient_samples: completions whose gradients are taken; 0 takes none.
    """

    source: ModelSource
    questions: int
    samples: int
    gradient_samples: int


def asked(sampler: Sampler, work: Work) -> list[Prompt]:
    """The questions, drawn by the seed among those with a gold answer.

    Raises:
        ValueError: there are fewer than gradients need.
    """
    split = work.source.split
    prompts = [prompt for prompt in sampler.prompts[split] if sampler.problems[split][prompt.problem].has_gold]
    order = epoch_order(sampler.config.seed, 0, len(prompts))
    chosen = [prompts[i] for i in order[: work.questions or len(prompts)]]
    if len(chosen) < LEAST_QUESTIONS:
        raise ValueError(
            f"{split} has {len(chosen)} questions with a gold answer to ask: a probe needs {LEAST_QUESTIONS} or more"
        )
    return chosen


def sample(
    sampler: Sampler, params: Params, prompts: Sequence[Prompt], work: Work
) -> tuple[list[list[Completion]], Sequences[np.ndarray]]:
    """The completions of each question, and their rows [questions * samples, ...], question by question.

    Args:
        sampler: with the problems.
        params: {"decoder"}.
        prompts: of the questions.
        work: how many samples.

    Raises:
        Interrupted: as asked, after a batch.
    """
    split, config = work.source.split, sampler.config
    size = 8 * sampler.model.sampling.slots
    size += -size % work.samples  # all samples of a question together
    batches = list(
        prompt_batches(
            prompts,
            samples=work.samples,
            batch_size=size,
            prompt_buckets=(max(config.generation.prompt_buckets),),
            pad_id=sampler.model.ids.pad,
        )
    )
    weights, how = sampler.sampling_params(params), SamplingParams(config.evaluation.temperature)
    sampler.display.stage("sample", len(batches), 0)
    judged: list[Completion] = []
    rows, tokens, started = [], 0, time.monotonic()
    for number, batch in enumerate(batches, start=1):
        rollout = sampler.rollout(weights, batch, SAMPLE, how, work.samples)
        completions = sampler.judge(rollout, split, batch.problem)
        rows.append(kept(rollout.sequences, completions))
        judged += completions
        tokens += sum(completion.tokens for completion in completions)
        right = sum(completion.verdict.outcome == "correct" for completion in judged) / len(judged)
        pace = tokens / (time.monotonic() - started)
        sampler.display.advance(number, {"reward/correct": right, "throughput/rollout_tokens_per_s": pace})
    each = [judged[i : i + work.samples] for i in range(0, len(judged), work.samples)]
    return each, jax.tree.map(lambda *parts: np.concatenate(parts), *rows)


def kept(sequences: Sequences[np.ndarray], completions: Sequence[Completion]) -> Sequences[np.ndarray]:
    """Rows without filler, each response as long as it was judged."""
    rows = jax.tree.map(lambda x: x[: len(completions)], sequences)
    lengths = np.array([completion.tokens for completion in completions], np.int32)
    return dataclasses.replace(rows, response_lengths=lengths)


def gradients(sampler: Sampler, params: Params, rows: Sequences[np.ndarray]) -> np.ndarray:
    """[B, D] sketches of the gradients of completions.

    Raises:
        Interrupted: as asked, between calls.
    """
    model, temperature = sampler.model, sampler.config.evaluation.temperature
    params = stacked(params)
    steps = build_gradients(model.policy, model.mesh, params, temperature=temperature)
    drawn = steps.draw(params, jax.random.key(0))
    calls = list(by_width(rows.lengths, steps.at_once))
    sampler.display.stage("gradients", len(calls), 0)
    found: list[np.ndarray] = [np.zeros(0)] * len(rows.lengths)
    for number, (order, same) in enumerate(calls, start=1):
        model.stop.check()
        width, most = (whole_eights(each[same].max()) for each in (rows.lengths, rows.response_lengths))
        part = jax.tree.map(lambda x, order=order: x[order], rows)
        part = dataclasses.replace(part, tokens=part.tokens[:, :width], responses=part.responses[:, :most])
        whole = jax.tree.map(lambda _: replicated(model.mesh), part)
        for row, made in zip(order, to_host(steps.step(params, to_global(part, whole), drawn))):
            found[row] = made
        sampler.display.advance(number, {})
    return np.stack(found)


def by_width(lengths: np.ndarray, size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields [size] rows of a call, and all rows that it is padded as.

    Rows of like length are together, longest first, in the widths of `cut_lengths`, each of which is compiled once. The
    last call of a width is filled up with rows that it has had.
    """
    sizes = cut_lengths(whole_eights(lengths.max()))
    place = np.searchsorted(sizes, lengths)
    for each in sorted(set(place.tolist()), reverse=True):
        same = np.flatnonzero(place == each)
        for start in range(0, len(same), size):
            yield same[np.arange(start, start + size) % len(same)], same


def whole_eights(length: int) -> int:
    """The least multiple of 8 that is no less."""
    return -(-int(length) // 8) * 8


def probe(
    sampler: Sampler,
    params: Params,
    prompts: Sequence[Prompt],
    work: Work,
    sampled: Callable[[dict[str, Any]], None] = lambda _: None,
) -> dict[str, Any]:
    """All figures, as they go to JSON, and what they speak for.

    Args:
        sampler: with the problems.
        params: {"decoder"}.
        prompts: of the questions.
        work: what is probed.
        sampled: is given the figures that need no gradient, before gradients are taken.

    Raises:
        Interrupted: as asked.
    """
    completions, rows = sample(sampler, params, prompts, work)
    rewards = [[completion.reward for completion in each] for each in completions]
    right = [sum(completion.verdict.outcome == "correct" for completion in each) for each in completions]
    recipe, split = work.source.recipe, work.source.split
    made = {"checkpoint": work.source.name, "split": split, **probing.figures(rewards, right)}
    sampled(made)
    if work.gradient_samples:
        some = epoch_order(sampler.config.seed, 1, len(rewards))[: work.gradient_samples // work.samples]
        place = (some[:, None] * work.samples + np.arange(work.samples)).ravel()
        taken = jax.tree.map(lambda x: x[place], rows)
        made["minibatch"] = recipe.minibatch_size
        made["gradients"] = figures(
            gradients(sampler, params, taken).reshape(len(some), work.samples, -1),
            np.array(rewards)[some],
            taken.response_lengths.reshape(len(some), -1),
            minibatch=recipe.minibatch_size,
            by_token=recipe.loss_aggregation != "sequence_mean",
        )
    problems = [sampler.problems[split][prompt.problem] for prompt in sampler.prompts[split]]
    annotated = sum(bool(problem.cot) for problem in problems) / len(problems) if split == "train" else None
    count = recipe.epochs * len(problems) * recipe.samples_per_question if split == "train" else None
    return {**made, "advice": probing.advice(made, recipe.minibatch_size, annotated, count)}


def show_samples(made: dict[str, Any]) -> None:
    """Prints the figures that need no gradient, as tables."""
    where = f"{made['checkpoint']}, {made['split']}: {made['questions']:,} questions, {made['samples']} samples of each"
    _say(f"{where}, mean reward {made['reward']:.3f}")
    percent = lambda share: f"{100 * share:.1f}"
    rows: list[tuple[str, ...]] = [
        (f"pass@{k}", percent(entry["value"]), " to ".join(map(percent, entry["interval"])))
        for k, entry in made["pass"].items()
    ]
    _table("", "solved %", "95 % interval", rows=rows)
    bins = probing.histogram(made["questions_by_right_samples"])
    most = max(count for _, count in bins)
    bars = [
        (label, f"{count:,}", "#" * round(30 * count / most)) for label, count in bins if count or "to" not in label
    ]
    _table("samples that are right", "questions", "", rows=bars)
    rows = [(n, percent(share)) for n, share in made["without_signal"].items()]
    _table("samples of a question", "groups that earn all the same %", rows=rows)


def show_gradients(made: dict[str, Any]) -> None:
    """Prints signal and noise as a table, where gradients were taken, and what all figures speak for."""
    if made.get("gradients"):
        rows = [
            (row["algorithm"], str(row["samples"]), f"{row['ratio']:.3f} ± {row['error']:.3f}", _completions(row))
            for row in made["gradients"]
        ]
        heading = f"signal to noise of {made['minibatch']} completions"
        _table("algorithm", "samples", heading, "completions for 1", rows=rows)
    for line in made["advice"]:
        _say(f"- {line}")


def _table(*headings: str, rows: Sequence[Sequence[str]]) -> None:
    import rich.console
    import rich.table

    made = rich.table.Table(*(rich.table.Column(x, justify="right" if i else "left") for i, x in enumerate(headings)))
    for row in rows:
        made.add_row(*row)
    rich.console.Console(highlight=False).print(made)


def _say(text: str) -> None:
    import rich.console

    rich.console.Console(highlight=False).print(text, markup=False, soft_wrap=True)


def _completions(row: dict[str, Any]) -> str:
    return "-" if row["completions"] is None else f"{row['completions']:.0f}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Probes as `arguments` (or the command line) say; exits with 2 where that cannot work, and as `processes` say."""
    parser = config_parser(program("probe"), str(__doc__))
    parser.add_argument("paths", nargs="*", metavar="[CHECKPOINT]", help="folder of RUN_DIR/checkpoints")
    parser.add_argument(
        "--split", type=Literal["train", "dev"], default="train", help="problems: data.train but its dev part, or dev"
    )
    parser.add_argument("--questions", type=NonNegativeInt, default=128, help="drawn by the seed; 0 takes all")
    parser.add_argument("--samples", type=TwoOrMore, default=8, help="completions of each question")
    parser.add_argument(
        "--gradient_samples",
        type=NonNegativeInt,
        default=256,
        help="completions whose gradients are taken, each about what it costs to train on; 0 takes none",
    )
    parser.add_argument("--json", default="", help="file that the figures are written to as well")
    given = parser.parse_args(arguments)
    try:
        if len(given.paths) > 1:
            raise ValueError(f"give one CHECKPOINT, or --config FILE, not {' '.join(given.paths)}")
        if 0 < given.gradient_samples < (least := LEAST_QUESTIONS * given.samples):
            raise ValueError(
                f"--gradient_samples is {given.gradient_samples}: with --samples {given.samples} it must be 0, or "
                f"{least} or more, so that there are {LEAST_QUESTIONS} questions"
            )
        out = user_path(given.json) if given.json else None
        if out and not out.parent.is_dir():
            raise FileNotFoundError(f"--json {given.json}: there is no folder {out.parent}")
        source, _ = read_source(parser, arguments, given.paths, given.split)
        source = drawing(source, given.samples, source.config.generation.temperature, 0, 1.0)
    except (ValueError, FileNotFoundError) as error:
        exit_with(f"error: {error}", REFUSED)
    work = Work(source, given.questions, given.samples, given.gradient_samples)
    with open_model(source) as (sampler, params):
        try:
            prompts = asked(sampler, work)
        except ValueError as error:
            exit_with(f"error: {error}", REFUSED)
        first = jax.process_index() == 0
        made = probe(sampler, params, prompts, work, show_samples if first else lambda _: None)
        if first:
            show_gradients(made)
            if out:
                out.write_text(json.dumps(made, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
