"""Parameters, optimizer and step as one pytree, made sharded; micro-batches accumulated into one gradient."""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias, TypeVar, cast

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax import struct
from jax.sharding import Mesh

from reft_jax.config import OptimizerConfig
from reft_jax.data.batches import Array, Sequences
from reft_jax.models.classifier import Classifier
from reft_jax.models.lora import join, split_trainable
from reft_jax.models.params import Params, abstract_variables, in_form_of, select
from reft_jax.models.policy import Policy
from reft_jax.parallel.sharding import abstract_rows, constrain, param_shardings, replicated

T = TypeVar("T")


@struct.dataclass
class TrainState:
    """What one optimizer step turns into the next."""

    step: Array  # [] int32, optimizer steps done in this stage
    params: Params
    opt_state: optax.OptState


def make_schedule(config: OptimizerConfig, total_steps: int) -> optax.Schedule:
    """Learning rate of each step: a linear ramp from 0, then linear to 0 at `total_steps`, or constant."""
    ramp = int(config.lr_warmup_fraction * total_steps)
    if config.schedule == "constant":
        return optax.warmup_constant_schedule(0.0 if ramp else config.learning_rate, config.learning_rate, ramp)
    decay = optax.linear_schedule(config.learning_rate, 0.0, max(1, total_steps - ramp))
    return optax.join_schedules([optax.linear_schedule(0.0, config.learning_rate, max(1, ramp)), decay], [ramp])


def make_optimizer(config: OptimizerConfig, total_steps: int) -> optax.GradientTransformation:
    """Clipping by global norm, then AdamW; weights are decayed, biases (`lm_head_bias` too) and norms are not."""
    is_weight = lambda path, _: not path[-1].key.endswith(("bias", "scale"))
    adamw = optax.adamw(
        make_schedule(config, total_steps),
        b1=config.beta1,
        b2=config.beta2,
        eps=config.eps,
        weight_decay=config.weight_decay,
        mask=lambda params: jax.tree_util.tree_map_with_path(is_weight, params),
    )
    return optax.chain(optax.clip_by_global_norm(config.max_grad_norm), adamw)


class PartOptimizers(NamedTuple):
    """Optimizers of the policy and of the critic's own parameters, each with a clipping and a state of its own."""

    policy: optax.GradientTransformation
    critic: optax.GradientTransformation

    def init(self, params: Params) -> dict[str, optax.OptState]:
        """Their states, by name."""
        critic, policy = split_critic(params)
        return {"policy": self.policy.init(policy), "critic": self.critic.init(critic)}

    def update(
        self, gradients: Params, state: dict[str, optax.OptState], params: Params
    ) -> tuple[Params, dict[str, optax.OptState]]:
        """The updates of all parameters, and the new states."""
        (critic_gradients, gradients), (critic, policy) = split_critic(gradients), split_critic(params)
        updates, own = self.policy.update(gradients, state["policy"], policy)
        critic_updates, other = self.critic.update(critic_gradients, state["critic"], critic)
        return {**updates, **critic_updates}, {"policy": own, "critic": other}


Optimizer: TypeAlias = optax.GradientTransformation | PartOptimizers


def split_critic(params: Params) -> tuple[Params, Params]:
    """(the critic's own parameters: its head, and its decoder where it has one; all others)."""
    own = params.keys() & {"value_head", "critic"}
    return select(params, own), select(params, params.keys() - own)


@functools.lru_cache(maxsize=64)  # tracing a model takes a tenth of a second or more, and every step asks
def abstract_params(model: Policy | Classifier, mesh: Mesh, *, value_head: bool, adapters: bool = True) -> Params:
    """Shapes, types and shardings of the model's parameters in its layout; touches no device.

    Args:
        model: the policy or the classifier.
        mesh: what they are split over.
        value_head: whether the value head is among them, and the critic where the policy has one of its own.
        adapters: whether its adapters are, where `model.lora` asks for any.

    Raises:
        ValueError: naming the parameter, when a dimension does not divide by its mesh axes.
    """
    boxed = _parts(abstract_variables(model, inputs=1))
    wanted = {"critic": value_head, "value_head": value_head, "lora": adapters}
    boxed = select(boxed, [name for name in boxed if wanted.get(name, True)])
    with_sharding = lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s)
    return jax.tree.map(with_sharding, nn.meta.unbox(boxed), param_shardings(boxed, mesh, model.layout))


