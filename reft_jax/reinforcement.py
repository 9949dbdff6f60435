"""The reinforcement loop: sample, judge, score, update (ReFT, section 3.2)."""

import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from reft_jax.compilation import Programs
from reft_jax.completion import Completion, summarise
from reft_jax.data.batches import Prompt, epoch_order, training_prompts
from reft_jax.models.policy import Params, Policy
from reft_jax.ppo import build_experience, build_update, check_experience, check_first_update, with_other_padding
from reft_jax.processes import Interrupted
from reft_jax.rollout import Sampling
from reft_jax.run import Run, Stage
from reft_jax.sharding import batch_shardings, to_global
from reft_jax.train_state import TrainState, abstract_params, abstract_state, copy_params, init_state, make_optimizer


def reinforce(run: Run, stage: Stage, prompts: Sequence[Prompt], start: Callable[[], Params]) -> None:
    """PPO: sample, judge, score, update (ReFT, section 3.2).

    Raises:
        Interrupted: the run was asked to stop, and has saved where it was.
    """
    config = run.config.rl
    state, reference = begin(run, stage, start)
    generate, score, update = programs(run, stage)
    run.console.stage(stage.name, stage.stop, run.tally.stage_step)
    try:
        if run.tally.unread:
            end_iteration(run, stage, state)
        for iteration in range(run.tally.stage_step, stage.stop):
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
            bucket = (batch.tokens.shape[1],)
            on_device = to_global(batch, batch_shardings(batch, run.mesh))
            if run.config.model.lora.rank:  # the frozen decoder, adapters off; the update before has moved its buffers
                reference = {"decoder": state.params["decoder"]}
            rollout = generate[bucket](
                run.sampling_params(state.params), on_device, np.int32(run.config.seed), np.int32(iteration)
            )
            jax.block_until_ready(rollout)
            clock.lap("rollout")

            completions = run.judge(rollout, run.problems["train"], batch.problem, functions=run.functions)
            rewards = np.zeros(len(batch.problem), rollout.log_probs.dtype)
            rewards[: len(completions)] = [completion.reward for completion in completions]
            rewards = to_global(rewards, batch_shardings(rewards, run.mesh))
            clock.lap("reward")

            experience, metrics = score[bucket](state.params, reference, rollout, rewards)
            if iteration == 0:
                other = score[bucket](state.params, reference, with_other_padding(rollout), rewards)
                tolerance = config.check_tolerance
                check_experience(experience, metrics, other[0], from_reference=True, tolerance=tolerance)
            jax.block_until_ready(experience)
            clock.lap("experience")

            updates = []
            for k in range(config.update_epochs):
                order = epoch_order(run.seed("minibatches"), iteration * config.update_epochs + k, len(batch.problem))
                for rows in order.reshape(-1, config.minibatch_size).astype(np.int32):
                    state, update_metrics = update[bucket](state, experience, rows)
                    updates.append(update_metrics)
            metrics = jax.device_get(metrics) | mean_of(jax.device_get(updates))
            clock.lap("update")
            if iteration == 0:
                check_first_update(updates[0], tolerance=config.check_tolerance)

            record_iteration(run, stage, iteration + 1, completions, metrics, clock)
            end_iteration(run, stage, state)
    except Interrupted:
        run.save(stage.offset + run.tally.stage_step, state)
        raise


def begin(run: Run, stage: Stage, start: Callable[[], Params]) -> tuple[TrainState, Params]:
    """The state to begin or go on with, and the reference; with adapters both hold one copy of the decoder."""
    adapted = run.config.model.lora.rank > 0
    optimizer = make_optimizer(run.config.rl.optimizer, stage.schedule)
    policy = Policy(run.config.model, run.mesh, run.config.rl.critic == "separate")
    params = abstract_params(policy, run.mesh, value_head=True)
    state = run.resume(stage.name, abstract_state(params, optimizer, run.mesh))
    if state is not None and adapted:
        return state, {"decoder": state.params["decoder"]}
    reference = start()
    if state is None:
        own = reference if adapted else copy_params(reference)
        critic = {"critic": copy_params(reference["decoder"])} if policy.separate_critic else {}
        state = init_state({**own, **critic, **run.fresh("value_head", "lora")}, optimizer, run.mesh)
    return state, reference


def programs(run: Run, stage: Stage) -> tuple[Programs, Programs, Programs]:
    """The compiled steps by prompt bucket: generate, score, update."""
    config, generation = run.config.rl, run.config.generation
    generate = run.generate(
        "rollout", config.rollout_batch_size * config.samples_per_question, Sampling(generation.temperature)
    )
    buckets = len(generation.prompt_buckets)
    common: dict[str, Any] = {"temperature": generation.temperature, "response": generation.max_response}
    scoring = functools.partial(build_experience, run.config.model, config, run.mesh, **common)
    updating = functools.partial(build_update, run.config.model, config, run.mesh, total_steps=stage.schedule, **common)
    score = run.add_programs("experience", lambda prompt: scoring(prompt=prompt), buckets)
    update = run.add_programs("update", lambda prompt: updating(prompt=prompt), buckets)
    return generate, score, update


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
    """Records an iteration of PPO."""
    config, step = run.config.rl, stage.offset + done
    seconds = sum(clock.seconds.values())
    run.tally.spend(stage.name, len(completions) * config.update_epochs, seconds)
    run.tally.stage_step = done
    shares = summarise(completions)
    tokens = sum(completion.tokens for completion in completions)
    metrics = {name: float(value) for name, value in arrays.items()}
    metrics |= {f"reward/{name}": share for name, share in shares.items() if name.startswith(("outcome_", "suspect"))}
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
        "run/examples": run.tally.examples[stage.name],
        "run/compilations": run.compilations(),
        "run/workers_replaced": run.runner.replaced if run.runner else 0,
    }
    run.record(step, metrics)
    every = run.config.logging.rollouts_every
    if every and done % every == 0:
        records = [completion.record() for completion in completions[: run.config.logging.rollouts_limit]]
        run.writer.append("rollouts", [{"step": step, **record} for record in records])


def end_iteration(run: Run, stage: Stage, state: TrainState) -> None:
    """Evaluates and saves after the tally's iteration, as the config says."""
    config, done = run.config.rl, run.tally.stage_step
    step, last = stage.offset + done, done == stage.stop
    if last or done % (config.evaluate_every or stage.epoch) == 0:
        run.evaluate_dev(state.params, step, best="reft", parts=("warmup", "rl"))
    if last or done % (config.save_every or stage.epoch) == 0:
        run.save(step, state)
