"""The supervised loop: batches in order, one optimizer step each, and pauses to evaluate and save.

`pretrain` and `sft` are run by it here, the reward model in `reward_training`.
"""

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax

from reft_jax.algorithms.sft import build_step
from reft_jax.algorithms.train_state import TrainState, abstract_params, abstract_state, init_state, make_optimizer
from reft_jax.config import LoraConfig, SupervisedConfig
from reft_jax.data.batches import Sequences, training_batch
from reft_jax.data.encoding import Example
from reft_jax.data.samples import LabelledRows
from reft_jax.models.policy import Params
from reft_jax.parallel.processes import Interrupted
from reft_jax.parallel.sharding import batch_shardings, to_global
from reft_jax.training.state import Run, Stage

Batch = Sequences | LabelledRows


def supervised(
    run: Run, stage: Stage, config: SupervisedConfig, examples: Sequence[Example], start: Callable[[], Params]
) -> None:
    """Maximum likelihood on annotated chains of thought; leaves the parameters under the stage's name.

    Raises:
        Interrupted: the run was asked to stop, and has saved where it was.
    """
    optimizer = make_optimizer(config.optimizer, stage.schedule)
    adapters = stage.name != "pretrain"  # there, a fresh model learns with all its weights
    model = run.config.model if adapters else dataclasses.replace(run.config.model, lora=LoraConfig())
    params = abstract_params(run.policy, run.mesh, value_head=False, adapters=adapters)
    state = run.resume(stage.name, abstract_state(params, optimizer, run.mesh))
    if state is None:
        state = init_state({**start(), **(run.fresh("lora") if adapters else {})}, optimizer, run.mesh)
    build = lambda prompt, response: build_step(
        model, config, run.mesh, total_steps=stage.schedule, prompt=prompt, response=response
    )
    programs = run.add_programs(stage.name, build, len(config.prompt_buckets) * len(config.response_buckets))

    def draw(step: int) -> Sequences:
        return training_batch(
            examples,
            seed=run.seed(stage.name),
            step=step,
            batch_size=config.batch_size,
            prompt_buckets=config.prompt_buckets,
            response_buckets=config.response_buckets,
            pad_id=run.ids.pad,
        )

    def program(batch: Sequences) -> Callable[..., Any]:
        response = batch.responses.shape[1]
        return programs[batch.tokens.shape[1] - response, response]

    state = optimise(
        run,
        stage,
        state,
        draw=draw,
        program=program,
        due=lambda step: step % stage.epoch == 0,
        pause=lambda step, state: end_of_epoch(run, stage, step // stage.epoch, state),
    )
    run.save_params(stage.name, state.params)


def optimise(
    run: Run,
    stage: Stage,
    state: TrainState,
    *,
    draw: Callable[[int], Any],
    program: Callable[[Any], Callable[..., Any]],
    due: Callable[[int], bool],
    pause: Callable[[int, TrainState], None],
) -> TrainState:
    """The steps of a stage that are not done yet.

    Args:
        run: how far it has come, what it records and where it saves.
        stage: its steps.
        state: after the steps that are done; its buffers are donated.
        draw: the host batch of a step, from 0.
        program: the compiled `(state, batch) -> (state, metrics)` for a batch; metrics without a `/` are the stage's.
        due: whether there is a pause after so many steps.
        pause: evaluates and saves then.

    Returns:
        The state at the end of the stage.

    Raises:
        Interrupted: the run was asked to stop, and has saved where it was.
    """
    run.console.stage(stage.name, stage.stop, run.progress.stage_step)
    recorder = StepRecorder(run, stage)
    try:
        if run.progress.unread:
            pause(run.progress.stage_step, state)
        asked = run.stop.ask()
        for step in range(run.progress.stage_step, stage.stop):
            batch = draw(step)
            state, metrics = program(batch)(state, to_global(batch, batch_shardings(batch, run.mesh)))
            recorder.push(step + 1, metrics, batch)
            if due(step + 1):
                recorder.flush()
                pause(step + 1, state)
                recorder.restart_clock()
            asked, earlier = run.stop.ask(), asked
            if earlier:  # what the step before asked is known by now: nobody waits
                raise Interrupted
    except Interrupted:
        recorder.flush()
        run.save(stage.offset + run.progress.stage_step, state)
        raise
    return state


def end_of_epoch(run: Run, stage: Stage, epoch: int, state: Any) -> None:
    """Evaluates, keeps the warm-up, and saves, as the config says."""
    config, step = run.config.sft, stage.offset + epoch * stage.epoch
    marked = stage.name == "sft" and epoch in (config.warmup_epoch, config.stop_epoch)
    if stage.name == "sft" and (marked or epoch % config.evaluate_every == 0):
        run.evaluate_dev(state.params, step, best="sft_best", parts=("warmup", "sft"))
    if stage.name == "sft" and epoch == config.warmup_epoch:
        run.save_params("warmup", state.params)
    if stage.name == "pretrain" or marked or epoch % config.save_every == 0:
        run.save(step, state)


class StepRecorder:
    """Records supervised steps; a step's metrics are fetched once the next is dispatched, so that no device waits."""

    def __init__(self, run: Run, stage: Stage) -> None:
        self._run = run
        self._stage = stage
        self._pending: tuple[int, dict[str, jax.Array], Batch] | None = None
        self.restart_clock()

    def restart_clock(self) -> None:
        """Time until now is not the steps'."""
        self._clock = time.monotonic()

    def push(self, step: int, metrics: dict[str, jax.Array], batch: Batch) -> None:
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
        own = lambda name: name if "/" in name else f"{stage.name}/{name}"
        metrics = {own(name): float(value) for name, value in jax.device_get(arrays).items()}
        seconds, self._clock = time.monotonic() - self._clock, time.monotonic()
        in_warmup = stage.name == "sft" and step <= run.config.sft.warmup_epoch * stage.epoch
        part = "warmup" if in_warmup else stage.name
        run.progress.spend(part, batch.row_count, seconds)
        run.progress.stage_step = step
        metrics |= {
            "throughput/train_tokens_per_s": batch.token_count / seconds,
            "time/step_s": seconds,
            "run/epoch": step / stage.epoch,
            "run/examples": run.progress.spent(*(("warmup", "sft") if stage.name == "sft" else (stage.name,)))[
                "examples"
            ],
            "run/compilations": run.compilations(),
        }
        run.record(stage.offset + step, metrics)
