"""What the types of the config allow and no run can use: refused before anything is compiled, naming the key."""

import collections
import dataclasses
import itertools
import math
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from reft_jax.config.ranges import range_of
from reft_jax.config.renamed import RENAMED
from reft_jax.config.settings import Config, DataConfig, RewardModelConfig, RlConfig, SourceConfig, SupervisedConfig


def validate(config: Config, *, training: bool = True) -> None:
    """Refuses a config that no run can use, or, without `training`, that no model can be asked with.

    Raises:
        ValueError: a line for each fault, naming the key, its value and what would do.
    """
    training_errors = _training_errors(config) if training else ()
    refuse((*range_errors(config, ""), *_combination_errors(config), *training_errors))


def refuse(faults: Iterable[str], error: type[Exception] = ValueError) -> None:
    """Raises `error` with all the faults, a line each, if there are any."""
    if lines := "\n".join(faults):
        raise error(lines)


def missing_files(config: Config) -> Iterator[str]:
    """Yields a message for each file that the run will read and that is not there; asked when a run starts."""
    for key, source in _sources(config):
        if source.is_file and not Path(source.path).is_file():
            yield f"{key}.path: there is no file {source.path!r}"
    if config.rl.init_from and not Path(config.rl.init_from).is_dir():
        yield f"rl.init_from: there is no checkpoint directory {config.rl.init_from!r}"
    if config.only_reward_model:  # in another run these may be yet to come
        settings = config.reward_model
        yield from (
            f"reward_model.samples: there is no file {path!r}" for path in settings.samples if not Path(path).is_file()
        )
        if settings.init_from and not Path(settings.init_from).is_dir():
            yield f"reward_model.init_from: there is no checkpoint directory {settings.init_from!r}"


def _sources(config: Config) -> Iterator[tuple[str, SourceConfig]]:
    data = config.data
    yield from (("data.train", data.train), ("data.dev", data.dev), ("data.test", data.test))
    yield "pretrain.source", config.pretrain.source


def _shared_items(config: Config) -> Iterator[str]:
    """Yields a message for each two sources that would hold the same items of a task."""
    tasks = [(key, source) for key, source in _sources(config) if source.kind == "reasoning_gym"]
    for (key, a), (other, b) in itertools.combinations(tasks, 2):
        same = (a.name, a.config) == (b.name, b.config)
        if same and a.seed < b.seed + b.limit and b.seed < a.seed + a.limit:
            yield (
                f"{other}.seed is {b.seed} and {key} has items {a.seed} to {a.seed + a.limit - 1} of {a.name}: "
                f"they would share some, set {other}.seed to {a.seed + a.limit} or more"
            )


def range_errors(config: Any, prefix: str) -> Iterator[str]:
    """Yields a message for each setting outside its range, through all nested settings."""
    for field in dataclasses.fields(config):
        key, value, allowed = prefix + field.name, getattr(config, field.name), range_of(field)
        if dataclasses.is_dataclass(value):
            yield from range_errors(value, key + ".")
        elif value is None:
            yield f"{key} is null: give a value, or leave the key out for its default"
        elif isinstance(value, float) and not math.isfinite(value):
            yield f"{key} is {value}: it must be finite"
        elif allowed and not allowed.holds(value):
            yield f"{key} is {value}: it must be {allowed.words}"
        elif isinstance(value, int) and value >= 2**31:
            yield f"{key} is {value}: it must be less than {2**31}"
    if isinstance(config, SourceConfig):
        yield from _source_errors(config, prefix)
    if isinstance(config, SupervisedConfig | RewardModelConfig) and _uneven(config.batch_size, config.microbatch_size):
        yield (
            f"{prefix}batch_size ({config.batch_size}) must be a multiple of "
            f"{prefix}microbatch_size ({config.microbatch_size})"
        )


def _uneven(whole: int, part: int) -> bool:
    """Whether `whole` is no multiple of `part`; a part out of its range is a fault told elsewhere."""
    return part > 0 and whole % part != 0


