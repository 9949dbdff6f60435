"""How well a minibatch knows the policy gradient, by algorithm: from the gradients of single completions.

All algorithms weight the same vectors, the gradients of completions' log-probs, so that these are taken once. Of a
model of any size they are kept as sketches, a few thousand numbers a parameter, whose inner products are those of the
gradients but for an error without bias: nothing else of the gradients is needed.

Shapes: B completions, Q questions, n samples of each, D numbers of a sketch.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from reft_jax.config import LoraConfig
from reft_jax.data.batches import Sequences
from reft_jax.losses import group_deviations, group_means, leave_one_out_means, masked_mean
from reft_jax.models.lora import SUFFIX
from reft_jax.models.params import Params, Tree
from reft_jax.models.policy import Policy, score_responses
from reft_jax.parallel.sharding import replicated

if TYPE_CHECKING:
    from jaxtyping import Array, Float

WIDTH = 4096
"""Numbers that are kept of the gradient of a parameter; of one that has fewer, all."""

RANK = 16
"""Rows that are kept of the gradient of a block's kernel, each a random combination of all."""

ROOM = 4e8
"""Numbers of gradients that exist at once, where a single row's are not more."""


def sketch(x: Float[Array, "*shape"], signs: Array, width: int) -> Float[Array, " D"]:
    """At most `width` numbers whose inner products with another's are unbiased for those of the arrays.

    Each entry gets a sign by chance and is added to that with its index modulo `width`: E <s(x), s(y)> = <x, y>
    (Charikar, Chen and Farach-Colton 2002). An array that is no longer than `width` stays as it is.

    Args:
        x: of any shape.
        signs: of `draw_signs`, the same for all arrays that are compared.
        width: most numbers that are kept.
    """
    flat = jnp.ravel(x).astype(jnp.promote_types(x.dtype, jnp.float32))
    if flat.size <= width:
        return flat
    return jnp.sum(jnp.pad(flat * signs, (0, -flat.size % width)).reshape(-1, width), axis=0)


def draw_signs(count: int, key: Array, width: int) -> Array:
    """[count] int8, 1 or -1 alike often, for `sketch`; [] where it needs none."""
    return jax.random.rademacher(key, (count,) if count > width else (), jnp.int8)


def projection(shape: tuple[int, ...], key: Array, rank: int) -> Float[Array, "L *into R"]:
    """P with E P P^T = I over the inputs of each layer, so that E <P^T G, P^T H> = <G, H> for a kernel's gradients.

    Signs by chance over sqrt(rank), independent between layers; with no more than `rank` inputs the identity.

    Args:
        shape: layers, and the sizes of the inputs.
        key: of the signs.
        rank: most numbers that are kept of the inputs.
    """
    layers, count = shape[0], math.prod(shape[1:])
    if count <= rank:
        return jnp.broadcast_to(jnp.eye(count), (layers, count, count)).reshape(*shape, count)
    return jax.random.rademacher(key, (*shape, rank), jnp.float32) / math.sqrt(rank)


@dataclasses.dataclass(frozen=True)
class Gradients:
    """Sketches of the gradients of completions' mean log-probs, for all parameters of a decoder together.

    The blocks' kernels, nearly all of the numbers, never have a gradient made: an adapter x P B beside each, at B = 0,
    has P^T G as B's, and rows without weights of their own are one product of matrices, in the backward pass too (Choe
    et al. 2024, arXiv 2405.13954). What comes of it, and the whole gradients of all other parameters, is then sketched.

    Attributes:
        draw: ({"decoder"}, key) -> what is random, the same for all completions that are compared.
        step: ({"decoder"}, rows, what `draw` made) -> [B, D]; jitted, as `draw` is.
        at_once: rows of a call, so that what exists of their gradients fits: 8 or fewer.
    """

    draw: Callable[[Params, Array], Any]
    step: Callable[[Params, Sequences, Any], Float[Array, "B D"]]
    at_once: int


