"""What must hold before the first update of reinforcement; a run in which it does not cannot be right, and stops."""

import dataclasses

import jax
import jax.numpy as jnp

from reft_jax.algorithms.ppo import Experience
from reft_jax.algorithms.rollout import Rollout


def with_other_padding(rollout: Rollout) -> Rollout:
    """The same rollout with other tokens in its padding, which no number may depend on."""
    sequences = rollout.sequences
    ends = sequences.prompt_lengths + sequences.response_lengths
    beyond = jnp.arange(sequences.tokens.shape[1])[None] >= ends[:, None]
    tokens = jnp.where(beyond, (sequences.tokens + 1) % 2, sequences.tokens)
    return dataclasses.replace(rollout, sequences=dataclasses.replace(sequences, tokens=tokens))


def check_experience(
    experience: Experience,
    metrics: dict[str, jax.Array],
    other_padding: Experience,
    *,
    from_reference: bool,
    tolerance: float,
) -> None:
    """Stops a run whose first experience cannot be right.

    Args:
        experience, metrics: of the first iteration; without a score of the policy, its first update has the gap.
        other_padding: the experience of the same rollout `with_other_padding`.
        from_reference: whether the policy still is the reference, so that the KL must be 0.
        tolerance: largest difference of log-probs allowed, nats; between two programs on average, since in bfloat16
            single unlikely tokens differ by much more.

    Raises:
        RuntimeError: saying which check failed, by how much, and the usual causes.
    """
    mask = experience.sequences.response_mask
    difference = lambda a, b: float(jnp.max(jnp.where(mask, jnp.abs(a - b), 0)))
    scored = lambda e: [x for x in (e.log_probs, e.reference, e.values) if x is not None]
    padding = max(map(difference, scored(experience), scored(other_padding)))
    checks = {"log-probs or values change with what pads the rows (a mask leaks)": padding, **_gap(metrics)}
    if from_reference:
        checks["the policy equals its reference and yet their KL is not 0"] = float(metrics["rl/kl_max"])
    _raise_beyond(checks, tolerance)


def check_first_update(metrics: dict[str, jax.Array], *, tolerance: float) -> None:
    """Stops a run whose very first ratio of new to old policy, taken before any step, is not 1.

    Raises:
        RuntimeError: naming the mean |log ratio| of a token, or how far the sampler is from the trainer.
    """
    cause = "the ratio is not 1 before the first update (dropout, or old log-probs made by another program)"
    _raise_beyond({**_gap(metrics), cause: float(metrics["rl/log_ratio_mean"])}, tolerance)


def _gap(metrics: dict[str, jax.Array]) -> dict[str, float]:
    """How far sampler and trainer differ, where the metrics are of the pass that tells."""
    cause = "the sampler's log-probs differ from the trainer's on average (temperature, cache positions, type)"
    return {cause: float(metrics["rl/sampler_gap"])} if "rl/sampler_gap" in metrics else {}


def _raise_beyond(checks: dict[str, float], tolerance: float) -> None:
    for cause, value in checks.items():
        if not value <= tolerance:  # nan fails too
            raise RuntimeError(f"self-check: {cause}: {value:.3g} nats, more than rl.check_tolerance ({tolerance:.3g})")
