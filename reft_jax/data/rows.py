"""Rows of files and of hub data sets, each with the place that errors name; nothing is known of problems yet."""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping
from decimal import Decimal
from pathlib import Path

from reft_jax.config import SourceConfig
from reft_jax.files import as_object, json_lines, parse_json


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
    if source.kind in ("reft_json", "mathqa"):
        return _json_rows(source.path)
    lines = json_lines(Path(source.path), parse_float=Decimal)  # which keeps every digit
    return (Row(fields, number - 1, place) for number, place, fields in lines)


def _json_rows(path: str) -> Iterator[Row]:
    text = Path(path).read_bytes()
    rows = parse_json(text, path, parse_float=Decimal) if text.strip() else []
    if not isinstance(rows, list):
        raise ValueError(f"{path}: should be a JSON list of objects, is a {type(rows).__name__}")
    for index, row in enumerate(rows):
        place = f"{path}, row {index + 1}"
        yield Row(as_object(row, place), index, place)


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
