"""The device mesh, the table from logical to mesh axes, and the way from host arrays to global ones.

Parameters, batches and activations name their dimensions (`embed`, `heads`, `batch`); `RULES` alone says which
mesh axes these are split over, in training and in sampling. A name that is not in the table is an error, never a
replicated array.
"""

import math
import os
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from flax import linen as nn
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from reft_jax.config import MeshConfig

MESH_AXES = ("data", "fsdp", "tensor")

WeightLayout = Literal["training", "sharded", "replicated"]
MeshAxes = str | tuple[str, ...] | None


class Rule(NamedTuple):
    """The mesh axes that a dimension is split over, in each of the layouts that a model is computed in.

    A decode step in the layout of training would gather every weight for every token. Sampling has two of its own, in
    which no device needs a weight that it does not hold: weights `sharded` over fsdp and tensor together, each row on
    all of these devices; or `replicated` to every fsdp index, which has rows of its own.
    """

    training: MeshAxes
    sharded: MeshAxes
    replicated: MeshAxes


_ALL = ("fsdp", "tensor")
RULES: dict[str, Rule] = {
    # Parameters: in training one dimension over fsdp, one over tensor.
    "layers": Rule(None, None, None),
    "embed": Rule("fsdp", None, None),
    "heads": Rule("tensor", _ALL, "tensor"),
    "kv_heads": Rule("tensor", _ALL, "tensor"),
    "head_dim": Rule(None, None, None),
    "mlp": Rule("tensor", _ALL, "tensor"),
    # Splitting a table over fsdp in its features makes XLA replicate the looked-up activations; its rows split well.
    "table_rows": Rule(_ALL, _ALL, "tensor"),
    "table_embed": Rule(None, None, None),
    "position_rows": Rule(None, None, None),
    "norm": Rule(None, None, None),
    "value": Rule(None, None, None),
    "class": Rule(None, None, None),
    "lora_rank": Rule(None, None, None),
    # Activations.
    "batch": Rule(("data", "fsdp"), "data", ("data", "fsdp")),
    "length": Rule(None, None, None),
    "activation_embed": Rule(None, None, None),
    "activation_heads": Rule("tensor", _ALL, "tensor"),
    "activation_kv_heads": Rule("tensor", _ALL, "tensor"),
    "activation_mlp": Rule("tensor", _ALL, "tensor"),
    "activation_vocab": Rule("tensor", _ALL, "tensor"),
}
"""By the name of a dimension, the mesh axes that it is split over."""

Axes = Sequence[str | None]


def mesh_shape(config: MeshConfig, device_count: int) -> tuple[int, int, int]:
    """Sizes of (data, fsdp, tensor), with -1 replaced by the devices that are left.

    Raises:
        ValueError: when the sizes do not multiply to `device_count`.
    """
    sizes = {name: getattr(config, name) for name in MESH_AXES}
    free = [name for name, size in sizes.items() if size == -1]
    fixed = math.prod(size for size in sizes.values() if size != -1)
    if len(free) == 1 and device_count % fixed == 0:
        sizes[free[0]] = device_count // fixed
    if len(free) > 1 or math.prod(sizes.values()) != device_count:
        wanted = ", ".join(f"mesh.{name}={getattr(config, name)}" for name in MESH_AXES)
        raise ValueError(
            f"{wanted} does not fit {device_count} device(s): the sizes must multiply to it, one may be -1"
        )
    return sizes["data"], sizes["fsdp"], sizes["tensor"]


def fake_cpu_devices(count: int) -> None:
    """Splits this process's CPU into `count` devices; must be called before any device is asked for.

    In a collective, XLA:CPU blocks a thread of its pool until all of the collective's devices have come. Each device
    starts collectives that do not need each other's results (those of policy and reference, or of sampled and annotated
    rows) in an order of its own. By default there are as many threads as devices or cores: all can be blocked in
    different collectives, each of which waits for a device that has no thread left. Four for each device are enough for
    all that one program starts at once; a blocked thread costs no time.

    Args:
        count: devices of this process. Processes that it starts later inherit `PJRT_NPROC`, but not `count`.
    """
    jax.config.update("jax_num_cpu_devices", count)
    # JAX has no setting for the size of XLA's pool, but XLA reads this; a size that the user has set stays.
    os.environ.setdefault("PJRT_NPROC", str(max(os.cpu_count() or 1, 4 * count)))


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device]) -> Mesh:
    """Arranges `devices` in the grid that `config` asks for."""
    shape = mesh_shape(config, len(devices))
    return jax.make_mesh(shape, MESH_AXES, axis_types=(AxisType.Auto,) * 3, devices=devices)


