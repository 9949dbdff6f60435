"""One configurable decoder-only transformer: Llama, Qwen, OLMo, GPT-2, OPT, CodeGen and others are data to it.

Tokens go in, final hidden states come out; `logits` is a call of its own, so that nobody makes [B, T, V] unasked.
Rows are contiguous: the token in slot s of a row has position s, in the batch as in the KV cache, so that a causal
mask is all the masking there is, and what pads a row on the right is never seen.

Shapes: B batch, T tokens in, S cache slots, D embed, H heads, K kv heads, G = H / K, h head_dim, V vocab, L layers.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct
from jax.sharding import Mesh, PartitionSpec

from reft_jax.config import AttentionKind, DecoderConfig, ModelConfig
from reft_jax.models.lora import SUFFIX, Adapter
from reft_jax.parallel.sharding import WeightLayout, constrain, partition_spec

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "silu": nn.silu,
    "relu": nn.relu,
    "gelu": functools.partial(nn.gelu, approximate=False),
    "gelu_tanh": functools.partial(nn.gelu, approximate=True),
}


@struct.dataclass
class KVCache:
    """Keys and values of one layer, L = 1, or of all; slot s of a row holds its token at position s."""

    k: Float[Array, "L B K S h"]
    v: Float[Array, "L B K S h"]


def empty_cache(
    config: ModelConfig, batch: int, slots: int, mesh: Mesh | None = None, layout: WeightLayout = "training"
) -> tuple[KVCache, ...]:
    """An empty cache of B = `batch` rows and S = `slots`, in the compute type, batch and heads split over the mesh.

    Unrolled layers have one each, which is read where it lies; layers that are scanned share one.
    """
    d = config.decoder
    layers = d.num_layers if config.scan_layers else 1

    def zeros() -> jax.Array:
        return _split(jnp.zeros((layers, batch, d.num_kv_heads, slots, d.head_dim), config.dtype), mesh, layout)

    return tuple(KVCache(k=zeros(), v=zeros()) for _ in range(d.num_layers // layers))


def _split(cache: Float[Array, "L B K S h"], mesh: Mesh | None, layout: WeightLayout) -> Float[Array, "L B K S h"]:
    return constrain(cache, mesh, "layers", "batch", "activation_kv_heads", None, None, layout=layout)


def stacks_weights(config: ModelConfig, mesh: Mesh | None) -> bool:
    """Whether each weight is one array of all layers: but for unrolled layers on CPUs, where each would be copied."""
    return config.scan_layers or mesh is None or mesh.devices.flat[0].platform != "cpu"


def rope_frequencies(config: DecoderConfig) -> Float[Array, " pairs"]:
    """Radians per position of each rotated pair of features (Su et al. 2021; Llama 3 scaling where configured).

    Llama 3 divides the frequency by `rope_scaling_factor` where the wavelength is above original / low, leaves it
    where it is below original / high, and interpolates between the two.
    """
    frequency = config.rope_theta ** (-jnp.arange(0, config.rotary_dim, 2, dtype=jnp.float32) / config.rotary_dim)
    if config.rope_scaling_factor == 1.0:
        return frequency
    low, high = config.rope_low_freq_factor, config.rope_high_freq_factor
    turns = config.rope_original_positions * frequency / (2 * math.pi)
    keep = jnp.clip((turns - low) / (high - low), 0.0, 1.0)
    return frequency * (keep + (1 - keep) / config.rope_scaling_factor)


def rotate(
    x: Float[Array, "B T H h"],
    rotary: tuple[Float[Array, "#B T 1 pairs"], Float[Array, "#B T 1 pairs"]],
    config: DecoderConfig,
) -> Float[Array, "B T H h"]:
    """Rotates the first `rotary_dim` features of x, in pairs, by (sin, cos)."""
    sin, cos = rotary
    rotated, rest = x[..., : config.rotary_dim], x[..., config.rotary_dim :]
    if config.rope_interleaved:
        a, b = rotated[..., 0::2], rotated[..., 1::2]
        rotated = jnp.stack([a * cos - b * sin, b * cos + a * sin], axis=-1).reshape(rotated.shape)
    else:
        a, b = jnp.split(rotated, 2, axis=-1)
        rotated = jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)
    return jnp.concatenate([rotated, rest], axis=-1)


def attend(
    q: Float[Array, "B T H h"],
    k: Float[Array, "B K S h"],
    v: Float[Array, "B K S h"],
    visible: Bool[Array, "#B T S"],
    scale: Float[Array, ""] | float,
) -> Float[Array, "B T H h"]:
    """Softmax attention with grouped heads, in float32 where it counts.

    Args:
        q: the queries; head n reads key head n // (H / K).
        k: the keys.
        v: the values.
        visible: True where a query may look.
        scale: multiplies the scores.

    Returns:
        In q's type.
    """
    batch, length, heads, head_dim = q.shape
    kv_heads, slots = k.shape[1:3]
    by_group = (batch, kv_heads, heads // kv_heads, length)
    rows = (batch, kv_heads, -1)  # the queries of all heads of a group: each product is one of matrices
    wide = jnp.promote_types(q.dtype, jnp.float32)
    queries = q.reshape(batch, length, kv_heads, -1, head_dim).transpose(0, 2, 3, 1, 4).reshape(*rows, head_dim)
    scores = jnp.einsum("bkqh,bksh->bkqs", queries, k, preferred_element_type=wide) * scale
    scores = jnp.where(visible[:, None, None], scores.reshape(*by_group, slots), jnp.finfo(wide).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(q.dtype)
    out = jnp.einsum("bkqs,bksh->bkqh", weights.reshape(*rows, slots), v)
    return out.reshape(*by_group, head_dim).transpose(0, 3, 1, 2, 4).reshape(q.shape)


def attention_kind(config: ModelConfig, mesh: Mesh | None, length: int) -> AttentionKind:
    """What `auto` stands for on the mesh's platform, for rows of `length` tokens; all else is taken at its word."""
    if config.attention != "auto":
        return config.attention
    platform = "cpu" if mesh is None else mesh.devices.flat[0].platform
    d = config.decoder
    suits = config.dtype == "bfloat16" and d.head_dim % 8 == 0 and d.head_dim <= 128 and length % 2 == 0
    if platform in ("gpu", "cuda") and suits and not d.scale_attention_by_layer:
        return "cudnn"
    return "plain" if platform == "cpu" else "recomputed"


