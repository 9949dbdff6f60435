"""Which settings may change between the parts of one run, and what a change then means.

Three kinds of keys: those that may change at any time, since they change nothing of what is computed but its rounding;
those of which a run can go on with a new value from where it is, if `allow_changed` names them; and all others, which
say what the steps that are done were, or what the figures that are recorded mean.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Literal

Position = Literal["absent", "ahead", "begun", "done"]
"""Where a run is in a stage; `absent` is one that runs of its kind do not have."""

STAGES = ("pretrain", "sft", "rl", "reward_model")
"""Sections of the settings that are a stage's own."""

SOURCES = ("data.train", "data.dev", "data.test", "pretrain.source", "reward_model.samples")
"""Settings that say where something is read: a run keeps digests of that, so that the files may be elsewhere now."""

ANY_TIME = (
    *("run_dir", "mesh", "distributed", "checkpoint", "logging", "allow_changed", "compilation_cache_dir"),
    *("model.remat", "model.attention", "model.scan_layers", "model.logits_chunk"),
    *("generation.weight_layout", "generation.scan_layers", "generation.slots"),
    *("pretrain.microbatch_size", "sft.microbatch_size", "rl.microbatch_size", "reward_model.microbatch_size"),
    *("sft.save_every", "rl.save_every", "reward_model.save_every"),
    *("reward.workers", "reward.batch_deadline_s", "reward.function_timeout_s", "rl.check_tolerance"),
    *SOURCES,
)
"""Settings, and sections, that may change without a word."""

FROM_HERE_ON = (
    # Nothing of the model's folder is used but its name: weights are in the checkpoint, and other tokens are refused.
    *("model.path", "model.revision", "model.tokenizer"),
    *("reward.correct", "reward.wrong", "reward.no_answer", "reward.functions"),
    *("reward.program_timeout_s", "reward.program_memory_mb", "reward.sandbox"),
    *("generation.temperature", "generation.prompt_buckets"),
)
"""Settings of no one stage that `allow_changed` lets a run go on with."""

STAGE_FROM_HERE_ON = (
    *("epochs", "schedule_epochs", "stop_epoch", "evaluate_every", "optimizer", "loss_aggregation"),
    *("prompt_buckets", "response_buckets", "row_buckets"),
    *("kl_coef", "track_kl", "kl_in", "kl_estimator", "vf_coef", "clip_range", "value_clip_range"),
    *("discount", "gae_lambda", "whiten_advantages", "scale_by_group", "self_training", "collapse"),
    *("baseline_shift", "positive_weight", "negative_weight", "clip_range_high", "dual_clip", "sampler_ratio_cap"),
    *("overlong_filter", "overlong_buffer", "overlong_penalty", "entropy_floor", "entropy_coef", "positive_nll_coef"),
    *("gae_length_alpha", "value_lambda", "old_log_probs"),
)
"""The same of a stage that has begun; all settings of one that is yet to come may change so."""

REASONS = {
    "seed": "it draws the data's order and the samples of the whole run",
    "data": "the problems, prompts and targets of a run stay the same",
    "model": "the parameters of a run are those of one model",
    "reward": "accuracies before and after could not be compared",
    "generation": "accuracies before and after could not be compared",
    "evaluation": "accuracies before and after could not be compared",
}
"""Why the other settings of a section stay as they are."""


def refusals(
    changed: Mapping[str, tuple[Any, Any]], allowed: tuple[str, ...], stages: Mapping[str, Position]
) -> Iterator[str]:
    """Yields a line for each setting that a run cannot go on with.

    Args:
        changed: old and new value by dotted key.
        allowed: what `allow_changed` names: keys or sections.
        stages: how far the run is.
    """
    for key, (old, new) in changed.items():
        if not matters(key, stages):
            continue
        if reason := _refusal(key, stages):
            yield f"{key} is {new!r} and was {old!r}: it cannot change, for {reason}"
        elif not among(key, allowed):
            yield f"{key} is {new!r} and was {old!r}: name it in allow_changed to go on with the new value from here on"


def matters(key: str, stages: Mapping[str, Position]) -> bool:
    """Whether the run would compute something else with another value of a setting."""
    return not among(key, ANY_TIME) and stages.get(key.partition(".")[0]) != "absent"


def _refusal(key: str, stages: Mapping[str, Position]) -> str:
    section, _, name = key.partition(".")
    if section not in stages:
        return "" if among(key, FROM_HERE_ON) else REASONS[section]
    if stages[section] == "done":
        return f"the run is past {section}"
    if stages[section] == "begun" and not among(name, STAGE_FROM_HERE_ON):
        return f"{section} has begun with the old value"
    return ""


def among(key: str, names: tuple[str, ...]) -> bool:
    """Whether a dotted key is one of the names, or in a section that is."""
    return any(key == name or key.startswith(name + ".") for name in names)
