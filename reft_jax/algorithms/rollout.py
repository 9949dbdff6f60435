"""Sampling: prompts are read into slots, and one jitted step draws the next tokens of all slots.

Each slot is at a place of its own in its response, so that a row that has ended makes room for the next one; which rows
those are, the host decides (`training.slots`). A row stays contiguous, and what comes out is what the trainer scores. A
token's random number depends on (seed, step, problem, sample, place in the response) alone: neither its slot nor what
sits in the others changes it.

Shapes: B rows, S slots, N prompts, M slots to fill, P prompt, R response, C positions of the cache, V vocabulary,
D embed.
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
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from reft_jax.algorithms.train_state import abstract_params
from reft_jax.config import GenerationConfig, ModelConfig, SamplingLayout
from reft_jax.data.batches import ArrayT, PromptBatch, Sequences
from reft_jax.losses import token_log_probs
from reft_jax.models.decoder import KVCache, empty_cache
from reft_jax.models.params import Params, in_form_of, is_stacked
from reft_jax.models.policy import Policy, call
from reft_jax.parallel.sharding import constrain, partition_spec, replicated, shard_count

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int, Key


@struct.dataclass
class Rollout(Generic[ArrayT]):
    """Sampled responses with what the sampler knows of them."""

    sequences: Sequences[ArrayT]
    log_probs: Float[ArrayT, "B R"]  # of the response tokens under the distribution they were drawn from, nats
    ended: Bool[ArrayT, " B"]  # False where the response was cut at its longest length


@struct.dataclass
class SamplingParams:
    """How tokens are drawn. PPO uses `temperature` alone, so that its log-probs are those of what was sampled."""

    temperature: float | Float[Array, ""] = 1.0  # divides the logits; 0 takes the most likely token
    top_k: int = struct.field(pytree_node=False, default=0)  # only the k likeliest tokens; 0, or too many, keeps all
    top_p: float = struct.field(pytree_node=False, default=1.0)  # only the likeliest that together reach it

    @property
    def filters(self) -> bool:
        """Whether some tokens are excluded."""
        return self.top_k > 0 or self.top_p < 1


def filter_logits(logits: Float[Array, "B V"], sampling: SamplingParams) -> Float[Array, "B V"]:
    """Divides by the temperature and hides the tokens that top-k and top-p exclude."""
    hidden = jnp.finfo(logits.dtype).min
    temperature = jnp.asarray(sampling.temperature, logits.dtype)
    logits = logits / jnp.where(temperature > 0, temperature, 1)
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
    greedy = lambda logits: jnp.argmax(logits, axis=-1).astype(jnp.int32)
    tokens = jax.lax.cond(jnp.asarray(sampling.temperature) == 0, greedy, lambda logits: _invert(logits, keys), logits)
    return tokens, token_log_probs(logits, tokens)


def _invert(logits: Float[Array, "B V"], keys: Key[Array, " B"]) -> Int[Array, " B"]:
    """The token of each row at which its distribution function exceeds its uniform number."""
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
    return block * width + inside


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


def row_keys(
    seed: Int[Array, ""], step: Int[Array, ""], problem: Int[Array, " B"], sample: Int[Array, " B"]
) -> Key[Array, " B"]:
    """One random key a row, from (seed, step, problem, sample)."""
    base = jax.random.fold_in(jax.random.key(seed), step)
    fold = lambda problem, sample: jax.random.fold_in(jax.random.fold_in(base, problem), sample)
    return jax.vmap(fold)(problem, sample)


@dataclasses.dataclass(frozen=True)
class Limits:
    """Where a response ends."""

    max_new_tokens: int  # it has no more tokens
    ends: tuple[int, ...]  # ids that end it and count as its last token


@struct.dataclass
class Slots:
    """Rows in flight."""

    cache: tuple[KVCache, ...]
    problem: Int[Array, " S"]
    sample: Int[Array, " S"]
    prompt_lengths: Int[Array, " S"]
    drawn: Int[Array, " S"]  # tokens of the response so far
    token: Int[Array, " S"]  # the newest of them
    live: Bool[Array, " S"]  # more are to come


@struct.dataclass
class Admission(Generic[ArrayT]):
    """Prompts that are read into slots. With a mesh, slots and prompts are counted from the device's first one."""

    tokens: Int[ArrayT, "N P"]
    lengths: Int[ArrayT, " N"]  # at least 1
    source: Int[ArrayT, " M"]  # the prompt, of those above, that a slot takes
    slot: Int[ArrayT, " M"]  # to be filled; beyond the last one, nothing is
    problem: Int[ArrayT, " M"]
    sample: Int[ArrayT, " M"]


