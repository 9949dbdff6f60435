"""From YAML files and dotted command-line overrides to a `Config`.

A file may be made of others: its key `config` lists them by paths from its own folder, and they are read as if given
before it. So no number of a study stands in two files. What a later file says wins, key by key, as on the command line.
"""

import argparse
import contextlib
import dataclasses
import functools
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import jsonargparse
import yaml

from reft_jax.config.faults import (
    check_section,
    faults,
    fields_of,
    flat,
    last_given,
    located,
    misshapen,
    range_fault,
    sections_of,
    suggestion,
    unreadable_files,
    unreadable_sections,
    words_of_type,
)
from reft_jax.config.files import find, not_found, parse_yaml, parts
from reft_jax.config.invocation import named, program
from reft_jax.config.lists import BY_KIND, Fields, given_twice, in_settings, item_type, on_command_line
from reft_jax.config.paths import with_absolute_paths
from reft_jax.config.ranges import AUTO
from reft_jax.config.renamed import old_names, old_names_in_file
from reft_jax.config.settings import Config
from reft_jax.config.validation import validate

NOTHING_GIVEN = (
    "there are no settings: name a config, such as --config quickstart; python -m reft_jax.init writes one for a model "
    "and data of your own"
)


def load_config(
    args: Sequence[str] | None = None,
    *,
    prog: str = "",
    description: str = "Warm-up, reinforcement and evaluation of one run. The same command with the same run_dir "
    "continues it, and prints its table again when it is finished.",
    adapt: Callable[[Config], Config] | None = None,
) -> Config:
    """Reads `--config FILE` and dotted overrides (`--rl.kl_coef 0.02`) from `args`, or from the command line.

    Prints what is wrong, naming the key, and exits with 2 on an unknown, renamed or ill-typed key, a number out of its
    range or an impossible combination; of the last two, all at once.

    Args:
        args: the command line's arguments.
        prog: the command, for its help; `train`, where it is empty.
        description: what it does.
        adapt: what the command makes of the settings, such as switching off the stages that it has not.
    """
    parser = _cached_parser(prog or program("train"), description)
    try:
        config, _ = parse_config(parser, args)
        config = adapt(config) if adapt else config
        validate(config)
    except ValueError as error:
        if not last_given(parser.given):
            parser.refuse(named(NOTHING_GIVEN))
        parser.refuse("\n".join(located(str(error).splitlines(), last_given(parser.given))))
    return config


