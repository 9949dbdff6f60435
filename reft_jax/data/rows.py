"""Rows of files and of hub data sets, each with the place that errors name; nothing is known of problems yet."""

import dataclasses
import functools
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

from reft_jax.config import SourceConfig
from reft_jax.files import (
    NestedError,
    as_object,
    ask_hub,
    json_line,
    numbered_lines,
    parse_json,
    refuse_other_forms,
    require_text,
)

_NAME = r"[^.\[\]]+(?:\[-?[0-9]+\])*"
_PATH = re.compile(rf"{_NAME}(?:\.{_NAME})*")
_SIGN = re.compile(rb'"(?:[^"\\]|\\.)*"|[\[\]{},]', re.DOTALL)
_STEP = re.compile(r"([^.\[\]]+)|\[(-?[0-9]+)\]")


@dataclasses.dataclass(frozen=True)
class Row:
    """One row as published, its 0-based index, and its place as errors name it.

    A row that could not be read has no fields, and `fault` says why.
    """

    fields: Mapping[str, object]
    index: int
    place: str
    fault: str = ""

    def value(self, field: str) -> object:
        """The value of a field, or of a path to it such as `messages[-1].content`; None where it is null.

        A field whose whole name is `field`, dots and brackets included, is meant before a path.

        Raises:
            AbsentFieldError: there is none; says how far the path led and what is there.
            ValueError: the path asks a list for a name, or something else for an item.
        """
        steps = [] if field in self.fields or not _PATH.fullmatch(field) else _STEP.findall(field)
        if len(steps) < 2:
            if field not in self.fields:
                raise AbsentFieldError(f"field `{field}` is missing; there are {_names(self.fields)}")
            return self.fields[field]
        value: object = self.fields
        led = ""  # the path so far
        for name, number in steps:
            if value is None:
                raise AbsentFieldError(f"field `{field}` is missing: `{led}` is null")
            if not isinstance(value, list if number else Mapping):
                cure = f": name one of its items, such as `{led}[0]`" if isinstance(value, list) else ""
                wanted = f"item {number}" if number else f"field `{name}`"
                raise ValueError(f"field `{field}`: `{led}` is {shown(value)} and has no {wanted}{cure}")
            where = f"`{led}`" if led else "the row"
            if isinstance(value, list):
                if not -len(value) <= int(number) < len(value):
                    raise AbsentFieldError(f"field `{field}` is missing: {where} has {len(value)} items, from 0")
                value = value[int(number)]
            elif name not in value:
                raise AbsentFieldError(f"field `{field}` is missing: {where} has {_names(value)}, and no `{name}`")
            else:
                value = value[name]
            led += f"[{number}]" if number else f".{name}" if led else name
        return value


class AbsentFieldError(ValueError):
    """A row does not have a field."""


def _names(fields: Iterable[object]) -> str:
    return ", ".join(map(str, fields)) or "none"


def shown(value: object) -> str:
    """The kind of a value, and its beginning, as errors have it."""
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:57] + '...'}"


def read_rows(source: SourceConfig) -> Iterator[Row]:
    """The rows of a file (JSON list, JSONL or Parquet) or of a hub data set in their order, read as they are asked for.

    Rows that are not JSON, no object or no text come with a fault.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: names the file that is not JSON (see `refuse_other_forms`) or not Parquet, or the hub data set.
    """
    if not source.is_file:
        return _hub_rows(source)
    if not Path(source.path).is_file():
        raise FileNotFoundError(f"no file `{source.path}`: a source of kind `{source.kind}` is a file on this machine")
    if source.path.endswith(".parquet"):
        return _parquet_rows(source.path)
    if source.kind in ("reft_json", "mathqa"):
        return _json_rows(source.path)
    return _json_lines(source.path)


def _json_lines(path: str) -> Iterator[Row]:
    refuse_other_forms(Path(path), lines=True)
    for number, place, line in numbered_lines(Path(path)):
        try:
            row = Row(json_line(line, place, parse_float=Decimal), number - 1, place)  # which keeps every digit
        except ValueError as error:
            row = _without_fields(number - 1, place, error)
        yield row


def _json_rows(path: str) -> Iterator[Row]:
    refuse_other_forms(Path(path), lines=False)
    text = Path(path).read_bytes()
    parse: Callable[[Any, str], object] = functools.partial(parse_json, parse_float=Decimal)
    read: Callable[[Any, str], object] = lambda row, _: row
    try:
        rows = parse(text, path) if text.strip() else []
    except NestedError:
        if not text.lstrip().startswith(b"["):
            raise
        rows, read = list(_items(text)), parse  # so that it is the fault of one row
    if not isinstance(rows, list):
        raise ValueError(f"{path}: should be a JSON list of objects, is a {type(rows).__name__}")
    for index, fields in enumerate(rows):
        place = f"{path}, row {index + 1}"
        try:
            fields = read(fields, place)
            require_text(fields, place)
            row = Row(as_object(fields, place), index, place)
        except ValueError as error:
            row = _without_fields(index, place, error)
        yield row


def _items(text: bytes) -> Iterator[bytes]:
    """The texts of a JSON list's items, which are not read."""
    depth = start = 0
    for found in _SIGN.finditer(text):
        sign = found[0]
        depth += (sign in (b"[", b"{")) - (sign in (b"]", b"}"))
        if depth == 0 or (depth == 1 and sign == b","):
            yield text[start : found.start()]
        if depth == 1 and (sign == b"," or not start):
            start = found.end()


def _without_fields(index: int, place: str, error: ValueError) -> Row:
    return Row({}, index, place, fault=str(error).removeprefix(f"{place}: "))


def _parquet_rows(path: str) -> Iterator[Row]:
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            rows = itertools.chain.from_iterable(batch.to_pylist() for batch in file.iter_batches())
            for index, row in enumerate(rows):
                yield Row(row, index, f"{path}, row {index + 1}")
    except pyarrow.ArrowException as error:
        raise ValueError(f"{path}: not Parquet: {error}") from error


def _hub_rows(source: SourceConfig) -> Iterator[Row]:
    if not Path(source.path).is_dir():
        ask_hub()
    import datasets

    place = f"{source.path} ({source.split})"
    try:
        dataset = datasets.load_dataset(
            source.path, source.name or None, split=source.split, revision=source.revision or None
        )
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise ValueError(
            f"{place}: cannot load this hub data set: {error}\nCheck `path`, `name`, `split` and `revision`; without "
            "network it must be in the cache already (load it once with network) or `path` be a folder of data files"
        ) from error
    for index, row in enumerate(dataset):
        yield Row(row, index, f"{place}, row {index + 1}")