def _matmul(
    x: jax.Array, kernel: jax.Array, dimensions: Any, precision: Any = None, preferred_element_type: Any = None
) -> jax.Array:
    """`lax.dot_general` of the last axes of `x` with the first of `kernel`, as a product of two matrices.

    XLA's CPU backend is fast with matrices alone, in the backward pass too; to other backends it is the same product.
    """
    count = len(dimensions[0][0])
    inner, rows, features = math.prod(kernel.shape[:count]), x.shape[:-count], kernel.shape[count:]
    product = jax.lax.dot_general(
        x.reshape(-1, inner),
        kernel.reshape(inner, -1),
        (((1,), (0,)), ((), ())),
        precision=precision,
        preferred_element_type=preferred_element_type,
    )
    return product.reshape(*rows, *features)


def _dense(
    config: ModelConfig, features: tuple[int, ...], axes: tuple[str, ...], *, bias: bool, std: float, name: str
) -> Callable[[jax.Array], jax.Array]:
    """A linear map whose kernel and bias carry their logical axis names; it contracts all axes but the features'."""
    contracted = len(axes) - len(features)
    dense = nn.DenseGeneral(
        features,
        axis=tuple(range(-contracted, 0)),
        use_bias=bias,
        dtype=config.dtype,
        param_dtype=config.param_dtype,
        kernel_init=nn.with_logical_partitioning(nn.initializers.normal(std), axes),
        bias_init=nn.with_logical_partitioning(nn.initializers.zeros, axes[contracted:]),
        dot_general=_matmul,
        name=name,
    )
    if not config.lora.rank or name not in config.lora.targets:
        return dense
    adapter = Adapter(config, features, axes, name=name + SUFFIX)
    return lambda x: dense(x) + adapter(x)


def _norm(config: ModelConfig, axes: tuple[str, ...], name: str | None) -> Callable[[jax.Array], jax.Array]:
    """The configured norm over the last dimensions, which have these names, statistics in float32."""
    d = config.decoder
    scale_init = nn.with_logical_partitioning(nn.initializers.ones, axes)
    last = tuple(range(-len(axes), 0))
    common: dict[str, Any] = {
        "epsilon": d.norm_eps,
        "dtype": config.dtype,
        "param_dtype": config.param_dtype,
        "use_scale": d.norm_affine,
        "reduction_axes": last,
        "feature_axes": last,
    }
    if d.norm == "rms":
        return nn.RMSNorm(scale_init=scale_init, name=name, **common)
    bias_init = nn.with_logical_partitioning(nn.initializers.zeros, axes)
    # The fast variance, E[x^2] - E[x]^2, loses all digits where the mean is large, as it is in OPT and GPT-2.
    return nn.LayerNorm(
        use_fast_variance=False, use_bias=d.norm_affine, scale_init=scale_init, bias_init=bias_init, name=name, **common
    )


