"""A model at work on problems: what it takes to sample from it, to judge what it says, and to read its accuracy.

A run is a sampler that trains as well (`run.Run`); the commands `sample` and `evaluate` need no more than this.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from reft_jax.algorithms.rollout import Rollout, SamplingParams, build_generate, build_layout, needs_layout
from reft_jax.algorithms.train_state import abstract_params, init_params, init_parts
from reft_jax.config import Config
from reft_jax.data.encoding import Prompt
from reft_jax.data.tokenizers import SpecialIds
from reft_jax.models.hf import load as hf
from reft_jax.models.hf.adapters import load_adapters
from reft_jax.models.lora import merge
from reft_jax.models.params import Params, select
from reft_jax.models.policy import Policy
from reft_jax.parallel.compilation import Programs
from reft_jax.parallel.processes import StopRequest, gather
from reft_jax.parallel.sharding import own_rows, rows_to_host
from reft_jax.problem import Problem
from reft_jax.records.checkpoint import restore_params
from reft_jax.records.console import ProgressDisplay
from reft_jax.reward.functions import RewardFunction
from reft_jax.reward.pool import ProgramRunner
from reft_jax.training.completion import Completion, Score, judge
from reft_jax.training.evaluation import Evaluation, evaluate


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampler:
    """A model with its problems, its reward and its compiled programs; made by `startup.open_sampler`.

    `problems` and `prompts` are by split (train, dev, test); a response is read up to `end_before` where that is set.
    """

    config: Config
    mesh: Mesh
    tokenizer: Any
    ids: SpecialIds
    problems: Mapping[str, list[Problem]]
    prompts: Mapping[str, list[Prompt]]
    score: Score
    runner: ProgramRunner | None
    console: ProgressDisplay
    stop: StopRequest
    end_before: str = ""
    programs: dict[str, Programs] = dataclasses.field(default_factory=dict)

    @functools.cached_property
    def policy(self) -> Policy:
        """The model, for building steps and parameters."""
        return Policy(self.config.model, self.mesh)

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

    def params_from_checkpoint(self, directory: str) -> Params:
        """Parameters {"decoder"} from another run's checkpoint."""
        abstract = abstract_params(self.policy, self.mesh, value_head=False, adapters=False)
        return restore_params(Path(directory), abstract)

    def fresh(self, *parts: str) -> Params:
        """Fresh parameters of some parts: `value_head`, and `lora` where the model is adapted."""
        abstract = abstract_params(self.policy, self.mesh, value_head=True)
        wanted = select(abstract, parts)
        return wanted and init_parts(self.policy, self.mesh, jax.random.key(self.config.seed), wanted)

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
            end_before=self.end_before,
        )
        shared = gather(list(zip(own.tolist(), completions)))
        return [completion for _, completion in sorted(itertools.chain(*shared), key=lambda pair: pair[0])]

    def generate(self, name: str, batch: int, sampling: SamplingParams) -> Programs:
        """Sampling programs by prompt bucket, kept under `name`."""
        generation = self.config.generation

        def build(prompt: int) -> Any:
            return build_generate(
                self.config.model,
                self.mesh,
                batch=batch,
                prompt=prompt,
                max_new_tokens=generation.max_new_tokens,
                sampling=sampling,
                eos=self.ids.ends,
                pad=self.ids.pad,
                scan_layers=generation.scan_layers,
                weight_layout=generation.weight_layout,
            )

        return self.add_programs(name, build, len(generation.prompt_buckets))

    def sampling_params(self, params: Params) -> Params:
        """What the sampling programs take: decoder and adapters, these 0 for a model into which they were merged."""
        adapted = select(params, ("decoder", "lora"))
        if self.config.model.lora.rank and "lora" not in adapted:
            adapted["lora"] = jax.tree.map(jnp.zeros_like, self.fresh("lora")["lora"])
        layout = (self.config.model, self.mesh, self.config.generation.weight_layout)
        if not needs_layout(*layout):
            return adapted
        return self.add_programs("layout", functools.partial(build_layout, *layout), 1)[()](adapted)

    def evaluate(self, params: Params, split: str) -> Evaluation:
        """Accuracy of `params` ({"decoder"}; a value head is ignored) on a split."""
        settings = self.config.evaluation
        sampling = SamplingParams(settings.temperature, settings.top_k, settings.top_p)
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