def empty_slots(policy: Policy, slots: int, positions: int) -> Slots:
    """S = `slots` without rows, C = `positions`."""
    zeros = jnp.zeros(slots, jnp.int32)
    return Slots(
        cache=empty_cache(policy.config, slots, positions, policy.mesh, policy.layout),
        problem=zeros,
        sample=zeros,
        prompt_lengths=zeros + 1,
        drawn=zeros,
        token=zeros,
        live=zeros > 0,
    )


def prefill(
    policy: Policy,
    params: Params,
    slots: Slots,
    new: Admission,
    seed: Int[Array, ""],
    step: Int[Array, ""],
    sampling: SamplingParams,
    limits: Limits,
) -> tuple[Slots, Int[Array, " M"], Float[Array, " M"]]:
    """Reads prompts into slots and draws the first token of each of these.

    Args:
        policy: the model.
        params: its parameters; the value head is not used.
        slots: with room at `new.slot`.
        new: the prompts; several slots may take the same one, which is read once.
        seed, step: see `row_keys`.
        sampling: how tokens are drawn.
        limits: where a response ends.

    Returns:
        (slots; the tokens and their log-probs in nats, of `new.slot`).
    """
    count, size = new.tokens.shape
    cache = empty_cache(policy.config, count, size, policy.mesh, policy.layout)
    positions = jnp.arange(size)[None]
    hidden, cache = call(policy, params, new.tokens, positions, cache, method="step")
    last = jnp.take_along_axis(hidden, (new.lengths - 1)[:, None, None], axis=1)[:, 0]
    pick = _by_device(lambda rows, source: jax.tree.map(lambda x: x[source], rows), policy, 2)
    last, prompt_lengths = pick((last, new.lengths), new.source)
    keys = row_keys(seed, step, new.problem, new.sample)
    token, log_prob = _next(policy, params, last, keys, jnp.zeros_like(new.slot), sampling)
    filled = Slots(
        cache=cache,
        problem=new.problem,
        sample=new.sample,
        prompt_lengths=prompt_lengths,
        drawn=jnp.ones_like(new.slot),
        token=token,
        live=_goes_on(token, jnp.ones_like(new.slot), limits),
    )
    return _by_device(_fill, policy, 4)(slots, filled, new.slot, new.source), token, log_prob


def _fill(slots: Slots, new: Slots, place: Int[Array, " M"], source: Int[Array, " M"]) -> Slots:
    """The slots with new rows at `place`; of the new cache each takes the row `source`."""
    size = new.cache[0].k.shape[3]
    cache = jax.tree.map(
        lambda old, x: old.at[:, place, :, :size].set(x[:, source], mode="drop"), slots.cache, new.cache
    )
    rest = [dataclasses.replace(x, cache=()) for x in (slots, new)]
    put = lambda old, x: old.at[place].set(x, mode="drop")
    return dataclasses.replace(jax.tree.map(put, *rest), cache=cache)


def _by_device(function: Callable[..., Any], policy: Policy, arguments: int) -> Callable[..., Any]:
    """The function of rows, or of a cache, on each device's own; left to itself the compiler would gather all."""
    if policy.mesh is None:
        return function

    def mapped(*args: Any) -> Any:
        specs = jax.tree.map(lambda x: _row_spec(x, policy), args)
        out = specs[0]
        return jax.shard_map(function, mesh=policy.mesh, in_specs=specs, out_specs=out)(*args)

    return mapped


def _row_spec(x: jax.Array | jax.ShapeDtypeStruct, policy: Policy) -> PartitionSpec:
    """How rows, or a layer's cache of five dimensions, are split over the mesh."""
    axes = ("layers", "batch", "activation_kv_heads", None, None) if x.ndim == 5 else ("batch", *(None,) * (x.ndim - 1))
    return partition_spec(axes, policy.layout)


def _next(
    policy: Policy,
    params: Params,
    hidden: Float[Array, "B D"],
    keys: Key[Array, " B"],
    drawn: Int[Array, " B"],
    sampling: SamplingParams,
) -> tuple[Int[Array, " B"], Float[Array, " B"]]:
    """The token behind each hidden state, which is the `drawn`th of its response from 0, and its log-prob."""
    # Drawing needs whole rows of logits: each device takes some rows, instead of a part of all of them.
    logits = constrain(call(policy, params, hidden, method="logits"), policy.mesh, "batch", None)
    tokens, log_probs = draw(logits, jax.vmap(jax.random.fold_in)(keys, drawn), sampling)
    return constrain(tokens, policy.mesh, "batch", layout=policy.layout), log_probs


