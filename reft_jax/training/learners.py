"""How an iteration's completions are learned from: by policy gradient (PPO, GRPO, RLOO) or by online self-training.

A learner is made once, when reinforcement begins, and owns what its algorithm needs besides the train state.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from reft_jax.algorithms import ppo, self_checks
from reft_jax.algorithms.rollout import Rollout
from reft_jax.algorithms.self_training import SelfTrainingBatch
from reft_jax.algorithms.train_state import (
    TrainState,
    abstract_params,
    abstract_state,
    copy_params,
    init_state,
    make_optimizer,
)
from reft_jax.data.batches import PromptBatch, annotations, epoch_order
from reft_jax.data.encoding import Example
from reft_jax.models.params import Params
from reft_jax.models.policy import Policy
from reft_jax.parallel.sharding import batch_shardings, to_global
from reft_jax.training.completion import Completion
from reft_jax.training.model import Model
from reft_jax.training.state import PhaseClock, Records, Stage, order_seed


class Iteration(NamedTuple):
    """What one iteration of reinforcement sampled, and how it was judged."""

    number: int
    """From 0."""
    prompts: PromptBatch
    rollout: Rollout
    completions: Sequence[Completion]
    """Of all rows but filler, which comes last."""

    @property
    def prompt_length(self) -> int:
        """The prompts' bucket."""
        return self.prompts.tokens.shape[1]


class Learner(Protocol):
    """One algorithm at work."""

    def learn(self, state: TrainState, iteration: Iteration, clock: PhaseClock) -> tuple[TrainState, dict[str, Any]]:
        """The state after an iteration's updates, and its metrics; the old state is donated."""


def make_learner(
    records: Records, model: Model, stage: Stage, examples: Sequence[Example], start: Callable[[], Params]
) -> tuple[TrainState, Learner]:
    """The state to begin or go on with, and the learner of `rl.algorithm`.

    Args:
        records: may hold a state to resume from.
        model: what is trained.
        stage: `rl`.
        examples: annotations, of which self-training learns too.
        start: makes the parameters {"decoder"} that the policy starts from, and that are its reference.
    """
    state = _resume(records, model, stage)
    scored, adapted = model.config.rl.scores_reference, model.config.model.lora.rank > 0
    if adapted or not scored:  # nobody else needs the decoder's buffers
        state = _fresh(model, stage, start()) if state is None else state
        if model.config.rl.algorithm == "self_training":
            return state, SelfTraining(model, {example.problem: example for example in examples})
        return state, PolicyGradient(model, lambda state: {"decoder": state.params["decoder"]} if scored else None)
    reference = start()
    state = _fresh(model, stage, copy_params(reference)) if state is None else state
    return state, PolicyGradient(model, lambda _: reference)


def _resume(records: Records, model: Model, stage: Stage) -> TrainState | None:
    config = model.config.rl
    policy = Policy(model.config.model, model.mesh, config.separate_critic)
    params = abstract_params(policy, model.mesh, value_head=ppo.has_critic(config))
    optimizer = make_optimizer(config.optimizer, stage.schedule)
    return records.resume(stage.name, abstract_state(params, optimizer, model.mesh))


def _fresh(model: Model, stage: Stage, params: Params) -> TrainState:
    """A state that begins with `params`, {"decoder"}, whose buffers it owns."""
    config = model.config.rl
    critic: Params = {"critic": copy_params(params["decoder"])} if config.separate_critic else {}
    parts = model.fresh_parts("lora", *(("value_head",) if ppo.has_critic(config) else ()))
    return init_state({**params, **critic, **parts}, make_optimizer(config.optimizer, stage.schedule), model.mesh)