def _source_errors(source: SourceConfig, prefix: str) -> Iterator[str]:
    if source.kind == "reasoning_gym":
        yield from _task_errors(source, prefix)
    elif source.config and source.kind != "none":
        yield f"{prefix}config is set and {prefix}kind is `{source.kind}`: it is for tasks, of kind `reasoning_gym`"
    if source.kind not in ("none", "reasoning_gym") and not source.path:
        yield f"{prefix}path is empty: {prefix}kind `{source.kind}` needs a file, a hub id or a generated split"
    if source.is_file and "://" in source.path:
        yield f"{prefix}path is {source.path}: it must be a path on this machine, no URL (or `kind: hub` and a hub id)"
    if source.kind == "generated" and source.path not in ("train", "test", "pretrain"):
        yield f"{prefix}path is {source.path!r}: the generated splits are train, test and pretrain"
    if source.answer_pattern:
        yield from _pattern_errors(source, f"{prefix}answer_pattern is {source.answer_pattern!r}: ")


def _task_errors(source: SourceConfig, prefix: str) -> Iterator[str]:
    if not source.name:
        yield f"{prefix}name is empty: {prefix}kind `reasoning_gym` needs the name of a task, such as `countdown`"
    if not source.limit:
        yield f"{prefix}limit is 0: {prefix}kind `reasoning_gym` needs the number of items to make"
    if source.path:
        yield f"{prefix}path is {source.path}: {prefix}kind `reasoning_gym` reads no file, leave it empty"
    if taken := sorted({"seed", "size"} & set(source.config)):
        yield f"{prefix}config has {', '.join(taken)}: items are chosen by {prefix}seed and {prefix}limit"


def _pattern_errors(source: SourceConfig, begin: str) -> Iterator[str]:
    if source.kind not in ("none", "jsonl", "hub"):
        yield f"{begin}kind `{source.kind}` has its own way to take answers apart, leave it empty or choose `jsonl`"
    if source.boxed:
        return
    try:
        groups = re.compile(source.answer_pattern, re.DOTALL).groupindex
    except re.error as error:
        yield f"{begin}it is no regular expression of Python's: {error}"
        return
    if "answer" not in groups:
        yield f"{begin}it must have a group `(?P<answer>...)`, which is where the answer stands"
    if others := sorted(set(groups) - {"answer", "cot"}):
        yield f"{begin}it names the groups {', '.join(others)}; there are `answer` and `cot`"


