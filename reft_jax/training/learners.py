"""How an iteration's completions are learned from: by policy gradient (PPO, GRPO, RLOO, REINFORCE), or self-training.

A learner is made once, when reinforcement begins, and owns what its algorithm needs besides the train state.
"""

import functools
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
)
from reft_jax.config import RlConfig
from reft_jax.data.batches import PromptBatch, annotations, epoch_order
from reft_jax.data.encoding import Example
from reft_jax.models.params import Params
from reft_jax.models.policy import Policy
from reft_jax.parallel.processes import to_host
from reft_jax.parallel.sharding import batch_shardings, to_global
from reft_jax.training.completion import Completion
from reft_jax.training.model import Model
from reft_jax.training.state import PhaseClock, Records, Stage, order_seed

GAPS = ("rl/sampler_gap", "rl/sampler_gap_max")
"""Where the completions were not scored, these are of an iteration's first update: later ones have moved the policy."""


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

    @property
    def correct(self) -> np.ndarray:
        """[B] bool, the rows whose answer is right."""
        correct = np.zeros(len(self.prompts.problem), bool)
        correct[: len(self.completions)] = [each.verdict.outcome == "correct" for each in self.completions]
        return correct


class Learned(NamedTuple):
    """What came of an iteration."""

    state: TrainState
    """After its updates."""
    metrics: dict[str, Any]
    tokens: Callable[[int], dict[str, np.ndarray]]
    """Of how many of the first rows it is asked: `token_scores`, which all processes ask alike."""


class Learner(Protocol):
    """One algorithm at work."""

    def learn(self, state: TrainState, iteration: Iteration, clock: PhaseClock) -> Learned:
        """Learns from an iteration; the old state is donated."""


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
    params = abstract_params(policy, model.mesh, value_head=config.has_critic)
    optimizer = ppo.make_optimizers(config, stage.schedule, stage.critic_schedule)
    return records.resume(stage.name, abstract_state(params, optimizer, model.mesh))


def _fresh(model: Model, stage: Stage, params: Params) -> TrainState:
    """A state that begins with `params`, {"decoder"}, whose buffers it owns."""
    config = model.config.rl
    critic: Params = {"critic": copy_params(params["decoder"])} if config.separate_critic else {}
    parts = model.fresh_parts("lora", *(("value_head",) if config.has_critic else ()))
    optimizer = ppo.make_optimizers(config, stage.schedule, stage.critic_schedule)
    return init_state({**params, **critic, **parts}, optimizer, model.mesh)


class PolicyGradient:
    """PPO, GRPO, RLOO and REINFORCE: score the completions, then update by minibatches.

    Args:
        model: what is trained.
        reference: gives the frozen starting parameters {"decoder"}, or None where nobody reads what they say; with
            adapters they are the state's own, whose buffers each update moves.
    """

    def __init__(self, model: Model, reference: Callable[[TrainState], Params | None]) -> None:
        self._model = model
        self._reference = reference

    def learn(self, state: TrainState, iteration: Iteration, clock: PhaseClock) -> Learned:
        """See `Learner`. The first iteration, and the first update of the policy, are checked, see `self_checks`."""
        config, compiled, rollout = self._model.config.rl, self._model.compiled, iteration.rollout
        rewards = np.zeros(len(rollout.ended), rollout.log_probs.dtype)
        rewards[: len(iteration.completions)] = [completion.reward for completion in iteration.completions]
        if iteration.number == 0 and config.value_start == "mean_reward":
            state = with_value_bias(state, float(np.mean(rewards[: len(iteration.completions)])))
        verdicts = rewards, iteration.correct
        verdicts = to_global(verdicts, batch_shardings(verdicts, self._model.mesh))
        warming = "critic_" if iteration.number < config.critic_warmup else ""
        reference, score = self._reference(state), compiled.get(warming + "experience", iteration.prompt_length)
        experience, metrics = score(state.params, reference, rollout, *verdicts)
        if iteration.number == 0:
            other, _ = score(state.params, reference, self_checks.with_other_padding(rollout), *verdicts)
            same = reference is not None and config.scores_policy  # else the KL has what the sampler rounds otherwise
            self_checks.check_experience(
                experience, metrics, other, from_reference=same, tolerance=config.check_tolerance
            )
        jax.block_until_ready(experience)
        clock.lap("experience")
        update = compiled.get(warming + "update", iteration.prompt_length)
        state, updates = update_all(self._model, update, state, experience, iteration)
        clock.lap("update")
        if iteration.number == config.critic_warmup:
            self_checks.check_first_update(updates[0], tolerance=config.check_tolerance)
        first = {name: float(updates[0][name]) for name in GAPS if name in updates[0]}
        tokens = functools.partial(token_scores, experience)
        return Learned(state, jax.device_get(metrics) | mean_of(updates) | first, tokens)