def _parts(variables: Mapping[str, Any]) -> Params:
    """The parameters by part of what a model's `init` gives."""
    parts, lora = cast(Params, variables["params"]), variables.get("lora")
    return {**parts, "lora": lora["decoder"]} if lora else parts


def init_params(policy: Policy, mesh: Mesh, key: jax.Array, *, value_head: bool, adapters: bool = True) -> Params:
    """Fresh parameters, each device making only its own shards."""
    return init_parts(policy, mesh, key, abstract_params(policy, mesh, value_head=value_head, adapters=adapters))


def init_parts(model: Policy | Classifier, mesh: Mesh, key: jax.Array, abstract: Params) -> Params:
    """Fresh parameters of the parts in `abstract`, some of those of `abstract_params`; the others are never made.

    The numbers are the same whether weights are stacked or not.
    """

    def init(key: jax.Array) -> Params:
        made = model.clone(stacked=True).init(key, jnp.zeros((1, 1), jnp.int32))
        return in_form_of(select(nn.meta.unbox(_parts(made)), abstract), abstract)

    return jax.jit(init, out_shardings=jax.tree.map(lambda x: x.sharding, abstract))(key)


def abstract_state(params: Params, optimizer: Optimizer, mesh: Mesh) -> TrainState:
    """Shapes, types and shardings of the state around (abstract) `params`: moments lie where their parameters do."""
    trainable, _ = split_trainable(params)
    scalar: Callable[[Any], Any] = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated(mesh))

    def moments(optimizer: optax.GradientTransformation, trainable: Params) -> optax.OptState:
        return optax.tree_map_params(
            optimizer,
            lambda x, param: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=param.sharding),
            jax.eval_shape(optimizer.init, trainable),
            trainable,
            transform_non_params=scalar,
        )

    if isinstance(optimizer, PartOptimizers):
        critic, policy = split_critic(trainable)
        opt_state = {"policy": moments(optimizer.policy, policy), "critic": moments(optimizer.critic, critic)}
    else:
        opt_state = moments(optimizer, trainable)
    return TrainState(step=scalar(jax.ShapeDtypeStruct((), jnp.int32)), params=params, opt_state=opt_state)


def init_state(params: Params, optimizer: Optimizer, mesh: Mesh) -> TrainState:
    """A state at step 0 that owns `params`: the first step donates their buffers."""
    shardings = jax.tree.map(lambda x: x.sharding, abstract_state(params, optimizer, mesh))
    opt_state = jax.jit(optimizer.init, out_shardings=shardings.opt_state)(split_trainable(params)[0])
    step = jax.device_put(jnp.int32(0), shardings.step)
    return TrainState(step=step, params=params, opt_state=opt_state)


def abstract_sequences(mesh: Mesh, batch: int, prompt: int, response: int) -> Sequences:
    """Shapes and shardings of a batch of rows, as an argument for lowering."""
    ids: Callable[..., Any] = lambda *shape: jax.ShapeDtypeStruct((batch, *shape), jnp.int32)
    rows = Sequences(
        tokens=ids(prompt + response), prompt_lengths=ids(), responses=ids(response), response_lengths=ids()
    )
    return abstract_rows(rows, mesh)


def copy_params(params: T) -> T:
    """The same parameters in buffers of their own, safe from donation."""
    return jax.tree.map(jnp.copy, params)


