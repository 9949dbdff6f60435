"""What all stages of a run share: data, mesh, compiled programs, records, checkpoints, and how far it has come."""

import dataclasses
import functools
import itertools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from reft_jax.checkpoint import Checkpoints, chosen_name, part_name, restore_params
from reft_jax.compilation import Programs
from reft_jax.completion import Completion, Score, judge
from reft_jax.config import Config
from reft_jax.console import Progress
from reft_jax.data.batches import Example, Prompt
from reft_jax.data.tokenizers import SpecialIds
from reft_jax.evaluate import Evaluation, evaluate
from reft_jax.metrics import MetricsWriter
from reft_jax.models import hf
from reft_jax.models.adapter_files import load_adapters
from reft_jax.models.lora import merge
from reft_jax.models.policy import Params, Policy
from reft_jax.problem import Problem
from reft_jax.processes import StopRequest, gather
from reft_jax.reward.functions import RewardFunction
from reft_jax.reward.programs import ProgramRunner
from reft_jax.rollout import Rollout, Sampling, build_generate, build_layout, needs_layout
from reft_jax.sharding import own_rows, rows_to_host
from reft_jax.train_state import abstract_params, init_params, init_parts

SEEDS = ("pretrain", "sft", "rl", "minibatches")
"""What draws an order of its own from the run's seed."""

PARTS = ("value_head", "critic", "lora")
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
class Tally:
    """How far a run has come and what it spent; saved with every resume point.

    `examples` counts sequences trained on (each pass over one counts) and `seconds` the time of training steps, without
    evaluation and checkpoints, both by part: pretrain, warmup, sft (what came after the warm-up), rl. `best` has the
    models chosen on dev by name, the best first. `unread`: the evaluation after the last step is still to come.
    `recent` are the mean rewards of the last iterations of `rl`, `highest` the highest that their average has been, and
    `collapse` says why `rl` ended early.
    """

    stage: str = "pretrain"
    stage_step: int = 0  # optimizer steps of `pretrain` and `sft`, iterations of `rl`
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


