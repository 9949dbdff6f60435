"""All that is wrong with a command line and its files at once: unknown keys, values of another type or out of range.

The parser itself stops at the first fault. What is said here is said after it has refused, so that it costs nothing
where nothing is wrong.
"""

import contextlib
import dataclasses
import difflib
import functools
import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin

import jsonargparse
import yaml

from reft_jax.config.files import find, not_found, parse_yaml, parts, read_yaml
from reft_jax.config.lists import BY_KIND, as_list, is_kind
from reft_jax.config.ranges import Range
from reft_jax.config.settings import Config
from reft_jax.config.validation import range_errors


class Given(NamedTuple):
    """A value, and the file that it was given in; empty for the command line."""

    value: Any
    file: str


def faults(args: Sequence[str], known: Collection[str]) -> Iterator[str]:
    """Yields a line for each setting, on a command line or in its files, that is none or cannot have its value.

    Args:
        args: the command line's arguments.
        known: names of the arguments that the command has besides the settings.
    """
    fields, sections = fields_of(Config), sections_of(Config)
    wanted: dict[str, Given] = {}
    for key, given in given_settings(args, sections):
        if told := misshapen(key, given.value, fields, sections):
            yield told + _where(given)
        elif key in fields:
            wanted[key] = given._replace(value=as_list(fields[key], given.value))
        elif key not in known and key not in sections:
            yield no_setting(key, [*known, *fields]) + _where(given)
    while wanted:
        try:
            readable = _checker().parse_object(_nested(wanted), defaults=False)
            break
        except (jsonargparse.ArgumentError, TypeError) as error:
            found = re.search(r'key "([\w.]+)"', str(error))
            if not found or found[1] not in wanted:
                return
            given = wanted.pop(found[1])
            yield f"{found[1]} is {given.value!r}: it must be {words_of(fields[found[1]])}{_where(given)}"
    if wanted:
        settings = _defaults().clone()
        settings.update(readable)
        settings = _checker().instantiate(settings)
        config = Config(**{field.name: settings[field.name] for field in dataclasses.fields(Config)})
        yield from located(range_errors(config, ""), wanted)


def misshapen(key: str, value: Any, fields: Mapping[str, Any], sections: Collection[str]) -> str:
    """What is to be said of a setting without a value, or of a value where keys are wanted; mostly nothing."""
    if key in fields and value is None:
        return f"{key} is null: it must be {words_of(fields[key])}; leave the key out for its default"
    if key in BY_KIND and isinstance(value, str) and not is_kind(key, value, fields) and not Path(value).is_file():
        return (
            f"{key} is {value!r}: it must be {words_of(fields[f'{key}.kind'])}, a section of keys, or a file with them"
        )
    if key in sections and not isinstance(value, str | Mapping):  # text names a file
        inner = next(name for name in fields if name.startswith(key + "."))
        return f"{key} is {'null' if value is None else repr(value)}: it must be a section of keys, such as {inner}"
    return ""


def located(lines: Iterable[str], given: Mapping[str, Given]) -> Iterator[str]:
    """The lines that say what is wrong with settings, each with the file that the key at its beginning was given in."""
    for line in lines:
        key = line.partition(" ")[0]
        yield line + (_where(given[key]) if key in given else "")


def last_given(args: Sequence[str]) -> dict[str, Given]:
    """The settings of a command line and its files, each as it was given last."""
    return dict(given_settings(args, sections_of(Config)))


def unreadable_files(args: Sequence[str]) -> Iterator[str]:
    """Yields a line for each config of a command line that cannot be read, or is made of one that cannot."""
    for place, arg in enumerate(args):
        key, equals, text = arg.partition("=")
        if key != "--config":
            continue
        text = text if equals else next(iter(args[place + 1 :]), "")
        try:
            if file := find(text):
                for path, settings in parts(file):
                    for name, given in flat(settings, sections_of(Config), str(path)):
                        if name in sections_of(Config):
                            check_section(name, given.value, path)
            elif not isinstance(parse_yaml(text), dict):
                yield f"--config: {not_found(text)}" if text else "--config is empty: name a YAML file"
        except TypeError as error:
            yield str(error)
        except yaml.YAMLError as error:
            yield f"--config {text!r} is neither a file nor YAML: {getattr(error, 'problem', error)}"


