"""The files that a config is made of."""

from collections.abc import Iterator
from pathlib import Path

import yaml


def parts(path: Path, inside: tuple[Path, ...] = ()) -> Iterator[tuple[Path, str | None]]:
    """The files that a config is made of, itself last, each with its YAML without `config`; None where it has none.

    Raises:
        TypeError: `config` is not a list of files that are there, or leads back to a file that it came from.
    """
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError:
        settings = None  # the reader says what is wrong
    if not isinstance(settings, dict) or "config" not in settings:
        yield path.absolute(), None
        return
    names, path = settings.pop("config"), path.absolute()
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise TypeError(f"{path}: config is {names!r}: it must be a list of files")
    for name in names:
        base = (path.parent / name).resolve()
        if not base.is_file():
            raise TypeError(f"{path}: config: there is no file {name!r} in {path.parent}")
        if base in (*inside, path.resolve()):
            raise TypeError(f"{path}: config: {name!r} is made of this file itself")
        yield from parts(base, (*inside, path.resolve()))
    yield path, yaml.safe_dump(settings, sort_keys=False)
