"""What a run takes in time: operations, bytes and calls of an iteration, over what the target's data sheet promises.

An estimate before anything has run. Operations are counted by hand from the model's shape, bytes and collectives are
the compiled steps' own, and how much of a data sheet's figure is reached is assumed, see `ASSUMED`.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

from reft_jax.config import Config, DecoderConfig
from reft_jax.preflight.devices import Target

ASSUMED = {
    "of the peak in matrix products": 0.3,
    "of the memory's bandwidth": 0.7,
    "of the link's bandwidth": 0.7,
    "seconds a layer takes at least in a decode step": 2e-4,
    "seconds a collective takes at least": 2e-5,
}
"""The first and the fourth are those of one H200 with SmolLM2-135M (docs/preflight.md); the others are nobody's
measurement. A TPU starts no kernels from its host: there, a layer takes a tenth of the fourth."""


@dataclasses.dataclass(frozen=True)
class Lengths:
    """Tokens of a row."""

    prompt: float
    response: float


def forward(decoder: DecoderConfig, rows: float, lengths: Lengths, logits: float) -> float:
    """Operations of a forward pass: two for each weight and token, and attention, of which half is not masked.

    Args:
        decoder: the model's shape.
        rows: of the batch.
        lengths: of a row.
        logits: positions of a row for which there are logits.
    """
    d, tokens = decoder, lengths.prompt + lengths.response
    mlp = d.embed_dim * d.mlp_dim * (3 if d.gated_mlp else 2)
    block = d.embed_dim * d.head_dim * (2 * d.num_heads + 2 * d.num_kv_heads) + mlp
    attention = 2 * tokens * d.num_heads * d.head_dim  # scores and values, each two operations for half of the pairs
    per_token = d.num_layers * (2 * block + attention)
    return rows * (tokens * per_token + logits * 2 * d.vocab_size * d.embed_dim)


def work(config: Config, decoder: DecoderConfig, slots: int, mean: Lengths | None) -> dict[str, float]:
    """What the stages compute: operations of all devices together, and numbers of calls.

    Args:
        config: of the run.
        decoder: the model's shape.
        slots: rows in flight on all devices.
        mean: tokens of a row on average; without them every row is as long as its largest bucket.
    """
    rl, sft, generation = config.rl, config.sft, config.generation
    recomputed = config.model.remat == "full"
    found: dict[str, float] = {}
    if sft.schedule_epochs:
        lengths = mean or Lengths(max(sft.prompt_buckets), max(sft.response_buckets))
        found["sft"] = (3 + recomputed) * forward(decoder, sft.batch_size, lengths, lengths.response)
        found["sft_tokens"] = sft.batch_size * (lengths.prompt + lengths.response)
    if rl.epochs:
        lengths = mean or Lengths(max(generation.prompt_buckets), generation.max_new_tokens)
        rows = rl.completions_per_iteration
        once, critics = forward(decoder, rows, lengths, lengths.response), 1 + rl.separate_critic
        scored = rl.scores_policy + rl.separate_critic + rl.scores_reference
        found |= {
            "prefill": forward(decoder, rl.rollout_batch_size, Lengths(lengths.prompt, 0), 1),
            "turns": max(1.0, rows / slots) * lengths.response,
            "turn": forward(decoder, slots, Lengths(1, 0), 1),
            "scoring": scored * once,
            "updates": (3 + recomputed) * critics * rl.update_epochs * once,
        }
    return found


def bill(
    config: Config,
    target: Target,
    plan: Mapping[str, Any],
    measures: Mapping[str, Any],
    *,
    problems: int = 0,
    mean: Lengths | None = None,
) -> dict[str, Any]:
    """Seconds of an SFT step and of an iteration's parts; with `problems`, hours of all of reinforcement.

    Empty for a target whose data sheet is not known, and where a step was refused.
    """
    if not target.flops or any("refused" in found for found in measures.values()):
        return {}
    of_peak, of_memory, of_link, layer, least = ASSUMED.values()
    decoder = DecoderConfig(**plan["shape"])
    done = work(config, decoder, plan["slots"] * plan["shards"], mean)
    speed = of_peak * target.flops * target.count

    def moving(step: str, kind: str = "collectives") -> float:
        """Seconds that a step's collectives take, one after the other."""
        each = measures[step][kind].values() if target.count > 1 else ()
        return sum(max(one["bytes"] / (of_link * target.link), one["count"] * least) for one in each)

    seconds: dict[str, float] = {}
    found: dict[str, Any] = {"assumed": ASSUMED, "mean": mean and dataclasses.asdict(mean), "seconds": seconds}
    if "sft" in done:
        seconds["sft step"] = done["sft"] / speed + moving("sft")
        found["sft_tokens_per_s"] = done["sft_tokens"] / seconds["sft step"]
    if "turns" in done:
        held = plan["steps"]["decode"]["arguments"]
        launches = layer * decoder.num_layers * (1.0 if target.platform == "gpu" else 0.1)
        reading = (held["weights"] + held["cache"]) / (of_memory * target.bandwidth)
        turn = max(reading, done["turn"] / speed, launches) + moving("decode", "per_turn")
        seconds["sampling"] = done["prefill"] / speed + done["turns"] * turn
        if "experience" in measures:
            seconds["scoring"] = done["scoring"] / speed + moving("experience")
        updates = config.rl.updates(config.rl.rollout_batch_size)
        seconds["updates"] = done["updates"] / speed + updates * moving("update")
        iteration = sum(seconds.get(part, 0.0) for part in ("sampling", "scoring", "updates"))
        found |= {"decode_step": turn, "iteration": iteration}
        if problems:
            iterations = config.rl.epochs * math.ceil(problems / config.rl.rollout_batch_size)
            hours = iterations * iteration / 3600
            found |= {"iterations": iterations, "hours": hours, "device_hours": hours * target.count}
    return found


def lines(found: Mapping[str, Any]) -> Iterator[str]:
    """Yields what is said of the bill."""
    seconds = found["seconds"]
    rows = "every row as long as its largest bucket (--mean_tokens gives other lengths)"
    if found["mean"]:
        rows = f"rows of {found['mean']['prompt']:g} + {found['mean']['response']:g} tokens on average"
    yield f"Estimated, not run: {rows}."
    if "sft step" in seconds:
        yield f"An SFT step takes {seconds['sft step']:.2g} s, {found['sft_tokens_per_s']:,.0f} tokens a second."
    if "iteration" in found:
        parts = ", ".join(f"{name} {value:.2g}" for name, value in seconds.items() if name != "sft step")
        step = f"a decode step takes {1e3 * found['decode_step']:.2g} ms"
        yield f"An iteration of reinforcement takes {found['iteration']:.2g} s: {parts}; {step}."
    if "hours" in found:
        yield (
            f"All {found['iterations']:,} iterations take {found['hours']:.3g} hours, {found['device_hours']:.3g} "
            "device-hours, beside evaluation and judging."
        )
    assumed = "; ".join(f"{value:g} {what}" for what, value in found["assumed"].items())
    yield f"Assumed: {assumed}."