def _update(
    cache: Float[Array, "L B K S h"],
    new: Float[Array, "B K T h"],
    layer: Int[Array, ""] | int,
    positions: Int[Array, "#B T"],
    mesh: Mesh | None,
    layout: WeightLayout,
) -> Float[Array, "L B K S h"]:
    """Writes `new` into the slots `positions` of one layer of the cache, in place."""
    decoding = new.shape[2] == 1
    if not decoding:  # a prefill: rows start at slot 0, and one block is written instead of B * T rows
        return jax.lax.dynamic_update_slice(cache, new[None], (layer, 0, 0, 0, 0))

    def write(
        cache: Float[Array, "L B K S h"],
        token: Float[Array, "B K h"],
        layer: Int[Array, ""] | int,
        slots: Int[Array, " B"],
    ) -> Float[Array, "L B K S h"]:
        return cache.at[layer, jnp.arange(token.shape[0]), :, slots].set(token)

    if mesh is not None:  # each device its own rows; left to itself the compiler would gather the tokens of all
        spec = functools.partial(partition_spec, layout=layout)
        row = spec(("batch", "activation_kv_heads", None))
        whole = spec(("layers", "batch", "activation_kv_heads", None, None))
        specs = (whole, row, PartitionSpec(), spec(("batch",)))
        write = jax.shard_map(write, mesh=mesh, in_specs=specs, out_specs=whole)
    return write(cache, new[:, :, 0], layer, positions[:, 0])


class Attention(nn.Module):
    """Causal self-attention, over the given tokens or over the cache."""

    config: ModelConfig
    mesh: Mesh | None
    layout: WeightLayout

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T D"],
        cache: KVCache | None,
        layer: Int[Array, ""] | int,
        positions: Int[Array, "#B T"],
        rotary: tuple[jax.Array, jax.Array] | None,
    ) -> tuple[Float[Array, "B T D"], KVCache | None]:
        d = self.config.decoder
        decoding = x.shape[1] == 1  # one token a row, which sees the cache; a prefill sees only its own tokens
        project = functools.partial(_dense, self.config, bias=d.qkv_bias, std=d.initializer_range)
        q = project((d.num_heads, d.head_dim), ("embed", "heads", "head_dim"), name="q")(x)
        k = project((d.num_kv_heads, d.head_dim), ("embed", "kv_heads", "head_dim"), name="k")(x)
        v = project((d.num_kv_heads, d.head_dim), ("embed", "kv_heads", "head_dim"), name="v")(x)
        if d.qk_norm:
            normed = lambda heads: (heads, "head_dim") if d.qk_norm_whole else ("head_dim",)
            q = _norm(self.config, normed("heads"), "q_norm")(q)
            k = _norm(self.config, normed("kv_heads"), "k_norm")(k)
        if rotary is not None:
            if d.no_rope_every:
                still = (layer + 1) % d.no_rope_every == 0
                rotary = jnp.where(still, 0, rotary[0]), jnp.where(still, 1, rotary[1])
            q, k = rotate(q, rotary, d), rotate(k, rotary, d)
        q = constrain(q, self.mesh, "batch", "length", "activation_heads", None, layout=self.layout)
        by_head = lambda x: x.swapaxes(1, 2)  # [B, K, T, h]: as products with it read it
        if cache is not None:
            place = layer if cache.k.shape[0] > 1 else 0
            update = lambda old, new: _update(old, by_head(new), place, positions, self.mesh, self.layout)
            cache = KVCache(k=update(cache.k, k), v=update(cache.v, v))
        scale: Any = d.head_dim**-0.5 if d.scale_attention else 1.0  # an array where it depends on the layer
        if d.scale_attention_by_layer:
            scale = scale / (layer + 1)
        kind = attention_kind(self.config, self.mesh, x.shape[1])
        if kind == "cudnn" and not decoding:  # whole rows, in which a token sees those before it
            out = jax.nn.dot_product_attention(q, k, v, scale=scale, is_causal=True, implementation="cudnn")
        else:
            if decoding and cache is not None:
                keys, values = (jax.lax.dynamic_index_in_dim(x, place, keepdims=False) for x in (cache.k, cache.v))
            else:
                keys, values = by_head(k), by_head(v)
            visible = jnp.arange(keys.shape[2])[None, None] <= positions[:, :, None]  # [B or 1, T, S]
            recomputed = kind == "recomputed" and cache is None
            attention = jax.checkpoint(attend, prevent_cse=not self.config.scan_layers) if recomputed else attend
            out = attention(q, keys, values, visible, scale)
        std = d.initializer_range / math.sqrt(2 * d.num_layers)
        axes = ("heads", "head_dim", "embed")
        return _dense(self.config, (d.embed_dim,), axes, bias=d.attention_out_bias, std=std, name="o")(out), cache