def build_gradients(
    policy: Policy, mesh: Mesh, params: Params, *, temperature: float, width: int = WIDTH, rank: int = RANK
) -> Gradients:
    """The jitted steps.

    Args:
        policy: the model; its weights may be split over a mesh, rows are not.
        mesh: of the weights.
        params: {"decoder"}, stacked, of which shapes are read.
        temperature: that the completions were drawn at.
        width: of a parameter's sketch.
        rank: of a kernel's projection.
    """
    kernels, others = _split(params["decoder"])
    into = {place: kernel.shape[: 3 if place[1] == "o" else 2] for place, kernel in kernels.items()}  # `o` reads heads
    names = tuple(dict.fromkeys(name for _, name in kernels))
    lora = LoraConfig(rank=rank, alpha=rank, targets=names)  # whose scale, alpha / rank, is 1
    model = policy.clone(mesh=None, config=dataclasses.replace(policy.config, lora=lora))

    def starts(kernels: _Kernels, projections: _Kernels) -> _Kernels:
        outputs = {place: kernel.shape[len(into[place]) :] for place, kernel in kernels.items()}
        return {place: jnp.zeros((p.shape[0], p.shape[-1], *outputs[place])) for place, p in projections.items()}

    def draw(params: Params, key: Array) -> Any:
        kernels, others = _split(params["decoder"])
        keys = iter(jax.random.split(key, 2 * len(kernels) + len(jax.tree.leaves(others))))
        projections = {place: projection(shape, next(keys), rank) for place, shape in into.items()}
        leaves = jax.tree.leaves((others, starts(kernels, projections)))
        return projections, [draw_signs(leaf.size, next(keys), width) for leaf in leaves]

    def gradients(params: Params, rows: Sequences, drawn: Any) -> Float[Array, "B D"]:
        kernels, others = _split(params["decoder"])
        projections, signs = drawn

        def mean_log_prob(moved: tuple[Tree, _Kernels], row: Sequences) -> Array:
            others, low = moved
            blocks = {part: {**maps} for part, maps in others["blocks"].items()}
            adapters: Tree = {part: {} for part in blocks}
            for (part, name), kernel in kernels.items():
                blocks[part][name] = {**blocks[part][name], "kernel": kernel}
                adapters[part][name + SUFFIX] = {"a": projections[part, name], "b": low[part, name]}
            adapters = {part: maps for part, maps in adapters.items() if maps}
            whole: Params = {"decoder": {**others, "blocks": blocks}, "lora": {"blocks": adapters}}
            alone = jax.tree.map(lambda x: x[None], row)
            return masked_mean(score_responses(model, whole, alone, temperature).log_probs, alone.response_mask)

        moved = (others, starts(kernels, projections))
        each = jax.tree.leaves(jax.vmap(jax.grad(mean_log_prob), in_axes=(None, 0))(moved, rows))
        sketches = [jax.vmap(lambda x, own=own: sketch(x, own, width))(leaf) for leaf, own in zip(each, signs)]
        return jnp.concatenate(sketches, axis=1)

    size = sum(x.size for x in jax.tree.leaves(others))
    size += sum(rank * x.size // math.prod(into[place][1:]) for place, x in kernels.items())
    whole = replicated(mesh)
    return Gradients(
        jax.jit(draw, out_shardings=whole),
        jax.jit(gradients, out_shardings=whole),
        int(min(8, max(1, ROOM // size))),
    )


_Kernels: TypeAlias = dict[tuple[str, str], jax.Array]  # [L, *in, *out] by part of a block and name


def _split(decoder: Tree) -> tuple[_Kernels, Tree]:
    """The blocks' kernels, and the parameters beside them."""
    kernels: _Kernels = {}
    blocks: Tree = {}
    for part, maps in decoder["blocks"].items():
        blocks[part] = {**maps}
        for name, each in maps.items():
            if isinstance(each, dict) and "kernel" in each:
                kernels[part, name] = each["kernel"]
                blocks[part][name] = {key: x for key, x in each.items() if key != "kernel"}
    return kernels, {**decoder, "blocks": blocks}


def advantages(rewards: np.ndarray, n: int) -> dict[str, np.ndarray]:
    """[Q, n] advantage of each completion by algorithm, for groups of n: what its gradient counts for.

    With one completion: REINFORCE, A = r, and the mean reward of all as a constant baseline. With more: RLOO
    (Dr. GRPO's are the same but for a factor), GRPO, and MaxRL where no reward is below 0.

    Args:
        rewards: [Q, n].
        n: samples of a question.
    """
    if n == 1:
        return {"REINFORCE": rewards, "constant baseline": rewards - rewards.mean()}
    flat = jnp.asarray(rewards.ravel())
    means, deviations = group_means(flat, samples=n), group_deviations(flat, samples=n)
    found = {
        "RLOO, Dr. GRPO": flat - leave_one_out_means(flat, samples=n),
        "GRPO": (flat - means) / (deviations + 1e-4),
    }
    if rewards.min() >= 0:
        found["MaxRL"] = jnp.where(means > 0, (flat - means) / jnp.where(means > 0, means, 1), 0)
    return {name: np.asarray(each, np.float64).reshape(rewards.shape) for name, each in found.items()}


def ratio(pieces: np.ndarray, questions: int) -> tuple[float, np.ndarray, float]:
    """Signal to noise of the mean of so many questions' gradients, without each question, and the questions for 1.

    Signal is the squared norm of the gradient's expectation, from the inner products of different questions, so that it
    has no bias; noise is the mean squared distance of such a mean from it.

    Args:
        pieces: [Q, C, D], of each question the gradients of C groups of its samples.
        questions: of a minibatch.

    Returns:
        (ratio, [Q] the ratio with each question left out, for `jackknife`, questions of a minibatch whose ratio would
        be 1: infinite where no signal was seen).
    """
    count = len(pieces)
    means = pieces.mean(axis=1)
    gram, second = means @ means.T, np.sum(pieces**2, axis=2).mean(axis=1)
    own = np.diag(gram)
    pairs = gram.sum() - own.sum()
    signal, others = pairs / (count * (count - 1)), (pairs - 2 * (gram.sum(axis=1) - own)) / ((count - 1) * (count - 2))
    noise, noises = second.mean() - signal, (second.sum() - second) / (count - 1) - others
    if noise <= 0:
        return 0.0, np.zeros(count), float("inf")
    needed = float(noise / signal) if signal > 0 else float("inf")
    return float(questions * signal / noise), questions * others / noises, needed


def jackknife(each: np.ndarray) -> float:
    """Standard error of a figure from its [Q] values with each question left out."""
    return float(np.sqrt((len(each) - 1) / len(each) * np.sum((each - each.mean()) ** 2)))


def figures(
    gradients: np.ndarray, rewards: np.ndarray, lengths: np.ndarray, *, minibatch: int, by_token: bool
) -> list[dict[str, Any]]:
    """The ratio of signal to noise in a minibatch, by algorithm and samples of a question: powers of two.

    Args:
        gradients: [Q, k, D] sketches, of the mean log-prob of each completion.
        rewards: [Q, k].
        lengths: [Q, k] tokens.
        minibatch: completions; of n samples a question, it has minibatch / n questions.
        by_token: the loss is a sum over tokens, so that a completion counts by its length; else each counts alike.

    Returns:
        Of each: `algorithm`, `samples`, `ratio`, `error`, the jackknife's, `behind_error`, that of its distance from
        the highest ratio, which shares the completions, and `completions`, with how many the ratio would be 1; None
        where no signal was seen.
    """
    questions, samples, _ = gradients.shape
    vectors = gradients.astype(np.float64) * (lengths[..., None] if by_token else 1)
    found: list[dict[str, Any]] = []
    without = []
    for n in (2**i for i in range(samples.bit_length()) if 2**i <= min(samples, minibatch)):
        groups = samples // n
        taken = rewards[:, : groups * n].astype(np.float64)
        grouped = vectors[:, : groups * n].reshape(questions, groups, n, -1)
        for name, weights in advantages(taken.reshape(-1, n), n).items():
            pieces = np.einsum("qcn,qcnd->qcd", weights.reshape(questions, groups, n), grouped) / n
            value, each, needed = ratio(pieces, minibatch // n)
            row = {"algorithm": name, "samples": n, "ratio": value, "error": jackknife(each)}
            found.append({**row, "completions": needed * n if np.isfinite(needed) else None})
            without.append(each)
    best = without[int(np.argmax([row["ratio"] for row in found]))]
    return [{**row, "behind_error": jackknife(best - each)} for row, each in zip(found, without)]
