"""A model with problems to ask it: sampling, judging what it says, and reading off its accuracy."""

import dataclasses
import functools
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from reft_jax.algorithms.rollout import Rollout, SamplingParams
from reft_jax.config import Config
from reft_jax.data.batches import PromptBatch, evaluation_batches
from reft_jax.data.encoding import Prompt
from reft_jax.models.params import Params, select
from reft_jax.parallel.processes import gather
from reft_jax.parallel.sharding import batch_shardings, to_global
from reft_jax.problem import Problem
from reft_jax.records.console import ProgressDisplay
from reft_jax.reward.functions import RewardFunction
from reft_jax.reward.pool import ProgramRunner
from reft_jax.training.completion import Completion, VerdictFunction, holds_stop, judge
from reft_jax.training.evaluation import Evaluation
from reft_jax.training.model import Model
from reft_jax.training.slots import respond

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

    @functools.partial(jax.profiler.annotate_function, name="rollout")
    def rollout(
        self, params: Params, prompts: PromptBatch, number: int, how: SamplingParams, samples: int = 1
    ) -> Rollout[np.ndarray]:
        """Samples a response to each prompt; host arrays, the same on all processes.

        Args:
            params: of `sampling_params`.
            prompts: [B, P] on the host.
            number: step of the random numbers, see `rollout.row_keys`.
            how: tokens are drawn.
            samples: rows next to each other that have the same prompt.

        Raises:
            Interrupted: the run was asked to stop.
        """
        self.model.stop.check()
        stop = self.config.generation.stop
        over = functools.partial(holds_stop, self.tokenizer, stop) if stop else None
        return respond(self.model, params, prompts, number, how, samples, over)

    @functools.partial(jax.profiler.annotate_function, name="reward")
    def judge(self, rollout: Rollout[np.ndarray], split: str, rows: np.ndarray) -> list[Completion]:
        """Reads and judges a rollout; each process takes a part of the rows, and all get all completions.

        Args:
            rollout: [B, ...], the same on all processes.
            split: of the problems.
            rows: [B] the problem of each row, -1 in filler, which comes last.

        Raises:
            Interrupted: the run was asked to stop.
        """
        self.model.stop.check()
        own = np.array_split(np.arange(len(rows)), jax.process_count())[jax.process_index()]
        completions = judge(
            jax.tree.map(lambda x: x[own], rollout),
            self.problems[split],
            rows[own],
            tokenizer=self.tokenizer,
            data=self.config.data,
            verdicts=self.verdicts,
            functions=self.functions,
            function_timeout=self.config.reward.function_timeout_s,
            stop=self.config.generation.stop,
        )
        return list(itertools.chain(*gather(completions)))

    def on_devices(self, rollout: Rollout[np.ndarray], completions: Sequence[Completion]) -> Rollout:
        """A rollout on the devices, its responses as long as they were judged, which `generation.stop` decides.

        Their further tokens are padding then, which no number depends on.

        Args:
            rollout: [B, ...].
            completions: of `judge`.
        """
        if self.config.generation.stop:
            lengths, ended = np.zeros(rollout.ended.shape, np.int32), np.ones(rollout.ended.shape, bool)
            lengths[: len(completions)] = [completion.tokens for completion in completions]
            ended[: len(completions)] = [completion.ended for completion in completions]
            sequences = dataclasses.replace(rollout.sequences, response_lengths=lengths)
            rollout = dataclasses.replace(rollout, sequences=sequences, ended=ended)
        return to_global(rollout, batch_shardings(rollout, self.model.mesh))

    def sampling_params(self, params: Params) -> Params:
        """What sampling takes: decoder and adapters, these 0 for a model into which they were merged."""
        adapted = select(params, ("decoder", "lora"))
        if self.config.model.lora.rank and "lora" not in adapted:
            adapted["lora"] = jax.tree.map(jnp.zeros_like, self.model.fresh_parts("lora")["lora"])
        compiled = self.model.compiled
        return compiled.get("layout")(adapted) if "layout" in compiled else adapted

    def sample(
        self, params: Params, split: str, batches: Iterable[PromptBatch], number: int, samples: int = 1
    ) -> Iterator[tuple[PromptBatch, list[Completion]]]:
        """Yields each batch of prompts with its judged completions, drawn as `config.evaluation` says.

        Args:
            params: {"decoder"}, with or without other parts.
            split: of the problems that the batches ask.
            batches: of any size.
            number: step of the random numbers.
            samples: rows next to each other that have the same prompt.
        """
        weights, evaluation = self.sampling_params(params), self.config.evaluation
        how = SamplingParams(evaluation.temperature, evaluation.top_k, evaluation.top_p)
        for batch in batches:
            yield batch, self.judge(self.rollout(weights, batch, number, how, samples), split, batch.problem)

    def evaluate(self, params: Params, split: str) -> Evaluation:
        """What `params` ({"decoder"}; a value head is ignored) answer on a split: every prompt once."""
        prompts = self.prompts[split]
        batches = evaluation_batches(
            prompts,
            batch_size=max(1, len(prompts)),
            prompt_buckets=self.config.generation.prompt_buckets,
            pad_id=self.model.ids.pad,
        )
        answers = self.sample(params, split, batches, EVALUATION)
        completions = [completion for _, judged in answers for completion in judged]
        return Evaluation(completions=completions, total=sum(problem.has_gold for problem in self.problems[split]))