class Mlp(nn.Module):
    """The feed-forward half of a block, gated or not."""

    config: ModelConfig
    mesh: Mesh | None
    layout: WeightLayout

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        d = self.config.decoder
        project = functools.partial(_dense, self.config, bias=d.mlp_bias)
        up = functools.partial(project, (d.mlp_dim,), ("embed", "mlp"), std=d.initializer_range)
        y = ACTIVATIONS[d.activation](up(name="gate" if d.gated_mlp else "up")(x))
        if d.gated_mlp:
            y = y * up(name="up")(x)
        y = constrain(y, self.mesh, "batch", "length", "activation_mlp", layout=self.layout)
        return project(
            (d.embed_dim,), ("mlp", "embed"), std=d.initializer_range / math.sqrt(2 * d.num_layers), name="down"
        )(y)


class Block(nn.Module):
    """One transformer layer; the carry is (hidden states, cache) so that the cache is updated in place."""

    config: ModelConfig
    mesh: Mesh | None
    layout: WeightLayout

    @nn.compact
    def __call__(
        self,
        carry: tuple[Float[Array, "B T D"], KVCache | None],
        layer: Int[Array, ""] | int,
        positions: Int[Array, "#B T"],
        rotary: tuple[jax.Array, jax.Array] | None,
    ) -> tuple[tuple[Float[Array, "B T D"], KVCache | None], None]:
        x, cache = carry
        d = self.config.decoder
        norm = lambda name: _norm(self.config, ("norm",), name)
        y = x if d.post_norm else norm("attn_norm")(x)
        attention: jax.Array | int
        attention, cache = Attention(self.config, self.mesh, self.layout, name="attn")(
            y, cache, layer, positions, rotary
        )
        mlp = Mlp(self.config, self.mesh, self.layout, name="mlp")
        if d.post_norm:
            x = x + norm("attn_norm")(attention)
            x = x + norm("mlp_norm")(mlp(x))
        else:
            if not d.parallel_block:
                x = x + attention
                attention = 0
                y = norm("mlp_norm")(x)
            x = x + attention + mlp(y)
        return (constrain(x, self.mesh, "batch", "length", "activation_embed", layout=self.layout), cache), None