def partition_spec(axes: Axes, layout: WeightLayout = "training") -> PartitionSpec:
    """Mesh axes of an array whose dimensions have the logical names `axes` (None: not split).

    Raises:
        KeyError: for a name that `RULES` does not have.
    """
    return PartitionSpec(*(None if name is None else getattr(RULES[name], layout) for name in axes))


def named_sharding(mesh: Mesh, *axes: str | None, layout: WeightLayout = "training") -> NamedSharding:
    """The sharding on `mesh` of an array whose dimensions have the logical names `axes`."""
    return NamedSharding(mesh, partition_spec(axes, layout))


def constrain(x: jax.Array, mesh: Mesh | None, *axes: str | None, layout: WeightLayout = "training") -> jax.Array:
    """Fixes the layout of an activation inside a jitted function; without a mesh it is left to the caller."""
    return x if mesh is None else jax.lax.with_sharding_constraint(x, named_sharding(mesh, *axes, layout=layout))


def shard_count(mesh: Mesh, axis: str, layout: WeightLayout = "training") -> int:
    """Number of pieces that a dimension called `axis` is cut into."""
    names = getattr(RULES[axis], layout) or ()
    return math.prod(mesh.shape[name] for name in ((names,) if isinstance(names, str) else names))


def param_shardings(boxed: Any, mesh: Mesh, layout: WeightLayout = "training") -> Any:
    """Shardings of a tree of (abstract) parameters that carry their logical axis names.

    Raises:
        ValueError: naming the parameter, when a dimension does not divide by its mesh axes.
    """

    def sharding(path: tuple[Any, ...], leaf: nn.LogicallyPartitioned) -> NamedSharding:
        for size, name in zip(leaf.value.shape, leaf.names):
            if name is not None and size % (count := shard_count(mesh, name, layout)):
                where = jax.tree_util.keystr(path, simple=True, separator="/")
                raise ValueError(
                    f"parameter {where}: its {name} dimension of {size} does not divide by the "
                    f"{count} shards of mesh {dict(mesh.shape)}; change `mesh`"
                    + (" or set model.decoder.vocab_multiple" if name == "table_rows" else "")
                    + (" or set generation.weight_layout to `replicated`" if layout == "sharded" else "")
                )
        return named_sharding(mesh, *leaf.names, layout=layout)

    is_box = lambda x: isinstance(x, nn.LogicallyPartitioned)
    return jax.tree_util.tree_map_with_path(sharding, boxed, is_leaf=is_box)


def batch_shardings(tree: Any, mesh: Mesh) -> Any:
    """Shardings of a tree of arrays that have the batch as their first dimension."""
    return jax.tree.map(lambda x: named_sharding(mesh, "batch", *(None,) * (x.ndim - 1)), tree)


def abstract_rows(tree: Any, mesh: Mesh) -> Any:
    """The same shapes and types with the shardings of `batch_shardings`, as arguments for lowering."""
    with_sharding = lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s)
    return jax.tree.map(with_sharding, tree, batch_shardings(tree, mesh))


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array: for scalars and what every device reads."""
    return NamedSharding(mesh, PartitionSpec())


def to_global(tree: Any, shardings: Any) -> Any:
    """Host arrays, the same on every process, as global arrays laid out by `shardings`."""
    put = lambda x, s: jax.make_array_from_callback(np.shape(x), s, lambda index: np.asarray(x)[index])
    return jax.tree.map(put, tree, shardings)


def to_host(tree: Any) -> Any:
    """Global arrays that every process holds whole, as numpy arrays."""
    return jax.tree.map(np.asarray, jax.device_get(tree))
