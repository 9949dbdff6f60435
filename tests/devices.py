"""Meshes of the eight devices that tests have."""

import functools
import math

import jax
from jax.sharding import Mesh

from reft_jax.config import MeshConfig
from reft_jax.parallel.sharding import make_mesh


@functools.cache
def mesh(*sizes: int) -> Mesh:
    """The first devices as `mesh(fsdp, tensor)` or `mesh(data, fsdp, tensor)`; `mesh()` is one device."""
    shape = (1, 1, 1, *sizes)[-3:]
    return make_mesh(MeshConfig(*shape), jax.devices()[: math.prod(shape)])
