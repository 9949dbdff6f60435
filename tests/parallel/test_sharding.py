"""Layouts on eight devices: what the table says is what arrays have, and what does not fit is refused by name."""

import contextlib
import dataclasses
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from reft_jax.algorithms.train_state import abstract_params, copy_params, init_params, init_state, make_optimizer
from reft_jax.config import DecoderConfig, MeshConfig, ModelConfig, OptimizerConfig
from reft_jax.models import decoder
from reft_jax.models.policy import Policy
from reft_jax.parallel import sharding
from reft_jax.parallel.sharding import (
    batch_shardings,
    constrain,
    mesh_shape,
    partition_spec,
    to_global,
    to_host,
)
from tests.devices import mesh

pytestmark = pytest.mark.compiles

MODEL = ModelConfig(
    decoder=DecoderConfig(
        vocab_size=30,
        vocab_multiple=8,
        embed_dim=16,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=4,
        rotary_dim=4,
        mlp_dim=24,
        qkv_bias=True,
        tie_embeddings=False,
    )
)
# The table of the design, written down once more: dimensions over fsdp and tensor, blocks stacked in front.
EXPECTED = {
    "decoder/embed": P(("fsdp", "tensor"), None),
    "decoder/lm_head": P(("fsdp", "tensor"), None),
    "decoder/final_norm/scale": P(None),
    "decoder/blocks/attn_norm/scale": P(None, None),
    "decoder/blocks/mlp_norm/scale": P(None, None),
    **{f"decoder/blocks/attn/{name}/kernel": P(None, "fsdp", "tensor", None) for name in "qkv"},
    **{f"decoder/blocks/attn/{name}/bias": P(None, "tensor", None) for name in "qkv"},
    "decoder/blocks/attn/o/kernel": P(None, "tensor", None, "fsdp"),
    "decoder/blocks/mlp/gate/kernel": P(None, "fsdp", "tensor"),
    "decoder/blocks/mlp/up/kernel": P(None, "fsdp", "tensor"),
    "decoder/blocks/mlp/down/kernel": P(None, "tensor", "fsdp"),
    "value_head/kernel": P("fsdp", None),
    "value_head/bias": P(None),
}


def by_path(tree) -> dict:
    return {jax.tree_util.keystr(k, simple=True, separator="/"): v for k, v in jax.tree.leaves_with_path(tree)}


def assert_laid_out(array: jax.Array, spec: P, where) -> None:
    assert array.sharding.is_equivalent_to(NamedSharding(where, spec), array.ndim), (array.sharding, spec)


# Parameters


def test_parameters_are_made_where_the_table_says():
    params = by_path(init_params(Policy(MODEL, mesh(4, 2)), mesh(4, 2), jax.random.key(0), value_head=True))
    assert set(params) == set(EXPECTED)
    for path, array in params.items():
        assert_laid_out(array, EXPECTED[path], mesh(4, 2))
        if array.size > 64:
            shards = {shard.data.size for shard in array.addressable_shards}
            pieces = 4 if path.startswith("value_head") else 8
            assert shards == {array.size // pieces}, f"{path} is not split into {pieces} equal pieces"


def test_parameters_do_not_depend_on_the_mesh():
    one = init_params(Policy(MODEL, mesh(1, 1, 1)), mesh(1, 1, 1), jax.random.key(3), value_head=True)
    eight = init_params(Policy(MODEL, mesh(4, 2)), mesh(4, 2), jax.random.key(3), value_head=True)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), to_host(one), to_host(eight))


def test_moments_lie_where_their_parameters_do_and_the_rest_everywhere():
    params = init_params(Policy(MODEL, mesh(4, 2)), mesh(4, 2), jax.random.key(0), value_head=True)
    state = init_state(copy_params(params), make_optimizer(OptimizerConfig(), 10), mesh(4, 2))
    moments = 0
    for path, array in by_path(state.opt_state).items():
        owner = [name for name in EXPECTED if path.endswith(name)]
        moments += len(owner)
        assert_laid_out(array, EXPECTED[owner[0]] if owner else P(), mesh(4, 2))
    assert moments == 2 * len(EXPECTED)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"vocab_multiple": 1},
            r"decoder/embed: its table_rows dimension of 30 does not divide by the 8.*vocab_multiple",
        ),
        ({"mlp_dim": 25}, r"blocks/mlp/\w+/kernel: its mlp dimension of 25 does not divide by the 2 shards.*`mesh`"),
        ({"num_kv_heads": 1}, r"blocks/attn/k/\w+: its kv_heads dimension of 1 does not divide by the 2 shards"),
        ({"embed_dim": 18}, r"its embed dimension of 18 does not divide by the 4 shards of mesh .*'fsdp': 4"),
    ],
)
def test_an_indivisible_dimension_names_its_parameter(change, message):
    model = dataclasses.replace(MODEL, decoder=dataclasses.replace(MODEL.decoder, **change))
    with pytest.raises(ValueError, match=message):
        abstract_params(Policy(model, mesh(4, 2)), mesh(4, 2), value_head=True)
    abstract_params(Policy(model, mesh(1, 1, 1)), mesh(1, 1, 1), value_head=True)


