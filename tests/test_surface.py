"""What docs/reference/public.md promises can be imported, and the examples and pages need nothing else."""

import ast
import importlib
import json
from pathlib import Path

import pytest

from docs import surface
from reft_jax.cli import COMMANDS
from tests.test_pages import of

ROOT = Path(__file__).parents[1]
PUBLIC = {(each.place, each.name) for names in surface.surface().values() for each in names}
ROOMS = {f"reft_jax.{room}" for room in surface.ROOMS}
MODULES = {place for place, _ in PUBLIC} | {f"reft_jax.{command.replace('-', '_')}" for command in COMMANDS} | ROOMS


def test_what_is_public_can_be_imported():
    for place, name in sorted(PUBLIC):
        assert hasattr(importlib.import_module(place), name), f"{place} has no {name}"


def test_every_room_is_declared_that_hands_something_out():
    packages = [path.parent for path in (ROOT / "reft_jax").rglob("__init__.py")]
    names = {path: ".".join(path.relative_to(ROOT).parts) for path in packages}
    handing = {name for path, name in names.items() if getattr(importlib.import_module(name), "__all__", ())}
    assert handing - {"reft_jax"} <= ROOMS


def imported(text: str) -> list[tuple[str, str]]:
    """Module and name of each import of the package's."""
    text = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("%"))
    nodes = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ImportFrom)]
    return [(str(node.module), alias.name) for node in nodes for alias in node.names if node.module[:8] == "reft_jax"]


def users_code() -> dict[str, str]:
    """Everything that users are told to write, by where it stands."""
    cells = json.loads((ROOT / "examples/reft.ipynb").read_text())["cells"]
    notebook = {f"cell {i}": "".join(cell["source"]) for i, cell in enumerate(cells) if cell["cell_type"] == "code"}
    pages = {str(block): block.content for block in of("python", "")}
    return {"examples/loop.py": (ROOT / "examples/loop.py").read_text(), **notebook, **pages}


@pytest.mark.parametrize("place", users_code())
def test_what_users_are_shown_is_public(place):
    for module, name in imported(users_code()[place]):
        assert (module, name) in PUBLIC or f"{module}.{name}" in MODULES, f"{module}.{name}"


def test_a_name_that_is_not_public_is_seen():
    assert imported("from reft_jax.data.batches import bucket") == [("reft_jax.data.batches", "bucket")]
    assert ("reft_jax.data.batches", "bucket") not in PUBLIC
