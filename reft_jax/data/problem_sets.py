"""The problems of a run by split, and their token ids; what was too long or stands in two splits is reported."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from reft_jax.config import Config, SupervisedConfig
from reft_jax.data.chat import rendered_otherwise
from reft_jax.data.encoding import NAMED, Example, OverlongCount, Prompt, encode_examples, encode_prompts
from reft_jax.data.readers import is_within, read_sets, shared_questions
from reft_jax.problem import Problem

Log = Callable[[str], None]


def read_problem_sets(config: Config, say: Log) -> dict[str, list[Problem]]:
    """Problems by split; questions that stand in two splits are reported, not removed."""
    sets = read_sets(config, say)
    train, dev, test, pretrain = (sets[split] for split in ("train", "dev", "test", "pretrain"))
    if (config.sft.schedule_epochs or config.rl.epochs) and not (train and dev):
        raise ValueError(
            f"data.train has {len(train)} problems to train on and {len(dev)} for dev: give more, or change "
            f"data.dev_fraction ({config.data.dev_fraction}) or data.dev"
        )
    say(f"problems: {len(train)} train, {len(dev)} dev, {len(test)} test, {len(pretrain)} pretrain")
    for line in gold_answers(sets, config):
        say(line)
    for one, other in (("train", "test"), ("train", "dev"), ("dev", "test")):
        shared = shared_questions(sets[one], sets[other])
        if (one, other) == ("dev", "test") and is_within(dev, test):
            say("warning: dev is part of test: models are chosen on test, and their accuracy there is test-best")
        elif shared:
            say(f"warning: {len(shared)} questions of {one} are in {other} too, such as {', '.join(shared[:5])}")
    return sets


def gold_answers(sets: Mapping[str, list[Problem]], config: Config) -> Iterator[str]:
    """Yields what is said of each split in which some problems, or all, have no gold answer.

    Raises:
        ValueError: what the config asks for needs some, and there is none; names the key.
    """
    counts = {split: sum(problem.has_gold for problem in problems) for split, problems in sets.items()}
    none = "none of the {:,} problems of {} has an answer ({}.answer_field), so that nothing is right: ".format
    if sets["dev"] and not counts["dev"] and config.select_by == "accuracy":
        source = "data.train" if config.data.dev.kind == "none" else "data.dev"
        cure = "evaluation.select_by cannot be accuracy; take `reward`, or one of reward.functions"
        raise ValueError(none(len(sets["dev"]), "dev", source) + cure)
    if sets["train"] and not counts["train"] and config.rl.epochs and config.rl.algorithm == "self_training":
        cure = "rl.algorithm self_training has nothing to learn from; take `ppo`, `grpo`, `rloo` or `reinforce`"
        raise ValueError(none(len(sets["train"]), "train", "data.train") + cure)
    for split, count in counts.items():
        if count < len(sets[split]) and split != "pretrain":
            counted = f"and accuracy is of those {count:,} alone" if count else "and no accuracy is reported"
            yield f"{split}: {len(sets[split]) - count:,} of {len(sets[split]):,} problems have no answer, {counted}"


def encode_for_sampling(problems: list[Problem], config: Config, tokenizer: Any, split: str, say: Log) -> list[Prompt]:
    """Prompts of a split, forced header included."""
    data, longest = config.data, max(config.generation.prompt_buckets)
    prompts, count = encode_prompts(
        problems, tokenizer, data.templates, data.cot, max_prompt=longest, overlong=data.overlong
    )
    _report(count, len(problems), f"{split} prompts", "generation.prompt_buckets", config, say)
    _refuse_none_left(len(problems), len(prompts), f"{split} prompts", "generation.prompt_buckets")
    return prompts


def encode_for_training(
    problems: list[Problem], config: Config, tokenizer: Any, stage: str, settings: SupervisedConfig, say: Log
) -> list[Example]:
    """Rows of a supervised stage, of the problems that have a chain of thought; none where nothing learns them.

    Raises:
        ValueError: no problem has one, or see `encode_examples`.
    """
    if not (config.pretrain.epochs if stage == "pretrain" else config.learns_annotations):
        return []
    places = [i for i, problem in enumerate(problems) if problem.cot is not None]
    if problems and not places:
        raise ValueError(no_chains(len(problems), config, stage))
    if len(places) < len(problems):
        say(f"{stage}: {len(places):,} of {len(problems):,} problems have a chain of thought")
    if config.data.bad_rows == "drop":
        chains = [problems[i] for i in places]
        odd = {name for name, _ in rendered_otherwise(chains, tokenizer, config.data.templates, config.data.cot)}
        if 0 < len(odd) < len(places):  # of all it is an error
            named = ", ".join(f"`{name}`" for name in sorted(odd)[:NAMED]) + (", ..." if len(odd) > NAMED else "")
            say(
                f"{stage}: {len(odd):,} of {len(places):,} chains of thought are not as the chat template renders them "
                f"and are dropped (data.bad_rows): {named}"
            )
            places = [i for i in places if problems[i].id not in odd]
    examples, count = encode_examples(
        [problems[i] for i in places],
        tokenizer,
        config.data.templates,
        config.data.cot,
        max_prompt=max(settings.prompt_buckets),
        max_response=max(settings.response_buckets),
        overlong=config.data.overlong,
        stage=stage,
    )
    buckets = f"{stage}.prompt_buckets and response_buckets"
    _report(count, len(places), f"{stage} rows", buckets, config, say)
    _refuse_none_left(len(places), len(examples), f"{stage} rows", buckets)
    return [dataclasses.replace(example, problem=places[example.problem]) for example in examples]


def no_chains(count: int, config: Config, stage: str) -> str:
    """What is to be said where a stage has problems and none of them a chain of thought."""
    source = "pretrain.source" if stage == "pretrain" else "data.train"
    off = "pretrain.epochs" if stage == "pretrain" else "sft.schedule_epochs"
    if stage == "sft" and not config.sft.schedule_epochs:
        off = "rl.self_training.gold_weight"
    return (
        f"none of the {count:,} problems to train on of {source} has a chain of thought: name the field that holds it "
        f"({source}.cot_field), or set {off} to 0"
    )


def _refuse_none_left(before: int, left: int, name: str, key: str) -> None:
    if before and not left:
        raise ValueError(
            f"all {before} {name} are longer than {key} allow, and data.overlong drops them: make the largest buckets "
            "larger"
        )


def _report(count: OverlongCount, total: int, name: str, key: str, config: Config, say: Log) -> None:
    """Says which of a split's prompts or a stage's rows are too long, and what became of them."""
    if count == OverlongCount():
        return
    fate = "dropped" if count.dropped else "cut"
    parts = f" ({count.prompts} prompts, {count.targets} targets)" if count.targets else ""
    unasked = ", and count as wrong" if count.dropped and name in ("dev prompts", "test prompts") else ""
    named = ", ".join(f"`{identity}`" for identity in count.ids[:NAMED]) + (", ..." if len(count.ids) > NAMED else "")
    say(
        f"{name}: {len(count.ids):,} of {total:,} are longer than {key} allow{parts}; they are {fate} "
        f"(data.overlong){unasked}: {named}"
    )
