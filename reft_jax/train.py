"""`python -m reft_jax.train --config FILE`: pretrain (optional), SFT with its warm-up, PPO, and one reading of test.

The loops of the algorithm stand here, and nothing numeric. Steps are counted through all stages, so that a run's
records are ordered by one number; every stage continues where a resume point left it.
"""

import contextlib
import dataclasses
import functools
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from reft_jax.completion import Completion, summarise
from reft_jax.config import PpoConfig, SupervisedConfig, load_config
from reft_jax.console import print_closing_table
from reft_jax.data.batches import Example, Prompt, epoch_order, steps_per_epoch, training_batch, training_prompts
from reft_jax.models.policy import Params
from reft_jax.ppo import build_experience, build_update, check_experience, check_first_update, with_other_padding
from reft_jax.rollout import Sampling
from reft_jax.run import Run
from reft_jax.sft import build_step
from reft_jax.sharding import batch_shardings, to_global, to_host
from reft_jax.startup import open_run, prepare
from reft_jax.train_state import abstract_params, abstract_state, copy_params, init_params, init_state, make_optimizer


@dataclasses.dataclass(frozen=True)
class Stage:
    """Where a stage lies in the run; steps are optimizer steps, or iterations of PPO."""

    name: str
    offset: int  # the run's step at which it begins
    epoch: int  # steps of one pass over its problems
    schedule: int  # steps of its learning-rate schedule
    stop: int  # its last step


def supervised(
    run: Run, stage: Stage, config: SupervisedConfig, examples: Sequence[Example], start: Callable[[], Params]
) -> None:
    """Maximum likelihood on annotated chains of thought; leaves the parameters under the stage's name."""
    optimizer = make_optimizer(config.optimizer, stage.schedule)
    params = abstract_params(run.policy, run.mesh, value_head=False)
    state = run.resume(stage.name, abstract_state(params, optimizer, run.mesh))
    if state is None:
        state = init_state(start(), optimizer, run.mesh)
    build = lambda prompt, response: build_step(
        run.config.model, config, run.mesh, total_steps=stage.schedule, prompt=prompt, response=response
    )
    programs = run.add_programs(stage.name, build, len(config.prompt_buckets) * len(config.response_buckets))
    run.console.stage(stage.name, stage.stop, run.tally.stage_step)
    recorder = StepRecorder(run, stage)
    for step in range(run.tally.stage_step, stage.stop):
        batch = training_batch(
            examples,
            seed=run.seed(stage.name),
            step=step,
            batch_size=config.batch_size,
            prompt_buckets=config.prompt_buckets,
            response_buckets=config.response_buckets,
            pad_id=run.ids.pad,
        )
        response = batch.responses.shape[1]
        program = programs[batch.tokens.shape[1] - response, response]
        state, metrics = program(state, to_global(batch, batch_shardings(batch, run.mesh)))
        recorder.push(step + 1, metrics, batch)
        epoch, rest = divmod(step + 1, stage.epoch)
        if rest == 0:
            recorder.flush()
            end_of_epoch(run, stage, epoch, state)
            recorder.restart_clock()
    run.checkpoints.save_params(stage.name, state.params)


def end_of_epoch(run: Run, stage: Stage, epoch: int, state: Any) -> None:
    """Evaluates, keeps the warm-up, and saves, as the config says."""
    config, step = run.config.sft, stage.offset + epoch * stage.epoch
    marked = stage.name == "sft" and epoch in (config.warmup_epoch, config.stop_epoch)
    if stage.name == "sft" and (marked or epoch % config.evaluate_every == 0):
        run.evaluate_dev(state.params, step, best="sft_best", parts=("warmup", "sft"))
    if stage.name == "sft" and epoch == config.warmup_epoch:
        run.checkpoints.save_params("warmup", state.params)
    if stage.name == "pretrain" or marked or epoch % config.save_every == 0:
        run.save(step, state)