def _combination_errors(config: Config) -> Iterator[str]:
    """Yields a message for each combination of settings that cannot work together, whatever is done with the model."""
    model = config.model
    distributed = config.distributed
    if distributed.coordinator_address and distributed.process_id >= distributed.num_processes:
        yield (
            f"distributed.process_id ({distributed.process_id}) must be less than distributed.num_processes "
            f"({distributed.num_processes})"
        )
    if not distributed.coordinator_address and (distributed.num_processes or distributed.process_id):
        yield (
            "distributed.coordinator_address is empty: give it with distributed.num_processes, or leave all three to "
            "the cluster"
        )
    if config.data.cot == "text" and not config.data.templates.answer_trigger:
        yield "data.templates.answer_trigger is empty: answers in prose are read behind it"
    if config.data.answer in ("latex", "text") and config.reward.rules == "reference":
        yield f"data.answer is {config.data.answer}: reward.rules `reference` knows numbers and choices; take `lenient`"
    yield from _template_errors(config.data)
    tasks = [key for key, source in _sources(config) if source.kind == "reasoning_gym"]
    if tasks and config.reward.rules == "reference":
        yield f"{tasks[0]}.kind is reasoning_gym: reward.rules `reference` knows no tasks that score; take `lenient`"
    yield from _shared_items(config)
    if not model.path and not model.tokenizer:
        yield "model.path and model.tokenizer are both empty: give a checkpoint, or a tokenizer for a fresh model"
    if model.attention == "cudnn" and model.dtype != "bfloat16":
        yield f"model.attention is `cudnn`: it computes in bfloat16, and model.dtype is {model.dtype}"
    if model.lora.path and not model.path:
        yield "model.lora.path is set and model.path is empty: an adapter belongs to the model of a checkpoint"
    reward = config.reward
    functions = collections.Counter(path.rpartition(".")[2] for path in reward.functions)
    names = [name if functions[name] == 1 else path for path in reward.functions for name in [path.rpartition(".")[2]]]
    if config.evaluation.select_by not in (known := ["auto", "accuracy", "reward", *names]):
        yield f"evaluation.select_by is {config.evaluation.select_by}: there are {', '.join(known)}"
    if not max(reward.no_answer, reward.wrong) <= reward.correct:
        yield (
            f"reward.correct ({reward.correct}) is less than reward.wrong ({reward.wrong}) or reward.no_answer "
            f"({reward.no_answer}): the right answer must not pay less"
        )
    if unknown := sorted(set(model.lora.targets) - set(Config().model.lora.targets)):
        yield f"model.lora.targets names {', '.join(unknown)}: there are {', '.join(Config().model.lora.targets)}"
    if _uneven(model.decoder.num_heads, model.decoder.num_kv_heads):
        yield (
            f"model.decoder.num_heads ({model.decoder.num_heads}) must be a multiple of "
            f"model.decoder.num_kv_heads ({model.decoder.num_kv_heads})"
        )
    if model.decoder.post_norm and model.decoder.parallel_block:
        yield "model.decoder.post_norm and parallel_block are both true: a parallel block has one norm, before it"
    if model.decoder.rotary_dim > model.decoder.head_dim or model.decoder.rotary_dim % 2:
        yield (
            f"model.decoder.rotary_dim ({model.decoder.rotary_dim}) must be even and at most "
            f"model.decoder.head_dim ({model.decoder.head_dim})"
        )


def _template_errors(data: DataConfig) -> Iterator[str]:
    templates = data.templates
    if data.cot == "program" and templates.target_prefix:
        yield (
            f"data.templates.target_prefix is {templates.target_prefix!r} and data.cot is program: an answer begins "
            "with the program's header; leave it out"
        )
    for key in ("system", "variables"):
        if templates.kind == "strings" and getattr(templates, key):
            value = repr(getattr(templates, key))
            yield f"data.templates.{key} is {value} and data.templates.kind is strings: it is for kind chat"


def _training_errors(config: Config) -> Iterator[str]:
    """Yields a message for each combination of the settings of a run and its stages that cannot work together."""
    sft, rl = config.sft, config.rl
    known = {part for key in _keys(Config) for part in itertools.accumulate(key.split("."), "{}.{}".format)}
    for key in config.allow_changed:
        if key not in known:
            now = f": it is now {RENAMED[key]}" if key in RENAMED else ""
            yield f"allow_changed names {key}, which is no setting{now}"
    if not config.run_dir:
        yield "run_dir is empty: name the folder that the run is written to"
    if not (config.pretrain.epochs or sft.schedule_epochs or rl.epochs or config.reward_model.samples):
        yield "pretrain.epochs, sft.schedule_epochs and rl.epochs are all 0: there is nothing to do"
    if config.reward_model.samples and not config.reward_model.epochs:
        yield "reward_model.epochs is 0 and reward_model.samples is set: a reward model needs one epoch or more"
    if config.pretrain.epochs and config.pretrain.source.kind == "none":
        yield "pretrain.epochs is set and pretrain.source.kind is `none`: give its problems"
    if config.data.train.kind == "none" and (sft.schedule_epochs or rl.epochs):
        yield "data.train.kind is `none`: SFT and PPO need training problems"
    if sft.schedule_epochs and not 0 < sft.warmup_epoch <= sft.stop_epoch <= sft.schedule_epochs:
        yield (
            f"0 < sft.warmup_epoch ({sft.warmup_epoch}) <= sft.stop_epoch ({sft.stop_epoch}) <= "
            f"sft.schedule_epochs ({sft.schedule_epochs}) does not hold; sft.schedule_epochs 0 switches SFT off"
        )
    if sft.schedule_epochs and rl.init_from:
        yield "rl.init_from is set but PPO starts from the warm-up: empty it, or set sft.schedule_epochs to 0"
    completions = rl.completions_per_iteration
    if _uneven(completions, rl.minibatch_size) or _uneven(rl.minibatch_size, rl.microbatch_size):
        yield (
            f"rl.rollout_batch_size * rl.samples_per_question ({completions}) must be a multiple of "
            f"rl.minibatch_size ({rl.minibatch_size}), and that of rl.microbatch_size ({rl.microbatch_size})"
        )
    yield from _choice_errors(config)
    yield from _algorithm_errors(config)
    yield from _lost_steps(config)


