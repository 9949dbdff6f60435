"""The problems of a run by split, and their token ids; what was too long or stands in two splits is reported."""

from collections.abc import Callable
from typing import Any

from reft_jax.config import Config, SupervisedConfig
from reft_jax.data.encoding import Example, OverlongCount, Prompt, encode_examples, encode_prompts
from reft_jax.data.readers import is_within, read_sets, shared_questions
from reft_jax.problem import Problem

Log = Callable[[str], None]


def read_problem_sets(config: Config, say: Log) -> dict[str, list[Problem]]:
    """Problems by split; questions that stand in two splits are reported, not removed."""
    sets = read_sets(config)
    train, dev, test, pretrain = (sets[split] for split in ("train", "dev", "test", "pretrain"))
    if (config.sft.schedule_epochs or config.rl.epochs) and not (train and dev):
        raise ValueError(
            f"data.train has {len(train)} problems to train on and {len(dev)} for dev: give more, or change "
            f"data.dev_fraction ({config.data.dev_fraction}) or data.dev"
        )
    say(f"problems: {len(train)} train, {len(dev)} dev, {len(test)} test, {len(pretrain)} pretrain")
    for one, other in (("train", "test"), ("train", "dev"), ("dev", "test")):
        shared = shared_questions(sets[one], sets[other])
        if (one, other) == ("dev", "test") and is_within(dev, test):
            say("warning: dev is part of test: models are chosen on test, and their accuracy there is test-best")
        elif shared:
            say(f"warning: {len(shared)} questions of {one} are in {other} too, such as {', '.join(shared[:5])}")
    return sets


def encode_for_sampling(
    problems: list[Problem], config: Config, tokenizer: Any, split: str, say: Log, prefix: str = ""
) -> list[Prompt]:
    """Prompts of a split, each behind `prefix`, forced header included."""
    data, longest = config.data, max(config.generation.prompt_buckets)
    prompts, count = encode_prompts(
        problems, tokenizer, data.templates, data.cot, max_prompt=longest, overlong=data.overlong, prefix=prefix
    )
    _report(count, f"{split} prompts", say)
    _refuse_none_left(len(problems), len(prompts), f"{split} prompts", "generation.prompt_buckets")
    return prompts


def encode_for_training(
    problems: list[Problem], config: Config, tokenizer: Any, stage: str, settings: SupervisedConfig, say: Log
) -> list[Example]:
    """Rows of a supervised stage; none where nothing learns them."""
    if not (config.pretrain.epochs if stage == "pretrain" else config.learns_annotations):
        return []
    examples, count = encode_examples(
        problems,
        tokenizer,
        config.data.templates,
        config.data.cot,
        max_prompt=max(settings.prompt_buckets),
        max_response=max(settings.response_buckets),
        overlong=config.data.overlong,
        stage=stage,
    )
    _report(count, f"{stage} rows", say)
    _refuse_none_left(len(problems), len(examples), f"{stage} rows", f"{stage}.prompt_buckets and response_buckets")
    return examples


def _refuse_none_left(before: int, left: int, name: str, key: str) -> None:
    if before and not left:
        raise ValueError(
            f"all {before} {name} are longer than {key} allow, and data.overlong drops them: make the largest buckets "
            "larger"
        )


def _report(count: OverlongCount, name: str, say: Log) -> None:
    if count != OverlongCount():
        say(f"{name}: {count.prompts} prompts and {count.targets} targets are too long; {count.dropped} rows dropped")
