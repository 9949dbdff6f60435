"""How far a run has come, where its stages lie, and the records that it keeps."""

import dataclasses
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from reft_jax.config import Config, LoraConfig
from reft_jax.models.lora import merge
from reft_jax.models.params import Params, in_form_of, select, stacked
from reft_jax.records.checkpoint import PARTS, Checkpoints, chosen_name, part_name
from reft_jax.records.console import ProgressDisplay
from reft_jax.records.records import MetricsWriter
from reft_jax.training.evaluation import Evaluation
from reft_jax.training.profile import Profile

ORDERS = ("pretrain", "sft", "rl", "minibatches")
"""What draws an order of its own from the run's seed."""


def order_seed(config: Config, purpose: str) -> int:
    """The seed of an order, different for each of `ORDERS`."""
    return config.seed * len(ORDERS) + ORDERS.index(purpose)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
    """Where a stage lies in the run; steps are optimizer steps, or iterations of reinforcement."""

    name: str
    offset: int
    """The run's step at which it begins."""
    epoch: int
    """Steps of one pass over its problems."""
    schedule: int
    """Optimizer steps of its learning-rate schedule."""
    stop: int
    """Its last step; 0 where it is switched off."""
    critic_schedule: int = 0
    """Optimizer steps of the critic, those of `rl.critic_warmup` included."""


