"""The reinforcement loop: sample, judge, learn (ReFT, section 3.2)."""

import functools
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from reft_jax.algorithms import ppo, self_checks, self_training
from reft_jax.algorithms.rollout import Rollout, SamplingParams
from reft_jax.algorithms.train_state import (
    TrainState,
    abstract_params,
    abstract_state,
    copy_params,
    init_state,
    make_optimizer,
)
from reft_jax.config import CollapseConfig
from reft_jax.data.batches import PromptBatch, annotations, epoch_order, training_prompts
from reft_jax.data.encoding import Prompt
from reft_jax.models.policy import Params, Policy
from reft_jax.parallel.compilation import Programs
from reft_jax.parallel.processes import Interrupted
from reft_jax.parallel.sharding import batch_shardings, to_global
from reft_jax.training.completion import Completion, summarise
from reft_jax.training.state import Run, RunProgress, Stage


def reinforce(run: Run, stage: Stage, prompts: Sequence[Prompt], start: Callable[[], Params]) -> None:
    """Samples, judges and learns until the stage's end, or until `rl.collapse` ends it; the progress then says why.

    Raises:
        Interrupted: the run was asked to stop, and has saved where it was.
    """
    config = run.config.rl
    state, reference = begin(run, stage, start)
    steps = programs(run, stage)
    run.console.stage(stage.name, stage.stop, run.progress.stage_step)
    try:
        if run.progress.unread:
            end_iteration(run, stage, state)
        for iteration in range(run.progress.stage_step, stage.stop):
            run.stop.check()
            clock = PhaseClock()
            batch = training_prompts(
                prompts,
                seed=run.seed(stage.name),
                step=iteration,
                batch_size=config.rollout_batch_size,
                samples_per_question=config.samples_per_question,
                prompt_buckets=run.config.generation.prompt_buckets,
                pad_id=run.ids.pad,
            )
            rollout = steps.generate[(batch.tokens.shape[1],)](
                run.sampling_params(state.params),
                to_global(batch, batch_shardings(batch, run.mesh)),
                np.int32(run.config.seed),
                np.int32(iteration),
            )
            jax.block_until_ready(rollout)
            clock.lap("rollout")
            completions = run.judge(rollout, run.problems["train"], batch.problem, functions=run.functions)
            clock.lap("reward")

            if reference is None:
                state, metrics = imitate(run, steps, state, batch, rollout, completions, clock)
            else:
                if run.config.model.lora.rank:  # the frozen decoder; the update before has moved its buffers
                    reference = {"decoder": state.params["decoder"]}
                state, metrics = improve(run, steps, state, reference, rollout, completions, clock)

            record_iteration(run, stage, iteration + 1, completions, metrics, clock)
            run.progress.collapse = detect_collapse(config.collapse, run.progress, completions, metrics)
            if run.progress.collapse:
                run.console.message(f"reinforcement ends after iteration {iteration + 1}: {run.progress.collapse}")
                return
            end_iteration(run, stage, state)
    except Interrupted:
        run.save(stage.offset + run.progress.stage_step, state)
        raise


def begin(run: Run, stage: Stage, start: Callable[[], Params]) -> tuple[TrainState, Params | None]:
    """The state to begin or go on with, and the reference; with adapters both hold one copy of the decoder.

    Self-training has no reference.
    """
    config, adapted = run.config.rl, run.config.model.lora.rank > 0
    optimizer = make_optimizer(config.optimizer, stage.schedule)
    policy = Policy(run.config.model, run.mesh, config.critic == "separate")
    params = abstract_params(policy, run.mesh, value_head=ppo.has_critic(config))
    state = run.resume(stage.name, abstract_state(params, optimizer, run.mesh))
    alone = config.algorithm == "self_training"
    if state is not None and (adapted or alone):
        return state, None if alone else {"decoder": state.params["decoder"]}
    reference = start()
    if state is None:
        own = reference if adapted or alone else copy_params(reference)
        critic: Params = {"critic": copy_params(reference["decoder"])} if policy.separate_critic else {}
        fresh = run.fresh("lora", *(("value_head",) if ppo.has_critic(config) else ()))
        state = init_state({**own, **critic, **fresh}, optimizer, run.mesh)
    return state, None if alone else reference


class Steps(NamedTuple):
    """The compiled steps by bucket."""

    generate: Programs
    experience: Programs | None  # self-training has none
    update: Programs


