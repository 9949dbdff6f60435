"""The shapes in annotations are checked in this session, all of them, and nowhere else."""

import inspect
import sys
import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import TypeCheckError

from reft_jax import losses
from reft_jax.models.decoder import attend
from tests.shapes import MODULES

ROWS, MASK = np.zeros((2, 3)), np.ones((2, 3), bool)


def functions(module: str) -> dict[str, typing.Any]:
    """The functions and methods that a module defines, unwrapped, by qualified name."""
    own = [x for x in vars(sys.modules[module]).values() if getattr(x, "__module__", "") == module]
    methods = [method for x in own if inspect.isclass(x) for method in vars(x).values()]
    found = [inspect.unwrap(getattr(x, "__func__", x)) for x in own + methods]
    return {x.__qualname__: x for x in found if inspect.isfunction(x) and x.__module__ == module}


@pytest.mark.parametrize("module", MODULES)
def test_every_name_in_an_annotation_is_known(module):
    """One that is not would pass for `Any`, in silence."""
    for name, function in functions(module).items():
        hints = typing.get_type_hints(function, include_extras=True)  # NameError names it
        assert hints.keys() == inspect.get_annotations(function).keys(), name


@pytest.mark.parametrize("module", MODULES)
def test_every_public_function_of_arrays_says_their_shapes(module):
    for name, function in functions(module).items():
        if not name.startswith("_"):
            plain = [key for key, hint in inspect.get_annotations(function).items() if hint in ("jax.Array", "Array")]
            assert not plain, name


@pytest.mark.compiles
def test_wrong_shapes_and_types_are_refused_in_this_session():
    assert losses.kl_k1(ROWS, ROWS).shape == (2, 3)
    with pytest.raises(TypeCheckError, match="reference_log_probs"):
        losses.kl_k1(ROWS, ROWS[:, :1])
    with pytest.raises(TypeCheckError, match="logits"):
        losses.entropy(np.zeros((2, 3), int))
    with pytest.raises(TypeCheckError, match="mask"):
        jax.jit(losses.whiten)(ROWS, MASK.astype(int))
    query, keys = jnp.zeros((1, 2, 4, 8)), jnp.zeros((1, 3, 2, 8))
    with pytest.raises(TypeCheckError, match="visible"):
        attend(query, keys, keys, jnp.ones((1, 3, 2), bool), 1.0)


@pytest.mark.compiles
def test_the_functions_themselves_check_no_annotation():
    """What `test_layers` adds: the package imports neither jaxtyping nor beartype."""
    assert not np.any(inspect.unwrap(losses.entropy)(np.zeros((2, 1), int)))