class Decoder(nn.Module):
    """Tokens to final hidden states; `logits` applies the output projection."""

    config: ModelConfig
    mesh: Mesh | None = None
    layout: WeightLayout = "training"
    stacked: bool | None = None
    """Each weight is one array of all layers, `blocks`; else one of each layer, `layers_0` and so on. None is what
    `stacks_weights` says."""

    @property
    def in_stacks(self) -> bool:
        """`stacked`, decided."""
        return stacks_weights(self.config, self.mesh) if self.stacked is None else self.stacked

    def setup(self):
        d = self.config.decoder
        normal = nn.initializers.normal(d.initializer_range)
        rows = math.ceil(d.vocab_size / d.vocab_multiple) * d.vocab_multiple

        def param(name: str, init: nn.initializers.Initializer, shape: dict[str, int]) -> jax.Array:
            """A parameter whose dimensions have these logical names and sizes."""
            boxed = nn.with_logical_partitioning(init, tuple(shape))
            return cast(jax.Array, self.param(name, boxed, tuple(shape.values()), self.config.param_dtype))

        self.embed = param("embed", normal, {"table_rows": rows, "table_embed": d.embed_dim})
        if not d.rotary_dim:
            positions = d.max_positions + d.position_offset
            self.position_embed = param("position_embed", normal, {"position_rows": positions, "embed": d.embed_dim})
        if not d.tie_embeddings:
            self.lm_head = param("lm_head", normal, {"table_rows": rows, "table_embed": d.embed_dim})
        if d.lm_head_bias:
            self.lm_head_bias = param("lm_head_bias", nn.initializers.zeros, {"table_rows": rows})
        block = Block
        if self.config.remat != "none":
            policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable if self.config.remat == "dots" else None
            block = nn.remat(Block, prevent_cse=not self.config.scan_layers, policy=policy)
        self.final_norm = _norm(self.config, ("norm",), None)
        if not self.in_stacks:
            self.layers = [block(self.config, self.mesh, self.layout) for _ in range(d.num_layers)]
            return
        self.blocks = nn.scan(
            block,
            variable_axes={"params": 0, "lora": 0},
            split_rngs={"params": True},
            in_axes=(0, nn.broadcast, nn.broadcast),
            length=d.num_layers,
            unroll=1 if self.config.scan_layers else d.num_layers,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )(self.config, self.mesh, self.layout)

    def __call__(
        self, tokens: Int[Array, "B T"], positions: Int[Array, "#B T"], cache: tuple[KVCache, ...] = ()
    ) -> tuple[Float[Array, "B T D"], tuple[KVCache, ...]]:
        """Runs all layers.

        Args:
            tokens: ids in [0, V).
            positions: the position of each token in its row.
            cache: of `empty_cache`; with T > 1 it must be empty and `positions` count from 0; with T = 1 the token's
                keys and values are written to its slot, and it sees the slots up to there.

        Returns:
            (final hidden states, the cache with the tokens in it).

        Raises:
            ValueError: where a row can become longer than the model's positions.
        """
        d = self.config.decoder
        length = cache[0].k.shape[3] if cache else tokens.shape[1]
        if length > d.max_positions:  # beyond it a learned table has no row, and a sliding window would cut
            raise ValueError(f"rows of {length} tokens are longer than model.decoder.max_positions = {d.max_positions}")
        x = jnp.take(self.embed.astype(self.config.dtype), tokens, axis=0)
        rotary = None
        if d.rotary_dim:
            angle = jnp.einsum("bt,f->btf", positions.astype(jnp.float32), rope_frequencies(d))[:, :, None]
            rotary = (jnp.sin(angle).astype(x.dtype), jnp.cos(angle).astype(x.dtype))
        else:
            x = x + jnp.take(self.position_embed.astype(x.dtype), positions + d.position_offset, axis=0)
        x = constrain(x, self.mesh, "batch", "length", "activation_embed", layout=self.layout)
        if len(cache) > 1 or not self.in_stacks:  # a scan would carry the caches as one, of which each layer is a copy
            written = []
            for layer, own in enumerate(cache or [None] * d.num_layers):
                (x, own), _ = self._layer(layer)((x, own), layer, positions, rotary)
                written.append(own)
            return self.final_norm(x), tuple(written) if cache else ()
        one = cache[0] if cache else None
        (x, one), _ = self.blocks((x, one), jnp.arange(d.num_layers), positions, rotary)
        return self.final_norm(x), () if one is None else (one,)

    def _layer(self, layer: int) -> Callable[..., Any]:
        """A layer by itself."""
        if not self.in_stacks:
            return self.layers[layer]
        weights = jax.tree.map(lambda x: x[layer], self.blocks.variables)
        return functools.partial(Block(self.config, self.mesh, self.layout, parent=None).apply, weights)

    def logits(self, hidden: Float[Array, "*n D"]) -> Float[Array, "*n V"]:
        """Scores of every id, float32; those that only pad the table or have no token can't be drawn."""
        d = self.config.decoder
        table = self.embed if d.tie_embeddings else self.lm_head
        wide = jnp.promote_types(hidden.dtype, jnp.float32)
        logits = jnp.einsum("...d,vd->...v", hidden, table.astype(hidden.dtype), preferred_element_type=wide)
        if d.lm_head_bias:
            logits = logits + jnp.expand_dims(self.lm_head_bias.astype(wide), tuple(range(logits.ndim - 1)))
        unused = [*d.unused_ids, (d.vocab_size, logits.shape[-1])]
        for first, stop in unused:
            if first < stop:
                ids = jax.lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1)
                logits = jnp.where((ids >= first) & (ids < stop), jnp.finfo(wide).min, logits)
        return constrain(
            logits, self.mesh, "batch", *(None,) * (logits.ndim - 2), "activation_vocab", layout=self.layout
        )
