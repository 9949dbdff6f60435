"""How well a minibatch knows the policy gradient, by baseline and average: what PPO loses to likelihood, and where.

    python -m benchmarks.gradient_noise runs/quickstart/checkpoints/warmup

A completion y of L tokens and reward r (here 1 or 0) adds w (r - b) grad log p(y) to a minibatch's gradient: b is the
baseline, and the weight w is 1 / L where the loss is a mean over each response, constant where it is one over all
tokens. b = 0 is likelihood of right completions. With constant w the mean over y is the policy gradient whatever b;
with 1 / L a baseline adds -b grad E[1 / L], a pull towards longer responses.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from reft_jax.algorithms.rollout import SamplingParams
from reft_jax.config import config_parser
from reft_jax.data.batches import Sequences, training_prompts
from reft_jax.losses import masked_mean
from reft_jax.models.params import Params
from reft_jax.models.policy import Policy, score_responses
from reft_jax.training.model_source import open_model, read_source
from reft_jax.training.sampler import Sampler


def gradients(policy: Policy, params: Params, rows: Sequences) -> jax.Array:
    """Gradients of the mean log-prob of each response, [B, number of parameters]."""

    def one(row: Sequences) -> jax.Array:
        alone = jax.tree.map(lambda x: x[None], row)
        mean = lambda params: masked_mean(score_responses(policy, params, alone).log_probs, alone.response_mask)
        return ravel_pytree(jax.grad(mean)(params))[0]

    return jax.lax.map(one, rows, batch_size=8)


def sums(sampler: Sampler, params: Params, rollouts: int, batch: int, minibatch: int) -> dict[str, np.ndarray]:
    """Over each minibatch, the sums of g, r g, L g and L r g, [K, number of parameters]; and r, L and |g|^2, [N]."""
    weights = sampler.sampling_params(params)

    @jax.jit
    def add(params: Params, rows: Sequences, right: jax.Array) -> dict[str, jax.Array]:
        each, lengths = gradients(sampler.model.policy, params, rows), rows.response_lengths.astype(right.dtype)
        parts = each.reshape(-1, minibatch, each.shape[1])
        each_weight = {"g": jnp.ones_like(right), "rg": right, "Lg": lengths, "Lrg": lengths * right}
        found = {key: jnp.einsum("kmp,km->kp", parts, w.reshape(-1, minibatch)) for key, w in each_weight.items()}
        return {**found, "r": right, "L": lengths, "norm2": jnp.sum(each**2, axis=1)}

    found: list[dict[str, np.ndarray]] = []
    for i in range(rollouts):
        prompts = training_prompts(
            sampler.prompts["train"],
            seed=sampler.config.seed,
            step=i,
            batch_size=batch,
            samples_per_question=1,
            prompt_buckets=sampler.config.generation.prompt_buckets,
            pad_id=sampler.model.ids.pad,
        )
        rollout = sampler.rollout(weights, prompts, i, SamplingParams())
        completions = sampler.judge(rollout, "train", prompts.problem)
        right = np.array([c.verdict.outcome == "correct" for c in completions], np.float32)
        if len(right) == batch:  # the last of an epoch has filler
            found.append(jax.device_get(add(params, rollout.sequences, right)))
    return {key: np.concatenate([part[key] for part in found]) for key in found[0]}


def inner(gram: np.ndarray) -> np.ndarray:
    """Inner product of the expectations that rows x[k] and y[k] are draws of, from gram[k, l] = <x[k], y[l]>.

    Unbiased: a row is never multiplied by the one of its own minibatch.
    """
    count = len(gram)
    return (np.sum(gram) - np.trace(gram)) / (count * (count - 1))


def ratio(own: np.ndarray) -> np.ndarray:
    """Squared norm of the mean over the mean squared distance of a minibatch from it."""
    signal = inner(own)
    return signal / (np.trace(own) / len(own) - signal)


def cosine(own: np.ndarray, both: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Cosine of two means, from the gram matrices of the first, of the pair, and of the second."""
    return inner(both) / np.sqrt(inner(own) * inner(other))


def jackknife(statistic: Callable[..., np.ndarray], *grams: np.ndarray) -> dict[str, float]:
    """A statistic of gram matrices and its standard error: the spread of those that each leave out a minibatch."""
    count = len(grams[0])
    without = lambda gram, k: np.delete(np.delete(gram, k, axis=0), k, axis=1)
    others = [float(statistic(*(without(gram, k) for gram in grams))) for k in range(count)]
    return {"value": float(statistic(*grams)), "error": float(np.std(others) * np.sqrt(count - 1))}


def report(found: dict[str, np.ndarray], minibatch: int) -> dict[str, Any]:
    """The figures of a checkpoint.

    For each estimator: the ratio of signal to noise in one minibatch, and the cosine of its mean with the policy
    gradient, each with its standard error over minibatches. The baseline of least noise is
    b* = E[w^2 r |g|^2] / E[w^2 |g|^2].
    """
    r, lengths, norm2 = (found[key].astype(np.float64) for key in ("r", "L", "norm2"))
    keys = ("g", "rg", "Lg", "Lrg")
    grams = {(x, y): found[x].astype(np.float64) @ found[y].T.astype(np.float64) for x in keys for y in keys}

    def gram(first: Mapping[str, float], second: Mapping[str, float]) -> np.ndarray:
        """Between estimators, each given by its factors of the sums."""
        return np.sum([u * v * grams[x, y] for x, u in first.items() for y, v in second.items()], axis=0)

    estimators = {}
    for average, prefix, weight in (("responses", "", np.ones_like(lengths)), ("tokens", "L", lengths)):
        squared = weight**2 * norm2
        baselines = {"0": 0.0, "least noise": np.sum(r * squared) / np.sum(squared), "mean reward": r.mean()}
        scale = minibatch * weight.mean()
        for name, b in baselines.items():
            estimators[average, name] = float(b), {prefix + "rg": 1 / scale, prefix + "g": -b / scale}
    _, truth = estimators["tokens", "mean reward"]
    rows = [
        {
            "average": average,
            "baseline": name,
            "b": b,
            "signal_to_noise": jackknife(ratio, gram(factors, factors)),
            "cosine": jackknife(cosine, gram(factors, factors), gram(factors, truth), gram(truth, truth)),
        }
        for (average, name), (b, factors) in estimators.items()
    ]
    by_verdict = {
        name: {"squared_norm": norm2[r == value].mean(), "length": lengths[r == value].mean()}
        for name, value in (("right", 1), ("wrong", 0))
    }
    return {"completions": len(r), "share_right": r.mean(), **by_verdict, "estimators": rows}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures a checkpoint."""
    parser = config_parser("python -m benchmarks.gradient_noise", str(__doc__))
    parser.add_argument("folder", help="one of RUN_DIR/checkpoints")
    parser.add_argument("--rollouts", type=int, default=16, help="number of them")
    parser.add_argument("--rollout_batch_size", type=int, default=256, help="completions of each")
    parser.add_argument("--minibatch_size", type=int, default=32, help="completions of a gradient")
    parser.add_argument("--json", default="", help="file for the figures; else they are printed")
    given = parser.parse_args(arguments)
    source, _ = read_source(parser, arguments, [given.folder], "train")
    with open_model(source) as (sampler, params):
        found = sums(sampler, params, given.rollouts, given.rollout_batch_size, given.minibatch_size)
    figures = json.dumps(report(found, given.minibatch_size), indent=2)
    if given.json:
        Path(given.json).write_text(figures + "\n", encoding="utf-8")
    else:
        print(figures)


if __name__ == "__main__":
    main()
