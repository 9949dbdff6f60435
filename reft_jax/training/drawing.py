"""Which questions an iteration learns from: in order or by their pass rates, drawn again until their groups differ.

All of it is a function of the seed, of what the progress holds, and of completions that all processes see: a resume
goes on with the same questions, and processes agree.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from reft_jax.algorithms.rollout import Rollout, SamplingParams
from reft_jax.config import RlConfig
from reft_jax.data.batches import PromptBatch, choice_keys, in_order, prompt_batch, steps_per_epoch
from reft_jax.models.params import Params
from reft_jax.parallel.processes import on_process_zero
from reft_jax.training.completion import Completion
from reft_jax.training.sampler import Sampler
from reft_jax.training.state import PhaseClock, RunProgress, Stage, order_seed


class Drawn(NamedTuple):
    """What an iteration learns from, and what was drawn for it."""

    prompts: PromptBatch[np.ndarray]
    rollout: Rollout[np.ndarray]
    completions: list[Completion]
    """Of the rows that are learned from."""
    all_completions: list[Completion]
    """Of all draws."""
    metrics: dict[str, float]
    asked: int
    draws: int
    pass_rates: list[list[float]]
    """The progress of these names behind the iteration."""


class _Draw(NamedTuple):
    """One draw: a group of rows for each question, and then filler."""

    questions: np.ndarray
    """[n] rows of the prompts."""
    prompts: PromptBatch[np.ndarray]
    rollout: Rollout[np.ndarray]
    completions: list[Completion]


def draw_iteration(
    sampler: Sampler, params: Params, stage: Stage, number: int, progress: RunProgress, clock: PhaseClock
) -> Drawn:
    """Draws questions, samples and judges, as `rl.max_draws` and `rl.question_choice` say.

    As many questions are learned from as the plan has for the iteration. Those whose responses earned different rewards
    come first, in the order in which they were drawn; where `rl.max_draws` draws have too few of them, others follow.

    Args:
        sampler: the model, with the problems.
        params: the state's.
        stage: `rl`.
        number: of the iteration, from 0.
        progress: is left as it is, since the iteration may be interrupted.
        clock: of the iteration.

    Raises:
        Interrupted: the run was asked to stop.
    """
    config, prompts = sampler.config.rl, sampler.prompts["train"]
    seed, size = order_seed(sampler.config, stage.name), planned(config, len(prompts), number)
    state = Position(
        asked=progress.asked if config.max_draws > 1 else _asked_in_order(config, len(prompts), number),
        draws=progress.draws if config.max_draws > 1 else number,
        rates=np.array(progress.pass_rates or np.zeros((len(prompts), 2))),
    )
    weights, made = sampler.sampling_params(params), list[_Draw]()
    while len(made) < config.max_draws and mixed_questions(made, config.samples_per_question) < size:
        rows, state = next_questions(config, seed, size, state)
        batch = prompt_batch(
            prompts,
            rows,
            config.rollout_batch_size,
            sampler.config.generation.prompt_buckets,
            sampler.model.ids.pad,
            config.samples_per_question,
        )
        how = SamplingParams(sampler.config.generation.temperature)
        rollout = sampler.rollout(weights, batch, state.draws, how, config.samples_per_question)
        clock.lap("rollout")
        completions = sampler.judge(rollout, "train", batch.problem)
        clock.lap("reward")
        made.append(_Draw(rows, batch, rollout, completions))
        state = state.after(config, rows, completions)
    batch, rollout, completions = select(made, size, config.samples_per_question, sampler.model.ids.pad)
    return Drawn(
        prompts=batch,
        rollout=rollout,
        completions=completions,
        all_completions=[completion for draw in made for completion in draw.completions],
        metrics=metrics(config, made, state),
        asked=state.asked,
        draws=state.draws,
        pass_rates=state.rates.tolist() if config.question_choice == "pass_rate" else [],
    )


@dataclasses.dataclass(frozen=True)
class Position:
    """Where drawing is: questions of the order and draws that were taken, and [questions, 2] right and tried."""

    asked: int
    draws: int
    rates: np.ndarray

    def after(self, config: RlConfig, rows: np.ndarray, completions: Sequence[Completion]) -> "Position":
        """The position behind a draw of some questions, with their completions."""
        if config.question_choice == "order":
            return dataclasses.replace(self, draws=self.draws + 1)
        right = np.array([completion.verdict.outcome == "correct" for completion in completions])
        rates = with_results(self.rates, rows, right.reshape(len(rows), -1), config.pass_rate_decay)
        return dataclasses.replace(self, draws=self.draws + 1, rates=rates)


def planned(config: RlConfig, questions: int, number: int) -> int:
    """Questions of an iteration: the last of an epoch has those that are left."""
    place = number % steps_per_epoch(questions, config.rollout_batch_size)
    return min(config.rollout_batch_size, questions - place * config.rollout_batch_size)


def _asked_in_order(config: RlConfig, questions: int, number: int) -> int:
    """Questions before an iteration, where each has one draw."""
    epoch, place = divmod(number, steps_per_epoch(questions, config.rollout_batch_size))
    return epoch * questions + place * config.rollout_batch_size


def next_questions(config: RlConfig, seed: int, count: int, state: Position) -> tuple[np.ndarray, Position]:
    """The questions of the next draw, all different, and the position behind them in the order."""
    if config.question_choice == "order":
        rows, asked = in_order(seed, state.asked, count, len(state.rates))
        return rows, dataclasses.replace(state, asked=asked)
    # Its logarithms may be rounded otherwise on another machine.
    chosen = on_process_zero(
        lambda: choose(state.rates, seed=seed, step=state.draws, count=count, mastered=config.mastered_rate).tolist()
    )
    return np.array(chosen), state


def pass_rates(rates: np.ndarray) -> np.ndarray:
    """[questions] share that is right, (right + 1) / (tried + 2): a half of what was never asked."""
    return (rates[:, 0] + 1) / (rates[:, 1] + 2)


def choose(rates: np.ndarray, *, seed: int, step: int, count: int, mastered: float) -> np.ndarray:
    """[count] questions, drawn one after the other without replacement, each with a chance in proportion to p (1 - p).

    That is the variance of a reward of 0 or 1. Questions with p of `mastered` or more are retired: they are taken only
    where the others are too few, the least mastered first.

    Source: Efraimidis and Spirakis 2006, of which the largest u^(1 / weight) are taken.

    Args:
        rates: [questions, 2], right and tried.
        seed, step: of the draw.
        count: questions, at most as many as there are.
        mastered: rate from which a question is retired; 1 retires none.
    """
    p = pass_rates(rates)
    keys = np.log(choice_keys(seed, step, len(p))) / (p * (1 - p))
    retired = np.where(p >= mastered, p, 0)
    return np.lexsort((-keys, retired))[:count]


def with_results(rates: np.ndarray, rows: np.ndarray, right: np.ndarray, decay: float) -> np.ndarray:
    """The table with the results of some questions; what they had before counts `decay` times as much.

    Args:
        rates: [questions, 2], right and tried.
        rows: [n] the questions, all different.
        right: [n, samples] bool.
        decay: between 0 and 1.
    """
    rates = rates.copy()
    rates[rows] = decay * rates[rows] + np.stack([right.sum(axis=1), np.full(len(rows), right.shape[1])], axis=1)
    return rates


def is_mixed(draw: _Draw, samples: int) -> np.ndarray:
    """[n] whether the completions of each question earned different rewards."""
    rewards = np.array([completion.reward for completion in draw.completions]).reshape(-1, samples)
    return rewards.max(axis=1) > rewards.min(axis=1)


def mixed_questions(draws: Sequence[_Draw], samples: int) -> int:
    """Questions of all draws whose completions earned different rewards."""
    return sum(int(is_mixed(draw, samples).sum()) for draw in draws)


def select(
    draws: Sequence[_Draw], size: int, samples: int, pad_id: int
) -> tuple[PromptBatch[np.ndarray], Rollout[np.ndarray], list[Completion]]:
    """What is learned from: groups that are mixed, then others, `size` of them, then filler.

    Args:
        draws: of the iteration, each of `size` questions and as many rows.
        size: groups.
        samples: rows of a group.
        pad_id: fills rows that other draws have longer ones than.
    """
    if len(draws) == 1:
        return draws[0].prompts, draws[0].rollout, draws[0].completions
    height = len(draws[0].prompts.problem)
    mixed = np.concatenate([is_mixed(draw, samples) for draw in draws])
    draw, group = np.divmod(np.argsort(~mixed, kind="stable")[:size], size)
    own = (group[:, None] * samples + np.arange(samples)).ravel()  # rows in their draws
    rows = np.append(np.repeat(draw, samples) * height + own, np.arange(size * samples, height))

    def taken(*parts: np.ndarray) -> np.ndarray:
        width = max(part.shape[-1] for part in parts)
        fill = lambda x: np.pad(x, ((0, 0), (0, width - x.shape[1])), constant_values=pad_id) if x.ndim == 2 else x
        return np.concatenate([fill(part) for part in parts])[rows]

    completions = [draws[i].completions[j] for i, j in zip(np.repeat(draw, samples), own)]
    prompts = jax.tree.map(taken, *(each.prompts for each in draws))
    return prompts, jax.tree.map(taken, *(each.rollout for each in draws)), completions


def metrics(config: RlConfig, draws: Sequence[_Draw], state: Position) -> dict[str, float]:
    """What is recorded of drawing, where that is not in order and once."""
    found: dict[str, float] = {}
    if config.max_draws > 1:
        questions = sum(len(draw.questions) for draw in draws)
        found["rl/draws"] = float(len(draws))
        found["rl/mixed"] = mixed_questions(draws, config.samples_per_question) / questions
    if config.question_choice == "pass_rate":
        found["rl/questions_asked"] = float(np.mean(state.rates[:, 1] > 0))
        found["rl/questions_retired"] = float(np.mean(pass_rates(state.rates) >= config.mastered_rate))
    return found
