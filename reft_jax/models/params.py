"""What `params` is: a model's parameters by part."""

from collections.abc import Collection
from typing import Any, TypedDict, cast

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
