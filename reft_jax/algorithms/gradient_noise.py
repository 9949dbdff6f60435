"""How well a minibatch knows the policy gradient, by algorithm: from the gradients of single completions.

All algorithms weight the same vectors, the gradients of completions' log-probs, so that these are taken once. Of a
model of any size they are kept as sketches, a few thousand numbers a parameter, whose inner products are those of the
gradients but for an error without bias: nothing else of the gradients is needed.

Shapes: B completions, Q questions, n samples of each, D numbers of a sketch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from reft_jax.data.batches import Sequences
from reft_jax.losses import group_deviations, group_means, leave_one_out_means, masked_mean
from reft_jax.models.params import Params
from reft_jax.models.policy import Policy, score_responses
from reft_jax.parallel.sharding import replicated

if TYPE_CHECKING:
    from jaxtyping import Array, Float

WIDTH = 4096
"""Numbers that are kept of the gradient of a parameter; of one that has fewer, all."""

ROOM = 4e8
"""Numbers of gradients that exist at once, where single ones are not larger."""


def sketch(x: Float[Array, "*shape"], key: Array, width: int) -> Float[Array, " D"]:
    """At most `width` numbers whose inner products with another's are unbiased for those of the arrays.

    Each entry gets a sign by chance and is added to that with its index modulo `width`: E <s(x), s(y)> = <x, y>
    (Charikar, Chen and Farach-Colton 2002). An array that is no longer than `width` stays as it is.

    Args:
        x: of any shape.
        key: of the signs, the same for all arrays that are compared.
        width: most numbers that are kept.
    """
    flat = jnp.ravel(x).astype(jnp.promote_types(x.dtype, jnp.float32))
    if flat.size <= width:
        return flat
    flat = flat * jax.random.rademacher(key, flat.shape, jnp.int8)
    return jnp.sum(jnp.pad(flat, (0, -flat.size % width)).reshape(-1, width), axis=0)


def build_gradients(
    policy: Policy, mesh: Mesh, *, temperature: float, width: int = WIDTH
) -> Callable[[Params, Sequences], Float[Array, "B D"]]:
    """The jitted step that sketches the gradient of each completion's mean log-prob, for all parameters together.

    Args:
        policy: the model; its weights may be split over a mesh, rows are not.
        mesh: of the weights.
        temperature: that the completions were drawn at.
        width: of a parameter's sketch.
    """
    policy = policy.clone(mesh=None)

    def gradients(params: Params, rows: Sequences) -> Float[Array, "B D"]:
        def one(row: Sequences) -> Float[Array, " D"]:
            alone = jax.tree.map(lambda x: x[None], row)

            def mean_log_prob(params: Params) -> Array:
                return masked_mean(score_responses(policy, params, alone, temperature).log_probs, alone.response_mask)

            leaves = jax.tree.leaves(jax.grad(mean_log_prob)(params))
            keys = [jax.random.fold_in(jax.random.key(0), i) for i in range(len(leaves))]
            return jnp.concatenate([sketch(leaf, key, width) for leaf, key in zip(leaves, keys)])

        size = sum(x.size for x in jax.tree.leaves(params))
        return jax.lax.map(one, rows, batch_size=int(min(8, max(1, ROOM // size))))

    return jax.jit(gradients, out_shardings=replicated(mesh))


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


def ratio(pieces: np.ndarray, questions: int) -> tuple[float, float, float]:
    """Signal to noise of the mean of so many questions' gradients, its standard error, and the questions for 1.

    Signal is the squared norm of the gradient's expectation, from the inner products of different questions, so that it
    has no bias; noise is the mean squared distance of such a mean from it. The error is the jackknife's, over
    questions.

    Args:
        pieces: [Q, C, D], of each question the gradients of C groups of its samples.
        questions: of a minibatch.

    Returns:
        (ratio, error, questions of a minibatch whose ratio would be 1: infinite where no signal was seen).
    """
    count = len(pieces)
    means = pieces.mean(axis=1)
    gram, second = means @ means.T, np.sum(pieces**2, axis=2).mean(axis=1)
    own = np.diag(gram)
    pairs = gram.sum() - own.sum()
    signal, others = pairs / (count * (count - 1)), (pairs - 2 * (gram.sum(axis=1) - own)) / ((count - 1) * (count - 2))
    noise, noises = second.mean() - signal, (second.sum() - second) / (count - 1) - others
    if noise <= 0:
        return 0.0, 0.0, float("inf")
    each = questions * others / noises
    error = np.sqrt((count - 1) / count * np.sum((each - each.mean()) ** 2))
    return float(questions * signal / noise), float(error), float(noise / signal) if signal > 0 else float("inf")


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
        Of each: `algorithm`, `samples`, `ratio`, `error`, and `completions`, with how many the ratio would be 1; None
        where no signal was seen.
    """
    questions, samples, _ = gradients.shape
    vectors = gradients.astype(np.float64) * (lengths[..., None] if by_token else 1)
    found = []
    for n in (2**i for i in range(samples.bit_length()) if 2**i <= min(samples, minibatch)):
        groups = samples // n
        taken = rewards[:, : groups * n].astype(np.float64)
        grouped = vectors[:, : groups * n].reshape(questions, groups, n, -1)
        for name, weights in advantages(taken.reshape(-1, n), n).items():
            pieces = np.einsum("qcn,qcnd->qcd", weights.reshape(questions, groups, n), grouped) / n
            value, error, needed = ratio(pieces, minibatch // n)
            row = {"algorithm": name, "samples": n, "ratio": value, "error": error}
            found.append({**row, "completions": needed * n if np.isfinite(needed) else None})
    return found
