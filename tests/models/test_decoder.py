"""The decoder against slow loops, closed forms, and itself by another way: cache, scan, remat, mesh."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reft_jax.config import DecoderConfig, MeshConfig, ModelConfig
from reft_jax.models.decoder import Decoder, attend, attention_kind, empty_cache, rope_frequencies, rotate
from reft_jax.models.params import unstacked
from reft_jax.parallel.sharding import batch_shardings, make_mesh, param_shardings

pytestmark = pytest.mark.compiles

COMMON = {"vocab_size": 13, "embed_dim": 16, "num_layers": 3, "mlp_dim": 24, "max_positions": 24}
SHAPES = {
    "llama": DecoderConfig(**COMMON, num_heads=4, num_kv_heads=2, head_dim=6, rotary_dim=6, tie_embeddings=False),
    "gpt2": DecoderConfig(
        **COMMON,
        num_heads=2,
        num_kv_heads=2,
        head_dim=8,
        rotary_dim=0,
        norm="layer",
        activation="gelu_tanh",
        gated_mlp=False,
        qkv_bias=True,
        attention_out_bias=True,
        mlp_bias=True,
        scale_attention_by_layer=True,
    ),
    "codegen": DecoderConfig(
        **COMMON,
        num_heads=2,
        num_kv_heads=2,
        head_dim=8,
        rotary_dim=4,
        rope_interleaved=True,
        parallel_block=True,
        norm="layer",
        gated_mlp=False,
        mlp_bias=True,
        lm_head_bias=True,
        tie_embeddings=False,
    ),
    "opt": DecoderConfig(
        **COMMON,
        num_heads=2,
        num_kv_heads=2,
        head_dim=8,
        rotary_dim=0,
        position_offset=2,
        activation="relu",
        gated_mlp=False,
        qk_norm=True,
    ),
}
LENGTHS = np.array([9, 4, 1])
TOKENS = np.random.default_rng(0).integers(0, 13, (3, 9))


def config(case: str, **kwargs) -> ModelConfig:
    return ModelConfig(decoder=SHAPES[case], **kwargs)


@functools.cache
def params(case: str):
    """Random parameters that no part of the model can do without: biases and scales are random too."""
    tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    shapes = jax.eval_shape(Decoder(config(case)).init, jax.random.key(0), tokens, tokens)["params"]
    leaves, tree = jax.tree.flatten(shapes)  # flax's boxes are nodes of the tree: they are kept
    rng = np.random.default_rng(1)
    values = [jnp.asarray(0.5 * rng.normal(size=x.shape) + (x.ndim <= 2) * 0.5, x.dtype) for x in leaves]
    return jax.tree.unflatten(tree, values)


def plain(tree):
    return jax.tree.map(lambda b: b.value, tree, is_leaf=lambda x: hasattr(x, "names"))


@functools.partial(jax.jit, static_argnums=0)
def logits(model_config: ModelConfig, weights, tokens):
    model = Decoder(model_config)
    hidden, _ = model.apply({"params": weights}, tokens, jnp.arange(tokens.shape[1])[None])
    return model.apply({"params": weights}, hidden, method="logits")


def assert_close(actual, expected, tolerance=1e-5):
    scale = np.abs(expected).max()
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize(
    ("case", "layers"),
    [*((case, "scanned") for case in SHAPES), ("llama", "unrolled"), ("gpt2", "unrolled"), ("llama", "unstacked")],
)
def test_one_token_at_a_time_through_the_cache_is_the_full_forward(case, layers):
    """Prompts of 9, 4 and 1 tokens in one padded prefill, then 6 more tokens each, against rows run whole."""
    more = np.random.default_rng(2).integers(0, 13, (3, 6))
    model = Decoder(config(case, scan_layers=layers == "scanned"), stacked=layers != "unstacked")
    weights = {"params": plain(params(case))}
    if layers == "unstacked":
        weights = {"params": unstacked(weights["params"])}

    @jax.jit
    def cached(tokens, more):
        lengths = jnp.asarray(LENGTHS)
        hidden, cache = model.apply(weights, tokens, jnp.arange(9)[None], empty_cache(model.config, 3, 16))
        first = jnp.take_along_axis(hidden, (lengths - 1)[:, None, None], axis=1)[:, 0]

        def step(cache, inputs):
            i, token = inputs
            hidden, cache = model.apply(weights, token[:, None], (lengths + i)[:, None], cache)
            return cache, hidden[:, 0]

        rest = jax.lax.scan(step, cache, (jnp.arange(6), more.T))[1].swapaxes(0, 1)
        return model.apply(weights, jnp.concatenate([first[:, None], rest], axis=1), method="logits")

    actual = cached(TOKENS, more)
    for row, n in enumerate(LENGTHS):
        whole = np.zeros((1, 15), np.int32)
        whole[0, : n + 6] = np.concatenate([TOKENS[row, :n], more[row]])
        assert_close(actual[row], np.asarray(logits(config(case), params(case), whole))[0, n - 1 : n + 6])


@pytest.mark.parametrize("case", SHAPES)
def test_nothing_depends_on_later_tokens_and_something_on_every_earlier_one(case):
    first = np.asarray(logits(config(case), params(case), TOKENS))
    changed = TOKENS.copy()
    changed[:, 4] = (changed[:, 4] + 1) % 13
    second = np.asarray(logits(config(case), params(case), changed))
    np.testing.assert_array_equal(first[:, :4], second[:, :4])
    assert np.all(np.abs(first[:, 4:] - second[:, 4:]).max(axis=-1) > 1e-4)


def gradient(model_config: ModelConfig, weights):
    """Of a loss that every parameter has a part in; compiled without optimisation, for it runs once."""
    loss = lambda p: jnp.sum(jax.nn.log_softmax(logits(model_config, p, TOKENS))[..., 3] ** 2)
    return plain(jax.jit(jax.grad(loss), compiler_options={"xla_backend_optimization_level": 0})(weights))


@pytest.mark.parametrize("case", ["codegen", "opt"])
def test_every_parameter_matters(case):
    """No gradient is 0 throughout."""
    for path, value in jax.tree.leaves_with_path(gradient(config(case), params(case))):
        assert np.abs(value).max() > 1e-3, jax.tree_util.keystr(path)


@pytest.mark.parametrize("changes", [{"scan_layers": False}, {"remat": "dots"}, {"remat": "full"}])
def test_unrolled_and_rematerialised_gradients_are_those_of_the_scan(changes):
    expected = gradient(config("llama"), params("llama"))
    jax.tree.map(assert_close, gradient(config("llama", **changes), params("llama")), expected)


@pytest.mark.parametrize("case", ["llama", "gpt2"])
def test_a_mesh_computes_the_same(case):
    mesh = make_mesh(MeshConfig(data=1, fsdp=4, tensor=2), jax.devices())
    decoder = dataclasses.replace(SHAPES[case], vocab_multiple=8)
    model = Decoder(ModelConfig(decoder=decoder), mesh)
    pad = lambda name, x: jnp.pad(x, ((0, 3), (0, 0))) if name in ("embed", "lm_head") else x
    weights = {name: pad(name, value) for name, value in plain(params(case)).items()}
    token = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    shapes = jax.eval_shape(Decoder(ModelConfig(decoder=decoder)).init, jax.random.key(0), token, token)["params"]
    weights = jax.device_put(weights, param_shardings(shapes, mesh))
    tokens = np.tile(TOKENS, (3, 1))[:8]
    tokens = jax.device_put(tokens, batch_shardings(tokens, mesh))

    @jax.jit
    def run(weights, tokens):
        hidden, _ = model.apply({"params": weights}, tokens, jnp.arange(9)[None])
        return model.apply({"params": weights}, hidden, method="logits")

    actual = np.asarray(run(weights, tokens))
    assert_close(actual[:3, :, :13], np.asarray(logits(config(case), params(case), TOKENS)))
    assert np.all(actual[:, :, 13:] == np.finfo(np.float32).min)  # padding of the vocabulary is never predicted


def test_attention_is_the_slow_loop():
    rng = np.random.default_rng(0)
    q, k, v = (rng.normal(size=(2, 3, n, 5)).astype(np.float32) for n in (4, 2, 2))
    visible = rng.random((2, 3, 3)) < 0.6
    visible[:, :, 0] = True
    expected = np.zeros((2, 3, 4, 5))
    for b, t, n in np.ndindex(2, 3, 4):
        seen = np.flatnonzero(visible[b, t])
        weights = np.exp([0.3 * np.dot(q[b, t, n], k[b, s, n // 2]) for s in seen])
        expected[b, t, n] = weights @ v[b, seen, n // 2] / weights.sum()
    assert_close(attend(q, k.swapaxes(1, 2), v.swapaxes(1, 2), visible, 0.3), expected)


def test_rotation_is_complex_multiplication_and_sees_only_distances():
    """Pair (a, b) turns as a + ib by the angle of its frequency, in either layout; the rest of the head stays."""
    x = np.random.default_rng(0).normal(size=(1, 7, 2, 10)).astype(np.float32)
    for interleaved in (False, True):
        d = DecoderConfig(head_dim=10, rotary_dim=6, rope_theta=100.0, rope_interleaved=interleaved)
        angle = np.arange(7)[:, None] * 100.0 ** (-np.arange(0, 6, 2) / 6)  # [T, 3]
        sin, cos = (jnp.asarray(f(angle), jnp.float32)[None, :, None] for f in (np.sin, np.cos))
        actual = np.asarray(rotate(jnp.asarray(x), (sin, cos), d))
        first, second = (slice(0, 6, 2), slice(1, 6, 2)) if interleaved else (slice(0, 3), slice(3, 6))
        turned = (x[..., first] + 1j * x[..., second]) * np.exp(1j * angle)[None, :, None]
        np.testing.assert_allclose(actual[..., first], turned.real, atol=1e-5)
        np.testing.assert_allclose(actual[..., second], turned.imag, atol=1e-5)
        np.testing.assert_array_equal(actual[..., 6:], x[..., 6:])
        same = np.broadcast_to(x[:, :1], x.shape)  # one vector at all positions
        actual = np.asarray(rotate(jnp.asarray(same), (sin, cos), d))[0, :, 0]
        np.testing.assert_allclose(actual[2] @ actual[5], actual[1] @ actual[4], rtol=1e-5)


def test_rope_frequencies_are_those_of_the_papers():
    """Plain: theta^(-2i/d). Llama 3: kept, divided, or mixed by where the wavelength stands, as its code has it."""
    plain_frequencies = [10_000.0 ** (-2 * i / 128) for i in range(64)]
    d = DecoderConfig(head_dim=128, rotary_dim=128)
    np.testing.assert_allclose(rope_frequencies(d), plain_frequencies, rtol=2e-6)
    d = dataclasses.replace(d, rope_scaling_factor=8.0, rope_low_freq_factor=1.0, rope_high_freq_factor=4.0)
    d = dataclasses.replace(d, rope_original_positions=8192)
    expected, kinds = [], set()
    for frequency in plain_frequencies:
        wavelength = 2 * math.pi / frequency
        if wavelength < 8192 / 4.0:
            kinds.add("kept")
            expected.append(frequency)
        elif wavelength > 8192 / 1.0:
            kinds.add("divided")
            expected.append(frequency / 8.0)
        else:
            kinds.add("mixed")
            smooth = (8192 / wavelength - 1.0) / (4.0 - 1.0)
            expected.append((1 - smooth) * frequency / 8.0 + smooth * frequency)
    assert kinds == {"kept", "divided", "mixed"}
    np.testing.assert_allclose(rope_frequencies(d), expected, rtol=5e-6)


# Attention by platform


def training_step(attention: str, length: int = 128, layers: int = 6):
    """The jitted gradient of a scalar of all hidden states, and its arguments."""
    shape = dataclasses.replace(SHAPES["llama"], num_layers=layers, max_positions=length)
    decoder = Decoder(ModelConfig(decoder=shape, attention=attention))
    tokens = np.random.default_rng(1).integers(0, 13, (4, length))
    params = decoder.init(jax.random.key(0), tokens[:1], jnp.arange(length)[None])
    loss = lambda params: jnp.sum(jnp.sin(decoder.apply(params, tokens, jnp.arange(length)[None])[0]))
    return jax.jit(jax.value_and_grad(loss)), params


def test_recomputed_attention_is_plain_attention_without_the_scores_of_all_layers():
    plain, params = training_step("plain")
    again, _ = training_step("recomputed")
    for got, expected in zip(jax.tree.leaves(again(params)), jax.tree.leaves(plain(params)), strict=True):
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    kept = [step.lower(params).compile().memory_analysis().temp_size_in_bytes for step in (plain, again)]
    scores = 6 * 4 * 4 * 128 * 128 * 4  # layers, rows, heads, queries, keys, bytes
    assert kept[0] - kept[1] > 0.8 * scores


class Devices:
    """A mesh of devices that are not there."""

    def __init__(self, platform: str) -> None:
        self.devices = np.array([type("Device", (), {"platform": platform})()])


@pytest.mark.parametrize(
    ("platform", "dtype", "shape", "kind"),
    [
        ("cpu", "bfloat16", {"head_dim": 64}, "plain"),
        ("gpu", "bfloat16", {"head_dim": 64}, "cudnn"),
        ("cuda", "bfloat16", {"head_dim": 128}, "cudnn"),
        ("gpu", "float32", {"head_dim": 64}, "recomputed"),
        ("gpu", "bfloat16", {"head_dim": 256}, "recomputed"),
        ("gpu", "bfloat16", {"head_dim": 68}, "recomputed"),
        ("gpu", "bfloat16", {"head_dim": 64, "scale_attention_by_layer": True}, "recomputed"),
        ("tpu", "bfloat16", {"head_dim": 128}, "recomputed"),
    ],
)
def test_attention_is_chosen_by_the_platform_of_the_mesh(platform, dtype, shape, kind):
    config = ModelConfig(dtype=dtype, decoder=DecoderConfig(**shape))
    assert attention_kind(config, Devices(platform), 64) == kind
    assert attention_kind(config, Devices(platform), 63) == kind.replace("cudnn", "recomputed")
    assert attention_kind(dataclasses.replace(config, attention="plain"), Devices(platform), 64) == "plain"