class StepRecorder:
    """Records supervised steps; a step's metrics are fetched once the next is dispatched, so that no device waits."""

    def __init__(self, run: Run, stage: Stage) -> None:
        self._run = run
        self._stage = stage
        self._pending: tuple[int, dict[str, jax.Array], Any] | None = None
        self.restart_clock()

    def restart_clock(self) -> None:
        """Time until now is not the steps'."""
        self._clock = time.monotonic()

    def push(self, step: int, metrics: dict[str, jax.Array], batch: Any) -> None:
        """Takes the metrics of the stage's `step`, which need not be ready, and records those before."""
        self.flush()
        self._pending = (step, metrics, batch)

    def flush(self) -> None:
        """Records what is pending."""
        if self._pending is None:
            return
        step, arrays, batch = self._pending
        self._pending = None
        run, stage = self._run, self._stage
        metrics = {name: float(value) for name, value in jax.device_get(arrays).items()}
        metrics[f"{stage.name}/loss"] = metrics.pop("loss")
        seconds, self._clock = time.monotonic() - self._clock, time.monotonic()
        rows = int(np.sum(batch.response_lengths > 0))
        tokens = int(np.sum(np.where(batch.response_lengths > 0, batch.prompt_lengths + batch.response_lengths, 0)))
        in_warmup = stage.name == "sft" and step <= run.config.sft.warmup_epoch * stage.epoch
        part = "warmup" if in_warmup else stage.name
        run.tally.spend(part, rows, seconds)
        run.tally.stage_step = step
        metrics |= {
            "throughput/train_tokens_per_s": tokens / seconds,
            "time/step_s": seconds,
            "run/epoch": step / stage.epoch,
            "run/examples": run.tally.examples[part],
            "run/compilations": run.compilations(),
        }
        run.record(stage.offset + step, metrics)


def reinforce(run: Run, stage: Stage, prompts: Sequence[Prompt], start: Callable[[], Params]) -> None:
    """PPO: sample, judge, score, update (ReFT, section 3.2)."""
    config, temperature = run.config.ppo, run.config.generation.temperature
    reference = start()
    optimizer = make_optimizer(config.optimizer, stage.schedule)
    state = run.resume(
        stage.name, abstract_state(abstract_params(run.policy, run.mesh, value_head=True), optimizer, run.mesh)
    )
    if state is None:
        head = init_params(run.policy, run.mesh, jax.random.key(run.config.seed), value_head=True)["value_head"]
        state = init_state({**copy_params(reference), "value_head": head}, optimizer, run.mesh)
    rows_per_iteration = config.rollout_batch_size * config.samples_per_question
    generate = run.generate("rollout", rows_per_iteration, Sampling(temperature))
    buckets = len(run.config.generation.prompt_buckets)
    common: dict[str, Any] = {"temperature": temperature, "response": run.config.generation.max_response}
    build_scoring = functools.partial(build_experience, run.config.model, config, run.mesh, **common)
    build_updating = functools.partial(build_update, run.config.model, config, run.mesh, **common)
    score = run.add_programs("experience", lambda prompt: build_scoring(prompt=prompt), buckets)
    update = run.add_programs(
        "update", lambda prompt: build_updating(prompt=prompt, total_steps=stage.schedule), buckets
    )
    run.console.stage(stage.name, stage.stop, run.tally.stage_step)
    for iteration in range(run.tally.stage_step, stage.stop):
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
        decoder = {"decoder": state.params["decoder"]}
        rollout = generate[bucket](decoder, on_device, np.int32(run.config.seed), np.int32(iteration))
        on_host = to_host(rollout)
        clock.lap("rollout")

        completions = run.judge(on_host, run.problems["train"], batch.problem)
        rewards = np.zeros(rows_per_iteration, on_host.log_probs.dtype)
        rewards[: len(completions)] = [completion.verdict.reward for completion in completions]
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
            order = epoch_order(run.seed("minibatches"), iteration * config.update_epochs + k, rows_per_iteration)
            for rows in order.reshape(-1, config.minibatch_size).astype(np.int32):
                state, update_metrics = update[bucket](state, experience, rows)
                updates.append(update_metrics)
        metrics = jax.device_get(metrics) | mean_of(jax.device_get(updates))
        clock.lap("update")
        if iteration == 0:
            check_first_update(updates[0], tolerance=config.check_tolerance)

        finish_iteration(run, stage, iteration + 1, state, completions, metrics, clock)


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


def finish_iteration(
    run: Run,
    stage: Stage,
    done: int,
    state: Any,
    completions: list[Completion],
    arrays: dict[str, Any],
    clock: PhaseClock,
) -> None:
    """Records an iteration of PPO; evaluates and saves as the config says."""
    config, step = run.config.ppo, stage.offset + done
    seconds = sum(clock.seconds.values())
    run.tally.spend(stage.name, len(completions) * config.update_epochs, seconds)
    run.tally.stage_step = done
    shares = summarise(completions)
    tokens = sum(completion.tokens for completion in completions)
    metrics = {name: float(value) for name, value in arrays.items()}
    metrics |= {f"reward/{name}": value for name, value in shares.items() if name.startswith("outcome_")}
    metrics |= {
        "reward/mean": float(np.mean([completion.verdict.reward for completion in completions])),
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
    }
    run.record(step, metrics)
    every = run.config.logging.rollouts_every
    if every and done % every == 0:
        records = [completion.record() for completion in completions[: run.config.logging.rollouts_limit]]
        run.writer.append("rollouts", [{"step": step, **record} for record in records])
    last = done == stage.stop
    if last or done % config.evaluate_every == 0:
        run.evaluate_dev(state.params, step, best="reft", parts=("warmup", "ppo"))
    if last or done % config.save_every == 0:
        run.save(step, state)


