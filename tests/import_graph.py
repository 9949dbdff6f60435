"""Counts the package's own import graph: `python tests/import_graph.py [ROOT]`.

Rooms are what `ls reft_jax` shows, files and folders alike; an arrow goes from a room to one that it imports from;
floors are counted along the longest way down.
"""

import ast
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path


def main(root: Path) -> None:
    """Prints entries, rooms, floors, arrows, and a circle if there is one."""
    package = root / "reft_jax"
    files = sorted(package.rglob("*.py"))
    room = lambda name: name.split(".")[1] if name.count(".") else ""
    graph: dict[str, set[str]] = {}
    arrows: set[tuple[str, str]] = set()
    for path in files:
        module = ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
        own = room(module)
        for node in ast.walk(ast.parse(path.read_text())):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            for name in names:
                if name.startswith("reft_jax.") and own and room(name) != own and not room(name).startswith("__"):
                    graph.setdefault(own, set()).add(room(name))
                    arrows.add((own, room(name)))
        graph.setdefault(own, set())
    entries = [path for path in package.iterdir() if path.suffix == ".py" or (path.is_dir() and any(path.glob("*.py")))]
    print(f"{len(entries)} entries, {len(files)} files, {len(arrows)} arrows between {len(graph) - 1} rooms")
    depth: dict[str, int] = {}
    try:
        for name in TopologicalSorter(graph).static_order():
            depth[name] = 1 + max((depth[below] for below in graph.get(name, ())), default=0)
        print(f"{max(depth.values())} floors, no circle")
    except CycleError as error:
        print(f"a circle: {' -> '.join(error.args[1])}")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[1])
