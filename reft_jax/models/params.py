"""What `params` is: a model's parameters by part, and the two forms that the weights of layers have.

They are stacked, one array [L, ...] of all layers under `blocks`: so in files, and where layers are looped over. Or
each layer has arrays of its own, under `layers_0` and so on, since XLA's CPU backend would copy each out of a stack.
"""

import functools
from collections.abc import Callable, Collection, Sequence
from typing import Any, TypedDict, TypeVar, cast

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.sharding import NamedSharding, PartitionSpec

T = TypeVar("T")

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


def is_stacked(tree: Any) -> bool:
    """Whether no decoder in the tree has arrays for each layer."""
    return not any("/layers_0/" in _path(path) for path, _ in jax.tree.leaves_with_path(tree))


def stacked(tree: T) -> T:
    """Any tree of parameters, their moments or their shapes, the weights of each decoder in it stacked."""

    def stack(part: Any) -> Any:
        if not (isinstance(part, dict) and "layers_0" in part):
            return part
        layers = [part[f"layers_{i}"] for i in range(sum(name.startswith("layers_") for name in part))]
        rest = {name: tree for name, tree in part.items() if not name.startswith("layers_")}
        return {**rest, "blocks": jax.tree.map(lambda *arrays: _stack(arrays), *layers)}

    return jax.tree.map(stack, tree, is_leaf=lambda x: isinstance(x, dict) and "layers_0" in x)


def unstacked(tree: T) -> T:
    """Any tree of parameters, their moments or their shapes, with arrays for each layer; the inverse of `stacked`."""

    def unstack(part: Any) -> Any:
        if not (isinstance(part, dict) and "blocks" in part):
            return part
        leaves, structure = jax.tree.flatten(part["blocks"])
        layers = zip(*map(_unstack, leaves))
        each = {f"layers_{i}": jax.tree.unflatten(structure, arrays) for i, arrays in enumerate(layers)}
        return {name: tree for name, tree in part.items() if name != "blocks"} | each

    return jax.tree.map(unstack, tree, is_leaf=lambda x: isinstance(x, dict) and "blocks" in x)


def in_form_of(tree: T, like: Any) -> T:
    """The tree as `stacked` as another one is."""
    if is_stacked(tree) == is_stacked(like):
        return tree
    return stacked(tree) if is_stacked(like) else unstacked(tree)


def _path(path: tuple[Any, ...]) -> str:
    return f"/{jax.tree_util.keystr(path, simple=True, separator='/')}/"


def _stack(arrays: Sequence[Any]) -> Any:
    first = arrays[0]
    if not _is_placed(first):
        return jnp.stack(arrays)
    sharding = _with_layers(first.sharding)
    if isinstance(first, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct((len(arrays), *first.shape), first.dtype, sharding=sharding)
    return _stacking(sharding)(arrays)


def _unstack(array: Any) -> list[Any]:
    if not _is_placed(array):
        return list(array)
    sharding = _without_layers(array.sharding)
    if isinstance(array, jax.ShapeDtypeStruct):
        return [jax.ShapeDtypeStruct(array.shape[1:], array.dtype, sharding=sharding)] * array.shape[0]
    return _unstacking(array.shape[0], sharding)(array)


def _is_placed(array: Any) -> bool:
    """Whether it lies on devices, or is the shape of what will; what is traced or on the host is not."""
    return isinstance(array, jax.Array | jax.ShapeDtypeStruct) and not isinstance(array, jax.core.Tracer)


def _with_layers(sharding: Any) -> Any:
    named = isinstance(sharding, NamedSharding)
    return NamedSharding(sharding.mesh, PartitionSpec(None, *sharding.spec)) if named else sharding


def _without_layers(sharding: Any) -> Any:
    named = isinstance(sharding, NamedSharding)
    return NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[1:])) if named else sharding


@functools.cache
def _stacking(sharding: Any) -> Callable[..., Any]:
    return jax.jit(jnp.stack, out_shardings=sharding)


@functools.cache
def _unstacking(layers: int, sharding: Any) -> Callable[..., Any]:
    return jax.jit(list, out_shardings=[sharding] * layers)


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
