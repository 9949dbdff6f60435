"""Problems as token ids, once per run: `list[Problem]` -> `Example`s to learn and `Prompt`s to sample from.

A text that is longer than the largest bucket of the config is an error, dropped or cut, as `data.overlong` says.
"""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from reft_jax.config import CotKind, Overlong, TemplateConfig
from reft_jax.data.chat import require_rendered
from reft_jax.data.prompts import generation_prompt, prompt_text, taught_text
from reft_jax.data.tokenizers import reserved_texts, special_ids
from reft_jax.problem import Problem

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


NAMED = 5
"""Rows that are too long which are named; the others are counted."""


@dataclasses.dataclass(frozen=True, eq=False)
class Example:
    """A prompt and the response to learn, end token included, as int32 ids; `problem` indexes the list of problems."""

    problem: int
    prompt: np.ndarray
    response: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Prompt:
    """A prompt to sample from, as int32 ids; `problem` indexes the list of problems."""

    problem: int
    tokens: np.ndarray


@dataclasses.dataclass(frozen=True)
class OverlongCount:
    """How many prompts and targets were longer than allowed, how many rows that dropped, and which rows by id."""

    prompts: int = 0
    targets: int = 0
    dropped: int = 0
    ids: tuple[str, ...] = dataclasses.field(default=(), compare=False)


def encode_examples(
    problems: Sequence[Problem],
    tokenizer: "PreTrainedTokenizerBase",
    templates: TemplateConfig,
    cot: CotKind,
    *,
    max_prompt: int,
    max_response: int,
    overlong: Overlong,
    stage: str,
) -> tuple[list[Example], OverlongCount]:
    """Prompts and targets for supervised training; `stage` is where the config keeps the buckets, such as `sft`.

    Prompt and target are tokenised apart, without special tokens, and the eos id is added where the templates have no
    end of their own: the reference's token boundary. `truncate` cuts targets at their end, which loses the end token,
    and prompts at their beginning, which keeps the question's end and the trigger that asks for reasoning (the
    reference cuts the whole row at its end).

    Raises:
        ValueError: a problem without a chain of thought; text that the tokenizer cannot represent, or reads as a
            special token; a row longer than allowed under `error`; a row that a chat template renders otherwise.
    """
    _refuse_reserved(problems, tokenizer)
    require_rendered(problems, tokenizer, templates, cot)
    eos = special_ids(tokenizer, target_end=templates.target_end).eos
    prompts = _tokenize(problems, [prompt_text(problem, templates) for problem in problems], tokenizer)
    targets = _tokenize(problems, [taught_text(problem, templates, cot) for problem in problems], tokenizer)
    responses = targets if templates.target_end else [np.append(target, np.int32(eos)) for target in targets]
    long_prompts = _overlong(problems, prompts, max_prompt, overlong, f"{stage}.prompt_buckets")
    long_targets = _overlong(problems, responses, max_response, overlong, f"{stage}.response_buckets")
    dropped = long_prompts | long_targets if overlong == "drop" else set()
    examples = [
        Example(i, prompt[-max_prompt:], response[:max_response])
        for i, (prompt, response) in enumerate(zip(prompts, responses))
        if i not in dropped
    ]
    ids = tuple(problems[i].id for i in sorted(long_prompts | long_targets))
    return examples, OverlongCount(len(long_prompts), len(long_targets), len(dropped), ids)


def encode_prompts(
    problems: Sequence[Problem],
    tokenizer: "PreTrainedTokenizerBase",
    templates: TemplateConfig,
    cot: CotKind,
    *,
    max_prompt: int,
    overlong: Overlong,
    stage: str = "generation",
) -> tuple[list[Prompt], OverlongCount]:
    """Prompts for sampling: the whole `generation_prompt`, forced header included, as one string's tokens.

    `truncate` cuts at the beginning, which keeps the header that the program continues. A dropped problem is not
    answered: whoever measures accuracy counts it as wrong.

    Raises:
        ValueError: text that the tokenizer cannot represent, or reads as a special token; a prompt longer than allowed
            under `error`.
    """
    _refuse_reserved([dataclasses.replace(problem, cot=None) for problem in problems], tokenizer)
    texts = [generation_prompt(problem, templates, cot) for problem in problems]
    rows = _tokenize(problems, texts, tokenizer)
    long = _overlong(problems, rows, max_prompt, overlong, f"{stage}.prompt_buckets")
    dropped = long if overlong == "drop" else set()
    prompts = [Prompt(i, row[-max_prompt:]) for i, row in enumerate(rows) if i not in dropped]
    ids = tuple(problems[i].id for i in sorted(long))
    return prompts, OverlongCount(prompts=len(long), dropped=len(dropped), ids=ids)