def programs(run: Run, stage: Stage) -> Steps:
    """The compiled steps of the stage, as the algorithm needs them."""
    config, generation, sft, model = run.config.rl, run.config.generation, run.config.sft, run.config.model
    rows = config.rollout_batch_size * config.samples_per_question
    generate = run.generate("rollout", rows, SamplingParams(generation.temperature))
    buckets, response = len(generation.prompt_buckets), generation.max_new_tokens
    if config.algorithm == "self_training":
        build = lambda prompt, *gold: self_training.build_update(
            model, config, run.mesh, total_steps=stage.schedule, prompt=prompt, response=response, gold=gold or None
        )
        golds = len(sft.prompt_buckets) * len(sft.response_buckets) if config.self_training.gold_weight else 1
        return Steps(generate, None, run.add_programs("update", build, buckets * golds))
    common: dict[str, Any] = {"temperature": generation.temperature, "response": response}
    scoring = functools.partial(ppo.build_experience, model, config, run.mesh, **common)
    updating = functools.partial(ppo.build_update, model, config, run.mesh, total_steps=stage.schedule, **common)
    experience = run.add_programs("experience", lambda prompt: scoring(prompt=prompt), buckets)
    return Steps(generate, experience, run.add_programs("update", lambda prompt: updating(prompt=prompt), buckets))


def improve(
    run: Run,
    steps: Steps,
    state: TrainState,
    reference: Params,
    rollout: Rollout,
    completions: Sequence[Completion],
    clock: "PhaseClock",
) -> tuple[TrainState, dict[str, Any]]:
    """An iteration's learning by PPO, GRPO or RLOO: score the completions, then update by minibatches."""
    config, first = run.config.rl, run.progress.stage_step == 0
    bucket = (rollout.sequences.tokens.shape[1] - rollout.sequences.responses.shape[1],)
    rewards = np.zeros(len(rollout.ended), rollout.log_probs.dtype)
    rewards[: len(completions)] = [completion.reward for completion in completions]
    rewards = to_global(rewards, batch_shardings(rewards, run.mesh))
    assert steps.experience is not None
    score = steps.experience[bucket]
    experience, metrics = score(state.params, reference, rollout, rewards)
    if first:
        other, _ = score(state.params, reference, self_checks.with_other_padding(rollout), rewards)
        self_checks.check_experience(experience, metrics, other, from_reference=True, tolerance=config.check_tolerance)
    jax.block_until_ready(experience)
    clock.lap("experience")
    state, updates = update_all(run, steps.update[bucket], state, experience)
    clock.lap("update")
    if first:
        self_checks.check_first_update(updates[0], tolerance=config.check_tolerance)
    return state, jax.device_get(metrics) | mean_of(updates)


def imitate(
    run: Run,
    steps: Steps,
    state: TrainState,
    batch: PromptBatch,
    rollout: Rollout,
    completions: Sequence[Completion],
    clock: "PhaseClock",
) -> tuple[TrainState, dict[str, Any]]:
    """An iteration's learning by online self-training: right completions, and annotations of their questions."""
    sft, config = run.config.sft, run.config.rl.self_training
    correct = np.zeros(len(batch.problem), bool)
    correct[: len(completions)] = [completion.verdict.outcome == "correct" for completion in completions]
    bucket: tuple[int, ...] = (batch.tokens.shape[1],)
    gold = None
    if config.gold_weight:
        gold = annotations(
            {example.problem: example for example in run.examples["sft"]},
            batch.problem,
            limit=config.gold_limit,
            prompt_buckets=sft.prompt_buckets,
            response_buckets=sft.response_buckets,
            pad_id=run.ids.pad,
        )
        response = gold.responses.shape[1]
        bucket = (*bucket, gold.tokens.shape[1] - response, response)
    own = to_global((correct, gold), batch_shardings((correct, gold), run.mesh))
    lesson = self_training.SelfTrainingBatch(sampled=rollout.sequences, correct=own[0], gold=own[1])
    state, updates = update_all(run, steps.update[bucket], state, lesson)
    clock.lap("update")
    return state, mean_of(updates)


def update_all(run: Run, update: Any, state: TrainState, data: Any) -> tuple[TrainState, list[dict[str, Any]]]:
    """`update_epochs` passes over an iteration's data in minibatches; returns the metrics of each update."""
    config, updates = run.config.rl, []
    rows = config.rollout_batch_size * config.samples_per_question
    for k in range(config.update_epochs):
        order = epoch_order(run.seed("minibatches"), run.progress.stage_step * config.update_epochs + k, rows)
        for minibatch in order.reshape(-1, config.minibatch_size).astype(np.int32):
            state, metrics = update(state, data, minibatch)
            updates.append(metrics)
    return state, jax.device_get(updates)


