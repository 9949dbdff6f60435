"""Paths of the settings as they are kept: absolute, `~` replaced, so that a run means the same files from anywhere."""

import dataclasses
import os
from typing import Any, TypeVar

from reft_jax.config.ranges import is_path
from reft_jax.config.settings import LoraConfig, ModelConfig, SourceConfig

T = TypeVar("T")


def with_absolute_paths(config: T) -> T:
    """The settings with their paths made absolute, relative ones taken from the working directory.

    A model's or tokenizer's name is a path where such a folder is there, or where it cannot be a hub id; a source's
    where its kind reads a file. An empty one stays empty, and a URL is left to `validate`.
    """
    if isinstance(config, SourceConfig):
        local = config.is_file or config.kind == "none"  # a file that another command may switch on
        return dataclasses.replace(config, path=absolute(config.path)) if local else config
    named = isinstance(config, ModelConfig | LoraConfig)
    changes: dict[str, Any] = {}
    for field in dataclasses.fields(config):  # type: ignore[arg-type]
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            changes[field.name] = with_absolute_paths(value)
        elif not is_path(field):
            continue
        elif isinstance(value, tuple):
            changes[field.name] = tuple(map(absolute, value))
        elif not named or looks_local(value):
            changes[field.name] = absolute(value)
    return dataclasses.replace(config, **changes)  # type: ignore[type-var]


def absolute(path: str) -> str:
    """The path from the root, `~` being the home; empty and URLs stay as they are."""
    return os.path.abspath(os.path.expanduser(path)) if path and "://" not in path else path


def looks_local(name: str) -> bool:
    """Whether the name of a model is that of a folder: it is there, or is no hub id (`owner/name`, or `name`)."""
    named = name.startswith(("/", "~", ".")) or name.count("/") > 1
    return named or (os.path.isdir(name) and name != "embedded")