def config_parser(prog: str, description: str) -> Any:
    """A new parser of `--config FILE` and dotted overrides, to which a command may add arguments of its own."""
    parser = SettingsParser(prog=prog, description=description)
    parser.add_argument(
        "--config",
        action=ConfigFile,
        help="YAML file, or the name of a config of the package, such as `quickstart` or `overlays/one_gpu`; may be "
        "given several times, later ones win. Its key `config` lists files to read before it, by paths from its own "
        "folder; all other relative paths are taken from where the command runs",
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
    """Nested plain dictionaries and lists, as they go to YAML, and as a config file has them."""
    return {key: _plain(value) for key, value in _items(config)}


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return "auto" if value == AUTO else [_plain(part) for part in value]
    return value


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

    `--help` has what the command has of its own, `--help-all` all settings of a run as well. No key may be abbreviated,
    for an old one may be the beginning of a new one.
    """

    def __init__(self, *, description: str | None = "", **settings: Any) -> None:
        jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)
        super().__init__(
            description=named(description or ""), formatter_class=_HelpFormatter, allow_abbrev=False, **settings
        )
        self.given: list[str] = []
        self._has_settings = False  # of a run
        self._shows_all = False

    def add_settings(self) -> None:
        """Adds all settings of a run."""
        self.add_class_arguments(Config)
        self._has_settings = True

    def parse_args(  # type: ignore[override]  # as jsonargparse's own
        self, args: Sequence[str] | None = None, **named: Any
    ) -> Any:
        """As jsonargparse's; a list may be several arguments, see `lists`."""
        self.given = sys.argv[1:] if args is None else list(args)
        if self._has_settings:
            bare = any(not action.option_strings for action in self._actions)
            self.given = on_command_line(self.given, _fields(), positionals=bare)
            if any(unreadable_sections(self.given, _sections())):
                self.error("")
        if twice := given_twice(self.given, _list_keys(self, _fields() if self._has_settings else {})):
            self.refuse(twice)
        parsed = self._parsed(**named)
        told = [range_fault(action.dest, action._typehint, parsed[action.dest]) for action in self._own_typed()]
        if any(told):
            self.refuse("\n".join(filter(None, told)))
        return parsed

    def _parsed(self, **named: Any) -> Any:
        """The defaults, and over them what is given.

        jsonargparse itself would take every default through each of its passes, in which it looks for each key among
        all keys: three times the time. To print a config it needs the defaults.
        """
        if any(arg.startswith("--print_config") for arg in self.given):
            return super().parse_args(self.given, **named)
        parsed = self._all_defaults.clone()
        parsed.update(super().parse_args(self.given, defaults=False, **named))
        return parsed

    @functools.cached_property
    def _all_defaults(self) -> Any:
        return self.get_defaults(skip_validation=True)

    def format_help(self, *others: Any) -> str:
        """The command's own arguments first; settings of a run, where all are to be shown."""
        with contextlib.ExitStack() as stack:
            for group in self._action_groups:
                stack.callback(setattr, group, "_group_actions", group._group_actions)
                shown = [x for x in group._group_actions if self._shows_all or not _is_setting(x)]
                group._group_actions = sorted(shown, key=_of_every_command)
            text = super().format_help(*others)
        hidden = [x.option_strings[0] for x in self._actions if _is_setting(x) and "." in x.dest]
        if self._shows_all or not hidden:
            return text
        return f"{text}\n{len(hidden)} settings of a run are options too, such as {hidden[0]}: --help-all shows them.\n"

    def refuse(self, message: str) -> NoReturn:
        """Prints what is wrong with settings that could be read, and exits with 2."""
        own = "--help shows the options" if self._own_typed() else ""
        keys = "--help-all every key" if own else "--help-all shows every key"
        tip = ", ".join(filter(None, (own, keys if any(map(_is_setting, self._actions)) else "")))
        _refuse(self, f"tip: {self.prog} {tip}, with range and default", f"error: {message}")

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Prints all that is wrong and exits with 2; old names alone, where there are any: they explain the rest."""
        told = list(_old_names_given(self.given))
        if not told and self._has_settings:
            own = {action.dest for action in self._actions} - _SETTINGS
            unreadable = (*unreadable_sections(self.given, _sections()), *unreadable_files(self.given))
            key_of = lambda line: line.partition(" ")[0]
            found = list(faults(self.given, own))
            known = {key_of(line) for line in found if key_of(line) in BY_KIND}  # it knows the kinds
            unreadable = tuple(line for line in unreadable if key_of(line) not in known)
            before = {key_of(line) for line in unreadable}
            told = list(dict.fromkeys([*unreadable, *(line for line in found if key_of(line) not in before)]))
        elif not told and "unrecognized arguments" in message.lower():
            meant = suggestion(self.given, [action.dest for action in self._actions])
            told = [message + (meant or ": the command has no such option")]
        self.refuse("\n".join(told) or self._reworded(message))

    def _reworded(self, message: str) -> str:
        """What jsonargparse says of one argument, as `faults` would say it."""
        if required := re.fullmatch(r"(the following arguments are required: )(.*)", message, re.IGNORECASE):
            options = {action.dest: action.option_strings for action in self._actions}
            return required[1] + ", ".join((options.get(name) or [name])[0] for name in required[2].split(", "))
        if short := re.fullmatch(r"unrecognized arguments: (-[a-z]\w+.*)", message, re.IGNORECASE):
            return f"{short[1]} belongs to no option: keys have two dashes, such as -{short[1]}"
        if bare := re.fullmatch(r"unrecognized arguments: ([^-].*)", message, re.IGNORECASE):
            return f"{bare[1]} belongs to no option: write --key value, or --key 36 48 and --key '[36, 48]' for a list"
        if found := re.match(r'Parser key "([\w.]+)".*(?:Got|Given) value: (.*?)$', message, re.DOTALL):
            for action in self._actions:
                if action.dest == found[1] and hasattr(action, "_typehint"):
                    return f"--{found[1]} is {found[2]!r}: it must be {words_of_type(action._typehint)}"
        return message

    def add_class_arguments(self, theclass: Any, nested_key: str | None = None, **named: Any) -> Any:
        """As jsonargparse's; keeps in mind which are settings of a run."""
        before = len(self._actions)
        added = super().add_class_arguments(theclass, nested_key, **named)
        if theclass is Config or nested_key in _SETTINGS:
            for action in self._actions[before:]:
                action.of_a_run = True  # type: ignore[attr-defined]
            self.add_argument("--help-all", action=_HelpAll, help="as --help, with every key of a run's config")
        return added

    def _own_typed(self) -> list[Any]:
        return [x for x in self._actions if hasattr(x, "_typehint") and not _is_setting(x) and "." not in x.dest]


class CommandParser(argparse.ArgumentParser):
    """A parser of what a command has of its own, which hands all other arguments to `load_config`."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse's; `--help-all` prints the keys of a run's config and ends."""
        if "--help-all" in (sys.argv[1:] if args is None else args):
            text = "Every key of a run's config, which this command takes beside its own options:"
            _cached_parser(self.prog, text).parse_args(["--help-all"])
        if told := given_twice(sys.argv[1:] if args is None else args, _list_keys(self, {})):
            self.error(told)
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """Prints what is wrong and exits with 2."""
        _refuse(self, f"tip: {self.prog} --help shows every option", f"error: {message}")


def _refuse(parser: argparse.ArgumentParser, *lines: str) -> NoReturn:
    """Prints the usage, where it is a line, and the lines, and exits with 2."""
    usage = parser.format_usage().strip()
    sys.stderr.write("\n".join((usage if "\n" not in usage else f"usage: {parser.prog} ...", *lines)) + "\n")
    sys.exit(2)


def _list_keys(parser: argparse.ArgumentParser, fields: Fields) -> list[str]:
    """Names of the lists that a parser takes behind a name: those of a command's own, and of a run's settings."""
    own = [x.dest for x in parser._actions if x.option_strings and x.nargs in ("+", "*")]
    return [*own, *(key for key, field in fields.items() if item_type(field))]


def _is_setting(action: Any) -> bool:
    """Whether an argument is a setting of a run, rather than one that the command has of its own."""
    return getattr(action, "of_a_run", False)


class _HelpAll(argparse._HelpAction):
    """Prints all settings and ends."""

    def __call__(self, parser: Any, *others: Any) -> NoReturn:
        parser._shows_all = True
        try:
            parser.print_help()
        finally:
            parser._shows_all = False
        sys.exit(0)


def _of_every_command(action: Any) -> bool:
    """Sorts what a command has of its own before what all have."""
    return action.dest in ("help", "help_all", "config", "print_config")


@functools.cache
def _fields() -> dict[str, "dataclasses.Field[Any]"]:
    return fields_of(Config)


@functools.cache
def _sections() -> set[str]:
    return sections_of(Config)


def _old_names_given(args: Sequence[str]) -> Iterator[str]:
    """Yields what is to be said of old names on a command line, in its files and in those they are made of."""
    for place, arg in enumerate(args):
        key, equals, value = arg.removeprefix("--").partition("=")
        if not arg.startswith("--") or not key:
            continue
        value = value if equals else next(iter(args[place + 1 :]), "")
        if key != "config":
            yield from old_names({key: value}, Path())
        elif file := find(value):
            with contextlib.suppress(TypeError):  # the reader says what is wrong
                yield from filter(None, (old_names_in_file(path) for path, _ in parts(file)))
        else:
            with contextlib.suppress(yaml.YAMLError):
                yield from old_names(parse_yaml(value), Path())


_SETTINGS = {field.name for field in dataclasses.fields(Config)}


class _HelpFormatter(jsonargparse.DefaultHelpFormatter):
    def _format_usage(self, usage: Any, actions: Any, *others: Any, **named: Any) -> str:
        """The command's own arguments, and one for the settings, which would be 300 lines before what is wrong."""
        actions = [x for x in actions if not isinstance(x, _HelpAll)]
        own = [x for x in actions if not _is_setting(x)]
        text = super()._format_usage(usage, own, *others, **named)
        return text if len(own) == len(actions) else text.rstrip() + " [--KEY VALUE ...]\n\n"

    def _expand_help(self, action: Any) -> str:
        """`(type: int, more than 0, default: 1)` for `Annotated[int, more than 0]`."""
        pattern = r"type: Annotated\[(.+?)\]((?:, default: .*)?\))$"
        text = re.sub(pattern, r"type: \1\2", super()._expand_help(action), flags=re.DOTALL)
        text = re.sub(r"type: (?:str|Literal\[[^]]*\])(, default:|\)$)", r"\1", text)
        text = text.replace("(, ", "(").replace("(required, )", "(required)")
        return re.sub(r"default: (\s+)\)$", lambda blank: f"default: {blank[1]!r})", text)


class ConfigFile(jsonargparse.ActionConfigFile):
    """The action of `--config`, with the key `config` in a file meaning what it means on the command line.

    jsonargparse itself reads such a key, but lets the named file replace whole sections, and drops a list of files.
    """

    def __call__(self, parser: Any, namespace: Any, value: Any, option_string: str | None = None) -> None:
        """Reads the files that `value` is made of, then `value` itself.

        Raises:
            TypeError: naming what is wrong.
        """
        if not (file := find(value)):
            inline = _inline(value)
            if inline is None:
                raise TypeError(f"--config: {not_found(value)}")
            super().__call__(parser, namespace, _dump(_checked(inline)), option_string)
            return
        for path, settings in parts(file):
            with contextlib.chdir(path.parent):  # of a section that is the name of a file
                super().__call__(parser, namespace, _dump(_checked(settings)), option_string)


def _checked(settings: dict[str, Any]) -> Any:
    """The settings of a file with lists where lists are wanted; nothing is null, and no section a value.

    Raises:
        TypeError: naming the first key of which that is not so.
    """
    for key, given in flat(settings, _sections(), ""):
        if told := misshapen(key, given.value, _fields(), _sections()):
            raise TypeError(told)
        if key in _sections():
            check_section(key, given.value)
    return in_settings(settings, _fields())


def _inline(value: str) -> dict[str, Any] | None:
    """The settings that are given in place of a file's name, if they are."""
    with contextlib.suppress(yaml.YAMLError):
        settings = parse_yaml(value)
        return settings if isinstance(settings, dict) else None
    return None


def _dump(settings: Any) -> str:
    return yaml.safe_dump(settings, sort_keys=False)
