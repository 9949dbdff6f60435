"""A model with problems to ask it: sampling, judging what it says, and reading off its accuracy."""

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from reft_jax.algorithms.rollout import Rollout
from reft_jax.config import Config
from reft_jax.data.batches import PromptBatch, evaluation_batches
from reft_jax.data.encoding import Prompt
from reft_jax.models.params import Params, select
from reft_jax.parallel.dispatch import one_ahead
from reft_jax.parallel.processes import gather
from reft_jax.parallel.sharding import batch_shardings, own_rows, rows_to_host, to_global
from reft_jax.problem import Problem
from reft_jax.records.console import ProgressDisplay
from reft_jax.reward.functions import RewardFunction
from reft_jax.reward.pool import ProgramRunner
from reft_jax.training.completion import Completion, VerdictFunction, judge
from reft_jax.training.evaluation import Evaluation
from reft_jax.training.model import Model

EVALUATION, SAMPLE = -1, -2
"""Steps of the random numbers of an evaluation and of a file of samples, which are never an iteration's."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampler:
    """A model with its problems and its reward; made by `startup.open_sampler`."""

    model: Model
    tokenizer: Any
    problems: Mapping[str, list[Problem]]
    """By split: train, dev, test."""
    prompts: Mapping[str, list[Prompt]]
    """By split."""
    verdicts: VerdictFunction
    """Problems and completions to verdicts."""
    runner: ProgramRunner | None
    """Runs programs; None where chains of thought are prose."""
    display: ProgressDisplay
    functions: Sequence[RewardFunction] = ()
    """The user's own reward functions."""

    @property
    def config(self) -> Config:
        """The model's."""
        return self.model.config

    def rollout(self, step: str, params: Params, prompts: PromptBatch, number: int) -> Rollout:
        """Dispatches the sampling of a batch.

        Args:
            step: of the compiled steps, `rollout` or `evaluation`.
            params: of `sampling_params`.
            prompts: [B, P], as large as the step is compiled for.
            number: step of the random numbers, see `rollout.row_keys`.
        """
        generate = self.model.compiled.get(step, prompts.tokens.shape[1])
        inputs = to_global(prompts, batch_shardings(prompts, self.model.mesh))
        return generate(params, inputs, np.int32(self.config.seed), np.int32(number))

    def judge(self, rollout: Rollout, split: str, rows: np.ndarray) -> list[Completion]:
        """Reads and judges a rollout; each process takes the rows that it holds, and all get all completions.

        Args:
            rollout: [B, ...].
            split: of the problems.
            rows: [B] the problem of each row, -1 in filler.

        Raises:
            Interrupted: the run was asked to stop.
        """
        self.model.stop.check()
        own = own_rows(self.model.mesh, len(rows))
        completions = judge(
            rows_to_host(rollout, own),
            self.problems[split],
            rows[own],
            tokenizer=self.tokenizer,
            data=self.config.data,
            verdicts=self.verdicts,
            functions=self.functions,
            function_timeout=self.config.reward.function_timeout_s,
            stop=self.config.generation.stop,
        )
        shared = gather(list(zip(own.tolist(), completions)))
        return [completion for _, completion in sorted(itertools.chain(*shared), key=lambda pair: pair[0])]

    def as_judged(self, rollout: Rollout, completions: Sequence[Completion]) -> Rollout:
        """A rollout on the devices with its responses as long as they were judged, which `generation.stop` decides.

        Their further tokens are padding then, which no number depends on.

        Args:
            rollout: [B, ...].
            completions: of `judge`, from all processes.
        """
        if not self.config.generation.stop:
            return rollout
        lengths, ended = np.zeros(rollout.ended.shape, np.int32), np.ones(rollout.ended.shape, bool)
        lengths[: len(completions)] = [completion.tokens for completion in completions]
        ended[: len(completions)] = [completion.ended for completion in completions]
        lengths, ended = to_global((lengths, ended), batch_shardings((lengths, ended), self.model.mesh))
        sequences = dataclasses.replace(rollout.sequences, response_lengths=lengths)
        return dataclasses.replace(rollout, sequences=sequences, ended=ended)

    def sampling_params(self, params: Params) -> Params:
        """What sampling takes: decoder and adapters, these 0 for a model into which they were merged."""
        adapted = select(params, ("decoder", "lora"))
        if self.config.model.lora.rank and "lora" not in adapted:
            adapted["lora"] = jax.tree.map(jnp.zeros_like, self.model.fresh_parts("lora")["lora"])
        compiled = self.model.compiled
        return compiled.get("layout")(adapted) if "layout" in compiled else adapted

    def sample(
        self, params: Params, split: str, batches: Iterable[PromptBatch], number: int
    ) -> Iterator[tuple[PromptBatch, list[Completion]]]:
        """Yields each batch of prompts with its judged completions; the next is sampled while one is judged.

        Args:
            params: {"decoder"}, with or without other parts.
            split: of the problems that the batches ask.
            batches: of `evaluation.batch_size` rows.
            number: step of the random numbers.
        """
        weights = self.sampling_params(params)
        rollouts = ((batch, self.rollout("evaluation", weights, batch, number)) for batch in batches)
        for batch, rollout in one_ahead(rollouts):
            yield batch, self.judge(rollout, split, batch.problem)

    def evaluate(self, params: Params, split: str) -> Evaluation:
        """What `params` ({"decoder"}; a value head is ignored) answer on a split: every prompt once, longest first."""
        batches = evaluation_batches(
            self.prompts[split],
            batch_size=self.config.evaluation.batch_size,
            prompt_buckets=self.config.generation.prompt_buckets,
            pad_id=self.model.ids.pad,
        )
        answers = self.sample(params, split, batches, EVALUATION)
        completions = [completion for _, judged in answers for completion in judged]
        return Evaluation(completions=completions, total=sum(problem.has_gold for problem in self.problems[split]))