def _choice_errors(config: Config) -> Iterator[str]:
    """Yields a message for each setting of how questions are chosen that makes no sense beside another."""
    rl, default = config.rl, RlConfig()
    if rl.question_choice == "order":
        for name in ("pass_rate_decay", "mastered_rate"):
            if getattr(rl, name) != getattr(default, name):
                yield f"rl.{name} is {getattr(rl, name)} and rl.question_choice is `order`: it is for `pass_rate`"
        return
    if config.reward.by_functions_alone:
        yield "rl.question_choice is `pass_rate` and no answer is right (reward.functions are the reward): take `order`"
    if rl.collapse.reward_share:
        yield (
            f"rl.question_choice is `pass_rate` and rl.collapse.reward_share is {rl.collapse.reward_share}: rewards "
            "follow the choice of questions, so that their fall says nothing; set it to 0 (rl.collapse.max_kl may "
            "bound the KL)"
        )


def _algorithm_errors(config: Config) -> Iterator[str]:
    """Yields a message for each part of the algorithm that makes no sense beside another."""
    rl, default, at = config.rl, RlConfig(), f"rl.algorithm `{config.rl.algorithm}`"
    changed = [name for name in (*_GRADIENT, *_CRITIC) if getattr(rl, name) != getattr(default, name)]
    if rl.algorithm == "self_training":
        for name in changed:
            yield f"rl.{name} is {_shown(rl, name)}: {at} learns likelihoods, leave it {_shown(default, name, 'at ')}"
        return
    baseline, scale = rl.chosen_baseline, rl.chosen_scale
    if not rl.has_critic:
        without = at if rl.baseline == "auto" else f"rl.baseline `{baseline}`"
        for name in [name for name in changed if name in _CRITIC]:
            yield f"rl.{name} is {_shown(rl, name)}: {without} has no critic, leave it {_shown(default, name, 'at ')}"
    if rl.samples_per_question < 2:
        for comparing in _comparing(config.rl):
            yield (
                f"rl.samples_per_question is {rl.samples_per_question}: {comparing} compares the samples of a "
                "question, so it must be 2 or more"
            )
    if rl.has_critic and scale in ("group_deviation", "group_mean"):
        yield (
            f"rl.advantage_scale is `{scale}` and the baseline is the critic: it divides the one advantage of a "
            "response, and a critic gives each token its own; take `whiten` or `none`"
        )
    if rl.has_critic and rl.baseline_shift:
        yield f"rl.baseline_shift is {rl.baseline_shift}: a critic's values are learned, leave it at 0"
    if scale == "group_mean":
        lowest = min(config.reward.correct, config.reward.wrong, config.reward.no_answer)
        if lowest < 0 or (rl.kl_coef and rl.kl_in == "reward") or rl.overlong_buffer:
            yield (
                "rl.advantage_scale is `group_mean`: what is divided by a mean of rewards may not be below 0; set "
                "rl.kl_in to loss, rl.overlong_buffer to 0, and no reward below 0"
            )
    for name, switch, own in (("whiten", "whiten_advantages", "ppo"), ("group_deviation", "scale_by_group", "grpo")):
        if rl.algorithm == own and rl.advantage_scale == name and not getattr(rl, switch):
            yield f"rl.advantage_scale is `{name}` and rl.{switch} is false: give one of them"
    if not rl.positive_weight and not rl.negative_weight:
        yield "rl.positive_weight and rl.negative_weight are both 0: there is nothing to learn from"
    if rl.dual_clip and rl.surrogate != "clip":
        yield f"rl.dual_clip is {rl.dual_clip} and rl.surrogate is `{rl.surrogate}`: it limits `clip`, leave it at 0"
    if rl.clip_range_high != "auto" and rl.surrogate in ("topr", "reinforce"):
        yield f"rl.clip_range_high is {rl.clip_range_high}: rl.surrogate `{rl.surrogate}` clips nothing, leave it out"
    if rl.ratio != "token" and rl.surrogate == "reinforce":
        yield f"rl.ratio is `{rl.ratio}`: rl.surrogate `reinforce` has no ratio, leave it at `token`"
    if rl.overlong_buffer > config.generation.max_new_tokens:
        yield (
            f"rl.overlong_buffer ({rl.overlong_buffer}) is more than generation.max_new_tokens "
            f"({config.generation.max_new_tokens}): responses would be penalised from their first token on"
        )
    if rl.old_log_probs == "sampler":
        if rl.has_critic and not rl.separate_critic:
            yield (
                f"rl.old_log_probs is `sampler` and rl.critic is `{rl.critic}`: its values need the pass over the "
                "completions that this would save; take `scored`, or rl.critic `separate`"
            )
        for name in ("sampler_ratio_cap", "entropy_floor"):
            if getattr(rl, name):
                yield f"rl.{name} is {getattr(rl, name)} and rl.old_log_probs is `sampler`: it needs `scored`"
    if rl.critic_warmup and not rl.critic_optimizer.learning_rate:
        yield (
            f"rl.critic_warmup is {rl.critic_warmup} and rl.critic_optimizer.learning_rate is 0: it needs an optimizer "
            "of its own, whose moments are not the policy's"
        )