def stages(run: Run) -> dict[str, Stage]:
    """The stages of the run in order, those that are switched off with no steps."""
    config = run.config
    pretrain = steps_per_epoch(len(run.examples["pretrain"]), config.pretrain.batch_size)
    sft = steps_per_epoch(len(run.examples["sft"]), config.sft.batch_size)
    ppo = steps_per_epoch(len(run.prompts["train"]), config.ppo.rollout_batch_size)
    first = Stage("pretrain", 0, pretrain, pretrain * config.pretrain.epochs, pretrain * config.pretrain.epochs)
    second = Stage("sft", first.stop, sft, sft * config.sft.schedule_epochs, sft * config.sft.stop_epoch)
    if not config.sft.schedule_epochs:
        second = dataclasses.replace(second, stop=0)
    third = Stage(
        "ppo", second.offset + second.stop, ppo, ppo * config.ppo.epochs * updates(config.ppo), ppo * config.ppo.epochs
    )
    return {stage.name: stage for stage in (first, second, third)}


def updates(config: PpoConfig) -> int:
    """Optimizer steps of an iteration."""
    return config.update_epochs * config.rollout_batch_size * config.samples_per_question // config.minibatch_size


def train(run: Run) -> dict[str, Any]:
    """All stages that are not done yet, then the test set; returns the summary."""
    plan = stages(run)
    order = list(plan)
    todo = {name: plan[name].stop and order.index(name) >= order.index(run.tally.stage) for name in order}
    first = run.start_params
    if todo["pretrain"]:
        supervised(run, plan["pretrain"], run.config.pretrain, run.examples["pretrain"], first)
    if plan["pretrain"].stop:
        first = functools.partial(run.saved_params, "pretrain")
    if todo["sft"]:
        supervised(run, plan["sft"], run.config.sft, run.examples["sft"], first)
    if plan["sft"].stop:
        first = functools.partial(run.saved_params, "warmup")
    elif run.config.ppo.init_from:
        first = functools.partial(run.foreign_params, run.config.ppo.init_from)
    if todo["ppo"]:
        reinforce(run, plan["ppo"], run.prompts["train"], first)
    return read_test(run, plan)


def read_test(run: Run, plan: dict[str, Stage]) -> dict[str, Any]:
    """Reads the test set once, with the models that the run has made and those that it chose on dev."""
    spent = run.tally.spent
    made: dict[str, dict[str, float]] = {}
    if plan["sft"].stop:
        made["warmup"] = spent("warmup")
        if run.config.sft.stop_epoch > run.config.sft.warmup_epoch:
            made["sft"] = spent("warmup", "sft")
    for name, chosen in run.tally.best.items():
        made[name] = {"dev_accuracy" if key == "accuracy" else key: value for key, value in chosen.items()}
    step = plan["ppo"].offset + plan["ppo"].stop + 1
    summary: dict[str, Any] = {}
    for name, facts in made.items() if run.problems["test"] else ():
        reading = run.evaluate(run.saved_params(name), "test")
        run.writer.append("evaluations", reading.records(step, split="test", model=name))
        run.writer.write(step, name, reading.metrics("test"))
        counts = {"correct": reading.correct, "total": reading.total}
        summary[name] = {"accuracy": reading.accuracy, "interval": list(reading.interval), **counts, **facts}
    return summary


def main(args: Sequence[str] | None = None) -> None:
    """Trains what `args` (or the command line) say; of a run that is finished it prints the table again."""
    config = load_config(args)
    summary_path = Path(config.run_dir) / "summary.json"
    with contextlib.ExitStack() as stack:
        try:
            config, tokenizer = prepare(config)
            if summary_path.exists():
                print_closing_table(json.loads(summary_path.read_text(encoding="utf-8")))
                return
            run = stack.enter_context(open_run(config, tokenizer))
        except (ValueError, FileNotFoundError) as error:
            sys.exit(f"error: {error}")
        summary = train(run)
    if jax.process_index() == 0:
        partial = summary_path.with_suffix(".partial")
        partial.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
        partial.replace(summary_path)
        print_closing_table(summary)


if __name__ == "__main__":
    main()