def encode_completions(
    problems: Sequence[Problem],
    completions: Sequence[str],
    tokenizer: "PreTrainedTokenizerBase",
    templates: TemplateConfig,
    *,
    max_length: int,
    overlong: Overlong,
    stage: str,
) -> tuple[list[Prompt], OverlongCount]:
    """Rows to classify: prompt and completion tokenised as one string, without an end token.

    The `problem` of a row is its index among the completions. A sampled text may be one that a tokenizer without bytes
    cannot represent: its holes are unknown tokens. `truncate` cuts at the beginning, which keeps the end of the
    completion, where its answer is (the reference cuts at the end).

    Args:
        problems: what was asked, one for each completion.
        completions: of programs the whole, forced header included.
        tokenizer: makes the ids.
        templates: of the prompt.
        max_length: most tokens of a row.
        overlong: what happens to longer ones.
        stage: where the config keeps the buckets.

    Raises:
        ValueError: a row longer than allowed under `error`.
    """
    texts = [prompt_text(problem, templates) + text for problem, text in zip(problems, completions, strict=True)]
    rows = _tokenize(problems, texts, tokenizer, holes=True)
    long = _overlong(problems, rows, max_length, overlong, f"{stage}.row_buckets")
    dropped = long if overlong == "drop" else set()
    kept = [Prompt(i, row[-max_length:]) for i, row in enumerate(rows) if i not in dropped]
    return kept, OverlongCount(targets=len(long), dropped=len(dropped))


def token_ids(texts: Sequence[str], tokenizer: "PreTrainedTokenizerBase") -> list[list[int]]:
    """Ids of each text, without special tokens, as all of training and sampling has them."""
    if not texts:
        return []
    return tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]


def has_hole(text: str, ids: Sequence[int], tokenizer: "PreTrainedTokenizerBase") -> bool:
    """Whether some of a text became unknown tokens; the unknown token's own string, where it is written, is none.

    GPT-2's unknown token is its `<|endoftext|>`, which stands in templates.
    """
    unknown = tokenizer.unk_token_id
    return unknown is not None and list(ids).count(unknown) > text.count(str(tokenizer.unk_token))


def reserved(problems: Sequence[Problem], tokenizer: "PreTrainedTokenizerBase") -> list[tuple[str, str]]:
    """The problems whose question or chain of thought holds the text of a special token, with where and which.

    Templates are made of these tokens, so that the tokenizer reads them as such wherever they stand: a question with
    `<|im_end|>` in it would end its turn.
    """
    asked, taught = reserved_texts(tokenizer)
    found = []
    for problem in problems:
        places = (("question", problem.question, asked), ("chain of thought", problem.cot or "", taught))
        for place, text, special in places:
            if held := sorted(token for token in special if token in text):
                found.append((problem.id, f"{place}: {', '.join(held)}"))
    return found


def _refuse_reserved(problems: Sequence[Problem], tokenizer: "PreTrainedTokenizerBase") -> None:
    if found := reserved(problems, tokenizer):
        named = "; ".join(f"`{identity}` ({what})" for identity, what in found[:NAMED])
        raise ValueError(
            f"{len(found):,} of {len(problems):,} problems hold the text of a special token of tokenizer "
            f"`{tokenizer.name_or_path}`, which it would read as that token: {named}"
            f"{', ...' if len(found) > NAMED else ''}; write them otherwise, such as with a blank in them, or leave "
            "these rows out"
        )


def _tokenize(
    problems: Sequence[Problem], texts: list[str], tokenizer: "PreTrainedTokenizerBase", *, holes: bool = False
) -> list[np.ndarray]:
    """`token_ids` as arrays; refuses text that comes out empty, or with holes unless `holes` allows them."""
    found = []
    for start in range(0, len(texts), 4096):  # ids as Python's integers take much memory
        piece = slice(start, start + 4096)
        for problem, text, row in zip(problems[piece], texts[piece], token_ids(texts[piece], tokenizer)):
            if not row:
                raise ValueError(f"problem `{problem.id}`: the tokenizer makes no token of {text!r}")
            if not holes and has_hole(text, row, tokenizer):
                raise ValueError(
                    f"problem `{problem.id}`: the tokenizer has no tokens for all of {text!r}: it reads "
                    f"{tokenizer.decode(row)!r}; use another tokenizer or leave the problem out"
                )
            found.append(np.asarray(row, np.int32))
    return found


def _overlong(
    problems: Sequence[Problem], rows: Sequence[np.ndarray], longest: int, overlong: Overlong, key: str
) -> set[int]:
    """Indices of the rows of more than `longest` tokens; an error under the policy `error`."""
    long = [i for i, row in enumerate(rows) if len(row) > longest]
    if long and overlong == "error":
        named = ", ".join(f"`{problems[i].id}` ({len(rows[i])} tokens)" for i in long[:NAMED])
        raise ValueError(
            f"{len(long)} of {len(rows)} rows are longer than the {longest} tokens of `{key}`: {named}"
            f"{', ...' if len(long) > NAMED else ''}; make the largest bucket {max(len(rows[i]) for i in long)}, or "
            "let `data.overlong` drop or truncate them"
        )
    return set(long)