def _goes_on(token: Int[Array, " B"], drawn: Int[Array, " B"], limits: Limits) -> Bool[Array, " B"]:
    return ~jnp.isin(token, jnp.array(limits.ends)) & (drawn < limits.max_new_tokens)


def decode(
    policy: Policy,
    params: Params,
    slots: Slots,
    seed: Int[Array, ""],
    step: Int[Array, ""],
    sampling: SamplingParams,
    limits: Limits,
    *,
    count: int,
    positions: int | None = None,
) -> tuple[Slots, Int[Array, "S n"], Float[Array, "S n"]]:
    """Draws up to n = `count` further tokens of each live row.

    Args:
        policy, params, seed, step, sampling, limits: as for `prefill`.
        slots: the rows.
        count: tokens of each row; fewer where all rows end before.
        positions: of the cache, those that the rows can reach meanwhile; all without it. The others are not read.

    Returns:
        (slots; the tokens and their log-probs in nats, of each row those that it drew and then anything).
    """
    size = len(slots.token)
    keys = row_keys(seed, step, slots.problem, slots.sample)
    whole = slots.cache
    slots = dataclasses.replace(slots, cache=jax.tree.map(lambda x: x[:, :, :, :positions], whole))

    def turn(
        carry: tuple[Int[Array, ""], Slots, Int[Array, "S n"], Float[Array, "S n"]],
    ) -> tuple[Int[Array, ""], Slots, Int[Array, "S n"], Float[Array, "S n"]]:
        t, slots, tokens, log_probs = carry
        rows = lambda x: constrain(x, policy.mesh, "batch", layout=policy.layout)  # not as tokens are drawn
        place = rows(slots.prompt_lengths + slots.drawn - 1)
        hidden, cache = call(policy, params, rows(slots.token)[:, None], place[:, None], slots.cache, method="step")
        token, log_prob = _next(policy, params, hidden[:, 0], keys, slots.drawn, sampling)
        token = rows(jnp.where(slots.live, token, slots.token))
        drawn = rows(slots.drawn + slots.live)
        live = rows(slots.live & _goes_on(token, drawn, limits))
        slots = dataclasses.replace(slots, cache=cache, token=token, drawn=drawn, live=live)
        first = jnp.zeros_like(t)  # a plain 0 is wider in 64-bit mode
        write = lambda old, new: jax.lax.dynamic_update_slice(old, new[:, None].astype(old.dtype), (first, t))
        return t + 1, slots, write(tokens, token), write(log_probs, log_prob)

    wide = jnp.promote_types(policy.config.dtype, jnp.float32)
    tokens = constrain(jnp.zeros((size, count), jnp.int32), policy.mesh, "batch", None, layout=policy.layout)
    log_probs = constrain(jnp.zeros((size, count), wide), policy.mesh, "batch", None)
    start = jnp.int32(0), slots, tokens, log_probs
    goes_on = lambda carry: (carry[0] < count) & jnp.any(carry[1].live)
    _, slots, tokens, log_probs = jax.lax.while_loop(goes_on, turn, start)
    if positions is not None:
        back = lambda old, new: jax.lax.dynamic_update_slice(old, new, (0,) * old.ndim)
        slots = dataclasses.replace(slots, cache=jax.tree.map(back, whole, slots.cache))
    return slots, tokens, log_probs


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
    """Samples one response a row until its end token or `max_new_tokens` tokens: a slot for each row, none used twice.

    Args:
        policy: the model.
        params: its parameters; the value head is not used.
        prompts: B rows; filler rows (problem -1) have an empty response.
        seed, step: see `row_keys`.
        max_new_tokens: R.
        sampling: how tokens are drawn.
        eos: id, or ids, that end a response and count as its last token.
        pad: id written after the end; no meaning is ever read from it.
        samples: how many rows next to each other have the same prompt, which is read once.
    """
    limits = Limits(max_new_tokens, (eos,) if isinstance(eos, int) else eos)
    batch, prompt = prompts.tokens.shape
    rows = lambda x: constrain(x, policy.mesh, "batch", *(None,) * (x.ndim - 1), layout=policy.layout)
    shards = shard_count(policy.mesh, "batch", policy.layout) if policy.mesh else 1
    slot = jnp.arange(batch, dtype=jnp.int32) % (batch // shards)
    new = Admission(
        tokens=prompts.tokens[::samples],
        lengths=prompts.lengths[::samples],
        source=slot // samples,
        slot=jnp.where(prompts.problem < 0, batch, slot),
        problem=prompts.problem,
        sample=prompts.sample,
    )
    slots = empty_slots(policy, batch, prompt + max_new_tokens)
    slots, first, its_log_prob = prefill(policy, params, slots, jax.tree.map(rows, new), seed, step, sampling, limits)
    slots, tokens, log_probs = decode(
        policy, params, slots, seed, step, sampling, limits, count=max(1, max_new_tokens - 1)
    )
    responses = jnp.concatenate([first[:, None], tokens], axis=1)[:, :max_new_tokens]
    log_probs = jnp.concatenate([its_log_prob[:, None], log_probs], axis=1)[:, :max_new_tokens]
    shown = jnp.arange(max_new_tokens)[None] < slots.drawn[:, None]
    responses = jnp.where(shown, responses, pad)
    # Pad, then write the response behind each row's prompt.
    whole = jnp.pad(prompts.tokens, ((0, 0), (0, max_new_tokens)), constant_values=pad)
    write = lambda row, response, start: jax.lax.dynamic_update_slice(row, response, (start,))
    sequences = Sequences(
        tokens=jax.vmap(write)(whole, responses, prompts.lengths),
        prompt_lengths=prompts.lengths,
        responses=responses,
        response_lengths=slots.drawn,
    )
    ended = jnp.isin(slots.token, jnp.array(limits.ends)) | (prompts.problem < 0)
    return Rollout(sequences=sequences, log_probs=jnp.where(shown, log_probs, 0), ended=ended)


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
def needs_layout(config: ModelConfig, mesh: Mesh, weight_layout: SamplingLayout, scan_layers: bool = True) -> bool:
    """Whether the weights are sampled with in another layout or type than they are trained in."""
    policy = rollout_policy(config, mesh, weight_layout, scan_layers=scan_layers)
    trained = abstract_params(Policy(config, mesh), mesh, value_head=False)
    sampled = abstract_rollout_params(policy)
    if is_stacked(trained) != is_stacked(sampled):
        return True
    same = lambda x, y: x.dtype == y.dtype and x.sharding.is_equivalent_to(y.sharding, x.ndim)
    return not all(map(same, jax.tree.leaves(trained), jax.tree.leaves(sampled)))


def build_layout(
    config: ModelConfig, mesh: Mesh, weight_layout: SamplingLayout, scan_layers: bool = True
) -> tuple[Callable[..., Params], tuple[Params]]:
    """The jitted `params -> params` from the layout of training to that of sampling, and its abstract argument.

    Called once for all rollouts of an iteration, and once for an evaluation; where `needs_layout` is false it would
    only copy.
    """
    policy = rollout_policy(config, mesh, weight_layout, scan_layers=scan_layers)
    abstract = abstract_rollout_params(policy)

    def convert(params: Any) -> Params:
        return jax.tree.map(lambda x, to: x.astype(to.dtype), in_form_of(params, abstract), abstract)

    shardings = jax.tree.map(lambda x: x.sharding, abstract)
    return jax.jit(convert, out_shardings=shardings), (abstract_params(Policy(config, mesh), mesh, value_head=False),)


TOKENS_A_CALL = 8
"""Tokens that `decode` draws before the host looks which rows have ended: these sit idle for half of them."""

_CACHE, _ROWS, _ROWS_OF_A_CPU, _WORK_OF_A_CPU = 2e9, 256, 32, 4e8


def slots_per_device(policy: Policy, generation: GenerationConfig) -> int:
    """Rows in flight on each device: `generation.slots`, or a power of two in its place.

    As many as 2 GB of cache hold, and at most 256. A CPU gains nothing from more rows once these are work enough for
    it: with more than 400 million parameters and rows, multiplied, there are at most 32.
    """
    if generation.slots:
        return generation.slots
    config, mesh = policy.config, cast(Mesh, policy.mesh)
    d = config.decoder
    positions = max(generation.prompt_buckets) + generation.max_new_tokens
    row = 2 * d.num_layers * d.num_kv_heads * d.head_dim * positions * jnp.dtype(config.dtype).itemsize
    most = min(_CACHE / row, _ROWS)
    if mesh.devices.flat[0].platform == "cpu":
        parameters = sum(x.size for x in jax.tree.leaves(abstract_rollout_params(policy)))
        most = min(most, max(_WORK_OF_A_CPU / parameters, _ROWS_OF_A_CPU))
    return 1 << int(math.log2(max(most, 1)))


def admission_size(slots: int, samples: int) -> tuple[int, int]:
    """How many prompts are read at once, and how many slots they fill, on a device that has `slots`.

    Args:
        slots: of the device.
        samples: rows next to each other with the same prompt.
    """
    rows = max(slots // 8, min(samples, slots // 4), 1)
    return max(1, rows // samples), rows


def reaches(positions: int, platform: str) -> tuple[int, ...]:
    """How much of a cache of `positions` a call of `decode` may read: a half or all, on a CPU also a quarter.

    Each is a program of its own; on an accelerator reading is little of a step, and compiling one takes minutes.
    """
    parts = (4, 2, 1) if platform == "cpu" else (2, 1)
    return tuple(sorted({max(-(-positions // part), min(64, positions)) for part in parts}))


def _abstract(policy: Policy, tree: Any) -> Any:
    """Shapes and types with the shardings that rows and caches sample with."""
    shard = lambda x: NamedSharding(cast(Mesh, policy.mesh), _row_spec(x, policy))
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=shard(x)), tree)


def _abstract_slots(policy: Policy, slots: int, positions: int) -> Slots:
    return cast(Slots, _abstract(policy, jax.eval_shape(lambda: empty_slots(policy, slots, positions))))


def _abstract_scalars(
    policy: Policy, sampling: SamplingParams
) -> tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct, SamplingParams]:
    """Seed, step, and how tokens are drawn: at any temperature."""
    scalar = lambda dtype: jax.ShapeDtypeStruct((), dtype, sharding=replicated(cast(Mesh, policy.mesh)))
    wide = jnp.promote_types(policy.config.dtype, jnp.float32)
    return scalar(jnp.int32), scalar(jnp.int32), dataclasses.replace(sampling, temperature=cast(Any, scalar(wide)))


def _shardings(tree: Any) -> Any:
    return jax.tree.map(lambda x: x.sharding, tree)


def build_slots(policy: Policy, slots: int, positions: int) -> tuple[Callable[[], Slots], tuple[()]]:
    """The jitted `() -> Slots` that makes empty ones."""
    out = _shardings(_abstract_slots(policy, slots, positions))
    return jax.jit(lambda: empty_slots(policy, slots, positions), out_shardings=out), ()


def build_prefill(
    policy: Policy,
    slots: int,
    positions: int,
    limits: Limits,
    sampling: SamplingParams,
    *,
    prompts: int,
    rows: int,
    prompt: int,
) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """The jitted `prefill` of N = `prompts` into M = `rows` slots, and its abstract arguments; donates the slots.

    Their numbers are those of all devices together; the temperature is an argument.
    """
    mesh = cast(Mesh, policy.mesh)
    state = _abstract_slots(policy, slots, positions)
    ids: Callable[..., Any] = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.int32)
    new = Admission(
        tokens=ids(prompts, prompt),
        lengths=ids(prompts),
        source=ids(rows),
        slot=ids(rows),
        problem=ids(rows),
        sample=ids(rows),
    )
    args = (abstract_rollout_params(policy), state, _abstract(policy, new), *_abstract_scalars(policy, sampling))
    step = functools.partial(prefill, policy, limits=limits)
    out = (_shardings(state), replicated(mesh), replicated(mesh))
    return jax.jit(step, out_shardings=out, donate_argnums=1), args


def build_decode(
    policy: Policy, slots: int, positions: int, limits: Limits, sampling: SamplingParams, *, reach: int
) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """The jitted `decode` of `TOKENS_A_CALL` tokens that reads `reach` positions of the cache; donates the slots."""
    mesh = cast(Mesh, policy.mesh)
    state = _abstract_slots(policy, slots, positions)
    cut = reach if reach < positions else None
    step = functools.partial(decode, policy, limits=limits, count=TOKENS_A_CALL, positions=cut)
    args = (abstract_rollout_params(policy), state, *_abstract_scalars(policy, sampling))
    out = (_shardings(state), replicated(mesh), replicated(mesh))
    return jax.jit(step, out_shardings=out, donate_argnums=1), args
