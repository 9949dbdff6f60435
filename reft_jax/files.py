"""Files that are there as a whole or not at all, folders that settings name, and JSON that errors can name."""

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO


def user_path(text: str) -> Path:
    """The path that a user wrote, `~` being the home: a shell does not replace it in `--json=~/x`.

    Raises:
        ValueError: it is a URL.
    """
    if "://" in text:
        raise ValueError(f"{text} must be a path on this machine, no URL (mount what is elsewhere)")
    return Path(text).expanduser()


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write that takes the place of `path` when the block ends, and is on the disk then.

    An error or the end of the process leaves `path` as it was, and PATH.partial, which the next attempt writes over.

    Raises:
        OSError: `path` is a folder or a device.
    """
    if path.exists() and not path.is_file():
        raise OSError(f"{path} is no regular file, and writing would take its place: name another")
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def write_whole(path: Path, text: str) -> None:
    """Writes a text in UTF-8; `path` has its old content or all of the new one, see `replacing`."""
    with replacing(path) as file:
        file.write(text.encode())


def parse_json(text: bytes, place: str, *, parse_float: Callable[[str], Any] = float) -> object:
    """The value that a JSON text holds.

    Args:
        text: in UTF-8, with or without a byte order mark.
        place: what an error names, such as a file and a line.
        parse_float: makes numbers with a point or an exponent of their digits.

    Raises:
        ValueError: naming the place: it is not JSON, or not UTF-8.
    """
    try:
        return json.loads(text.decode("utf-8-sig"), parse_float=parse_float)
    except ValueError as error:
        raise ValueError(f"{place}: not JSON in UTF-8: {error}") from error


def json_object(text: bytes, place: str, *, parse_float: Callable[[str], Any] = float) -> dict[str, Any]:
    """The JSON object that a line holds, as `parse_json` reads it.

    Raises:
        ValueError: naming the place: as `parse_json`, or it is another value than an object.
    """
    return as_object(parse_json(text, place, parse_float=parse_float), place)


def as_object(value: object, place: str) -> dict[str, Any]:
    """`value` as the JSON object that it is.

    Raises:
        ValueError: naming the place: it is no object.
    """
    if not isinstance(value, dict):
        raise ValueError(f"{place}: should be a JSON object, is a {type(value).__name__}")
    return value


def json_lines(path: Path, *, parse_float: Callable[[str], Any] = float) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """Number from 1, place and JSON object of each line of a file that is not blank, read as they are asked for.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: see `json_object`.
    """
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                place = f"{path}, line {number}"
                yield number, place, json_object(line, place, parse_float=parse_float)