WHOLE_POLICY = (
    "reinforcement samples from the whole policy, for its log-probs are those of the whole; evaluation.top_k and "
    "evaluation.top_p draw from a part of it"
)
"""Why sampling in training has no top-k and no top-p."""


def no_setting(key: str, known: Collection[str]) -> str:
    """What is said of a key that is none of the known ones, with the one that is most like it.

    Sections being alike is not enough: the last names must be, too.
    """
    last = lambda name: name.rpartition(".")[2]
    if key.startswith(("rl.", "generation.")) and last(key) in ("top_k", "top_p", "min_p"):
        return f"{key} is no setting: {WHOLE_POLICY}"
    like = lambda name: last(name).startswith(last(key)) or difflib.SequenceMatcher(None, last(key), last(name)).ratio()
    near = [name for name in known if "." not in key or like(name) >= 0.5]
    close = difflib.get_close_matches(key, near, n=1, cutoff=0.7 if "." not in key else 0.6)
    close = close or [name for name in known if name.endswith("." + key)]
    return f"{key} is no setting{f': did you mean {close[0]}?' if close else ''}"


def check_section(key: str, value: Any, file: Path | None = None) -> None:
    """Reads the text that is given in place of a section: the name of a file of its keys, or YAML.

    Args:
        key: the section.
        value: of another kind than text it is left to `misshapen`; a section's kind stands for it.
        file: the config that it stands in; none on the command line.

    Raises:
        TypeError: it is neither of the two, or holds a key twice or one that is no setting.
    """
    fields, where = fields_of(Config), f" ({file})" if file else ""
    if not isinstance(value, str) or is_kind(key, value, fields):
        return
    such = f"{key}.path" if f"{key}.path" in fields else next(name for name in fields if name.startswith(f"{key}."))
    told = f"{key} is {value!r}: it must be a section of keys, such as {such}, or a YAML file of them{where}"
    path = (file.parent if file else Path()) / Path(value).expanduser()
    if not os.path.isfile(path):
        try:
            settings = parse_yaml(value)
        except yaml.composer.ComposerError as error:
            raise TypeError(f"{key} is {value!r}: {error.problem}{where}") from None
        except yaml.YAMLError:
            raise TypeError(told) from None
    elif path.suffix in (".yaml", ".yml", ".json"):
        settings, where = read_yaml(path), f" ({path})"
    else:
        raise TypeError(told)
    if not isinstance(settings, Mapping):
        raise TypeError(told)
    sections = sections_of(Config)
    for name, _ in flat({key: settings}, sections, ""):
        if name not in fields and name not in sections:
            raise TypeError(no_setting(name, fields) + where)


def unreadable_sections(args: Sequence[str], sections: Collection[str]) -> Iterator[str]:
    """Yields a line for each file that a command line names in place of a section and that cannot be read."""
    for place, arg in enumerate(args):
        key, equals, text = arg.removeprefix("--").partition("=")
        if arg.startswith("--") and key in sections:
            try:
                check_section(key, text if equals else next(iter(args[place + 1 :]), ""))
            except TypeError as error:
                yield str(error)


def range_fault(name: str, kind: Any, value: Any) -> str:
    """What is to be said of a command's own option whose value is out of the range that stands at its type."""
    allowed = next((note for note in getattr(kind, "__metadata__", ()) if isinstance(note, Range)), None)
    if not allowed or value is None or allowed.holds(value):
        return ""
    return f"--{name} is {value}: it must be {allowed.words}"


