"""Low-rank adaptation (Hu et al. 2021, arXiv 2106.09685): W x + (alpha / rank) B A x, with W frozen.

Adapters are a collection of variables beside the parameters, in a tree of their own: {"decoder": ..., "lora": ...}.
Where a tree has no `lora` the adapters are off, which is how policy and reference share one copy of frozen weights.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from reft_jax.config import LoraConfig, ModelConfig

SUFFIX = "_lora"

Params = Any  # a dict of arrays


class Adapter(nn.Module):
    """The low-rank part of one linear map: x [..., *in] -> [..., *out]; 0 where its variables are not given.

    A is uniform within 1 / sqrt(in) and B is 0, as in PEFT, so that a fresh adapter changes nothing.
    """

    config: ModelConfig
    features: tuple[int, ...]
    axes: tuple[str, ...]  # names of the kernel's dimensions, in before out

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
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
        a: Any = self.variable("lora", "a", lambda: boxed_a(self.make_rng("params"), (*sizes, rank)))
        b: Any = self.variable("lora", "b", lambda: boxed_b(self.make_rng("params"), (rank, *self.features)))
        low = jnp.tensordot(x, a.value.astype(x.dtype), contracted)  # [..., rank]
        return jnp.tensordot(low, b.value.astype(x.dtype), 1) * jnp.asarray(scale(self.config.lora), x.dtype)


def scale(config: LoraConfig) -> float:
    """What B A x is multiplied by."""
    return config.alpha / config.rank


def merge(params: Params, config: LoraConfig) -> Params:
    """{"decoder"} with the adapters, if there are any, added to its kernels, in their type and layout."""
    decoder = params["decoder"]
    if "lora" not in params:
        return {"decoder": decoder}
    add = jax.jit(_merge, static_argnums=2, out_shardings=jax.tree.map(lambda x: x.sharding, decoder))
    return {"decoder": add(decoder, params["lora"], scale(config))}


def _merge(decoder: Params, lora: Params, factor: float) -> Params:
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


def split_trainable(params: Params) -> tuple[Params, Params]:
    """(what is trained, what is frozen): beside adapters the decoder is frozen, without them nothing is."""
    if isinstance(params, dict) and "lora" in params:
        trainable = {name: tree for name, tree in params.items() if name != "decoder"}
        return trainable, {"decoder": params["decoder"]}
    return params, {}


def join(trainable: Params, frozen: Params) -> Params:
    """The whole tree that `split_trainable` took apart."""
    return {**frozen, **trainable} if frozen else trainable
