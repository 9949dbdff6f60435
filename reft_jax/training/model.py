"""A model at work: its settings and devices, its compiled steps, and where its parameters come from."""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path

import jax
from jax.sharding import Mesh

from reft_jax.algorithms.steps import Sampling, sampling_of, steps
from reft_jax.algorithms.train_state import abstract_params, init_params, init_parts
from reft_jax.config import Config
from reft_jax.data.tokenizers import SpecialIds
from reft_jax.models.hf import load as hf
from reft_jax.models.hf.adapters import load_adapters
from reft_jax.models.lora import merge
from reft_jax.models.params import Params, in_form_of, select, stacked
from reft_jax.models.policy import Policy
from reft_jax.parallel.compilation import CompiledSteps
from reft_jax.parallel.processes import StopRequest
from reft_jax.records.checkpoint import restore_params


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model:
    """What every loop and every command works with."""

    config: Config
    """Of the run, the model's shape filled in."""
    mesh: Mesh
    ids: SpecialIds
    compiled: CompiledSteps
    stop: StopRequest
    """Asked between batches."""

    @functools.cached_property
    def policy(self) -> Policy:
        """The policy, for building parameters."""
        return Policy(self.config.model, self.mesh)

    @functools.cached_property
    def sampling(self) -> Sampling:
        """The sizes of sampling."""
        return sampling_of(self.config, self.mesh, self.ids)

    def with_schedules(self, schedules: Mapping[str, int]) -> "Model":
        """The model with the lengths of its stages' learning-rate schedules, in optimizer steps, known to its steps."""
        made = steps(self.config, self.mesh, ids=self.ids, schedules=schedules)
        compiled = CompiledSteps(made, say=self.compiled.say)
        return dataclasses.replace(self, compiled=compiled)

    def start_params(self) -> Params:
        """Parameters {"decoder"} that the first stage starts from: the checkpoint's, or fresh ones."""
        model = self.config.model
        if not model.path:
            key = jax.random.key(self.config.seed)
            return init_params(self.policy, self.mesh, key, value_head=False, adapters=False)
        abstract = stacked(self.abstract_decoder())["decoder"]
        directory = hf.resolve(model.path, model.revision)
        decoder = hf.load_decoder_params(directory, model, jax.tree.map(lambda x: x.sharding, abstract))
        params: Params = {"decoder": decoder}
        if not model.lora.path:
            return in_form_of(params, self.abstract_decoder())
        settings, lora = load_adapters(
            hf.resolve(model.lora.path, key="model.lora.path"), model, hf.model_type(directory)
        )
        return in_form_of(merge({"decoder": decoder, "lora": lora}, settings), self.abstract_decoder())

    def params_from_checkpoint(self, directory: Path) -> Params:
        """Parameters {"decoder"} from a checkpoint of this run or another one."""
        abstract = self.abstract_decoder()
        return in_form_of(restore_params(directory, stacked(abstract)), abstract)

    def abstract_decoder(self) -> Params:
        """Shapes, types and shardings of {"decoder"}."""
        return abstract_params(self.policy, self.mesh, value_head=False, adapters=False)

    def fresh_parts(self, *parts: str) -> Params:
        """Fresh parameters of some parts: `value_head`, and `lora` where the model is adapted."""
        abstract = abstract_params(self.policy, self.mesh, value_head=True)
        wanted = select(abstract, parts)
        return wanted and init_parts(self.policy, self.mesh, jax.random.key(self.config.seed), wanted)