def detect_collapse(
    config: CollapseConfig, progress: RunProgress, completions: Sequence[Completion], metrics: dict[str, Any]
) -> str:
    """Why the run should end now, or nothing; the progress remembers the rewards that it takes to know.

    Args:
        config: the bounds.
        tally: of the run; its `recent` and `highest` are brought up to date.
        completions: of the iteration.
        metrics: of the iteration; self-training has no KL.
    """
    reward = float(np.mean([completion.reward for completion in completions]))
    progress.recent = [*progress.recent, reward][-config.window :]
    if len(progress.recent) == config.window:
        average = float(np.mean(progress.recent))
        progress.highest = max(progress.highest, average)
        if progress.highest > 0 and average < config.reward_share * progress.highest:
            return (
                f"the reward of the last {config.window} iterations is {average:.3f} on average, less than "
                f"{config.reward_share:g} of the {progress.highest:.3f} that it was (rl.collapse.reward_share)"
            )
    kl = float(metrics.get("rl/sequence_kl", 0.0))
    if config.max_kl and not kl <= config.max_kl:
        return f"the KL to the reference is {kl:.3g} nats a response, more than {config.max_kl:g} (rl.collapse.max_kl)"
    return ""


class PhaseClock:
    """Seconds of each phase of an iteration."""

    def __init__(self) -> None:
        self._last = time.monotonic()
        self.seconds: dict[str, float] = {}

    def lap(self, phase: str) -> None:
        """The time since the last lap was `phase`'s."""
        now = time.monotonic()
        self.seconds[phase], self._last = now - self._last, now


def mean_of(updates: Sequence[dict[str, Any]]) -> dict[str, float]:
    """The mean of each metric over an iteration's updates."""
    return {name: float(np.mean([update[name] for update in updates])) for name in updates[0]}


def function_means(completions: Sequence[Completion]) -> dict[str, float]:
    """The mean of each of the user's reward functions, before its weight, over the completions it applied to."""
    said = {name: [c.functions[name] for c in completions] for name in completions[0].functions}
    applied = {name: [value for value in values if value is not None] for name, values in said.items()}
    return {f"reward/function/{name}": sum(values) / len(values) for name, values in applied.items() if values}


def record_iteration(
    run: Run,
    stage: Stage,
    done: int,
    completions: list[Completion],
    arrays: dict[str, Any],
    clock: PhaseClock,
) -> None:
    """Records an iteration."""
    config, step = run.config.rl, stage.offset + done
    seconds = sum(clock.seconds.values())
    run.progress.spend(stage.name, len(completions) * config.update_epochs, seconds)
    run.progress.stage_step = done
    shares = summarise(completions)
    tokens = sum(completion.tokens for completion in completions)
    metrics = {name: float(value) for name, value in arrays.items()}
    metrics |= {
        f"reward/{name}": share for name, share in shares.items() if name.startswith(("outcome_", "suspicious"))
    }
    metrics |= function_means(completions)
    metrics |= {
        "reward/mean": float(np.mean([completion.reward for completion in completions])),
        "reward/correct": shares.get("outcome_correct", 0.0),
        "response/length_mean": shares["length_mean"],
        "response/truncated": shares["truncated"],
        "throughput/rollout_tokens_per_s": tokens / clock.seconds["rollout"],
        "throughput/update_tokens_per_s": tokens * config.update_epochs / clock.seconds["update"],
        **{f"time/{phase}_s": value for phase, value in clock.seconds.items()},
        "time/step_s": seconds,
        "run/epoch": done / stage.epoch,
        "run/examples": run.progress.examples[stage.name],
        "run/compilations": run.compilations(),
        "run/workers_replaced": run.runner.replaced if run.runner else 0,
    }
    run.record(step, metrics)
    every = run.config.logging.rollouts_every
    if every and done % every == 0:
        records = [completion.record() for completion in completions[: run.config.logging.rollouts_limit]]
        run.writer.append("rollouts", [{"step": step, **record} for record in records])


def end_iteration(run: Run, stage: Stage, state: TrainState) -> None:
    """Evaluates and saves after the progress's iteration, as the config says."""
    config, done = run.config.rl, run.progress.stage_step
    step, last = stage.offset + done, done == stage.stop
    if last or done % (config.evaluate_every or stage.epoch) == 0:
        run.evaluate_dev(state.params, step, best="rl_best", parts=("warmup", "rl"))
    if last or done % (config.save_every or stage.epoch) == 0:
        run.save(step, state)
