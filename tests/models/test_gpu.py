"""What only an NVIDIA GPU can show: `JAX_PLATFORMS=cuda,cpu python -m pytest tests/models/test_gpu.py`, on one.

`python -m benchmarks.gpu` runs it, with what else to ask of a GPU.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reft_jax.config import DecoderConfig, MeshConfig, ModelConfig
from reft_jax.models.decoder import Decoder, attention_kind
from reft_jax.parallel.sharding import make_mesh

pytestmark = pytest.mark.compiles

SHAPE = DecoderConfig(
    vocab_size=97,
    embed_dim=128,
    num_layers=3,
    num_heads=6,
    num_kv_heads=2,
    head_dim=64,
    rotary_dim=64,
    mlp_dim=192,
    initializer_range=0.3,
)


@pytest.fixture
def gpu():
    """A mesh of the first GPU."""
    try:
        return make_mesh(MeshConfig(), jax.devices("cuda")[:1])
    except RuntimeError:
        pytest.skip("no NVIDIA GPU")


@pytest.mark.parametrize("length", [2, 64, 118])
def test_cudnn_attention_is_as_near_to_float32_as_plain_attention(gpu, length):
    """Hidden states and gradients in bfloat16; rows are whole, and some end in padding that nobody reads."""
    config = ModelConfig(decoder=SHAPE, dtype="bfloat16")
    assert attention_kind(config, gpu, length) == "cudnn"
    tokens = np.random.default_rng(0).integers(0, 97, (4, length))
    mask = np.arange(length)[None] < np.array([length, length, length // 2 + 1, 1])[:, None]
    wide = Decoder(dataclasses.replace(config, dtype="float32", attention="plain"), gpu)
    place = jax.sharding.NamedSharding(gpu, jax.sharding.PartitionSpec())
    with jax.default_matmul_precision("highest"):
        params = jax.device_put(wide.init(jax.random.key(0), tokens[:1], jnp.arange(length)[None]), place)

    def results(decoder: Decoder):
        def loss(params):
            hidden = decoder.apply(params, tokens, jnp.arange(length)[None])[0]
            return jnp.sum(jnp.where(mask[..., None], jnp.sin(hidden), 0)), hidden

        gradient, hidden = jax.jit(jax.grad(loss, has_aux=True))(params)
        return [np.asarray(hidden, np.float32)[mask], *map(np.asarray, jax.tree.leaves(gradient))]

    with jax.default_matmul_precision("highest"):
        exact = results(wide)
    errors = {
        kind: [
            np.linalg.norm(x - y) / np.linalg.norm(y)
            for x, y in zip(results(Decoder(dataclasses.replace(config, attention=kind), gpu)), exact, strict=True)
        ]
        for kind in ("plain", "cudnn")
    }
    for plain, cudnn in zip(errors["plain"], errors["cudnn"]):
        assert cudnn < 1.5 * plain + 1e-3, errors
