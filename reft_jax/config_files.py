"""`--config FILE` where FILE is made of others: the key `config` lists them, and they are read as if given before it.

So that no number of a study stands in two files: a run's file names those of its recipe, its data and its model, by
paths from its own folder, and has what it alone has. What a later file says wins, key by key, as on the command line.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonargparse
import yaml


class ConfigFile(jsonargparse.ActionConfigFile):
    """The action of `--config`, with the key `config` in a file meaning what it means on the command line.

    jsonargparse itself reads such a key, but lets the named file replace whole sections, and drops a list of files.
    """

    def __call__(self, parser: Any, namespace: Any, value: Any, option_string: str | None = None) -> None:
        """Reads the files that `value` is made of, then `value` itself.

        Raises:
            TypeError: naming what is wrong.
        """
        if not os.path.isfile(value):  # settings in YAML, or a name that leads nowhere, which is told by its name
            super().__call__(parser, namespace, value, option_string)
            return
        for path, own in parts(Path(value)):
            with contextlib.chdir(path.parent):  # of a section that is the name of a file
                super().__call__(parser, namespace, path.name if own is None else own, option_string)


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
