"""The architecture, read from the source: imports go down, Flax modules stay in `models/`, importing does nothing."""

import ast
import functools
import importlib
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAYERS = (
    ("losses", "config", "problem", "files"),
    ("reward", "parallel"),
    ("records",),
    ("samples",),
    ("data",),
    ("models",),
    ("algorithms",),
    ("training", "preflight"),
    ("train", "sample", "evaluate", "probe", "select", "export", "reward_model", "init", "report"),
    ("cli",),
)
LAYER = {room: number for number, rooms in enumerate(LAYERS) for room in rooms}
# For the boxes that carry a parameter's axis names, not for modules.
FLAX_OUTSIDE_MODELS = {"reft_jax.parallel.sharding", "reft_jax.algorithms.train_state"}


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_name(path): path for path in sorted((ROOT / "reft_jax").rglob("*.py"))}


@functools.cache
def source(module: str) -> ast.Module:
    return ast.parse(MODULES[module].read_text())


def room(module: str) -> str:
    """`reft_jax.data.batches` stands in the room `data`; the package itself in none."""
    return module.split(".")[1] if "." in module else ""


def imports(tree: ast.AST) -> Iterator[str]:
    """Full names of what is imported anywhere below, `from a import b` as `a.b`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute here"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own_modules(names: Iterator[str]) -> set[str]:
    """The modules of the package among imported names, without the objects in them."""
    found = {name if name in MODULES else name.rpartition(".")[0] for name in names if name.startswith("reft_jax")}
    return found - {"reft_jax"}


def test_every_module_stands_in_a_layer():
    assert {room(module) for module in MODULES} - {""} == set(LAYER)


@pytest.mark.parametrize("module", [module for module in MODULES if room(module)])
def test_imports_go_down_or_stay_in_the_room(module):
    """Imports in functions and for type checkers count as well."""
    others = {name for name in own_modules(imports(source(module))) if room(name) != room(module)}
    upward = {name for name in others if LAYER[room(name)] >= LAYER[room(module)]}
    assert not upward, f"{module} is on floor {LAYER[room(module)]} and imports {upward} from there or above"


def test_the_reader_sees_edges():
    """What the tests here stand on: known imports are found, and an upward one would be."""
    assert own_modules(imports(source("reft_jax.algorithms.rollout"))) >= {"reft_jax.config", "reft_jax.models.policy"}
    upward = own_modules(
        imports(ast.parse("def f():\n    from reft_jax.train import main\n    import reft_jax.algorithms.ppo"))
    )
    assert upward == {"reft_jax.train", "reft_jax.algorithms.ppo"}


def test_no_cycle_between_modules():
    """A package is what its `__init__` hands out; whoever imports a module of it does not import these."""
    graph = {module: own_modules(imports(source(module))) - {module} for module in MODULES}
    assert set(TopologicalSorter(graph).static_order()) <= set(MODULES)  # CycleError names the cycle


def test_only_models_know_flax_modules():
    linen = {
        module
        for module in MODULES
        if any(name.startswith(("flax.linen", "flax.nnx")) for name in imports(source(module)))
        and room(module) != "models"
    }
    assert linen == FLAX_OUTSIDE_MODELS
    for module in linen:
        used = {ast.unparse(node) for node in ast.walk(source(module)) if isinstance(node, ast.Attribute)}
        assert {name for name in used if name.startswith("nn.")} <= {
            "nn.LogicallyPartitioned",
            "nn.meta",
            "nn.meta.unbox",
        }


def test_config_and_validation_know_no_library_of_arrays():
    for module in ("reft_jax.config", "reft_jax.config.validation", "reft_jax.problem"):
        assert not {name.split(".")[0] for name in imports(source(module))} & {"jax", "numpy", "flax", "optax"}


@pytest.mark.ci
def test_importing_everything_touches_no_device_and_writes_no_file(tmp_path):
    modules = [module for module in MODULES if module != "reft_jax.reward.worker"]
    check = "import sys\nfrom jax._src import xla_bridge\nassert not xla_bridge.backends_are_initialized()"
    check += "\nassert not {'jaxtyping', 'beartype'} & sys.modules.keys()"
    code = f"import {', '.join(modules)}\n{check}"
    environment = {
        "PYTHONPATH": str(ROOT),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PATH": "/usr/bin:/bin",
        "HOME": str(tmp_path),
    }
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("package", sorted({module.rpartition(".")[0] for module in MODULES} - {"", "reft_jax"}))
def test_a_room_says_what_it_is_for_and_hands_out_what_it_says(package):
    """One line for each of its modules, and names that are there."""
    found = importlib.import_module(package)
    modules = {path.stem for path in Path(found.__path__[0]).glob("*.py")} - {"__init__", "__main__"}
    assert not {module for module in modules if not re.search(rf"\b{module}\b", str(found.__doc__))}
    assert len(str(found.__doc__).splitlines()) < 25
    for name in getattr(found, "__all__", ()):
        assert f"{package}.{name}" not in MODULES, "the module of this name would hide it"
        assert hasattr(found, name)
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = found.no_such_name
