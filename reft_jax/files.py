"""Files that are there as a whole or not at all, folders that settings name, and JSON that errors can name."""

import contextlib
import functools
import json
import os
import re
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


@functools.cache
def ask_hub() -> None:
    """Asks Hugging Face's hub once whether it is there; where it is not, its libraries look into the cache alone.

    They would ask again and again, half a minute for each file, before they say so.
    """
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    try:
        get_session().head(constants.ENDPOINT, timeout=10)
    except Exception:  # of whatever library carries it
        constants.HF_HUB_OFFLINE = True


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


class NestedError(ValueError):
    """A value is nested too deeply to be read."""

    def __init__(self, place: str) -> None:
        super().__init__(f"{place}: nested too deeply to be read")


def parse_json(text: bytes, place: str, *, parse_float: Callable[[str], Any] = float) -> object:
    """The value that a JSON text holds.

    Args:
        text: in UTF-8, with or without a byte order mark.
        place: what an error names, such as a file and a line.
        parse_float: makes numbers with a point or an exponent of their digits.

    Raises:
        ValueError: naming the place: it is not JSON, or not UTF-8; `NestedError` where it is too deep.
    """
    try:
        return json.loads(text.decode("utf-8-sig"), parse_float=parse_float)
    except RecursionError:
        raise NestedError(place) from None
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


def require_text(value: object, place: str, field: str = "") -> None:
    """Refuses a JSON value with half of a surrogate pair in it, as a text that was cut within an emoji has.

    JSON can write it and Python can hold it, but nothing can encode it: neither a tokenizer nor another file.

    Args:
        value: of any kind.
        place: what an error names.
        field: where `value` stands, such as `messages[0].content`; of the whole it is empty.

    Raises:
        ValueError: naming the place and the field; `NestedError` where it is too deep.
    """
    try:
        _require_text(value, place, field)
    except RecursionError:
        raise NestedError(place) from None


def _require_text(value: object, place: str, field: str) -> None:
    if isinstance(value, str):
        if (half := re.search("[\ud800-\udfff]", value)) is not None:
            named = f"field `{field}`: " if field else ""
            raise ValueError(
                f"{place}: {named}{half[0]!r}, its character {half.start() + 1}, is half of a surrogate pair, no text"
            )
    elif isinstance(value, dict):
        for name, part in value.items():
            _require_text(name, place, ascii(name)[1:-1])
            _require_text(part, place, f"{field}.{name}" if field else name)
    elif isinstance(value, list):
        for number, part in enumerate(value):
            _require_text(part, place, f"{field}[{number}]")


def numbered_lines(path: Path) -> Iterator[tuple[int, str, bytes]]:
    """Number from 1, place and bytes of each line of a file that is not blank, read as they are asked for.

    Lines end at a line feed alone: JSON may hold the other characters at which Python's `splitlines` ends one.

    Raises:
        FileNotFoundError: there is no such file, or it is a folder.
    """
    if not path.exists() or path.is_dir():
        raise FileNotFoundError(f"{path} is a folder: name a file" if path.is_dir() else f"there is no file {path}")
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield number, f"{path}, line {number}", line


def json_line(line: bytes, place: str, *, parse_float: Callable[[str], Any] = float) -> dict[str, Any]:
    """The JSON object that a line of data holds.

    Raises:
        ValueError: naming the place: see `json_object` and `require_text`.
    """
    found = json_object(line, place, parse_float=parse_float)
    if b"\\ud" in line.lower():  # in UTF-8 itself there is no such character, and to look into all lines takes time
        require_text(found, place)
    return found


def json_lines(path: Path, *, parse_float: Callable[[str], Any] = float) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """Number from 1, place and JSON object of each line of a file that is not blank, read as they are asked for.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: see `json_line`.
    """
    for number, place, line in numbered_lines(path):
        yield number, place, json_line(line, place, parse_float=parse_float)
