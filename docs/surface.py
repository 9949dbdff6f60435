"""The public surface: what a user may import from where. `python -m docs.generate` writes it to docs/reference/.

What a room's `__init__` hands out is public, and so is what `MORE` names. All else may change without notice. Sources
are read, not imported.
"""

import ast
import functools
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]

ROOMS = {
    "problem": "One question with its gold answer.",
    "config": "Settings: read, checked, as dataclasses.",
    "reward": "Completions in, verdicts out; plain Python, no jax.",
    "losses": "Losses and what they are made of: arrays in, arrays out.",
    "data": "From files to padded token batches.",
    "data.embedded": "The problems that need no download.",
    "samples": "Files of completions, votes, intervals.",
    "parallel": "Meshes, layouts, processes.",
    "models": "The decoder, the policy, the classifier.",
    "models.hf": "From and to Hugging Face checkpoints.",
    "algorithms": "Jitted steps: sampling, SFT, PPO and its family.",
    "records": "What a run writes.",
    "report": "The page about runs.",
    "training": "A run at work, for who writes a command of their own.",
}
"""Packages and modules of `reft_jax`, in the order of their pages."""

MORE = {
    "problem": {"problem": "Problem TaskItem annotated"},
    "reward": {"reward.functions": "call_functions weighted_sum", "reward.answers": "normalise_result"},
    "parallel": {"parallel.sharding": "param_shardings partition_spec replicated"},
    "models": {"models.policy": "Scores call", "models.params": "Params select"},
    "algorithms": {
        "algorithms.ppo": "update critic_update build_experience build_update",
        "algorithms.sft": "update build_step",
        "algorithms.self_training": "update",
        "algorithms.steps": "steps",
        "algorithms.train_state": "abstract_params copy_params",
    },
    "training": {"training.slots": "respond"},
}
"""By room: names that are public in one of its modules."""


class Name(NamedTuple):
    """A public name."""

    name: str
    place: str
    """Where it is imported from."""
    home: str
    """The module that defines it."""
    text: str
    """What it is, in a line."""


@functools.cache
def surface() -> dict[str, list[Name]]:
    """The public names of each room.

    Raises:
        ValueError: a name that is handed out is not where it is said to be.
    """
    found: dict[str, list[Name]] = {}
    for room in ROOMS:
        handed = {f"reft_jax.{room}": list(_handed_out(f"reft_jax.{room}"))}
        for module, names in MORE.get(room, {}).items():
            handed.setdefault(f"reft_jax.{module}", []).extend((name, f"reft_jax.{module}") for name in names.split())
        found[room] = [
            Name(name, place, home, _text(home, name)) for place, pairs in handed.items() for name, home in pairs
        ]
    return found


def public_page() -> str:
    """All of docs/reference/public.md."""
    lines = [
        "# What is public",
        "",
        "What you may import, and from where. Made by `python -m docs.generate` from what each room's `__init__` hands",
        "out, and from `docs/surface.py`; a test compares. Names that are not here may change without notice. A change",
        "to a name that is here stands in the [changelog](../changelog.md).",
        "",
        "Commands are public as well ([commands](commands.md)), and so are [settings](../settings.md),",
        "[metrics](../metrics.md) and the files of [a run's folder](run_folder.md).",
    ]
    for room, names in surface().items():
        lines += ["", f"## `reft_jax.{room}`", "", f"{ROOMS[room]} [Signatures](api/{_file(room)})", ""]
        lines += ["| name | from | is |", "|---|---|---|"]
        lines += [f"| `{each.name}` | `{each.place}` | {each.text} |" for each in names]
    return "\n".join(lines) + "\n"


def api_page(room: str) -> str:
    """All of the page with a room's signatures and docstrings, which mkdocstrings reads from the source."""
    parts = [f"# `reft_jax.{room}`", ROOMS[room]]
    for each in surface()[room]:
        head = each.name if each.place == f"reft_jax.{room}" else f"{each.place.rpartition('.')[2]}.{each.name}"
        parts.append(f'::: {each.home}.{each.name}\n    options:\n      heading: "{head}"')
    return "\n\n".join(parts) + "\n"


def pages() -> dict[str, str]:
    """Every page that is made here, by its path in docs/."""
    made = {f"reference/api/{_file(room)}": api_page(room) for room, names in surface().items() if names}
    return {"reference/public.md": public_page(), **made}


def _file(room: str) -> str:
    return f"{room.replace('.', '_')}.md"


def _path(module: str) -> Path:
    path = ROOT / module.replace(".", "/")
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


@functools.cache
def _tree(module: str) -> ast.Module:
    return ast.parse(_path(module).read_text(encoding="utf-8"))


def _handed_out(package: str) -> Iterator[tuple[str, str]]:
    """Yields the names that a package hands out, each with its module: by `hand_out`, or by imports and `__all__`."""
    if _path(package).name != "__init__.py":
        return
    imported: dict[str, str] = {}
    for node in _tree(package).body:
        if isinstance(node, ast.ImportFrom) and node.module != "reft_jax":
            imported |= {alias.name: str(node.module) for alias in node.names}
        value = getattr(node, "value", None)
        if isinstance(value, ast.Call) and getattr(value.func, "id", "") == "hand_out":
            for keyword in value.keywords:
                assert isinstance(keyword.value, ast.Constant)
                yield from ((name, f"{package}.{keyword.arg}") for name in str(keyword.value.value).split())
        targets = getattr(node, "targets", [])
        if any(getattr(target, "id", "") == "__all__" for target in targets) and isinstance(value, ast.List):
            yield from ((str(x.value), imported[str(x.value)]) for x in value.elts if isinstance(x, ast.Constant))


def _text(module: str, name: str) -> str:
    """The first sentence of a name's docstring, or of the string below a constant."""
    body = _tree(module).body
    for node, after in zip(body, [*body[1:], None]):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == name:
            return _line(ast.get_docstring(node) or "")
        targets = [node.target] if isinstance(node, ast.AnnAssign) else getattr(node, "targets", [])
        if any(getattr(target, "id", "") == name for target in targets):
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Subscript):  # a Literal
                return "One of " + ", ".join(f"`{ast.unparse(word)}`" for word in _words(node.value)) + "."
            value = getattr(after, "value", None)
            below = value.value if isinstance(value, ast.Constant) and isinstance(value.value, str) else ""
            return _line(inspect.cleandoc(below))
    raise ValueError(f"{module} has no {name}, which docs/surface.py and its room's __init__ say is public")


def _words(literal: ast.Subscript) -> list[ast.expr]:
    return literal.slice.elts if isinstance(literal.slice, ast.Tuple) else [literal.slice]


def _line(text: str) -> str:
    return " ".join(text.partition("\n\n")[0].split()).replace("|", "\\|")
