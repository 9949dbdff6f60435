"""Files that are there as a whole or not at all, folders that settings name, and JSON that errors can name."""

import contextlib
import functools
import json
import os
import re
import shlex
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


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object that JSON's pairs make.

    Raises:
        ValueError: a key is there twice, of which Python would keep the last.
    """
    made = dict(pairs)
    if len(made) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise RepeatedKeyError(f"key {ascii(twice)[1:-1]!r} is there twice: leave one of them")
    return made


class RepeatedKeyError(ValueError):
    """An object has a key twice."""


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
        return json.loads(text.decode("utf-8-sig"), parse_float=parse_float, object_pairs_hook=once)
    except RecursionError:
        raise NestedError(place) from None
    except RepeatedKeyError as error:
        raise ValueError(f"{place}: {error}") from None
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


_BEGINNINGS = (
    *((begin, "compressed: unpack it") for begin in (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")),
    (b"PK\x03\x04", "a zip archive or a spreadsheet: unpack it, or save the sheet as CSV"),
    (b"PAR1", "Parquet: let its name end in .parquet"),
    *((begin, "in UTF-16: save it in UTF-8") for begin in (b"\xff\xfe", b"\xfe\xff")),
    (b"version https://git-lfs", "a pointer to a file of Git LFS: fetch that by git lfs pull"),
    (b"<", "a web page or XML: download the data themselves"),
)
_CONVERTED = 'python -c "import csv, json; [print(json.dumps(row)) for row in {rows}]" < {path} > {made}'


def refuse_other_forms(path: Path, *, lines: bool) -> None:
    """Refuses a file that is no JSON by how it begins: compressed, a table, a web page.

    Args:
        path: the file; what cannot be read is left to the reader.
        lines: whether it should hold an object in each line; else a list of them.

    Raises:
        ValueError: naming the file, what it is, and how to make it what it should be.
    """
    try:
        with path.open("rb") as file:
            head = file.read(65536)
    except OSError:
        return
    for begin, told in _BEGINNINGS:
        if head.startswith(begin):
            raise ValueError(f"{path} is {told}")
    if head.count(b"\r") > 1 and b"\n" not in head:
        names = {"path": path, "made": path.with_name(f"{path.stem}.lines{path.suffix}")}
        made = "tr '\\r' '\\n' < {path} > {made}".format(**{key: shlex.quote(str(name)) for key, name in names.items()})
        raise ValueError(f"{path} ends its lines in carriage returns alone: make them line feeds:\n  {made}")
    beginnings = [line.strip() for line in head.removeprefix(b"\xef\xbb\xbf").split(b"\n") if line.strip()][:2]
    first, *second = beginnings or [b""]
    source, told = "open(0, encoding='utf-8-sig')", ""
    delimiter = next((sign for sign in (",", "\t", ";") if all(sign.encode() in line for line in beginnings)), "")
    if second and delimiter and not first.startswith((b"{", b"[")) and not second[0].startswith(b"{"):
        told, rows = "a table (CSV)", f"csv.DictReader({source}, delimiter={delimiter!r})"
    elif lines and re.match(rb"\[\s*(\{|$)", first):
        told, rows = "one JSON list", f"json.load({source})"
    elif lines and second and first == b"{":
        raise ValueError(
            f"{path} is one JSON object over several lines: write the rows in it each as an object on a line"
        )
    elif not lines and second and all(line.startswith(b"{") and line.endswith(b"}") for line in beginnings):
        raise ValueError(f"{path} has a JSON object in each line, and not one list: `kind: jsonl` reads such files")
    if told:
        names = {"path": path, "made": path.with_name(f"{path.stem}.lines.jsonl")}
        cure = _CONVERTED.format(rows=rows, **{key: shlex.quote(str(name)) for key, name in names.items()})
        raise ValueError(f"{path} is {told}: make it JSON Lines (data of `kind: jsonl`):\n  {cure}")


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
        ValueError: see `refuse_other_forms` and `json_line`.
    """
    refuse_other_forms(path, lines=True)
    for number, place, line in numbered_lines(path):
        yield number, place, json_line(line, place, parse_float=parse_float)