def suggestion(args: Sequence[str], known: Collection[str]) -> str:
    """What was meant by the first option that is not among the known ones; nothing where none is like it."""
    names = (arg.removeprefix("--").partition("=")[0] for arg in args if arg.startswith("--"))
    close = [difflib.get_close_matches(name, known, n=1) for name in names if name not in known]
    return f": did you mean --{close[0][0]}?" if close and close[0] else ""


def given_settings(args: Sequence[str], sections: Collection[str]) -> Iterator[tuple[str, Given]]:
    """Yields dotted keys and values of a command line and its files, in the order in which they count."""
    for place, arg in enumerate(args):
        key, equals, text = arg.removeprefix("--").partition("=")
        if not arg.startswith("--") or not key:
            continue
        text = text if equals else next(iter(args[place + 1 :]), "")
        if key == "config" and (file := find(text)):
            with contextlib.suppress(TypeError):  # told by `unreadable_files`
                for path, settings in parts(file):
                    yield from flat(settings, sections, str(path))
        elif key == "config" or key in sections:
            with contextlib.suppress(yaml.YAMLError):
                settings = parse_yaml(text)
                yield from flat(settings if key == "config" else {key: settings}, sections, "")
        else:
            yield key, Given(text, "")


def flat(settings: Any, sections: Collection[str], file: str, prefix: str = "") -> Iterator[tuple[str, Given]]:
    """Yields dotted keys and values of nested settings; what is no section stays whole."""
    if isinstance(settings, Mapping) and (not prefix or prefix in sections):
        for key, value in settings.items():
            yield from flat(value, sections, file, f"{prefix}.{key}" if prefix else str(key))
    elif prefix:
        yield prefix, Given(settings, file)


def fields_of(kind: Any, prefix: str = "") -> dict[str, "dataclasses.Field[Any]"]:
    """The field of each setting by its dotted key."""
    found: dict[str, dataclasses.Field[Any]] = {}
    for field in dataclasses.fields(kind):
        inner: Any = field.type
        key = prefix + field.name
        found |= fields_of(inner, f"{key}.") if dataclasses.is_dataclass(inner) else {key: field}
    return found


def sections_of(kind: Any) -> set[str]:
    """Dotted names of all that has settings of its own."""
    keys = [key.split(".") for key in fields_of(kind)]
    return {".".join(key[:end]) for key in keys for end in range(1, len(key))}


def words_of(field: "dataclasses.Field[Any]") -> str:
    """What a value of the field must be, to go after "it must be"."""
    return words_of_type(field.type)


def words_of_type(kind: Any) -> str:
    """What a value of the type must be, its range included, to go after "it must be"."""
    allowed = next((note for note in getattr(kind, "__metadata__", ()) if isinstance(note, Range)), None)
    kind = get_args(kind)[0] if allowed else kind
    if get_origin(kind) in (Union, UnionType):  # with None, where an option may be left out
        kind = get_args(kind)[0]
    if get_origin(kind) is Literal:
        return f"one of {', '.join(get_args(kind))}"
    names: dict[Any, str] = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    names |= {tuple[int, ...]: "a list of whole numbers", tuple[str, ...]: "a list of texts"}
    names |= {bool | Literal["auto"]: "yes, no or auto", dict[str, bool | int | float | str]: "names with values"}
    names |= {tuple[tuple[int, int], ...]: "a list of pairs of whole numbers"}
    names |= {dict[str, Any]: "names with values"}
    return names.get(kind, "names with numbers") + (f", {allowed.words}" if allowed else "")


def _where(given: Given) -> str:
    return f" ({given.file})" if given.file else ""


def _nested(flat: Mapping[str, Given]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for key, given in flat.items():
        inner, names = nested, key.split(".")
        for name in names[:-1]:
            inner = inner.setdefault(name, {})
        inner[names[-1]] = given.value
    return nested


@functools.cache
def _checker() -> Any:
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Config)
    return parser


@functools.cache
def _defaults() -> Any:
    return _checker().get_defaults(skip_validation=True)
