"""From YAML files and dotted command-line overrides to a `Config`.

A file may be made of others: its key `config` lists them by paths from its own folder, and they are read as if given
before it. So no number of a study stands in two files. What a later file says wins, key by key, as on the command line.
"""

import contextlib
import dataclasses
import functools
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import jsonargparse
import yaml

from reft_jax.config.faults import faults, suggestion
from reft_jax.config.files import parts
from reft_jax.config.paths import with_absolute_paths
from reft_jax.config.renamed import old_names, old_names_in_file
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

    Prints what is wrong, naming the key, and exits with 2 on an unknown, renamed or ill-typed key, a number out of its
    range or an impossible combination; of the last two, all at once.

    Args:
        args: the command line's arguments.
        prog: the command, for its help.
        description: what it does.
        adapt: what the command makes of the settings, such as switching off the stages that it has not.
    """
    parser = _cached_parser(prog, description)
    try:
        config, _ = parse_config(parser, args)
        config = adapt(config) if adapt else config
        validate(config)
    except ValueError as error:
        parser.refuse(str(error))
    return config


def config_parser(prog: str, description: str) -> Any:
    """A new parser of `--config FILE` and dotted overrides, to which a command may add arguments of its own."""
    parser = SettingsParser(prog=prog, description=description)
    parser.add_argument(
        "--config",
        action=ConfigFile,
        help="YAML file; may be given several times, later ones win. Its key `config` lists files to read before it, "
        "by paths from its own folder; all other relative paths are taken from where the command runs.",
    )
    parser.add_settings()
    return parser


_cached_parser = functools.cache(config_parser)  # building one takes longer than all that is done with it


def parse_config(parser: Any, args: Sequence[str] | None = None) -> tuple[Config, Any]:
    """The config that a `config_parser` reads, with absolute paths, not validated yet, and all that it reads.

    That includes the arguments that a command added.
    """
    settings = parser.instantiate(parser.parse_args(args))
    config = Config(**{field.name: settings[field.name] for field in dataclasses.fields(Config)})
    return with_absolute_paths(config), settings


def to_dict(config: Any) -> dict[str, Any]:
    """Nested plain dictionaries and lists, as they go to YAML."""
    return {key: _plain(value) for key, value in _items(config)}


def _plain(value: Any) -> Any:
    return [_plain(part) for part in value] if isinstance(value, tuple) else value


def _items(config: Any) -> Iterator[tuple[str, Any]]:
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        yield field.name, to_dict(value) if dataclasses.is_dataclass(value) else value


def differences(old: Any, new: Any, prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """Old and new value, by dotted key, of all that differs between two nested dictionaries."""
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return {prefix: (old, new)} if old != new else {}
    found: dict[str, tuple[Any, Any]] = {}
    for key in dict.fromkeys((*old, *new)):
        found |= differences(old.get(key), new.get(key), f"{prefix}.{key}" if prefix else key)
    return found


class SettingsParser(jsonargparse.ArgumentParser):
    """A parser of settings: its help shows their texts and ranges, and an old name is refused by the new one.

    No key may be abbreviated, for an old one may be the beginning of a new one.
    """

    def __init__(self, **settings: Any) -> None:
        jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)
        super().__init__(formatter_class=_HelpFormatter, allow_abbrev=False, **settings)
        self._given: list[str] = []
        self._has_settings = False  # of a run

    def add_settings(self) -> None:
        """Adds all settings of a run."""
        self.add_class_arguments(Config)
        self._has_settings = True

    def parse_args(  # type: ignore[override]  # as jsonargparse's own
        self, args: Sequence[str] | None = None, *others: Any, **named: Any
    ) -> Any:
        """As jsonargparse's."""
        self._given = sys.argv[1:] if args is None else list(args)
        return super().parse_args(self._given, *others, **named)

    def refuse(self, message: str) -> NoReturn:
        """Prints what is wrong with settings that could be read, and exits with 2."""
        super().error(message)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Prints all that is wrong and exits with 2; old names alone, where there are any: they explain the rest."""
        told = list(_old_names_given(self._given))
        if not told and self._has_settings:
            own = {action.dest for action in self._actions} - _SETTINGS
            told = list(faults(self._given, own))
        elif not told and "unrecognized arguments" in message.lower():
            told = [message + suggestion(self._given, [action.dest for action in self._actions])]
        super().error("\n".join(told) or message, ex)


def _old_names_given(args: Sequence[str]) -> Iterator[str]:
    """Yields what is to be said of old names on a command line, in its files and in those they are made of."""
    for place, arg in enumerate(args):
        key, equals, value = arg.removeprefix("--").partition("=")
        if not arg.startswith("--") or not key:
            continue
        value = value if equals else next(iter(args[place + 1 :]), "")
        if key != "config":
            yield from old_names({key: value}, Path())
        elif os.path.isfile(os.path.expanduser(value)):
            with contextlib.suppress(TypeError):  # the reader says what is wrong
                yield from filter(None, (old_names_in_file(path) for path, _ in parts(Path(value).expanduser())))
        else:
            with contextlib.suppress(yaml.YAMLError):
                yield from old_names(yaml.safe_load(value), Path())


_SETTINGS = {field.name for field in dataclasses.fields(Config)}


class _HelpFormatter(jsonargparse.DefaultHelpFormatter):
    def _format_usage(self, usage: Any, actions: Any, *others: Any, **named: Any) -> str:
        """The command's own arguments, and one for the settings, which would be 300 lines before what is wrong."""
        own = [x for x in actions if not x.option_strings or x.dest.partition(".")[0] not in _SETTINGS]
        text = super()._format_usage(usage, own, *others, **named)
        return text if len(own) == len(actions) else text.rstrip() + " [--KEY VALUE ...]\n\n"

    def _expand_help(self, action: Any) -> str:
        """`(type: int, more than 0, default: 1)` for `Annotated[int, more than 0]`."""
        pattern = r"type: Annotated\[(.+?)\]((?:, default: .*)?\))$"
        return re.sub(pattern, r"type: \1\2", super()._expand_help(action), flags=re.DOTALL)


class ConfigFile(jsonargparse.ActionConfigFile):
    """The action of `--config`, with the key `config` in a file meaning what it means on the command line.

    jsonargparse itself reads such a key, but lets the named file replace whole sections, and drops a list of files.
    """

    def __call__(self, parser: Any, namespace: Any, value: Any, option_string: str | None = None) -> None:
        """Reads the files that `value` is made of, then `value` itself.

        Raises:
            TypeError: naming what is wrong.
        """
        value = os.path.expanduser(value)
        if not os.path.isfile(value):  # settings in YAML, or a name that leads nowhere, which is told by its name
            super().__call__(parser, namespace, value, option_string)
            return
        for path, own in parts(Path(value)):
            with contextlib.chdir(path.parent):  # of a section that is the name of a file
                super().__call__(parser, namespace, path.name if own is None else own, option_string)