def microbatches(batch: Any, count: int, mesh: Mesh | None) -> Any:
    """Splits every [B, ...] of a tree into [count, B / count, ...].

    Micro-batch i takes the rows i, i + count, ...: each device gives an equal share of the rows it already holds.
    """

    def split(x: jax.Array) -> jax.Array:
        parts = x.reshape(x.shape[0] // count, count, *x.shape[1:]).swapaxes(0, 1)
        return constrain(parts, mesh, None, "batch", *(None,) * (x.ndim - 1))

    return jax.tree.map(split, batch)


LEAST_CUT = 128
"""Rows of fewer tokens than this are not cut to parts: each length that a program can take is compiled."""


def take_rows(tree: T, rows: Array) -> T:
    """Some rows of every [B, ...] of a tree."""
    return jax.tree.map(lambda x: jnp.take(x, rows, axis=0), tree)


def cut_lengths(longest: int, shorter: Sequence[int] = ()) -> tuple[int, ...]:
    """Lengths that rows padded to `longest` tokens may be cut to: half of it and three quarters, in whole sixteens.

    Where rows are known to be `shorter` still, those lengths too, well below each other and no more than four in all.
    """
    parts = [longest * part / 4 for part in (3, 2)] if longest >= LEAST_CUT else []
    sizes = [longest, *(math.ceil(part / 16) * 16 for part in parts)]
    for size in sorted(shorter, reverse=True):
        if size <= 0.85 * sizes[-1] and len(sizes) < 4:
            sizes.append(size)
    return tuple(sorted(set(sizes)))


def by_length(rows: T, lengths: Array, sizes: tuple[int, ...], count: int) -> T:
    """The rows in an order in which each of `count` `microbatches` has some of like length; as they are if uncut.

    Args:
        rows: a tree of arrays [B, ...].
        lengths: their tokens, [B].
        sizes: lengths that they may be cut to, see `cut_lengths`.
        count: number of micro-batches.
    """
    if count == 1 or len(sizes) == 1:
        return rows
    return take_rows(rows, jnp.argsort(-lengths).reshape(count, -1).swapaxes(0, 1).reshape(-1))


def at_length(function: Callable[..., T], sizes: tuple[int, ...], lengths: Callable[[Any], Array]) -> Callable[..., T]:
    """`function(first, rows)`, computed on rows without most of their common padding; the result is the same.

    One program holds the function for each size, and takes the shortest that no row exceeds. Where 0 is a size, rows
    that all have 0 tokens are not computed: the result is zeros.

    Args:
        function: its result has the same shapes however long rows are, and does not depend on padding.
        sizes: lengths that rows may be cut to, see `cut_lengths`; arrays [B, n] of the tree are cut to as many columns,
            [B] stay.
        lengths: the tokens of each row, [B], of the tree `rows`.
    """
    if len(sizes) == 1:
        return function

    def on(size: int) -> Callable[..., T]:
        return lambda first, rows: function(first, jax.tree.map(lambda x: x[:, :size] if x.ndim > 1 else x, rows))

    def zeros(first: Any, rows: Any) -> T:
        return cast(T, jax.tree.map(jnp.zeros_like, jax.eval_shape(function, first, rows)))

    def choose(first: Any, rows: Any) -> T:
        place = jnp.searchsorted(jnp.array(sizes), jnp.max(lengths(rows)))
        return cast(T, jax.lax.switch(place, [on(size) if size else zeros for size in sizes], first, rows))

    return choose


def positions(rows: Any) -> jax.Array:
    """How many places for tokens a pass over these rows [B, T] computes, their padding included; float32."""
    return jnp.float32(rows.tokens.size)


def padding_share(lengths: Array, computed: Array) -> jax.Array:
    """The share of a batch's computed `positions`, summed over its micro-batches, that holds no token; 0 of none."""
    return 1 - jnp.sum(lengths) / jnp.maximum(jnp.sum(computed), jnp.sum(lengths))


def accumulate(
    loss: Callable[[Params, Any], tuple[jax.Array, Any]],
    params: Params,
    batch: Any,
    count: int,
    mesh: Mesh | None,
    cut: Callable[[Callable[..., Any]], Callable[..., Any]] | None = None,
) -> tuple[Params, Any]:
    """Gradient of `loss` by what is trainable, summed over `count` micro-batches of `batch`.

    Args:
        loss: (params, micro-batch) -> (its share of the loss, auxiliary arrays). The shares must add up to the loss
            of the whole batch: they are divided by counts of the whole batch, not of the micro-batch.
        params: the policy's; the gradient is by `split_trainable`'s first part of them.
        batch: a tree of arrays [B, ...], B divisible by `count`.
        count: number of micro-batches.
        cut: makes of `(params, micro-batch) -> (gradient, auxiliary arrays)` what is called, as `at_length` does.

    Returns:
        (gradient, auxiliary arrays stacked over the micro-batches).
    """
    trainable, frozen = split_trainable(params)
    gradient = jax.grad(lambda trainable, batch: loss(join(trainable, frozen), batch), has_aux=True)
    gradient = cut(gradient) if cut else gradient
    if count == 1:
        gradients, aux = gradient(trainable, batch)
        return gradients, jax.tree.map(lambda x: x[None], aux)

    def add(total: Params, microbatch: Any) -> tuple[Params, Any]:
        gradients, aux = gradient(trainable, microbatch)
        return jax.tree.map(lambda x, y: x + y.astype(x.dtype), total, gradients), aux

    # A sum in bfloat16 would lose a percent or two of many micro-batches.
    wide = lambda x: jnp.zeros(x.shape, jnp.promote_types(x.dtype, jnp.float32))
    total, aux = jax.lax.scan(add, jax.tree.map(wide, trainable), microbatches(batch, count, mesh))
    return jax.tree.map(lambda x, like: x.astype(like.dtype), total, trainable), aux


def apply_gradients(
    state: TrainState, gradients: Params, optimizer: Optimizer
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One optimizer step; also returns the gradient's global norm before clipping."""
    trainable, frozen = split_trainable(state.params)
    updates, opt_state = optimizer.update(gradients, state.opt_state, trainable)
    params = join(optax.apply_updates(trainable, updates), frozen)
    metrics = {"optimizer/gradient_norm": optax.tree.norm(gradients)}
    return TrainState(step=state.step + 1, params=params, opt_state=opt_state), metrics


def optimizer_step(
    loss: Callable[[Params, Any], tuple[jax.Array, Any]],
    state: TrainState,
    batch: Any,
    config: OptimizerConfig,
    total_steps: int,
    *,
    count: int,
    mesh: Mesh | None,
    cut: Callable[[Callable[..., Any]], Callable[..., Any]] | None = None,
    optimizer: Optimizer | None = None,
) -> tuple[TrainState, dict[str, jax.Array], Any]:
    """One step of the optimizer on a batch; what every algorithm's update ends with.

    Args:
        loss, batch, count, mesh, cut: see `accumulate`.
        state: parameters and optimizer.
        config: optimizer and schedule.
        total_steps: length of the learning-rate schedule, in optimizer steps.
        optimizer: what steps; None makes it of `config`.

    Returns:
        (state, its metrics: learning rate, and global norm of the gradient before clipping; auxiliary arrays of `loss`
        stacked over the micro-batches).
    """
    gradients, aux = accumulate(loss, state.params, batch, count, mesh, cut)
    learning_rate = make_schedule(config, total_steps)(state.step)
    state, metrics = apply_gradients(state, gradients, optimizer or make_optimizer(config, total_steps))
    return state, {**metrics, "optimizer/learning_rate": learning_rate}, aux


def jit_update(
    step: Callable[..., tuple[TrainState, dict[str, jax.Array]]], mesh: Mesh, state: TrainState, *data: Any
) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """The jitted `(state, *data) -> (state, metrics)`, which donates the state, and its abstract arguments.

    Args:
        step: to be jitted.
        mesh: what its metrics are replicated over.
        state, data: abstract, with shardings; the new state lies as the old one.
    """
    out = (jax.tree.map(lambda x: x.sharding, state), replicated(mesh))
    return jax.jit(step, donate_argnums=0, out_shardings=out), (state, *data)


def abstract_stage(
    model: Policy | Classifier, mesh: Mesh, config: OptimizerConfig, total_steps: int, *, value_head: bool = False
) -> TrainState:
    """The abstract state of a stage that trains `model`; see `abstract_params`."""
    params = abstract_params(model, mesh, value_head=value_head)
    return abstract_state(params, make_optimizer(config, total_steps), mesh)