class PolicyGradient:
    """PPO, GRPO and RLOO: score the completions, then update by minibatches.

    Args:
        model: what is trained.
        reference: gives the frozen starting parameters {"decoder"}, or None where nobody reads what they say; with
            adapters they are the state's own, whose buffers each update moves.
    """

    def __init__(self, model: Model, reference: Callable[[TrainState], Params | None]) -> None:
        self._model = model
        self._reference = reference

    def learn(self, state: TrainState, iteration: Iteration, clock: PhaseClock) -> tuple[TrainState, dict[str, Any]]:
        """See `Learner`. The first iteration is checked, see `self_checks`."""
        config, compiled, rollout = self._model.config.rl, self._model.compiled, iteration.rollout
        rewards = np.zeros(len(rollout.ended), rollout.log_probs.dtype)
        rewards[: len(iteration.completions)] = [completion.reward for completion in iteration.completions]
        rewards = to_global(rewards, batch_shardings(rewards, self._model.mesh))
        reference, score = self._reference(state), compiled.get("experience", iteration.prompt_length)
        experience, metrics = score(state.params, reference, rollout, rewards)
        if iteration.number == 0:
            other, _ = score(state.params, reference, self_checks.with_other_padding(rollout), rewards)
            self_checks.check_experience(
                experience, metrics, other, from_reference=reference is not None, tolerance=config.check_tolerance
            )
        jax.block_until_ready(experience)
        clock.lap("experience")
        state, updates = update_all(
            self._model, compiled.get("update", iteration.prompt_length), state, experience, iteration.number
        )
        clock.lap("update")
        if iteration.number == 0:
            self_checks.check_first_update(updates[0], tolerance=config.check_tolerance)
        return state, jax.device_get(metrics) | mean_of(updates)


class SelfTraining:
    """Online self-training: likelihood of right completions, and of the annotations of their questions.

    Args:
        model: what is trained.
        examples: annotations by problem.
    """

    def __init__(self, model: Model, examples: Mapping[int, Example]) -> None:
        self._model = model
        self._examples = examples

    def learn(self, state: TrainState, iteration: Iteration, clock: PhaseClock) -> tuple[TrainState, dict[str, Any]]:
        """See `Learner`."""
        correct = np.zeros(len(iteration.prompts.problem), bool)
        correct[: len(iteration.completions)] = [
            completion.verdict.outcome == "correct" for completion in iteration.completions
        ]
        gold = None
        lengths: tuple[int, ...] = ()
        if self._model.config.rl.self_training.gold_weight:
            gold = self._annotations(iteration.prompts)
            response = gold.responses.shape[1]
            lengths = (gold.tokens.shape[1] - response, response)
        correct, gold = to_global((correct, gold), batch_shardings((correct, gold), self._model.mesh))
        data = SelfTrainingBatch(sampled=iteration.rollout.sequences, correct=correct, gold=gold)
        update = self._model.compiled.get("update", iteration.prompt_length, *lengths)
        state, updates = update_all(self._model, update, state, data, iteration.number)
        clock.lap("update")
        return state, mean_of(updates)

    def _annotations(self, prompts: PromptBatch) -> Any:
        sft = self._model.config.sft
        return annotations(
            self._examples,
            prompts.problem,
            limit=self._model.config.rl.self_training.gold_limit,
            prompt_buckets=sft.prompt_buckets,
            response_buckets=sft.response_buckets,
            pad_id=self._model.ids.pad,
        )


def update_all(
    model: Model, update: Any, state: TrainState, data: Any, iteration: int
) -> tuple[TrainState, list[dict[str, Any]]]:
    """`update_epochs` passes over an iteration's data in minibatches; returns the metrics of each update."""
    config, updates = model.config.rl, []
    for k in range(config.update_epochs):
        seed, epoch = order_seed(model.config, "minibatches"), iteration * config.update_epochs + k
        order = epoch_order(seed, epoch, config.completions_per_iteration)
        for minibatch in order.reshape(-1, config.minibatch_size).astype(np.int32):
            state, metrics = update(state, data, minibatch)
            updates.append(metrics)
    return state, jax.device_get(updates)


def mean_of(updates: Sequence[dict[str, Any]]) -> dict[str, float]:
    """The mean of each metric over an iteration's updates."""
    return {name: float(np.mean([update[name] for update in updates])) for name in updates[0]}
