"""reft_jax: ReFT (Reasoning with REinforced Fine-Tuning, arXiv 2401.08967) in JAX."""

import importlib
from collections.abc import Callable
from typing import Any

__version__ = "0.1.0"


def hand_out(package: str, **modules: str) -> tuple[Callable[[str], Any], list[str]]:
    """A package's `__getattr__` and `__all__`: public names, each imported from its module when it is first asked for.

    So a package costs nothing to import, and a command that needs no jax starts without it.

    Args:
        package: the package's `__name__`.
        modules: by module of the package the names that it gives, separated by blanks.
    """
    homes = {name: module for module, names in modules.items() for name in names.split()}

    def get(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{package}.{homes[name]}"), name)

    return get, sorted(homes)