def token_scores(experience: ppo.Experience, rows: int) -> dict[str, np.ndarray]:
    """What is known of each token of the first rows, [rows, R] each, those that the algorithm has.

    Returns:
        `value` of the state in which a token was chosen, `advantage` as the update takes it, and `log_ratio`, its
        log-prob less the reference's, nats, whose mean is the KL by k1.
    """
    if not rows:
        return {}
    found = {"value": experience.values, "advantage": experience.advantages, "log_ratio": experience.log_ratio}
    arrays = to_host({name: array for name, array in found.items() if array is not None})
    return {name: np.asarray(array)[:rows] for name, array in arrays.items()}


class SelfTraining:
    """Online self-training: likelihood of right completions, and of the annotations of their questions.

    Args:
        model: what is trained.
        examples: annotations by problem.
    """

    def __init__(self, model: Model, examples: Mapping[int, Example]) -> None:
        self._model = model
        self._examples = examples

    def learn(self, state: TrainState, iteration: Iteration, clock: PhaseClock) -> Learned:
        """See `Learner`; what it has of single tokens is their likelihood alone."""
        gold = None
        lengths: tuple[int, ...] = ()
        if self._model.config.rl.self_training.gold_weight:
            gold = self._annotations(iteration.prompts)
            response = gold.responses.shape[1]
            lengths = (gold.tokens.shape[1] - response, response)
        given = iteration.correct, gold
        correct, gold = to_global(given, batch_shardings(given, self._model.mesh))
        data = SelfTrainingBatch(sampled=iteration.rollout.sequences, correct=correct, gold=gold)
        update = self._model.compiled.get("update", iteration.prompt_length, *lengths)
        state, updates = update_all(self._model, update, state, data, iteration)
        clock.lap("update")
        return Learned(state, mean_of(updates), lambda rows: {})

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


def with_value_bias(state: TrainState, bias: float) -> TrainState:
    """The state with a value head that says `bias` of every state, as its kernel is 0 before it has learned."""
    head = state.params["value_head"]
    filled = to_global(np.full(head["bias"].shape, bias, head["bias"].dtype), head["bias"].sharding)
    return state.replace(params={**state.params, "value_head": {**head, "bias": filled}})  # type: ignore[attr-defined]


def update_all(
    model: Model, update: Any, state: TrainState, data: Any, iteration: Iteration
) -> tuple[TrainState, list[dict[str, Any]]]:
    """`update_epochs` passes over an iteration's data in minibatches; returns the metrics of each update."""
    config, updates = model.config.rl, []
    for k in range(config.update_epochs):
        seed, epoch = order_seed(model.config, "minibatches"), iteration.number * config.update_epochs + k
        for rows in minibatches(config, seed, epoch, len(iteration.completions)):
            state, metrics = update(state, data, rows)
            updates.append(metrics)
    return state, jax.device_get(updates)


def minibatches(config: RlConfig, seed: int, epoch: int, completions: int) -> list[np.ndarray]:
    """The rows of each minibatch of a pass over an iteration, [minibatch_size] int32; a function of its arguments.

    The last iteration of an epoch may have fewer completions than rows; then there are only as many minibatches as
    these fill, with as equal shares of them as can be, and each is filled up with filler, which comes last.

    Args:
        config: sizes.
        seed, epoch: of the order, see `epoch_order`.
        completions: rows that are no filler.
    """
    parts = np.array_split(epoch_order(seed, epoch, completions), config.minibatches(completions))
    filled = [np.append(part, np.full(config.minibatch_size - len(part), completions)) for part in parts]
    return [part.astype(np.int32) for part in filled]


def mean_of(updates: Sequence[dict[str, Any]]) -> dict[str, float]:
    """The mean of each metric over an iteration's updates."""
    return {name: float(np.mean([update[name] for update in updates])) for name in updates[0]}
