"""Paths of the settings as they are kept: absolute, `~` replaced, so that a run means the same files from anywhere."""

import dataclasses
import os
from pathlib import Path
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
    return not _may_be_of_the_hub(name) or (os.path.isdir(name) and name != "embedded")


def _may_be_of_the_hub(name: str) -> bool:
    return not name.startswith(("/", "~", ".")) and name.count("/") <= 1


def local_folder(name: str, key: str) -> Path | None:
    """The folder of a name, with `~` expanded; None where there is none and the name may be an id of the hub.

    Args:
        name: as it was given.
        key: the setting that names it.

    Raises:
        FileNotFoundError: naming the key: there is no such folder, and a hub id does not look like this; or it is a
            file.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise FileNotFoundError(f"{key}: {name} is a file: name the folder of a model, or its hub id (owner/name)")
    if not _may_be_of_the_hub(name):
        raise FileNotFoundError(f"{key}: there is no folder {name}")
    return None
