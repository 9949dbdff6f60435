"""Rows of files and of hub data sets, each with the place that errors name; nothing is known of problems yet."""

import dataclasses
import itertools
import json
from collections.abc import Iterator, Mapping
from decimal import Decimal
from pathlib import Path

from reft_jax.config import SourceConfig


@dataclasses.dataclass(frozen=True)
class Row:
    """One row as published, its 0-based index, and its place as errors name it."""

    fields: Mapping[str, object]
    index: int
    place: str


def read_rows(source: SourceConfig) -> Iterator[Row]:
    """The rows of a file (JSON list, JSONL or Parquet) or of a hub data set in their order, read as they are asked for.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: names file and row of what is not JSON, not Parquet or not an object, or the hub data set.
    """
    if not source.is_file:
        return _hub_rows(source)
    if not Path(source.path).is_file():
        raise FileNotFoundError(f"no file `{source.path}`: a source of kind `{source.kind}` is a file on this machine")
    if source.path.endswith(".parquet"):
        return _parquet_rows(source.path)
    return _json_rows(source.path) if source.kind in ("reft_json", "mathqa") else _jsonl_rows(source.path)


def _json_rows(path: str) -> Iterator[Row]:
    text = Path(path).read_bytes()
    rows = _decode(text, path) if text.strip() else []
    if not isinstance(rows, list):
        raise ValueError(f"{path}: should be a JSON list of objects, is a {type(rows).__name__}")
    for index, row in enumerate(rows):
        yield _checked_row(row, index, f"{path}: row {index + 1}")


def _jsonl_rows(path: str) -> Iterator[Row]:
    with Path(path).open("rb") as file:
        for index, line in enumerate(file):
            if line.strip():
                place = f"{path}: line {index + 1}"
                yield _checked_row(_decode(line, place), index, place)


def _parquet_rows(path: str) -> Iterator[Row]:
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            rows = itertools.chain.from_iterable(batch.to_pylist() for batch in file.iter_batches())
            for index, row in enumerate(rows):
                yield _checked_row(row, index, f"{path}: row {index + 1}")
    except pyarrow.ArrowException as error:
        raise ValueError(f"{path}: not Parquet: {error}") from error


def _hub_rows(source: SourceConfig) -> Iterator[Row]:
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
        yield _checked_row(row, index, f"{place}: row {index + 1}")


def _decode(text: bytes, place: str) -> object:
    """JSON with every digit of its numbers kept."""
    try:
        return json.loads(text.decode("utf-8-sig"), parse_float=Decimal)
    except ValueError as error:
        raise ValueError(f"{place}: not JSON in UTF-8: {error}") from error


def _checked_row(row: object, index: int, place: str) -> Row:
    if not isinstance(row, dict):
        raise ValueError(f"{place}: should be a JSON object, is a {type(row).__name__}")
    return Row(row, index, place)
