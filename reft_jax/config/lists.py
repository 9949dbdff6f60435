"""Settings as people write them: lists as `48`, `36 48`, `36,48` and `[36, 48]`, and a section as its kind (`chat`).

A value that is no list is taken as one where that is certain: numbers where numbers are wanted, a text where texts
are. Everything else stays as it is, and the reader says what is wrong with it.
"""

import dataclasses
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, get_args

from reft_jax.config.ranges import AUTO, range_of

Fields = Mapping[str, "dataclasses.Field[Any]"]

_NUMBER = re.compile(r"[-+]?\d[\d.,eE_+-]*")
_NUMBERS = re.compile(r"[-+]?\d+([\s,]+[-+]?\d+)*")


BY_KIND = ("data.templates",)
"""Sections that may be given as their `kind` alone."""


def is_kind(key: str, value: Any, fields: Fields) -> bool:
    """Whether a value is a section's kind, which stands for the section."""
    return key in BY_KIND and value in get_args(fields[f"{key}.kind"].type)


def item_type(field: "dataclasses.Field[Any]") -> type | None:
    """Of what a setting is a list; None of one that is none."""
    kind: Any = get_args(field.type)[0] if range_of(field) else field.type
    return get_args(kind)[0] if kind in (tuple[int, ...], tuple[str, ...]) else None


def as_list(field: "dataclasses.Field[Any]", value: Any) -> Any:
    """The value, or the list that it stands for."""
    kind = item_type(field)
    if isinstance(value, int) and not isinstance(value, bool) and kind is int:
        return [value]
    if value == "auto" and kind is int:
        return list(AUTO)
    if not isinstance(value, str) or not value or value.lstrip().startswith("["):
        return value
    if kind is int and _NUMBERS.fullmatch(value.strip()):
        return [int(number) for number in re.split(r"[\s,]+", value.strip())]
    if kind is str:
        return [value] if range_of(field) else re.split(r"\s*,\s*", value)
    return value


def in_settings(settings: Any, fields: Fields, prefix: str = "") -> Any:
    """Nested settings of a file, with lists where lists are wanted."""
    if prefix in fields:
        field = fields[prefix]
        whole = isinstance(settings, str) and settings and item_type(field) is str and range_of(field)
        return [settings] if whole else as_list(field, settings)  # a text of a file may begin with a bracket
    if isinstance(settings, str) and is_kind(prefix, settings, fields):
        return {"kind": settings}
    if not isinstance(settings, dict):
        return settings
    return {key: in_settings(value, fields, f"{prefix}.{key}".lstrip(".")) for key, value in settings.items()}


def on_command_line(arguments: Sequence[str], fields: Fields, *, positionals: bool) -> list[str]:
    """A command line on which each list is one argument.

    Args:
        arguments: of a command.
        fields: of the settings, by dotted key.
        positionals: whether the command has arguments without a name. Then texts behind a key may be these, and only
            the first belongs to it.
    """
    given, found = list(arguments), []
    while given:
        word = given.pop(0)
        key, equals, value = word.removeprefix("--").partition("=")
        if word.startswith("--") and is_kind(key, value if equals else next(iter(given), ""), fields):
            found.append(f"--{key}.kind={value if equals else given.pop(0)}")
            continue
        kind = item_type(fields[key]) if word.startswith("--") and key in fields else None
        if not kind:
            found.append(word)
            continue
        values = [value] if equals else []
        while given and not equals and _goes_on(values, given[0], kind, positionals):
            values.append(given.pop(0))
        if not values:
            found.append(word)
            continue
        listed = as_list(fields[key], values[0]) if len(values) == 1 else _joined(values, kind)
        found.append(f"--{key}={json.dumps(listed) if isinstance(listed, list) else listed}")
    return found


def given_twice(arguments: Sequence[str], keys: Iterable[str]) -> str:
    """What is to be said of the first list of `keys` that stands twice on a command line; mostly nothing.

    Of other settings the last one counts; of a list, all of them were meant, as likely as not.
    """
    given = [word.removeprefix("--").partition("=")[0] for word in arguments if word.startswith("--")]
    twice = next((key for key in keys if given.count(key) > 1), "")
    return f"{twice} is given {given.count(twice)} times: give it once, with all values: --{twice} A B" if twice else ""


def _goes_on(values: Sequence[str], word: str, kind: type, positionals: bool) -> bool:
    """Whether a word belongs to the values that stand before it."""
    number = bool(_NUMBER.fullmatch(word))
    if not values:
        return number or not word.startswith("--")
    if values[0].startswith("[") or word.startswith("["):
        return False
    return number if kind is int else not positionals and not word.startswith("-")


def _joined(values: Sequence[str], kind: type) -> Any:
    if kind is str:
        return list(values)
    words = [word for value in values for word in value.split(",") if word]
    return [int(word) for word in words] if all(_NUMBERS.fullmatch(word) for word in words) else f"[{', '.join(words)}]"
