"""What all stages of a run share: data, mesh, compiled programs, records, checkpoints, and how far it has come."""

import dataclasses
import math
import time
from collections.abc import Mapping
from typing import Any

from reft_jax.algorithms.train_state import abstract_params
from reft_jax.data.encoding import Example
from reft_jax.models.lora import merge
from reft_jax.models.params import Params, select
from reft_jax.records.checkpoint import Checkpoints, chosen_name, part_name
from reft_jax.records.records import MetricsWriter
from reft_jax.reward.functions import RewardFunction
from reft_jax.training.sampler import Sampler

SEEDS = ("pretrain", "sft", "rl", "minibatches")
"""What draws an order of its own from the run's seed."""

PARTS = ("value_head", "critic", "lora", "class_head")
"""What is saved beside a decoder."""


@dataclasses.dataclass(frozen=True)
class Stage:
    """Where a stage lies in the run; steps are optimizer steps, or iterations of PPO."""

    name: str
    offset: int  # the run's step at which it begins
    epoch: int  # steps of one pass over its problems
    schedule: int  # steps of its learning-rate schedule
    stop: int  # its last step


@dataclasses.dataclass
class RunProgress:
    """How far a run has come and what it spent; saved with every resume point.

    `examples` counts sequences trained on (each pass over one counts) and `seconds` the time of training steps, without
    evaluation and checkpoints, both by part: pretrain, warmup, sft (what came after the warm-up), rl, or reward_model.
    `best` has the models chosen on dev by name, the best first. `unread`: the evaluation after the last step is yet to
    come. `recent` are the mean rewards of the last iterations of `rl`, `highest` the highest that their average has
    been, and `collapse` says why `rl` ended early.
    """

    stage: str = "pretrain"
    stage_step: int = 0  # optimizer steps, in `rl` iterations
    examples: dict[str, int] = dataclasses.field(default_factory=dict)
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)
    best: dict[str, list[dict[str, float]]] = dataclasses.field(default_factory=dict)
    unread: bool = False
    recent: list[float] = dataclasses.field(default_factory=list)
    highest: float = 0.0
    collapse: str = ""

    def spend(self, part: str, examples: int, seconds: float) -> None:
        """Adds a step's costs."""
        self.examples[part] = self.examples.get(part, 0) + examples
        self.seconds[part] = self.seconds.get(part, 0.0) + seconds

    def spent(self, *parts: str) -> dict[str, float]:
        """What the parts cost together."""
        return {
            "examples": sum(self.examples.get(part, 0) for part in parts),
            "seconds": sum(self.seconds.get(part, 0.0) for part in parts),
        }


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run(Sampler):
    """One run at work; made by `startup.open_run`. `examples` are by stage (pretrain, sft).

    That of a reward model, `reward_training.RewardRun`, has samples in place of problems, prompts and examples.
    """

    examples: Mapping[str, list[Example]]
    functions: tuple[RewardFunction, ...]
    writer: MetricsWriter
    checkpoints: Checkpoints
    progress: RunProgress
    resumed_step: int | None

    def seed(self, purpose: str) -> int:
        """The seed of an order, different for each of `SEEDS`."""
        return self.config.seed * len(SEEDS) + SEEDS.index(purpose)

    def saved_params(self, name: str) -> Params:
        """Parameters {"decoder"} that an earlier stage saved under `name`."""
        abstract = abstract_params(self.policy, self.mesh, value_head=False, adapters=False)
        return self.checkpoints.restore_params(name, abstract)

    def save_params(self, name: str, params: Params) -> None:
        """Saves a model: its decoder, adapters merged, and apart from it adapters, critic and value head."""
        self.checkpoints.save_params(name, merge(params, self.config.model.lora))
        for part in PARTS:
            if part in params:
                self.checkpoints.save_params(part_name(name, part), select(params, {part}))

    def evaluate_dev(self, params: Params, step: int, *, best: str, parts: tuple[str, ...]) -> None:
        """Reads dev, records it, and keeps `params` if they are among the best of their kind so far.

        Args:
            params: {"decoder"}, with or without a value head.
            step: the run's step.
            best: name of their kind.
            parts: of the progress, what the model has cost.

        Raises:
            Interrupted: the run was asked to stop; nothing is recorded then, and the progress says `unread`.
        """
        started = time.monotonic()
        self.progress.unread = True
        reading = self.evaluate(params, "dev")
        self.progress.unread = False
        stage = self.progress.stage
        self.writer.append("evaluations", reading.records(step, split="dev", model=stage))
        metrics = reading.metrics("eval") | {"time/evaluation_s": time.monotonic() - started}
        self.writer.write(step, stage, metrics)
        self.console.advance(self.progress.stage_step, metrics)
        self.keep_best(params, step, {"accuracy": reading.accuracy}, best=best, parts=parts)

    def keep_best(
        self, params: Params, step: int, reading: dict[str, float], *, best: str, parts: tuple[str, ...]
    ) -> None:
        """Keeps `params` if their reading of dev is among the best of their kind so far.

        Args:
            params: as `save_params` takes them.
            step: the run's step.
            reading: what is compared, one after the other.
            best: name of their kind.
            parts: of the progress, what the model has cost.
        """
        ranking = self.progress.best.setdefault(best, [])
        better = [tuple(other[name] for name in reading) >= tuple(reading.values()) for other in ranking]
        place = sum(better)  # of two alike the earlier one is kept
        if place < self.config.checkpoint.keep_best:
            ranking.insert(place, {**reading, "step": step, **self.progress.spent(*parts)})
            del ranking[self.config.checkpoint.keep_best :]
            self.save_params(chosen_name(best, step), params)
            self.link_best()

    def link_best(self) -> None:
        """Lets the names of the best models stand for those that the progress says."""
        for name, ranking in self.progress.best.items():
            self.checkpoints.link_best(name, int(ranking[0]["step"]), PARTS)

    def record(self, step: int, metrics: Mapping[str, float]) -> None:
        """Writes and shows a training step's metrics.

        Raises:
            FloatingPointError: a loss or the gradient is not finite; names the step and the last good checkpoint.
        """
        stage = self.progress.stage
        self.writer.write(step, stage, metrics)
        self.console.advance(self.progress.stage_step, metrics)
        for name, value in metrics.items():
            if ("loss" in name or name == "optimizer/gradient_norm") and not math.isfinite(value):
                latest = self.checkpoints.latest()
                where = "none was written yet" if latest is None else f"step {latest[0]}"
                raise FloatingPointError(
                    f"{name} is {value} at step {step} ({stage} {self.progress.stage_step}); last good checkpoint in "
                    f"{self.config.run_dir}: {where}; a lower {stage}.optimizer.learning_rate may help"
                )

    def save(self, step: int, state: Any) -> None:
        """A resume point at the run's `step`: records first, so that none before it can be missing."""
        self.writer.flush()
        best = self.progress.best.items()
        chosen = {chosen_name(name, int(entry["step"])) for name, ranking in best for entry in ranking}
        self.checkpoints.save(step, state, dataclasses.asdict(self.progress), chosen)

    def resume(self, stage: str, abstract_state: Any) -> Any | None:
        """The state to continue `stage` from; None where the stage begins, and the progress enters it."""
        if self.resumed_step is not None and self.progress.stage == stage:
            return self.checkpoints.restore(self.resumed_step, abstract_state)
        self.progress.stage, self.progress.stage_step = stage, 0
        return None
