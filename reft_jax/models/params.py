"""What `params` is: a model's parameters by part."""

import functools
from collections.abc import Collection
from typing import Any, TypedDict, cast

import jax
import jax.numpy as jnp
from flax import linen as nn

Tree = dict[str, Any]  # by name of module and parameter: another tree, or an array (or what stands for one: its shape)


class Params(TypedDict, total=False):
    """The parts that a model has, each a nested dict of arrays; at run time a plain dict, so a pytree."""

    decoder: Tree  # the body and its output projection; frozen where there are adapters
    value_head: Tree  # the policy's, where a critic is learnt
    critic: Tree  # a second decoder, where the critic is separate
    lora: Tree  # the decoder's adapters; without this part they are off
    class_head: Tree  # the classifier's


def select(params: Params, parts: Collection[str]) -> Params:
    """Those of the parts that there are."""
    return cast(Params, {name: tree for name, tree in params.items() if name in parts})


def unstack(part: Tree, layers: int) -> Tree:
    """The weights of a decoder, or of its adapters, an array for each layer, as an unstacked `Decoder` has them."""
    one = {f"layers_{i}": jax.tree.map(lambda x, i=i: x[i], part["blocks"]) for i in range(layers)}
    return {name: tree for name, tree in part.items() if name != "blocks"} | one


def abstract_variables(module: nn.Module, inputs: int) -> dict[str, Any]:
    """What `module.init` makes, as boxed shapes; touches no device. All callers share them: they are not to be changed.

    Args:
        module: a decoder, or what holds one.
        inputs: how many arrays [B, T] of tokens or positions it is called with.
    """
    return _abstract_variables(module, inputs, jax.config.jax_enable_x64)  # type: ignore[attr-defined]


@functools.lru_cache(maxsize=64)  # tracing a model takes a tenth of a second or more, and all that reads weights asks
def _abstract_variables(module: nn.Module, inputs: int, _wide: bool) -> dict[str, Any]:
    tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    return cast(dict[str, Any], jax.eval_shape(module.init, jax.eval_shape(jax.random.key, 0), *[tokens] * inputs))
