"""What a run says of itself: with what it begins, how it is continued, and what can be done with it when it is over."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax

from reft_jax.config import Config
from reft_jax.config.invocation import shell_line, short_path
from reft_jax.models.hf.export import fresh_fields
from reft_jax.models.params import Params
from reft_jax.training.model import Model
from reft_jax.training.state import Stage

MODELS = ("rl_best", "sft_best", "sft", "warmup", "pretrain")
"""Names of the models that a run can leave, the one that most will want first."""


def continuation(config: Config, line: str) -> str:
    """How a run is continued, to go after "stopped as asked; ".

    Args:
        config: of the run.
        line: the command of this process, as a shell takes it.
    """
    said = f"the same command continues in {config.run_dir}"
    return f"{said}, on every process" if config.distributed.coordinator_address else f"{said}:\n  {line}"


def beginning(model: Model, params: Params, rows: dict[str, int], stages: Sequence[Stage], line: str) -> Iterator[str]:
    """Yields the lines with which a run begins.

    Args:
        model: at work.
        params: abstract parameters of the policy, {"decoder"}.
        rows: problems by split.
        stages: of the run.
        line: the command that continues it.
    """
    devices, config = model.mesh.devices.flatten(), model.config
    shape = ", ".join(f"{name} {size}" for name, size in model.mesh.shape.items())
    processes = f" of {jax.process_count()} processes" if jax.process_count() > 1 else ""
    yield f"devices: {devices.size} {devices[0].device_kind}{processes}; mesh: {shape}"
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
    source = config.model.path or "made from scratch"
    yield f"model: {source}, {count:,} parameters, computed in {config.model.dtype}"
    yield f"data: {', '.join(f'{split} {count:,}' for split, count in rows.items() if count)} problems"
    steps = (f"{stage.name} {stage.stop:,} {'iterations' if stage.name == 'rl' else 'steps'}" for stage in stages)
    yield f"stages: {', '.join(text for text, stage in zip(steps, stages) if stage.stop)}"
    yield f"folder: {config.run_dir}; this continues it: {line}"


def what_next(config: Config) -> Iterator[str]:
    """Yields the lines with which a finished run ends: where things are, and commands as a shell takes them."""
    folder = Path(config.run_dir)
    made = [name for name in MODELS if (folder / "checkpoints" / name).exists()]
    yield f"{short_path(folder)}: models in checkpoints/ ({', '.join(made)}), metrics.jsonl, summary.json"
    yield "next:"
    yield "  " + shell_line("report", [short_path(folder), "--out", short_path(folder / "report.html")])
    if not made:
        return
    model, split = short_path(folder / "checkpoints" / made[0]), "dev" if config.data.test.kind == "none" else "test"
    samples = short_path(folder / f"{made[0]}_{split}.jsonl")
    yield "  " + shell_line("evaluate", [model, "--split", split])
    yield "  " + shell_line("sample", [model, samples, "--split", split, "--samples", "8"])
    if can_be_exported(config):
        yield "  " + shell_line("export", [model, short_path(folder / "exported")])


def can_be_exported(config: Config) -> bool:
    """Whether transformers has an architecture for the model of a run."""
    if config.model.path:
        return True
    try:
        fresh_fields(config.model.decoder)
    except ValueError:
        return False
    return True
