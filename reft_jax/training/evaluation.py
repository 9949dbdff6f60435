"""Accuracy on a set of problems: greedy unless told otherwise, in batches of similar length."""

import dataclasses
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh

from reft_jax.algorithms.rollout import Rollout
from reft_jax.config import Config
from reft_jax.data.batches import PromptBatch, evaluation_batches
from reft_jax.data.encoding import Prompt
from reft_jax.models.policy import Params
from reft_jax.parallel.compilation import Programs
from reft_jax.parallel.sharding import batch_shardings, to_global
from reft_jax.samples.statistics import wilson_interval
from reft_jax.training.completion import Completion, summarise

STEP = -1
"""The step of an evaluation's random numbers, which are never an iteration's."""


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """One reading of a problem set: a completion for each problem that was asked, of `total` problems."""

    completions: list[Completion]
    total: int

    @property
    def correct(self) -> int:
        """Problems answered right; those whose prompt was dropped are not."""
        return sum(completion.verdict.outcome == "correct" for completion in self.completions)

    @property
    def accuracy(self) -> float:
        """Share of all problems answered right."""
        return self.correct / self.total

    @property
    def interval(self) -> tuple[float, float]:
        """95 % Wilson interval of the accuracy."""
        return wilson_interval(self.correct, self.total)

    def metrics(self, split: str) -> dict[str, float]:
        """The reading's metrics, named `<split>/...`."""
        low, high = self.interval
        shares = summarise(self.completions)
        del shares["length_mean"]
        own = {"accuracy": self.accuracy, "interval_low": low, "interval_high": high}
        return {f"{split}/{name}": value for name, value in {**own, **shares}.items()}

    def records(self, step: int, **labels: Any) -> list[dict[str, Any]]:
        """One JSON object a completion."""
        return [{"step": step, **labels, **completion.record()} for completion in self.completions]


def ask(
    programs: Programs,
    params: Params,
    batches: Iterable[PromptBatch],
    *,
    seed: int,
    step: int,
    mesh: Mesh,
    judge: Callable[[np.ndarray, Rollout], list[Completion]],
) -> Iterator[tuple[PromptBatch, list[Completion]]]:
    """Yields each batch with its completions; the next one is sampled while one is judged.

    Args:
        programs: compiled `rollout.build_generate` by prompt bucket.
        params: as `Sampler.sampling_params` makes them.
        batches: of prompts, as large as the programs.
        seed, step: of the random numbers, see `rollout.row_keys`.
        mesh: where the programs run.
        judge: (the problem of each row, rollout) -> completions.
    """
    ahead: deque[tuple[PromptBatch, Rollout]] = deque()
    for batch in batches:
        program, inputs = programs[(batch.tokens.shape[1],)], to_global(batch, batch_shardings(batch, mesh))
        ahead.append((batch, program(params, inputs, np.int32(seed), np.int32(step))))
        if len(ahead) == 2:
            asked, rollout = ahead.popleft()
            yield asked, judge(asked.problem, rollout)
    for asked, rollout in ahead:
        yield asked, judge(asked.problem, rollout)


def evaluate(
    programs: Programs,
    params: Params,
    prompts: Sequence[Prompt],
    *,
    config: Config,
    mesh: Mesh,
    pad: int,
    total: int,
    judge: Callable[[np.ndarray, Rollout], list[Completion]],
) -> Evaluation:
    """Asks every prompt once.

    Args:
        programs, params, mesh, judge: see `ask`.
        prompts: made by `encode_prompts`.
        config: seed, batch size, buckets.
        pad: id that fills rows.
        total: number of problems, those whose prompt was dropped included.
    """
    size, buckets = config.evaluation.batch_size, config.generation.prompt_buckets
    batches = evaluation_batches(prompts, batch_size=size, prompt_buckets=buckets, pad_id=pad)
    answers = ask(programs, params, batches, seed=config.seed, step=STEP, mesh=mesh, judge=judge)
    return Evaluation(completions=[completion for _, answered in answers for completion in answered], total=total)
