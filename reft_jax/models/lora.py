"""Low-rank adaptation (Hu et al. 2021, arXiv 2106.09685): W x + (alpha / rank) B A x, with W frozen.

Adapters are a collection of variables beside the parameters, a part of `Params` of their own. Where there is no `lora`
the adapters are off, which is how policy and reference share one copy of frozen weights.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import jax
import jax.numpy as jnp
from flax import linen as nn

from reft_jax.config import LoraConfig, ModelConfig
from reft_jax.models.params import Params, Tree, select, stacked

if TYPE_CHECKING:
    from jaxtyping import Array, Float

SUFFIX = "_lora"


class Adapter(nn.Module):
    """The low-rank part of one linear map: [..., *in] -> [..., *out], or 0 [] where its variables are not given.

    A is uniform within 1 / sqrt(in) and B is 0, as in PEFT, so that a fresh adapter changes nothing.
    """

    config: ModelConfig
    features: tuple[int, ...]
    axes: tuple[str, ...]  # names of the kernel's dimensions, in before out

    @nn.compact
    def __call__(self, x: Float[Array, "*into"]) -> Float[Array, "*out"]:
        if not (self.has_variable("lora", "a") or self.is_initializing()):
            return jnp.zeros((), x.dtype)
        rank, contracted = self.config.lora.rank, len(self.axes) - len(self.features)
        sizes = x.shape[-contracted:]
        dtype = jnp.promote_types(self.config.param_dtype, jnp.float32)
        bound = 1 / math.sqrt(math.prod(sizes))
        uniform = lambda key, shape: jax.random.uniform(key, shape, dtype, -bound, bound)
        zeros = lambda key, shape: jnp.zeros(shape, dtype)
        boxed_a = nn.with_logical_partitioning(uniform, (*self.axes[:contracted], "lora_rank"))
        boxed_b = nn.with_logical_partitioning(zeros, ("lora_rank", *self.axes[contracted:]))
        key = lambda: self.make_rng("params")
        a = cast(jax.Array, self.variable("lora", "a", lambda: boxed_a(key(), (*sizes, rank))).value)
        b = cast(jax.Array, self.variable("lora", "b", lambda: boxed_b(key(), (rank, *self.features))).value)
        low = jnp.tensordot(x, a.astype(x.dtype), contracted)  # [..., rank]
        return jnp.tensordot(low, b.astype(x.dtype), 1) * jnp.asarray(scale(self.config.lora), x.dtype)


def scale(config: LoraConfig) -> float:
    """What B A x is multiplied by."""
    return config.alpha / config.rank


def merge(params: Params, config: LoraConfig) -> Params:
    """The decoder alone, stacked, the adapters, if there are any, added to its kernels, in their type and layout."""
    params = stacked(params)
    decoder = params["decoder"]
    if "lora" not in params:
        return {"decoder": decoder}
    add = jax.jit(_merge, static_argnums=2, out_shardings=jax.tree.map(lambda x: x.sharding, decoder))
    return {"decoder": add(decoder, params["lora"], scale(config))}


def _merge(decoder: Tree, lora: Tree, factor: float) -> Tree:
    blocks = {**decoder["blocks"]}
    for part, adapters in lora["blocks"].items():
        blocks[part] = {**blocks[part]}
        for name, adapter in adapters.items():
            target = name.removesuffix(SUFFIX)
            kernel = blocks[part][target]["kernel"]
            a, b = adapter["a"], adapter["b"]  # [L, *in, rank], [L, rank, *out]
            layers, rank = b.shape[:2]
            delta = a.reshape(layers, -1, rank) @ b.reshape(layers, rank, -1) * factor
            merged = (kernel + delta.reshape(kernel.shape)).astype(kernel.dtype)
            blocks[part][target] = {**blocks[part][target], "kernel": merged}
    return {**decoder, "blocks": blocks}


def concatenate(parts: Sequence[tuple[LoraConfig, Tree]]) -> tuple[LoraConfig, Tree]:
    """Adapters of one model as a single one of summed rank, which adds to it what they add one after the other.

    `alpha` / `rank` is that of the last part, by which the B of the others are scaled; a target that a part lacks is 0
    there. One part alone stays as it is.
    """
    if len(parts) == 1:
        return parts[0]
    last, own = parts[-1]
    rank = sum(config.rank for config, _ in parts)
    dtype = jax.tree.leaves(own)[0].dtype  # a file's may be narrower
    blocks: Tree = {}
    start = 0
    for config, lora in parts:
        place = (start, rank - start - config.rank)
        start += config.rank
        for block, adapters in lora["blocks"].items():
            whole = blocks.setdefault(block, {})
            for name, adapter in adapters.items():
                a, b = (jnp.asarray(adapter[key], dtype) for key in ("a", "b"))  # [L, *in, rank], [L, rank, *out]
                placed = {
                    "a": jnp.pad(a, [(0, 0)] * (a.ndim - 1) + [place]),
                    "b": jnp.pad(b * (scale(config) / scale(last)), [(0, 0), place] + [(0, 0)] * (b.ndim - 2)),
                }
                whole[name] = jax.tree.map(jnp.add, whole[name], placed) if name in whole else placed
    targets = tuple(dict.fromkeys(target for config, _ in parts for target in config.targets))
    return dataclasses.replace(last, rank=rank, alpha=scale(last) * rank, targets=targets), {"blocks": blocks}


def split_trainable(params: Params) -> tuple[Params, Params]:
    """(what is trained, what is frozen): beside adapters the decoder is frozen, without them nothing is."""
    if isinstance(params, dict) and "lora" in params:
        return select(params, params.keys() - {"decoder"}), {"decoder": params["decoder"]}
    return params, {}


def join(trainable: Params, frozen: Params) -> Params:
    """The whole tree that `split_trainable` took apart."""
    return {**frozen, **trainable} if frozen else trainable
