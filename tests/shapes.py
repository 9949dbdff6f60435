"""Checks, in tests alone, that arrays have the shapes and kinds of type that their annotations say.

In the package the names in these annotations (`Float[Array, "B R"]`) are imported for type checkers only, and nothing
looks at them. Here they become known, and each function of `MODULES` is wrapped as its module is imported.
"""

import builtins
import importlib
import sys
from collections.abc import Callable
from typing import Any, get_args

import jax
import jaxtyping
import numpy as np
from beartype import BeartypeConf, beartype

MODULES = (
    *(
        f"reft_jax.losses.{name}"
        for name in ("arrays", "likelihood", "kl", "rewards", "advantages", "policy", "values")
    ),
    "reft_jax.models.classifier",
    "reft_jax.models.decoder",
    "reft_jax.models.lora",
    "reft_jax.models.policy",
    "reft_jax.algorithms.rollout",
    "reft_jax.algorithms.ppo",
    "reft_jax.algorithms.self_training",
)
NAMES = {name: getattr(jaxtyping, name) for name in ("Bool", "Float", "Int", "Key", "Real", "Shaped")}
NAMES["Array"] = jax.Array | np.ndarray  # tests hand in numpy's arrays where they like


def check_shapes() -> None:
    """Imports the modules, wrapped; to be called before anything else does. The names stay known afterwards."""
    assert not set(MODULES) & set(sys.modules), "imported before they were wrapped"
    vars(builtins).update(NAMES)
    with jaxtyping.install_import_hook(MODULES, "tests.shapes.check"):
        for module in MODULES:
            importlib.import_module(module)


def check(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, refusing arrays, among its arguments and in its result, that are not as annotated.

    Nothing else is checked: tests have stand-ins for a mesh. Nor are structs when they are made: a tree's map puts
    shardings, shapes or nothing in place of their arrays.
    """
    function.__annotations__ = {name: hint for name, hint in function.__annotations__.items() if has_arrays(hint)}
    return function if function.__name__ == "__init__" else beartype(function, conf=BeartypeConf(is_pep484_tower=True))


def has_arrays(hint: Any) -> bool:
    """Whether a shape is in an annotation."""
    if isinstance(hint, type) and issubclass(hint, jaxtyping.AbstractArray):
        return True
    return any(map(has_arrays, get_args(hint)))