def _comparing(rl: RlConfig) -> Iterator[str]:
    """Yields the settings by which the samples of a question are compared."""
    own = {"grpo": "group_mean", "rloo": "leave_one_out"}.get(rl.algorithm)
    if rl.chosen_baseline in ("group_mean", "leave_one_out") and rl.baseline != "auto":
        yield f"rl.baseline `{rl.baseline}`"
    elif own and rl.baseline == "auto":
        yield f"rl.algorithm `{rl.algorithm}`"
    if rl.advantage_scale in ("group_deviation", "group_mean"):
        yield f"rl.advantage_scale `{rl.advantage_scale}`"
    if rl.only_mixed_groups:
        yield "rl.only_mixed_groups"
    if rl.max_draws > 1:
        yield f"rl.max_draws {rl.max_draws}"


def _shown(rl: RlConfig, name: str, at: str = "") -> str:
    """The value of a setting, as a message says it."""
    value = getattr(rl, name)
    if dataclasses.is_dataclass(value):
        return "out" if at else "set"
    return at + (f"`{value}`" if isinstance(value, str) else str(value).lower())


_CRITIC = ("critic", "gae_length_alpha", "value_lambda", "value_start", "critic_warmup", "critic_optimizer")
"""Settings that only a critic reads, and that were made with `baseline`: older ones may stand in a recipe for all."""

_GRADIENT = (
    *("baseline", "baseline_shift", "advantage_scale", "positive_weight", "negative_weight", "only_mixed_groups"),
    *("surrogate", "ratio", "clip_range_high", "dual_clip", "sampler_ratio_cap", "overlong_filter", "overlong_buffer"),
    *("entropy_floor", "positive_nll_coef", "old_log_probs", "max_draws"),
)
"""The same of all algorithms by policy gradient."""


