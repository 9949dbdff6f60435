"""From YAML files and dotted command-line overrides to a `Config`.

A file may be made of others: its key `config` lists them by paths from its own folder, and they are read as if given
before it. So no number of a study stands in two files. What a later file says wins, key by key, as on the command line.
"""

import contextlib
import dataclasses
import functools
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jsonargparse
import yaml

from reft_jax.config.settings import Config
from reft_jax.config.validation import validate


def load_config(
    args: Sequence[str] | None = None,
    *,
    prog: str = "python -m reft_jax.train",
    description: str = "Warm-up, PPO and evaluation of one run. Every key of its config:",
    adapt: Callable[[Config], Config] | None = None,
) -> Config:
    """Reads `--config FILE` and dotted overrides (`--rl.kl_coef 0.02`) from `args`, or from the command line.

    Prints what is wrong, naming the key, and exits with 2 on an unknown or ill-typed key or an impossible combination.

    Args:
        args: the command line's arguments.
        prog: the command, for its help.
        description: what it does.
        adapt: what the command makes of the settings, such as switching off the stages that it has not.
    """
    parser = _parser(prog, description)
    try:
        config, _ = parse_config(parser, args)
        config = adapt(config) if adapt else config
        validate(config)
    except ValueError as error:
        parser.error(str(error))
    return config


def config_parser(prog: str, description: str) -> Any:
    """A parser of `--config FILE` and dotted overrides, to which a command may add arguments of its own."""
    jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = jsonargparse.ArgumentParser(prog=prog, description=description)
    parser.add_argument(
        "--config",
        action=ConfigFile,
        help="YAML file; may be given several times, later ones win. Its key `config` lists files to read before it.",
    )
    parser.add_class_arguments(Config)
    return parser


_parser = functools.cache(config_parser)  # making one takes longer than all that `load_config` does with it


def parse_config(parser: Any, args: Sequence[str] | None = None) -> tuple[Config, Any]:
    """The config that a `config_parser` reads, not validated yet, and all that it reads, own arguments included."""
    settings = parser.instantiate(parser.parse_args(args))
    return Config(**{field.name: settings[field.name] for field in dataclasses.fields(Config)}), settings


def to_dict(config: Any) -> dict[str, Any]:
    """Nested plain dictionaries and lists, as they go to YAML."""
    return {key: list(value) if isinstance(value, tuple) else value for key, value in _items(config)}


def _items(config: Any) -> Iterator[tuple[str, Any]]:
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        yield field.name, to_dict(value) if dataclasses.is_dataclass(value) else value


def differences(old: Any, new: Any, prefix: str = "") -> Iterator[str]:
    """Dotted keys whose values differ between two nested dictionaries."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in dict.fromkeys((*old, *new)):
            yield from differences(old.get(key), new.get(key), f"{prefix}.{key}" if prefix else key)
    elif old != new:
        yield prefix


class ConfigFile(jsonargparse.ActionConfigFile):
    """The action of `--config`, with the key `config` in a file meaning what it means on the command line.

    jsonargparse itself reads such a key, but lets the named file replace whole sections, and drops a list of files.
    """

    def __call__(self, parser: Any, namespace: Any, value: Any, option_string: str | None = None) -> None:
        """Reads the files that `value` is made of, then `value` itself.

        Raises:
            TypeError: naming what is wrong.
        """
        if not os.path.isfile(value):  # settings in YAML, or a name that leads nowhere, which is told by its name
            super().__call__(parser, namespace, value, option_string)
            return
        for path, own in parts(Path(value)):
            with contextlib.chdir(path.parent):  # of a section that is the name of a file
                super().__call__(parser, namespace, path.name if own is None else own, option_string)


def parts(path: Path, inside: tuple[Path, ...] = ()) -> Iterator[tuple[Path, str | None]]:
    """The files that a config is made of, itself last, each with its YAML without `config`; None where it has none.

    Raises:
        TypeError: `config` is not a list of files that are there, or leads back to a file that it came from.
    """
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError:
        settings = None  # the reader says what is wrong
    if not isinstance(settings, dict) or "config" not in settings:
        yield path.absolute(), None
        return
    names, path = settings.pop("config"), path.absolute()
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise TypeError(f"{path}: config is {names!r}: it must be a list of files")
    for name in names:
        base = (path.parent / name).resolve()
        if not base.is_file():
            raise TypeError(f"{path}: config: there is no file {name!r} in {path.parent}")
        if base in (*inside, path.resolve()):
            raise TypeError(f"{path}: config: {name!r} is made of this file itself")
        yield from parts(base, (*inside, path.resolve()))
    yield path, yaml.safe_dump(settings, sort_keys=False)