@dataclasses.dataclass
class RunProgress:
    """How far a run has come and what it spent; saved with every resume point.

    `examples` counts sequences trained on (each pass over one counts) and `seconds` the time of training steps, without
    evaluation and checkpoints, both by part: pretrain, warmup, sft (what came after the warm-up), rl, or reward_model.
    `best` has the models chosen on dev by name, the best first. `evaluation_pending`: that after the last step is yet
    to come. `rewards` are the counts behind the rewards of `rl`, see `collapse.with_iteration`; `collapse` says why it
    ended early. `draws` and `asked` count draws of questions and the questions of the order that they took, where
    `rl.max_draws` is more than 1; `pass_rates` has right and tried completions of each question, decayed, where these
    choose, see `drawing`.

    What the steps mean: `plan` has, by stage, the steps of an epoch and the last step, and `contents` digests of what
    was read, by the key that names it. A run goes on with the same, see `directory.take_up`.
    """

    stage: str = "pretrain"
    stage_step: int = 0  # optimizer steps, in `rl` iterations
    examples: dict[str, int] = dataclasses.field(default_factory=dict)
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)
    best: dict[str, list[dict[str, float]]] = dataclasses.field(default_factory=dict)
    evaluation_pending: bool = False
    rewards: list[list[float]] = dataclasses.field(default_factory=list)
    collapse: str = ""
    draws: int = 0
    asked: int = 0
    pass_rates: list[list[float]] = dataclasses.field(default_factory=list)
    plan: dict[str, list[int]] = dataclasses.field(default_factory=dict)
    contents: dict[str, str] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(cls, saved: Mapping[str, Any]) -> "RunProgress":
        """The progress of a resume point; what an earlier version kept and this one does not is left out."""
        known = {field.name for field in dataclasses.fields(cls)}
        return cls(**{name: value for name, value in saved.items() if name in known})

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
class Records:
    """What a run writes: metrics, checkpoints, and how far it is; made by `directory.open_records`."""

    run_dir: Path
    keep_best: int
    """Models of each kind that are kept."""
    lora: LoraConfig
    """How adapters are merged into a model that is saved."""
    checkpoints: Checkpoints
    writer: MetricsWriter
    progress: RunProgress
    resumed_step: int | None
    """The run's step that it goes on from; None where it begins."""
    display: ProgressDisplay
    profile: Profile

    def record(self, step: int, metrics: Mapping[str, float]) -> None:
        """Writes and shows a training step's metrics.

        Raises:
            FloatingPointError: a loss or the gradient is not finite; names the step and the last good checkpoint.
        """
        stage = self.progress.stage
        self.show(step, metrics)
        for name, value in metrics.items():
            if ("loss" in name or name == "optimizer/gradient_norm") and not math.isfinite(value):
                latest = self.checkpoints.latest()
                where = "none was written yet" if latest is None else f"step {latest[0]}"
                hint = f"a lower {stage}.optimizer.learning_rate may help"
                if self.progress.stage_step == 1 and stage != "rl":  # measured before anything was learned
                    hint = "nothing was learned before it: look at the weights it starts from, and at model.dtype"
                raise FloatingPointError(
                    f"{name} is {value} at step {step} ({stage} {self.progress.stage_step}); last good checkpoint in "
                    f"{self.run_dir}: {where}; {hint}"
                )

    def show(self, step: int, metrics: Mapping[str, float]) -> None:
        """Writes metrics of the current stage and shows them."""
        self.writer.write(step, self.progress.stage, metrics)
        self.display.advance(self.progress.stage_step, metrics)

    def record_evaluation(self, evaluation: Evaluation, step: int, seconds: float) -> None:
        """Writes and shows an evaluation on dev."""
        self.writer.append("evaluations", evaluation.records(step, split="dev", model=self.progress.stage))
        self.show(step, evaluation.metrics("eval") | {"time/evaluation_s": seconds})

    def save_params(self, name: str, params: Params) -> None:
        """Saves a model: its decoder, adapters merged, and apart from it adapters, critic and value head; stacked."""
        self.checkpoints.save_params(name, merge(params, self.lora))
        for part in PARTS:
            if part in params:
                self.checkpoints.save_params(part_name(name, part), stacked(select(params, {part})))

    def save_if_best(
        self, params: Params, step: int, figures: dict[str, float], *, best: str, parts: tuple[str, ...]
    ) -> None:
        """Keeps `params` if their figures on dev are among the best of their kind so far; of equals the earlier one.

        Args:
            params: as `save_params` takes them.
            step: the run's step.
            figures: what is compared, one after the other.
            best: name of their kind.
            parts: of the progress, what the model has cost.
        """
        ranking = self.progress.best.setdefault(best, [])
        better = [tuple(other[name] for name in figures) >= tuple(figures.values()) for other in ranking]
        place = sum(better)
        if place < self.keep_best:
            ranking.insert(place, {**figures, "step": step, **self.progress.spent(*parts)})
            del ranking[self.keep_best :]
            self.save_params(chosen_name(best, step), params)
            self.link_best()

    def link_best(self) -> None:
        """Lets the names of the best models stand for those that the progress says."""
        for name, ranking in self.progress.best.items():
            self.checkpoints.link_best(name, int(ranking[0]["step"]))

    def save(self, step: int, state: Any) -> None:
        """A resume point at the run's `step`: records first, so that none before it can be missing."""
        self.writer.flush()
        best = self.progress.best.items()
        chosen = {chosen_name(name, int(entry["step"])) for name, ranking in best for entry in ranking}
        self.checkpoints.save(step, stacked(state), dataclasses.asdict(self.progress), chosen)

    def resume(self, stage: str, abstract_state: Any) -> Any | None:
        """The state to continue `stage` from; None where the stage begins, and the progress enters it."""
        if self.resumed_step is not None and self.progress.stage == stage:
            state = self.checkpoints.restore(self.resumed_step, stacked(abstract_state))
            return in_form_of(state, abstract_state)
        self.progress.stage, self.progress.stage_step = stage, 0
        return None


class PhaseClock:
    """Seconds of each phase of a step."""

    def __init__(self) -> None:
        self._last = time.monotonic()
        self.seconds: dict[str, float] = {}

    def lap(self, phase: str) -> None:
        """The time since the last lap was `phase`'s, which may have had some before."""
        now = time.monotonic()
        self.seconds[phase] = self.seconds.get(phase, 0.0) + now - self._last
        self._last = now
