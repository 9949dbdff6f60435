"""The supervised loop: batches in order, one optimizer step each, and pauses to evaluate and save.

`pretrain` and `sft` are run by it here, the reward model in `reward_model.training`.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any

import jax

from reft_jax.algorithms.train_state import TrainState, abstract_params, abstract_state, init_state, make_optimizer
from reft_jax.config import SupervisedConfig
from reft_jax.data.batches import Sequences, training_batch
from reft_jax.data.encoding import Example
from reft_jax.data.samples import LabelledRows
from reft_jax.models.params import Params
from reft_jax.parallel.processes import Interrupted
from reft_jax.parallel.sharding import batch_shardings, to_global
from reft_jax.training.model import Model
from reft_jax.training.sampler import Sampler
from reft_jax.training.state import Records, Stage, order_seed

Batch = Sequences | LabelledRows


def supervised(
    records: Records,
    sampler: Sampler,
    stage: Stage,
    settings: SupervisedConfig,
    examples: Sequence[Example],
    start: Callable[[], Params],
) -> None:
    """Maximum likelihood on annotated chains of thought; leaves the parameters under the stage's name.

    Args:
        records: of the run.
        sampler: the model, with the problems of dev.
        stage: `pretrain` or `sft`.
        settings: of the stage.
        examples: what is learned.
        start: makes the parameters {"decoder"} to begin with.

    Raises:
        Interrupted: the run was asked to stop, and has saved where it was.
    """
    model = sampler.model
    optimizer = make_optimizer(settings.optimizer, stage.schedule)
    adapters = stage.name != "pretrain"  # there, a fresh model learns with all its weights
    params = abstract_params(model.policy, model.mesh, value_head=False, adapters=adapters)
    state = records.resume(stage.name, abstract_state(params, optimizer, model.mesh))
    if state is None:
        state = init_state({**start(), **(model.fresh_parts("lora") if adapters else {})}, optimizer, model.mesh)

    def draw(step: int) -> Sequences:
        return training_batch(
            examples,
            seed=order_seed(model.config, stage.name),
            step=step,
            batch_size=settings.batch_size,
            prompt_buckets=settings.prompt_buckets,
            response_buckets=settings.response_buckets,
            pad_id=model.ids.pad,
        )

    def compiled(batch: Sequences) -> Callable[..., Any]:
        response = batch.responses.shape[1]
        return model.compiled.get(stage.name, batch.tokens.shape[1] - response, response)

    state = optimise(
        records,
        model,
        stage,
        state,
        draw=draw,
        compiled=compiled,
        due=lambda step: step % stage.epoch == 0,
        pause=lambda step, state: end_of_epoch(records, sampler, stage, step // stage.epoch, state),
    )
    records.save_params(stage.name, state.params)


def optimise(
    records: Records,
    model: Model,
    stage: Stage,
    state: TrainState,
    *,
    draw: Callable[[int], Any],
    compiled: Callable[[Any], Callable[..., Any]],
    due: Callable[[int], bool],
    pause: Callable[[int, TrainState], None],
) -> TrainState:
    """The steps of a stage that are not done yet.

    Args:
        records: how far the run has come, what it records and where it saves.
        model: where the steps run.
        stage: its steps.
        state: after the steps that are done; its buffers are donated.
        draw: the host batch of a step, from 0.
        compiled: the compiled `(state, batch) -> (state, metrics)` for a batch; metrics without a `/` are the stage's.
        due: whether there is a pause after so many steps.
        pause: evaluates and saves then.

    Returns:
        The state at the end of the stage.

    Raises:
        Interrupted: the run was asked to stop, and has saved where it was.
    """
    progress = records.progress
    records.display.stage(stage.name, stage.stop, progress.stage_step)
    recorder = StepRecorder(records, model, stage)
    try:
        if progress.evaluation_pending:
            pause(progress.stage_step, state)
        asked = model.stop.ask()
        for step in range(progress.stage_step, stage.stop):
            batch = draw(step)
            with records.profile.step(stage.name, step + 1, len(model.compiled)):
                state, metrics = compiled(batch)(state, to_global(batch, batch_shardings(batch, model.mesh)))
                records.profile.wait(metrics)
            recorder.push(step + 1, metrics, batch)
            if due(step + 1):
                recorder.flush()
                pause(step + 1, state)
                recorder.restart_clock()
            asked, earlier = model.stop.ask(), asked
            if earlier:  # what the step before asked is known by now: nobody waits
                raise Interrupted
    except Interrupted:
        recorder.flush()
        records.save(stage.offset + progress.stage_step, state)
        raise
    return state


def end_of_epoch(records: Records, sampler: Sampler, stage: Stage, epoch: int, state: TrainState) -> None:
    """Evaluates, keeps the warm-up, and saves, as the config says."""
    config, step = sampler.config.sft, stage.offset + epoch * stage.epoch
    marked = stage.name == "sft" and epoch in (config.warmup_epoch, config.stop_epoch)
    if stage.name == "sft" and (marked or epoch % config.evaluate_every == 0):
        evaluate_dev(records, sampler, state.params, step, best="sft_best", parts=("warmup", "sft"))
    if stage.name == "sft" and epoch == config.warmup_epoch:
        records.save_params("warmup", state.params)
    if stage.name == "pretrain" or marked or epoch % config.save_every == 0:
        records.save(step, state)


def evaluate_dev(
    records: Records, sampler: Sampler, params: Params, step: int, *, best: str, parts: tuple[str, ...]
) -> None:
    """Evaluates `params` on dev, records it, and saves them if they are among the best of their kind so far.

    Args:
        records: of the run.
        sampler: asks dev.
        params: {"decoder"}, with or without other parts.
        step: the run's step.
        best, parts: see `Records.save_if_best`.

    Raises:
        Interrupted: the run was asked to stop; nothing is recorded then, and the progress says `evaluation_pending`.
    """
    started = time.monotonic()
    records.progress.evaluation_pending = True
    evaluation = sampler.evaluate(params, "dev")
    records.progress.evaluation_pending = False
    records.record_evaluation(evaluation, step, time.monotonic() - started)
    records.save_if_best(params, step, evaluation.figures(sampler.config.select_by), best=best, parts=parts)


class StepRecorder:
    """Records supervised steps; a step's metrics are fetched once the next is dispatched, so that no device waits."""

    def __init__(self, records: Records, model: Model, stage: Stage) -> None:
        self._records = records
        self._model = model
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
        progress, stage = self._records.progress, self._stage
        own = lambda name: name if "/" in name else f"{stage.name}/{name}"
        metrics = {own(name): float(value) for name, value in jax.device_get(arrays).items()}
        seconds, self._clock = time.monotonic() - self._clock, time.monotonic()
        in_warmup = stage.name == "sft" and step <= self._model.config.sft.warmup_epoch * stage.epoch
        progress.spend("warmup" if in_warmup else stage.name, batch.row_count, seconds)
        progress.stage_step = step
        parts = ("warmup", "sft") if stage.name == "sft" else (stage.name,)
        metrics |= {
            "throughput/train_tokens_per_s": batch.token_count / seconds,
            "time/step_s": seconds,
            "run/epoch": step / stage.epoch,
            "run/examples": progress.spent(*parts)["examples"],
            "run/compilations": len(self._model.compiled),
        }
        self._records.record(stage.offset + step, metrics)
