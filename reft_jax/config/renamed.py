"""What settings were called in earlier versions: refused, by a message that names what they are called now."""

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from reft_jax.config.files import parse_yaml

_STAGES = ("pretrain", "sft", "rl", "reward_model")

RENAMED: Mapping[str, str] = {
    "generation.weights": "generation.weight_layout",
    "generation.max_response": "generation.max_new_tokens",
    **{f"{stage}.optimizer.ramp_fraction": f"{stage}.optimizer.lr_warmup_fraction" for stage in _STAGES},
    **{f"{stage}.average": f"{stage}.loss_aggregation" for stage in ("pretrain", "sft", "rl")},
    "reward.program_timeout": "reward.program_timeout_s",
    "reward.program_memory": "reward.program_memory_mb",
    "reward.batch_timeout": "reward.batch_deadline_s",
    "evaluation.limit": "evaluation.dev_limit",
    "distributed.coordinator": "distributed.coordinator_address",
    "distributed.processes": "distributed.num_processes",
    "distributed.process": "distributed.process_id",
    "distributed.timeout": "distributed.heartbeat_timeout_seconds",
    **{f"{source}.answer_kind": "data.answer" for source in ("data.train", "data.dev", "data.test", "pretrain.source")},
    "logging.compilation_cache": "compilation_cache_dir",
    "evaluation.batch_size": "generation.slots",
    "logging.tensorboard": "logging.trackers",
}
"""Old dotted keys to new ones."""

_SOURCES = ("data.train", "data.dev", "data.test", "pretrain.source", "gold")  # the last of `reft_jax.select`

RENAMED_VALUES: Mapping[str, Mapping[str, str]] = {
    "generation.weight_layout": {"split": "sharded", "copied": "replicated"},
    "rl.loss_aggregation": {"responses": "sequence_mean", "tokens": "token_mean"},
    "sft.loss_aggregation": {"tokens": "token_mean", "microbatches": "microbatch_mean"},
    "pretrain.loss_aggregation": {"tokens": "token_mean", "microbatches": "microbatch_mean"},
    "reward.rules": {"sane": "lenient"},
    **{f"{source}.kind": {"reft": "reft_json"} for source in _SOURCES},
}
"""Old values to new ones, by today's dotted key."""


def old_names(settings: Any, directory: Path) -> Iterator[str]:
    """Yields a line for each setting that has an old name, or an old value.

    Args:
        settings: nested dictionaries, dotted keys, or both; a section may be the name of a YAML file, or YAML.
        directory: where such a file is looked for.
    """
    for key, value in _flat(settings, directory):
        new = RENAMED.get(key, key)
        now = RENAMED_VALUES.get(new, {}).get(str(value))
        if new != key:
            yield f"{key} is now {new}" + (f", and its value `{value}` is now `{now}`" if now else "")
        elif now:
            yield f"{key}: the value `{value}` is now `{now}`"


def _flat(settings: Any, directory: Path, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of all that is in the settings."""
    if prefix and isinstance(settings, str) and any(old.startswith(prefix) for old in (*RENAMED, *RENAMED_VALUES)):
        with contextlib.suppress(yaml.YAMLError, OSError, UnicodeDecodeError):
            file = directory / settings
            settings = parse_yaml(file.read_text(encoding="utf-8") if os.path.isfile(file) else settings)
    if isinstance(settings, Mapping):
        for key, value in settings.items():
            yield from _flat(value, directory, f"{prefix}{key}.")
    elif prefix:
        yield prefix.removesuffix("."), settings


def old_names_in_file(path: Path) -> str:
    """What is to be said of a file with old names; empty where it has none, or cannot be read.

    A run directory's own `config.yaml` is told by the checkpoints beside it.
    """
    try:
        lines = list(old_names(parse_yaml(path.read_text(encoding="utf-8")), path.parent))
    except (yaml.YAMLError, OSError, UnicodeDecodeError):
        return ""
    if not lines:
        return ""
    if path.name == "config.yaml" and (path.parent / "checkpoints").is_dir():
        said = (
            f"{path}: this run was made by an earlier version, and settings have been renamed since: name a fresh "
            "run_dir, or finish it with the version it was begun with"
        )
    else:
        said = f"{path}: settings have been renamed"
    return "\n".join((said, *lines))