def test_a_name_that_the_table_lacks_is_an_error():
    with pytest.raises(KeyError, match="hedas"):
        partition_spec(("embed", "hedas"))
    with pytest.raises(KeyError, match="bacth"):
        jax.jit(lambda x: constrain(x, mesh(4, 2), "bacth", None))(jnp.zeros((8, 8)))


# Activations


def test_a_constraint_splits_what_was_whole():
    where = mesh(2, 2, 2)
    whole = jax.device_put(np.zeros((8, 4, 6), np.float32), NamedSharding(where, P()))
    spread = jax.jit(lambda x: constrain(x + 1, where, "batch", "length", "activation_mlp") * 2)(whole)
    assert_laid_out(spread, P(("data", "fsdp"), None, "tensor"), where)
    assert {shard.data.shape for shard in spread.addressable_shards} == {(2, 4, 3)}
    left = jax.jit(lambda x: constrain(x + 1, None, "batch", "length", "activation_mlp") * 2)(whole)
    assert_laid_out(left, P(), where)


def test_activations_of_the_decoder_are_split_as_the_table_says(monkeypatch):
    """Everything goes in whole, so that nothing but the constraints inside can split it; the compiler is asked."""
    where, seen = mesh(1, 4, 2), {}

    def watched(x, m, *axes, layout):
        x = sharding.constrain(x, m, *axes, layout=layout)
        jax.debug.inspect_array_sharding(x, callback=lambda s: seen.__setitem__(axes, (s, x.ndim)))
        return x

    policy = Policy(MODEL, where)
    everywhere = NamedSharding(where, P())
    params = to_host(init_params(Policy(MODEL, where), where, jax.random.key(0), value_head=True))
    params = jax.tree.map(lambda x: jax.device_put(x, everywhere), params)
    monkeypatch.setattr(decoder, "constrain", watched)

    def logits(params, x):
        # A block by itself: Flax's scan refuses functions that watch themselves.
        block = jax.tree.map(lambda stacked: stacked[0], params["decoder"]["blocks"])
        module, positions = decoder.Block(policy.config, where, policy.layout), jnp.arange(5)[None]
        (hidden, _), _ = module.apply({"params": block}, (x, None), jnp.int32(0), positions, None)
        return policy.apply({"params": params}, hidden, method="logits")

    x = jax.device_put(np.ones((8, 5, MODEL.decoder.embed_dim), np.float32), everywhere)
    out = jax.jit(logits)(params, x)
    expected = {
        ("batch", "length", "activation_embed"): P(("data", "fsdp"), None, None),
        ("batch", "length", "activation_heads", None): P(("data", "fsdp"), None, "tensor", None),
        ("batch", "length", "activation_mlp"): P(("data", "fsdp"), None, "tensor"),
        ("batch", None, "activation_vocab"): P(("data", "fsdp"), None, "tensor"),
    }
    assert set(seen) == set(expected)
    for axes, (found, ndim) in seen.items():
        assert found.is_equivalent_to(NamedSharding(where, expected[axes]), ndim), (axes, found)
    assert out.shape == (8, 5, 32)


# Mesh, and the way in and out


@pytest.mark.parametrize(
    ("sizes", "devices", "expected"),
    [((1, -1, 1), 8, (1, 8, 1)), ((-1, 2, 2), 8, (2, 2, 2)), ((2, 2, -1), 4, (2, 2, 1)), ((1, 1, 1), 1, (1, 1, 1))],
)
def test_mesh_shape(sizes, devices, expected):
    assert mesh_shape(MeshConfig(*sizes), devices) == expected


@pytest.mark.parametrize("sizes", [(1, 3, 1), (1, -1, 3), (-1, -1, 1), (2, 2, 4), (1, 1, 1)])
def test_a_mesh_that_does_not_fit_names_its_keys(sizes):
    data, fsdp, tensor = sizes
    with pytest.raises(ValueError, match=rf"mesh.data={data}, mesh.fsdp={fsdp}, mesh.tensor={tensor} does not fit 8"):
        mesh_shape(MeshConfig(*sizes), 8)


def test_rows_go_to_their_devices_and_back():
    where = mesh(2, 2, 2)
    rows = {"tokens": np.arange(32).reshape(8, 4), "lengths": np.arange(8)}
    arrays = to_global(rows, batch_shardings(rows, where))
    assert_laid_out(arrays["tokens"], P(("data", "fsdp"), None), where)
    assert {shard.data.shape for shard in arrays["lengths"].addressable_shards} == {(2,)}
    jax.tree.map(np.testing.assert_array_equal, to_host(arrays), rows)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="threads have names in /proc only")
def test_fake_devices_have_threads_enough_to_wait_in_several_collectives_at_once():
    names = []
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(FileNotFoundError):  # a thread of something else that has ended
            names.append((task / "comm").read_text())
    assert sum("XLAEigen" in name for name in names) >= 4 * jax.device_count()