BFLOAT16_STEP = 1e-4
"""The least learning rate at which AdamW moves bfloat16 weights of size 0.02 as it does float32 ones: 92 % as far over
100 steps; 31 % at 2e-5, 0.5 % at 3e-7, since a number of bfloat16 is 2^-8 of its size away from the next."""


def _lost_steps(config: Config) -> Iterator[str]:
    """Yields a message for each stage whose steps the weights' type would round away; adapters are float32 anyway."""
    model = config.model
    if model.param_dtype != "bfloat16":
        return
    adapters = model.lora.rank > 0
    stages = {
        "pretrain.optimizer": (config.pretrain.epochs, config.pretrain.optimizer),
        "sft.optimizer": (config.sft.schedule_epochs and not adapters, config.sft.optimizer),
        "rl.optimizer": (config.rl.epochs and not adapters, config.rl.optimizer),
        "rl.critic_optimizer": (config.rl.epochs, config.rl.critic_optimizer),
        "reward_model.optimizer": (config.reward_model.samples, config.reward_model.optimizer),
    }
    for name, (on, optimizer) in stages.items():
        if on and 0 < optimizer.learning_rate < BFLOAT16_STEP:
            yield (
                f"model.param_dtype is bfloat16 and {name}.learning_rate is {optimizer.learning_rate}: steps "
                f"below {BFLOAT16_STEP} are lost in its rounding; leave model.param_dtype at float32 (model.dtype may "
                "be bfloat16), or train adapters (model.lora.rank)"
            )


def require_files(config: Config) -> None:
    """Refuses a config that names files which are not there.

    Raises:
        FileNotFoundError: a line for each, naming the key.
    """
    refuse(missing_files(config), FileNotFoundError)


def check_lengths(config: Config) -> None:
    """Refuses buckets that are longer than the model's positions.

    Raises:
        ValueError: a line for each fault, naming the keys.
    """
    refuse(_length_errors(config))


def _length_errors(config: Config) -> Iterator[str]:
    lengths = {}
    if not config.only_reward_model:
        lengths["generation"] = max(config.generation.prompt_buckets) + config.generation.max_new_tokens
    stages = (("pretrain", config.pretrain.epochs, config.pretrain), ("sft", config.sft.schedule_epochs, config.sft))
    lengths |= {name: max(s.prompt_buckets) + max(s.response_buckets) for name, on, s in stages if on}
    positions = f"{config.model.decoder.max_positions} positions (model.decoder.max_positions)"
    for name, length in lengths.items():
        if length > config.model.decoder.max_positions:
            response = "max_new_tokens" if name == "generation" else "response_buckets"
            yield f"{name}.prompt_buckets and {name}.{response} come to {length} tokens, but the model has {positions}"
    length = max(config.reward_model.row_buckets)
    if config.reward_model.samples and length > config.model.decoder.max_positions:
        yield f"reward_model.row_buckets come to {length} tokens, but the model has {positions}"


def check_batches(config: Config, shards: int) -> None:
    """Refuses batches that the mesh cannot split evenly.

    Raises:
        ValueError: a line for each fault, naming the key.
    """
    sizes = {}
    if config.pretrain.epochs:
        sizes["pretrain.microbatch_size"] = config.pretrain.microbatch_size
    if config.sft.schedule_epochs:
        sizes["sft.microbatch_size"] = config.sft.microbatch_size
    if config.rl.epochs:
        sizes["rl.microbatch_size"] = config.rl.microbatch_size
    if config.reward_model.samples:
        sizes["reward_model.microbatch_size"] = config.reward_model.microbatch_size
    refuse(
        f"{key} ({size}) must be a multiple of mesh.data * mesh.fsdp ({shards})"
        for key, size in sizes.items()
        if size % shards
    )


def _keys(settings: Any, prefix: str = "") -> Iterator[str]:
    """Dotted names of all settings of a class."""
    for field in dataclasses.fields(settings):
        default = field.default
        if dataclasses.is_dataclass(default):
            yield from _keys(type(default), f"{prefix}{field.name}.")
        else:
            yield prefix + field.name
