"""Which model a command asks, and with which settings: a checkpoint of a run, or the model of a config without a run.

The commands `sample`, `evaluate` and `probe` begin here: `read_source` reads the command line, `open_model` opens the
model.
"""

import contextlib
import dataclasses
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from reft_jax.config import (
    Config,
    DistributedConfig,
    MeshConfig,
    PretrainConfig,
    RewardModelConfig,
    RlConfig,
    SftConfig,
    SourceConfig,
    Split,
    parse_config,
)
from reft_jax.config.validation import check_lengths, require_files, validate
from reft_jax.data.chat import with_templates
from reft_jax.data.tokenizers import load_tokenizer, model_tokenizer
from reft_jax.files import user_path
from reft_jax.models.hf.load import require_model, resolve, resolve_model
from reft_jax.models.params import Params
from reft_jax.records.checkpoint import run_of
from reft_jax.training.lifecycle import Lifecycle, lifecycle
from reft_jax.training.sampler import Sampler
from reft_jax.training.startup import open_sampler, with_made_buckets


@dataclasses.dataclass(frozen=True)
class ModelSource:
    """A model and the problems to ask it.

    Attributes:
        config: settings, with all training switched off and no source but that of the split.
        checkpoint: folder of RUN_DIR/checkpoints; None is the model of `config.model.path`.
        split: of the problems.
        recipe: reinforcement as the run, or the config, has it; in `config` it is switched off.
    """

    config: Config
    checkpoint: Path | None
    split: Split
    recipe: RlConfig = RlConfig()

    @property
    def name(self) -> str:
        """The model: the checkpoint's folder, behind any link to it, or the path and revision of the config."""
        model = self.config.model
        return str(self.checkpoint.resolve()) if self.checkpoint else f"{model.path}@{model.revision}"

    def files(self) -> Path:
        """The folder with the model's Hugging Face files, if it has any."""
        model = self.config.model
        return run_of(self.checkpoint) / "model" if self.checkpoint else resolve(model.path, model.revision)

    def tokenizer(self) -> Any:
        """The run's tokenizer, or the config's."""
        if self.checkpoint:
            return load_tokenizer(str(run_of(self.checkpoint) / "tokenizer"), "main")
        return model_tokenizer(self.config.model)

    def params(self, sampler: Sampler) -> Params:
        """Parameters {"decoder"}, on the sampler's mesh.

        Raises:
            ValueError: the folder holds something else than a model of the run.
        """
        if not self.checkpoint:
            return sampler.model.start_params()
        try:
            return sampler.model.params_from_checkpoint(self.checkpoint)
        except (ValueError, KeyError) as error:
            raise ValueError(
                f"{self.checkpoint} holds no decoder of the run's shape: give one such as RUN_DIR/checkpoints/rl_best"
            ) from error


def read_source(parser: Any, args: Sequence[str] | None, paths: Sequence[str], split: Split) -> tuple[ModelSource, Any]:
    """The source that a command line names, and all that was parsed.

    A run's own settings come first, files and overrides of the command line over them; but for its devices and
    processes, which were the training's.

    Args:
        parser: a `config_parser`.
        args: the command line.
        paths: of it the checkpoint, if there is one.
        split: of the problems.

    Raises:
        FileNotFoundError: there is no such checkpoint, or no such file of problems.
        ValueError: neither checkpoint nor model is named, or a reward model is; or settings that cannot work, by key.
    """
    checkpoint = user_path(paths[0]) if paths else None
    if checkpoint:
        given = sys.argv[1:] if args is None else args
        args = ["--config", str(run_of(checkpoint) / "config.yaml"), *own_devices(), *given]
    config, options = parse_config(parser, args)
    if not checkpoint and not config.model.path:
        raise ValueError("no model: name a folder of RUN_DIR/checkpoints, or a config with model.path by --config")
    recipe, config = config.rl, without_training(config, split)
    validate(config, training=False)
    require_files(config)
    key = "train" if split == "dev" and config.data.dev.kind == "none" else split  # dev may be a part of train
    if getattr(config.data, key).kind == "none":
        raise ValueError(f"data.{key}.kind is `none`: there are no problems to ask")
    source = ModelSource(config, checkpoint, split, recipe)
    templates = config.data.templates
    if templates.kind == "chat" or templates.bos != "auto":  # strings are used as they are, without a tokenizer
        source = dataclasses.replace(source, config=with_templates(config, source.tokenizer()))
    return source, options


def drawing(source: ModelSource, samples: int, temperature: float, top_k: int, top_p: float) -> ModelSource:
    """The source with another way to draw tokens, and so many of them for a question.

    Raises:
        ValueError: naming the number that is out of its range.
    """
    how = dataclasses.replace(source.config.evaluation, temperature=temperature, top_k=top_k, top_p=top_p)
    asked = dataclasses.replace(source.config.rl, samples_per_question=samples)
    config = dataclasses.replace(source.config, evaluation=how, rl=asked)
    validate(config, training=False)
    return dataclasses.replace(source, config=config)


def own_devices() -> list[str]:
    """Overrides that forget the devices and processes of a run."""
    defaults = {"mesh": MeshConfig(), "distributed": DistributedConfig()}
    values = ((f"--{key}.{name}", value) for key, part in defaults.items() for name, value in vars(part).items())
    return [text for key, value in values for text in (key, str(value).lower())]


def without_training(config: Config, split: Split) -> Config:
    """The config of a command that trains nothing: no stages, no adapters, no problems but those of the split."""
    data, model, none = config.data, config.model, SourceConfig()
    train, dev, test = (none, none, data.test) if split == "test" else (data.train, data.dev, none)
    return dataclasses.replace(
        config,
        pretrain=PretrainConfig(),
        sft=SftConfig(schedule_epochs=0),
        rl=RlConfig(epochs=0),
        reward_model=RewardModelConfig(),
        data=dataclasses.replace(data, train=train, dev=dev, test=test),
        model=dataclasses.replace(model, lora=dataclasses.replace(model.lora, rank=0)),
    )


@contextlib.contextmanager
def open_model(source: ModelSource, *, stopped: str = "stopped as asked") -> Iterator[tuple[Sampler, Params]]:
    """The model at work, with its parameters {"decoder"}; begins and ends the process, see `lifecycle`.

    Args:
        source: the model and its problems.
        stopped: what is said where the process was asked to stop.
    """
    with lifecycle(source.config, stopped) as command:
        sampler = command.open(_open(source, command))
        params = source.params(sampler)
        command.begin(sampler.model.mesh)
        yield sampler, params


@contextlib.contextmanager
def _open(source: ModelSource, command: Lifecycle) -> Iterator[Sampler]:
    config = source.config
    if not source.checkpoint:
        require_model(config.model)
    tokenizer = source.tokenizer()
    if not source.checkpoint:  # a run's config has the shape
        config = dataclasses.replace(config, model=resolve_model(config.model, tokenizer.get_vocab()))
    config = with_made_buckets(config, tokenizer)
    check_lengths(config)
    with open_sampler(config, tokenizer, command.stop, source.files(), splits=(source.split,)) as sampler:
        if not sampler.problems[source.split]:
            raise ValueError(f"no problems in {source.split}: data.dev_fraction is {config.data.dev_fraction}")
        yield sampler
