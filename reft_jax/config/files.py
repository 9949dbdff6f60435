"""The files that a config is made of: where they are, and what is in them."""

import difflib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

SHIPPED = Path(__file__).parents[1] / "configs"
"""The configs of the package, which are found by name: `quickstart`, `overlays/one_gpu`."""


def find(name: str, folder: Path = Path()) -> Path | None:
    """The file of a name, by its path from a folder, or else the config of the package that is called so.

    A config of the package is named by its path in `SHIPPED`, with or without `configs/` before and `.yaml` behind.
    """
    path = folder / Path(name).expanduser()
    if os.path.isfile(path):  # Path's own method raises for settings in place of a name, which are too long for one
        return path
    shipped = SHIPPED / f"{name.removeprefix('configs/').removesuffix('.yaml')}.yaml"
    return shipped if os.path.isfile(shipped) else None


def not_found(name: str, folder: Path = Path()) -> str:
    """What is said of a name that leads to no file."""
    names = [str(path.relative_to(SHIPPED).with_suffix("")) for path in sorted(SHIPPED.rglob("*.yaml"))]
    stem = name.removeprefix("configs/").removesuffix(".yaml")
    close = difflib.get_close_matches(stem, names, n=1) or [known for known in names if Path(known).name == stem]
    top = ", ".join(name for name in names if "/" not in name)
    meant = f"did you mean {close[0]}?" if close else f"there are {top}, overlays/... and paper/..."
    return f"there is no file {name!r} in {folder.absolute()}, and no config of the package has this name: {meant}"


class _Loader(yaml.SafeLoader):
    """YAML's own, of which the last of two equal keys would win without a word."""

    def compose_mapping_node(self, anchor: Any) -> Any:
        node = super().compose_mapping_node(anchor)
        first: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if before := first.get((key.tag, key.value)):
                told = f"key {key.value!r} is in line {before} already: write it once"
                raise yaml.composer.ComposerError(None, None, told, key.start_mark)
            first[key.tag, key.value] = key.start_mark.line + 1
        return node


def parse_yaml(text: str) -> Any:
    """What a YAML text holds.

    Raises:
        yaml.YAMLError: it is none, nested too deeply to be read, holds itself, or has a key twice.
    """
    try:
        made = yaml.load(text, _Loader)
        _refuse_cycles(made, set(), set())
    except RecursionError:
        raise yaml.YAMLError("nested too deeply") from None
    return made


def _refuse_cycles(value: Any, above: set[int], seen: set[int]) -> None:
    """Refuses a value that holds itself, as `x: &a [*a]` does."""
    if not isinstance(value, dict | list) or id(value) in seen:
        return
    if id(value) in above:
        raise yaml.YAMLError("an alias (*name) stands inside of what it names (&name): write the value out")
    above.add(id(value))
    for part in value.values() if isinstance(value, dict) else value:
        _refuse_cycles(part, above, seen)
    above.remove(id(value))
    seen.add(id(value))


def read_yaml(path: Path) -> Any:
    """What a YAML file holds.

    Raises:
        TypeError: it cannot be read; naming the file and the line.
    """
    try:
        return parse_yaml(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        wrong = "" if isinstance(error, yaml.composer.ComposerError) else "not YAML in UTF-8: "
        raise TypeError(f"{path}{f', line {mark.line + 1}' if mark else ''}: {wrong}{problem}") from None


def parts(path: Path, inside: tuple[Path, ...] = ()) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The files that a config is made of, itself last, each with its settings without `config`.

    Raises:
        TypeError: one is no YAML, or no mapping of keys; `config` does not name files that are there, or leads back to
            a file that it came from.
    """
    settings, path = read_yaml(path), path.absolute()
    if settings is None:
        settings = {}
    if not isinstance(settings, dict):
        raise TypeError(f"{path}: a config is keys with values, such as `seed: 1`, and this is {_short(settings)}")
    names = settings.pop("config", [])
    names = [names] if isinstance(names, str) else names
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise TypeError(f"{path}: config is {names!r}: it must be a file, or a list of files")
    for name in names:
        if not (found := find(name, path.parent)):
            raise TypeError(f"{path}: config: {not_found(name, path.parent)}")
        base = found.resolve()
        if base in (*inside, path.resolve()):
            raise TypeError(f"{path}: config: {name!r} is made of this file itself")
        yield from parts(base, (*inside, path.resolve()))
    yield path, settings


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 40 else text[:36] + " ..."
