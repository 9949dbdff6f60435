"""`python -m docs.generate`: writes from the code docs/settings.md, the table of docs/metrics.md, and the pages of what
is public.

With `--check` it writes nothing, and exits with 1 where a document is out of date.
"""

import dataclasses
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import docstring_parser

from docs import surface
from reft_jax.config import Config
from reft_jax.config.ranges import range_of
from reft_jax.records.metrics import METRICS

DOCS = Path(__file__).parent


def metrics(text: str) -> str:
    """`docs/metrics.md` with its table made anew, and all else left as it is."""
    head = "| name | unit | meaning |\n|---|---|---|\n"
    before, found, after = text.partition(head)
    if not found:
        raise ValueError(f"docs/metrics.md has no table that begins with {head.splitlines()[0]!r}")
    rows = "".join(f"| `{name}` | {metric.unit} | {metric.meaning} |\n" for name, metric in METRICS.items())
    return before + head + rows + "\n" + after.partition("\n\n")[2]


def settings() -> str:
    """All of `docs/settings.md`."""
    head = (
        "# Settings\n\n"
        "Every key of a config, by section, with its type, range and default. Made by `python -m docs.generate` from\n"
        "`reft_jax/config/settings.py`; `python -m reft_jax.train --help-all` prints the same.\n\n"
        "A key is written in a YAML file as nested sections, and on the command line with dots: `--rl.kl_coef 0.02`.\n"
    )
    return head + "".join(f"\n{part}" for part in _sections(Config(), ""))


def _sections(config: Any, name: str) -> Iterator[str]:
    """The section of a dataclass, then those of the dataclasses in it."""
    texts, fields = _texts(type(config)), dataclasses.fields(config)
    own = [field for field in fields if not dataclasses.is_dataclass(field.type)]
    rows = "".join(_row(name, field, getattr(config, field.name), texts[field.name]) for field in own)
    title, text = (
        f"`{name}`" if name else "The run",
        _cell(docstring_parser.parse(type(config).__doc__ or "").description),
    )
    yield f"## {title}\n\n{text}\n" + (
        f"\n| key | type | default | meaning |\n|---|---|---|---|\n{rows}" if rows else ""
    )
    for field in fields:
        if field not in own:
            yield from _sections(getattr(config, field.name), f"{name}.{field.name}".lstrip("."))


def _texts(kind: type) -> dict[str, str]:
    """The string below each field, those of its parents included."""
    docs = (docstring_parser.parse_from_object(parent) for parent in reversed(kind.__mro__[:-1]))
    return {param.arg_name: param.description or "" for doc in docs for param in doc.params}


def _row(section: str, field: "dataclasses.Field[Any]", value: Any, text: str) -> str:
    key = f"{section}.{field.name}".lstrip(".")
    return f"| `{key}` | {_type(field)} | `{json.dumps(value)}` | {_cell(text)} |\n"


def _type(field: "dataclasses.Field[Any]") -> str:
    """The type in words, and the range."""
    kind, allowed = field.type, range_of(field)
    kind = get_args(kind)[0] if allowed else kind
    if get_origin(kind) is Literal:
        return ", ".join(f"`{name}`" for name in get_args(kind))
    if kind == bool | Literal["auto"]:
        return "bool or `auto`"
    if kind == float | Literal["auto"] and allowed:
        return f"float, {allowed.words}".replace("auto", "`auto`")
    name = kind.__name__ if kind in (bool, int, float, str) else str(kind).replace("typing.", "")
    name = "`{name: value}`" if "|" in name else name  # a bar would end a table's cell
    return f"{name}, {allowed.words}" if allowed else name


def _cell(text: str | None) -> str:
    return " ".join((text or "").replace("|", "\\|").split())


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes what has changed, or says so, and returns the exit status."""
    check = "--check" in (sys.argv[1:] if arguments is None else arguments)
    page = (DOCS / "metrics.md").read_text(encoding="utf-8")
    stale = 0
    made = {"metrics.md": metrics(page), "settings.md": settings(), **surface.pages()}
    for name, text in made.items():
        path = DOCS / name
        if path.exists() and path.read_text(encoding="utf-8") == text:
            continue
        stale += 1
        if check:
            print(f"docs/{name} is out of date: run python -m docs.generate")
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            print(f"docs/{name} written")
    return int(check and stale > 0)


if __name__ == "__main__":
    sys.exit(main())
