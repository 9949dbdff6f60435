"""Sampling: one jitted program from prompts to finished rows (prefill, then one token at a time until all ended).

Rows stay contiguous, each with its own length, so that what comes out is what the trainer scores. A token's random
number depends on (seed, step, problem, sample, place in the response) alone: neither the batch a row sits in nor its
neighbours change it.

Shapes: B batch, P prompt, R response, T = P + R, V vocabulary, D embed.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Generic, cast

import jax
import jax.numpy as jnp
from flax import struct
from jax.sharding import Mesh

from reft_jax.algorithms.train_state import abstract_params
from reft_jax.config import ModelConfig, SamplingLayout
from reft_jax.data.batches import ArrayT, PromptBatch, Sequences
from reft_jax.losses import token_log_probs
from reft_jax.models.decoder import KVCache, empty_cache, repeat_rows
from reft_jax.models.params import Params
from reft_jax.models.policy import Policy, call
from reft_jax.parallel.sharding import abstract_rows, batch_shardings, constrain, replicated, shard_count

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int, Key


@struct.dataclass
class Rollout(Generic[ArrayT]):
    """Sampled responses with what the sampler knows of them."""

    sequences: Sequences[ArrayT]
    log_probs: Float[ArrayT, "B R"]  # of the response tokens under the distribution they were drawn from, nats
    ended: Bool[ArrayT, " B"]  # False where the response was cut at its longest length


@dataclasses.dataclass(frozen=True)
class SamplingParams:
    """How tokens are drawn. PPO uses `temperature` alone, so that its log-probs are those of what was sampled."""

    temperature: float = 1.0  # divides the logits; 0 takes the most likely token
    top_k: int = 0  # only the k most likely tokens; 0, or more than there are, keeps all
    top_p: float = 1.0  # only the most likely tokens that together reach this probability


def filter_logits(logits: Float[Array, "B V"], sampling: SamplingParams) -> Float[Array, "B V"]:
    """Divides by the temperature and hides the tokens that top-k and top-p exclude."""
    hidden = jnp.finfo(logits.dtype).min
    if sampling.temperature > 0:
        logits = logits / sampling.temperature
    if 0 < sampling.top_k < logits.shape[-1]:
        kth = jax.lax.top_k(logits, sampling.top_k)[0][:, -1:]
        logits = jnp.where(logits < kth, hidden, logits)
    if sampling.top_p < 1:
        descending = jnp.sort(logits, axis=-1, descending=True)
        probs = jax.nn.softmax(descending, axis=-1)
        needed = jnp.cumsum(probs, axis=-1) - probs < sampling.top_p  # the most likely token always is
        least = jnp.min(jnp.where(needed, descending, jnp.inf), axis=-1, keepdims=True)
        logits = jnp.where(logits < least, hidden, logits)
    return logits


def draw(
    logits: Float[Array, "B V"], keys: Key[Array, " B"], sampling: SamplingParams
) -> tuple[Int[Array, " B"], Float[Array, " B"]]:
    """Draws one token a row by inverting the distribution function: one uniform number a row, not one a token.

    Returns:
        (tokens, int32; their log-probs under the filtered distribution).
    """
    logits = filter_logits(logits, sampling)
    if sampling.temperature == 0:
        tokens = jnp.argmax(logits, axis=-1).astype(jnp.int32)
        return tokens, token_log_probs(logits, tokens)
    probs = jax.nn.softmax(logits, axis=-1)
    uniform = jax.vmap(lambda key: jax.random.uniform(key, dtype=logits.dtype))(keys)
    # A sum over a whole vocabulary, once for each of its tokens, would cost more than the softmax: first a block of
    # about the square root of them is found, then the token inside it.
    rows, size = probs.shape
    width = 1 << math.ceil(math.log2(size) / 2)
    blocks = jnp.pad(probs, ((0, 0), (0, -size % width))).reshape(rows, -1, width)
    mass = jnp.sum(blocks, axis=-1)
    block, rest = _first_beyond(mass, uniform * jnp.sum(mass, axis=-1))
    inside, _ = _first_beyond(jnp.take_along_axis(blocks, block[:, None, None], axis=1)[:, 0], rest)
    tokens = block * width + inside
    return tokens, token_log_probs(logits, tokens)


def _first_beyond(mass: Float[Array, "B n"], target: Float[Array, " B"]) -> tuple[Int[Array, " B"], Float[Array, " B"]]:
    """The first place where the masses so far exceed the target, never one without mass, and what of it is left there.

    A parallel sum may round up from one place to the next even where the next one has no mass, and the target may lie
    beyond the ends by rounding.
    """
    so_far = jnp.where(mass > 0, jnp.cumsum(mass, axis=-1), 0)
    total = jnp.max(so_far, axis=-1)
    target = jnp.clip(target, 0, jnp.nextafter(total, jnp.zeros_like(total)))
    place = jnp.argmax(so_far > target[:, None], axis=-1).astype(jnp.int32)
    before = jnp.take_along_axis(so_far - mass, place[:, None], axis=-1)[:, 0]
    return place, target - before


def row_keys(seed: Int[Array, ""], step: Int[Array, ""], prompts: PromptBatch) -> Key[Array, " B"]:
    """One random key a row, from (seed, step, problem, sample)."""
    base = jax.random.fold_in(jax.random.key(seed), step)
    fold = lambda problem, sample: jax.random.fold_in(jax.random.fold_in(base, problem), sample)
    return jax.vmap(fold)(prompts.problem, prompts.sample)


@struct.dataclass
class _Loop:
    """The decode loop's carry: `t` tokens of each row's response are drawn."""

    t: Int[Array, ""]
    cache: tuple[KVCache, ...]
    token: Int[Array, " B"]  # the newest token
    responses: Int[Array, "B R"]
    log_probs: Float[Array, "B R"]
    lengths: Int[Array, " B"]  # response lengths, end token included
    ended: Bool[Array, " B"]


def generate(
    policy: Policy,
    params: Params,
    prompts: PromptBatch,
    seed: Int[Array, ""],
    step: Int[Array, ""],
    *,
    max_new_tokens: int,
    sampling: SamplingParams,
    eos: int | tuple[int, ...],
    pad: int,
    samples: int = 1,
) -> Rollout:
    """Samples one response a row until its end token or `max_new_tokens` tokens.

    Args:
        policy: the model.
        params: its parameters; the value head is not used.
        prompts: B rows; filler rows (problem -1) end at once with an empty response.
        seed, step: see `row_keys`.
        max_new_tokens: R.
        sampling: how tokens are drawn.
        eos: id, or ids, that end a response and count as its last token.
        pad: id written after the end; no meaning is ever read from it.
        samples: how many rows next to each other have the same prompt, which is prefilled once.
    """
    rows = lambda x: constrain(x, policy.mesh, "batch", *(None,) * (x.ndim - 1), layout=policy.layout)
    prompts = jax.tree.map(rows, prompts)
    batch, prompt_size = prompts.tokens.shape
    keys = row_keys(seed, step, prompts)
    cache = empty_cache(policy.config, batch // samples, prompt_size + max_new_tokens, policy.mesh, policy.layout)

    def emit(loop: _Loop, hidden: Float[Array, "B D"]) -> _Loop:
        """Draws the next token from the newest hidden states."""
        key = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, loop.t)
        # Drawing needs whole rows of logits: each device takes some rows, instead of a part of all of them.
        logits = constrain(call(policy, params, hidden, method="logits"), policy.mesh, "batch", None)
        token, log_prob = draw(logits, key, sampling)
        token, first = jnp.where(loop.ended, pad, token), jnp.zeros_like(loop.t)  # a plain 0 is wider in 64-bit mode
        return dataclasses.replace(
            loop,
            t=loop.t + 1,
            token=token,
            responses=jax.lax.dynamic_update_slice(loop.responses, token[:, None], (first, loop.t)),
            log_probs=jax.lax.dynamic_update_slice(
                loop.log_probs,
                jnp.where(loop.ended, 0, log_prob)[:, None].astype(loop.log_probs.dtype),
                (first, loop.t),
            ),
            lengths=loop.lengths + ~loop.ended,
            ended=loop.ended | jnp.isin(token, jnp.array(eos)),
        )

    def decode(loop: _Loop) -> _Loop:
        positions = prompts.lengths + loop.t - 1
        hidden, cache = call(policy, params, loop.token[:, None], positions[:, None], loop.cache, method="step")
        return emit(dataclasses.replace(loop, cache=cache), hidden[:, 0])

    first = lambda x: x.reshape(batch // samples, samples, *x.shape[1:])[:, 0]
    tokens, lengths = first(prompts.tokens), first(prompts.lengths)
    hidden, cache = call(policy, params, tokens, jnp.arange(prompt_size)[None], cache, method="step")
    last = jnp.take_along_axis(hidden, (lengths - 1)[:, None, None], axis=1)[:, 0]
    if samples > 1:
        last, cache = jnp.repeat(last, samples, axis=0), repeat_rows(cache, samples, policy.mesh, policy.layout)
    filler = prompts.problem < 0
    empty = _Loop(
        t=jnp.int32(0),
        cache=cache,
        token=jnp.full(batch, pad, jnp.int32),
        responses=jnp.full((batch, max_new_tokens), pad, jnp.int32),
        log_probs=jnp.zeros((batch, max_new_tokens), jnp.promote_types(hidden.dtype, jnp.float32)),
        lengths=jnp.zeros(batch, jnp.int32),
        ended=filler,
    )
    loop = jax.lax.while_loop(lambda loop: (loop.t < max_new_tokens) & ~jnp.all(loop.ended), decode, emit(empty, last))
    # Pad, then write the response behind each row's prompt.
    tokens = jnp.pad(prompts.tokens, ((0, 0), (0, max_new_tokens)), constant_values=pad)
    write = lambda row, response, start: jax.lax.dynamic_update_slice(row, response, (start,))
    tokens = jax.vmap(write)(tokens, loop.responses, prompts.lengths)
    sequences = Sequences(
        tokens=tokens, prompt_lengths=prompts.lengths, responses=loop.responses, response_lengths=loop.lengths
    )
    return Rollout(sequences=sequences, log_probs=loop.log_probs, ended=loop.ended)


def rollout_policy(
    config: ModelConfig, mesh: Mesh, weight_layout: SamplingLayout, *, scan_layers: bool = True
) -> Policy:
    """The model as it samples.

    Raises:
        ValueError: naming the parameter that cannot be split evenly, where `weights` is `sharded`.
    """
    policy = Policy(dataclasses.replace(config, scan_layers=scan_layers, remat="none"), mesh)
    if weight_layout == "replicated":
        return policy.clone(layout="replicated")
    policy = policy.clone(layout="sharded")
    try:
        abstract_params(policy, mesh, value_head=False)
    except ValueError:
        if weight_layout == "sharded":
            raise
        return policy.clone(layout="replicated")
    return policy


def abstract_rollout_params(policy: Policy) -> Params:
    """Shapes, types and shardings of the parameters that `policy`, made by `rollout_policy`, samples with.

    They are in the compute type, but for those that are used in a wider one: norms, and the bias of the output.
    """

    def narrow(path: tuple[jax.tree_util.DictKey, ...], x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        wide = any("norm" in key.key or key.key == "lm_head_bias" for key in path)
        return x if wide else jax.ShapeDtypeStruct(x.shape, policy.config.dtype, sharding=x.sharding)

    abstract = abstract_params(policy, cast(Mesh, policy.mesh), value_head=False)
    return jax.tree_util.tree_map_with_path(narrow, abstract)


@functools.cache  # asked once an iteration and once an evaluation, and the model is traced four times for the answer
def needs_layout(config: ModelConfig, mesh: Mesh, weight_layout: SamplingLayout) -> bool:
    """Whether the weights are sampled with in another layout or type than they are trained in."""
    trained = jax.tree.leaves(abstract_params(Policy(config, mesh), mesh, value_head=False))
    sampled = jax.tree.leaves(abstract_rollout_params(rollout_policy(config, mesh, weight_layout)))
    same = lambda x, y: x.dtype == y.dtype and x.sharding.is_equivalent_to(y.sharding, x.ndim)
    return not all(map(same, trained, sampled))


def build_layout(
    config: ModelConfig, mesh: Mesh, weight_layout: SamplingLayout
) -> tuple[Callable[..., Params], tuple[Params]]:
    """The jitted `params -> params` from the layout of training to that of sampling, and its abstract argument.

    Called once for all rollouts of an iteration, and once for an evaluation; where `needs_layout` is false it would
    only copy.
    """
    abstract = abstract_rollout_params(rollout_policy(config, mesh, weight_layout))
    convert = lambda params: jax.tree.map(lambda x, to: x.astype(to.dtype), params, abstract)
    shardings = jax.tree.map(lambda x: x.sharding, abstract)
    return jax.jit(convert, out_shardings=shardings), (abstract_params(Policy(config, mesh), mesh, value_head=False),)


def build_generate(
    config: ModelConfig,
    mesh: Mesh,
    *,
    batch: int,
    prompt: int,
    max_new_tokens: int,
    sampling: SamplingParams,
    eos: int | tuple[int, ...],
    pad: int,
    scan_layers: bool,
    weight_layout: SamplingLayout = "auto",
    samples: int = 1,
) -> tuple[Callable[..., Rollout], tuple[Params, PromptBatch, jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]]:
    """The jitted `(params, prompts, seed, step) -> Rollout` for one bucket, and its abstract arguments.

    `params` are laid out as by `build_layout`; prompts and rollout lie on `mesh` as all batches do. `samples` rows next
    to each other have the same prompt; where they would not lie on one device, each row is prefilled by itself.
    """
    together = samples if batch % (samples * shard_count(mesh, "batch")) == 0 else 1
    policy = rollout_policy(config, mesh, weight_layout, scan_layers=scan_layers)

    def step(params: Params, prompts: PromptBatch, seed: jax.Array, step: jax.Array) -> Rollout:
        return generate(
            policy,
            params,
            prompts,
            seed,
            step,
            max_new_tokens=max_new_tokens,
            sampling=sampling,
            eos=eos,
            pad=pad,
            samples=together,
        )

    ids: Callable[..., Any] = lambda *shape: jax.ShapeDtypeStruct((batch, *shape), jnp.int32)
    prompts = PromptBatch(tokens=ids(prompt), lengths=ids(), problem=ids(), sample=ids())
    scalar = jax.ShapeDtypeStruct((), jnp.int32, sharding=replicated(mesh))
    args = (abstract_rollout_params(policy), abstract_rows(prompts, mesh), scalar, scalar)
    return jax.jit(step, out_shardings=batch_shardings(jax.eval_shape(step, *args), mesh)), args