@dataclasses.dataclass(frozen=True)
class Run:
    """One run at work; made by `startup.open_run`.

    `problems` and `prompts` are by split (train, dev, test), `examples` by stage (pretrain, sft).
    """

    config: Config
    mesh: Mesh
    tokenizer: Any
    ids: SpecialIds
    problems: Mapping[str, list[Problem]]
    prompts: Mapping[str, list[Prompt]]
    examples: Mapping[str, list[Example]]
    score: Score
    functions: tuple[RewardFunction, ...]
    runner: ProgramRunner | None
    writer: MetricsWriter
    console: Progress
    checkpoints: Checkpoints
    stop: StopRequest
    tally: Tally
    resumed_step: int | None
    programs: dict[str, Programs] = dataclasses.field(default_factory=dict)

    @functools.cached_property
    def policy(self) -> Policy:
        """The model, for building steps and parameters."""
        return Policy(self.config.model, self.mesh)

    def seed(self, purpose: str) -> int:
        """The seed of an order, different for each of `SEEDS`."""
        return self.config.seed * len(SEEDS) + SEEDS.index(purpose)

    def add_programs(self, name: str, build: Callable[..., Any], limit: int) -> Programs:
        """The compiled programs of a step, at most `limit`, made once for the run."""
        return self.programs.setdefault(name, Programs(build, limit))

    def compilations(self) -> int:
        """Step programs compiled so far."""
        return sum(len(programs) for programs in self.programs.values())

    def start_params(self) -> Params:
        """Parameters {"decoder"} that the first stage starts from: the checkpoint's, or fresh ones."""
        model = self.config.model
        if not model.path:
            key = jax.random.key(self.config.seed)
            return init_params(self.policy, self.mesh, key, value_head=False, adapters=False)
        abstract = abstract_params(self.policy, self.mesh, value_head=False, adapters=False)["decoder"]
        directory = hf.resolve(model.path, model.revision)
        decoder = hf.load_decoder_params(directory, model, jax.tree.map(lambda x: x.sharding, abstract))
        if not model.lora.path:
            return {"decoder": decoder}
        settings, lora = load_adapters(hf.resolve(model.lora.path), model, hf.model_type(directory))
        return merge({"decoder": decoder, "lora": lora}, settings)

    def saved_params(self, name: str) -> Params:
        """Parameters {"decoder"} that an earlier stage saved under `name`."""
        abstract = abstract_params(self.policy, self.mesh, value_head=False, adapters=False)
        return self.checkpoints.restore_params(name, abstract)

    def foreign_params(self, directory: str) -> Params:
        """Parameters {"decoder"} from another run's checkpoint."""
        abstract = abstract_params(self.policy, self.mesh, value_head=False, adapters=False)
        return restore_params(Path(directory), abstract)

    def fresh(self, *parts: str) -> Params:
        """Fresh parameters of some parts: `value_head`, and `lora` where the model is adapted."""
        abstract = abstract_params(self.policy, self.mesh, value_head=True)
        wanted = {name: abstract[name] for name in parts if name in abstract}
        return wanted and init_parts(self.policy, self.mesh, jax.random.key(self.config.seed), wanted)

    def save_params(self, name: str, params: Params) -> None:
        """Saves a model: its decoder, adapters merged, and apart from it adapters, critic and value head."""
        self.checkpoints.save_params(name, merge(params, self.config.model.lora))
        for part in PARTS:
            if part in params:
                self.checkpoints.save_params(part_name(name, part), {part: params[part]})

    def judge(
        self, rollout: Rollout, problems: list[Problem], rows: np.ndarray, functions: Sequence[RewardFunction] = ()
    ) -> list[Completion]:
        """Reads and scores a rollout; each process takes the rows that it holds, and all get all completions.

        Raises:
            Interrupted: the run was asked to stop.
        """
        self.stop.check()
        data, own = self.config.data, own_rows(self.mesh, len(rows))
        completions = judge(
            rows_to_host(rollout, own),
            problems,
            rows[own],
            tokenizer=self.tokenizer,
            data=data,
            score=self.score,
            functions=functions,
        )
        shared = gather(list(zip(own.tolist(), completions)))
        return [completion for _, completion in sorted(itertools.chain(*shared), key=lambda pair: pair[0])]

    def generate(self, name: str, batch: int, sampling: Sampling) -> Programs:
        """Sampling programs by prompt bucket, kept under `name`."""
        generation = self.config.generation

        def build(prompt: int) -> Any:
            return build_generate(
                self.config.model,
                self.mesh,
                batch=batch,
                prompt=prompt,
                max_response=generation.max_response,
                sampling=sampling,
                eos=self.ids.ends,
                pad=self.ids.pad,
                scan_layers=generation.scan_layers,
                weights=generation.weights,
            )

        return self.add_programs(name, build, len(generation.prompt_buckets))

    def sampling_params(self, params: Params) -> Params:
        """What the sampling programs take: decoder and adapters, these 0 for a model into which they were merged."""
        adapted = {name: params[name] for name in ("decoder", "lora") if name in params}
        if self.config.model.lora.rank and "lora" not in adapted:
            adapted["lora"] = jax.tree.map(jnp.zeros_like, self.fresh("lora")["lora"])
        layout = (self.config.model, self.mesh, self.config.generation.weights)
        if not needs_layout(*layout):
            return adapted
        return self.add_programs("layout", functools.partial(build_layout, *layout), 1)[()](adapted)

    def evaluate(self, params: Params, split: str) -> Evaluation:
        """Accuracy of `params` ({"decoder"}; a value head is ignored) on a split."""
        settings = self.config.evaluation
        sampling = Sampling(settings.temperature, settings.top_k, settings.top_p)
        return evaluate(
            self.generate("evaluate", settings.batch_size, sampling),
            self.sampling_params(params),
            self.prompts[split],
            config=self.config,
            mesh=self.mesh,
            pad=self.ids.pad,
            total=len(self.problems[split]),
            judge=lambda rows, rollout: self.judge(rollout, self.problems[split], rows),
        )

    def evaluate_dev(self, params: Params, step: int, *, best: str, parts: tuple[str, ...]) -> None:
        """Reads dev, records it, and keeps `params` if they are among the best of their kind so far.

        Args:
            params: {"decoder"}, with or without a value head.
            step: the run's step.
            best: name of their kind.
            parts: of the tally, what the model has cost.

        Raises:
            Interrupted: the run was asked to stop; nothing is recorded then, and the tally says `unread`.
        """
        started = time.monotonic()
        self.tally.unread = True
        reading = self.evaluate(params, "dev")
        self.tally.unread = False
        stage = self.tally.stage
        self.writer.append("evaluations", reading.records(step, split="dev", model=stage))
        metrics = reading.metrics("eval") | {"time/evaluation_s": time.monotonic() - started}
        self.writer.write(step, stage, metrics)
        self.console.advance(self.tally.stage_step, metrics)
        ranking = self.tally.best.setdefault(best, [])
        place = sum(other["accuracy"] >= reading.accuracy for other in ranking)  # of two alike the earlier one is kept
        if place < self.config.checkpoint.keep_best:
            ranking.insert(place, {"accuracy": reading.accuracy, "step": step, **self.tally.spent(*parts)})
            del ranking[self.config.checkpoint.keep_best :]
            self.save_params(chosen_name(best, step), params)
            self.link_best()

    def link_best(self) -> None:
        """Lets the names of the best models stand for those that the tally says."""
        for name, ranking in self.tally.best.items():
            self.checkpoints.link_best(name, int(ranking[0]["step"]), PARTS)

    def record(self, step: int, metrics: Mapping[str, float]) -> None:
        """Writes and shows a training step's metrics.

        Raises:
            FloatingPointError: a loss or the gradient is not finite; names the step and the last good checkpoint.
        """
        stage = self.tally.stage
        self.writer.write(step, stage, metrics)
        self.console.advance(self.tally.stage_step, metrics)
        for name, value in metrics.items():
            if ("loss" in name or name == "optimizer/gradient_norm") and not math.isfinite(value):
                latest = self.checkpoints.latest()
                where = "none was written yet" if latest is None else f"step {latest[0]}"
                raise FloatingPointError(
                    f"{name} is {value} at step {step} ({stage} {self.tally.stage_step}); last good checkpoint in "
                    f"{self.config.run_dir}: {where}; a lower {stage}.optimizer.learning_rate may help"
                )

    def save(self, step: int, state: Any) -> None:
        """A resume point at the run's `step`: records first, so that none before it can be missing."""
        self.writer.flush()
        best = self.tally.best.items()
        chosen = {chosen_name(name, int(entry["step"])) for name, ranking in best for entry in ranking}
        self.checkpoints.save(step, state, dataclasses.asdict(self.tally), chosen)

    def resume(self, stage: str, abstract_state: Any) -> Any | None:
        """The state to continue `stage` from; None where the stage begins, and the tally enters it."""
        if self.resumed_step is not None and self.tally.stage == stage:
            return self.checkpoints.restore(self.resumed_step, abstract_state)
        self.tally.stage, self.tally.stage_step = stage, 0
        return None
