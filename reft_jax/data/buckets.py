"""Padded lengths made of the data's own, where a config says `auto`."""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from reft_jax.config import Config
from reft_jax.config.ranges import AUTO
from reft_jax.data.encoding import encode_examples, encode_prompts
from reft_jax.data.samples import encode_samples, read_files
from reft_jax.problem import Problem, annotated

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SHARES = (0.5, 0.9, 0.99, 1.0)
"""Shares of the rows that the buckets hold. Evaluation and `sample` go by length, and use them all; a batch in random
order mostly takes one of the last two."""

_UNLIMITED = 2**31
Key = tuple[str, str]
"""Section and name of a setting."""


def automatic(config: Config) -> list[Key]:
    """The settings that say `auto`, of the stages that there are."""
    pretrain, sft, rewards = config.pretrain.epochs, config.learns_annotations, config.reward_model.samples
    used = {
        ("pretrain", "prompt_buckets"): pretrain,
        ("pretrain", "response_buckets"): pretrain,
        ("sft", "prompt_buckets"): sft,
        ("sft", "response_buckets"): sft,
        ("generation", "prompt_buckets"): config.needs_sampling,
        ("reward_model", "row_buckets"): rewards,
    }
    return [key for key, on in used.items() if on and buckets_of(config, key) == AUTO]


def buckets_of(config: Config, key: Key) -> tuple[int, ...]:
    """The value of a setting."""
    return tuple(getattr(getattr(config, key[0]), key[1]))


def set_buckets(config: Config, found: Mapping[Key, tuple[int, ...]]) -> Config:
    """The config with other buckets."""
    for (section, name), sizes in found.items():
        config = dataclasses.replace(
            config, **{section: dataclasses.replace(getattr(config, section), **{name: sizes})}
        )
    return config


def bucket_sizes(lengths: Sequence[int], limit: int) -> tuple[int, ...]:
    """The lengths that `SHARES` of the rows do not exceed, rounded up to whole eights, sixteens or thirty-twos.

    Args:
        lengths: of all rows; those above the limit are left out, and are for `data.overlong`.
        limit: no bucket is longer.
    """
    fitting = sorted(length for length in lengths if length <= limit)
    if not fitting:
        return (max(1, limit) if lengths else 8,)
    least = [fitting[math.ceil(share * len(fitting)) - 1] for share in SHARES]
    return tuple(sorted({min(_rounded(length), limit) for length in least}))


def _rounded(length: int) -> int:
    step = 8 if length <= 128 else 16 if length <= 512 else 32
    return -(-length // step) * step


def with_buckets(config: Config, tokenizer: "PreTrainedTokenizerBase", sets: Mapping[str, Sequence[Problem]]) -> Config:
    """The config with lengths for `auto`, a function of the data, the tokenizer and the model's positions.

    Args:
        config: with its templates filled in.
        tokenizer: the model's.
        sets: the problems by split, `file` being what is learned of a file that is looked at.

    Raises:
        FileNotFoundError, ValueError: files of samples cannot be read, or a text has no tokens.
    """
    wanted = automatic(config)
    for section in dict.fromkeys(section for section, _ in wanted):
        names = [name for other, name in wanted if other == section]
        config = set_buckets(config, dict(_made(config, section, names, tokenizer, sets)))
    return config


def _made(
    config: Config,
    section: str,
    names: Sequence[str],
    tokenizer: "PreTrainedTokenizerBase",
    sets: Mapping[str, Sequence[Problem]],
) -> Iterator[tuple[Key, tuple[int, ...]]]:
    """Yields the buckets of a section's settings, in this order."""
    templates, cot, positions = config.data.templates, config.data.cot, config.model.decoder.max_positions
    if section == "generation":
        problems = [problem for split, rows in sets.items() if split != "pretrain" for problem in rows]
        prompts, _ = encode_prompts(problems, tokenizer, templates, cot, max_prompt=_UNLIMITED, overlong="error")
        limit = positions - config.generation.max_new_tokens
        yield (section, names[0]), bucket_sizes([len(prompt.tokens) for prompt in prompts], limit)
        return
    if section == "reward_model":
        samples = read_files(config.reward_model.samples)
        rows, _ = encode_samples(samples, tokenizer, templates, max_length=_UNLIMITED, overlong="error")
        yield (section, names[0]), bucket_sizes([len(row.tokens) for row in rows.rows], positions)
        return
    splits = ("pretrain",) if section == "pretrain" else ("train", "file")
    chains = annotated([problem for split in splits for problem in sets.get(split, [])])
    examples, _ = encode_examples(
        chains,
        tokenizer,
        templates,
        cot,
        max_prompt=_UNLIMITED,
        max_response=_UNLIMITED,
        overlong="error",
        stage=section,
    )
    pairs = [(len(example.prompt), len(example.response)) for example in examples]
    pairs = [pair for pair in pairs if sum(pair) <= positions] or pairs
    names_of_both = ("prompt_buckets", "response_buckets")
    sizes = [buckets_of(config, (section, name)) for name in names_of_both]
    for column, name in enumerate(names_of_both):
        if name in names:  # what the other setting, or the prompts, leave of the model's positions
            other = 1 - column
            taken = max(*sizes[other], min((pair[other] for pair in pairs), default=0))
            sizes[column] = bucket_sizes([pair[column] for pair in pairs], positions - taken)
            yield (section, name), sizes[column]
