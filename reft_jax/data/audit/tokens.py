"""How long a set of problems is in tokens, which rows a run would refuse, cut or drop, and what a tokenizer loses.

Beside the data flow, like `audit`: the same texts and ids as training and sampling have, and nothing thrown away.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from reft_jax.config import Config, SupervisedConfig
from reft_jax.data.audit.texts import Finding, first_difference, spread
from reft_jax.data.chat import rendered_otherwise
from reft_jax.data.encoding import has_hole, reserved, token_ids
from reft_jax.data.prompts import generation_prompt, program_header, prompt_text, taught_text
from reft_jax.problem import Problem

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclasses.dataclass(frozen=True)
class Texts:
    """One kind of text of each problem, and its ids.

    Attributes:
        problems: those that have such a text.
        texts: one for each.
        ids: of each text, without special tokens.
        extra: tokens that are added to each: 1 for the eos of a target.
    """

    problems: list[Problem]
    texts: list[str]
    ids: list[list[int]]
    extra: int = 0

    @property
    def lengths(self) -> list[int]:
        """Tokens of each, the added ones included."""
        return [len(row) + self.extra for row in self.ids]


def tokenise(problems: Sequence[Problem], config: Config, tokenizer: "PreTrainedTokenizerBase") -> dict[str, Texts]:
    """`prompt` and `target` as supervised training has them, `sampling_prompt` with its forced header as sampling does.

    `prompt` and `target` are of the problems that have a chain of thought.
    """
    templates, cot = config.data.templates, config.data.cot
    chains = [problem for problem in problems if problem.cot is not None]
    texts = {
        "prompt": (chains, [prompt_text(problem, templates) for problem in chains], 0),
        "target": (chains, [taught_text(problem, templates, cot) for problem in chains], int(not templates.target_end)),
        "sampling_prompt": (list(problems), [generation_prompt(p, templates, cot) for p in problems], 0),
    }
    return {
        name: Texts(rows, lines, token_ids(lines, tokenizer), extra) for name, (rows, lines, extra) in texts.items()
    }


def token_counts(texts: Mapping[str, Texts]) -> dict[str, Any]:
    """Lengths in tokens of each kind of text, and of a `row` of training: prompt, target and end token."""
    rows = [sum(pair) for pair in zip(texts["prompt"].lengths, texts["target"].lengths)]
    lengths = {name: kind.lengths for name, kind in texts.items()} | {"row": rows}
    return {name: spread(lengths[name]) for name in ("prompt", "target", "row", "sampling_prompt")}


def look_at_tokens(
    sets: Mapping[str, Mapping[str, Texts]],
    trained: Mapping[str, tuple[str, SupervisedConfig]],
    sampled: Sequence[str],
    config: Config,
    tokenizer: "PreTrainedTokenizerBase",
) -> list[Finding]:
    """All findings on lengths and on what the tokenizer cannot represent, those without rows left out.

    Args:
        sets: `tokenise`d problems by split.
        trained: name and settings of the supervised stage that learns a split.
        sampled: the splits that are sampled from.
        config: the largest buckets, and what happens to longer rows.
        tokenizer: that of `sets`.
    """
    policy, generation = config.data.overlong, config.generation
    fate = {"error": "", "drop": ": dropped", "truncate": ": cut"}[policy]
    found = []
    for split, texts in sets.items():
        limits = {}
        if split in trained:
            stage, settings = trained[split]
            limits["prompt"] = (f"{stage}.prompt_buckets", max(settings.prompt_buckets))
            limits["target"] = (f"{stage}.response_buckets", max(settings.response_buckets))
            rows = rendered_otherwise(texts["target"].problems, tokenizer, config.data.templates, config.data.cot)
            error = config.data.bad_rows == "error"
            what = f"target: not what the chat template renders{'' if error else ': dropped'}"
            found.append(Finding(split, what, rows, len(texts["target"].problems), stops=error))
        if split in trained or split in sampled:
            learned = {problem.id for problem in texts["target"].problems} if split in trained else set()
            asked = texts["sampling_prompt"].problems
            whole = [p if p.id in learned else dataclasses.replace(p, cot=None) for p in asked]
            what = "holds the text of a special token"
            found.append(Finding(split, what, reserved(whole, tokenizer), len(whole), stops=True))
        if split in sampled:
            limits["sampling_prompt"] = ("generation.prompt_buckets", max(generation.prompt_buckets))
        for name, (key, longest) in limits.items():
            kind = texts[name]
            rows = longer(kind, kind.lengths, longest)
            total = len(kind.problems)
            found.append(Finding(split, f"longer than {key}, {longest}{fate}", rows, total, policy == "error"))
            found.append(Finding(split, f"{_NAMES[name]}: no tokens for", unknown(kind, tokenizer), total, stops=True))
            what = f"{_NAMES[name]}: decoded to another text"
            found.append(Finding(split, what, changed(kind, tokenizer), total))
        if policy == "drop":
            found += none_left(split, texts, {name: longest for name, (_, longest) in limits.items()})
        if split in sampled:
            rows = longer(texts["target"], _to_sample(texts["target"], config, tokenizer), generation.max_new_tokens)
            what = f"annotation longer than generation.max_new_tokens, {generation.max_new_tokens}"
            found.append(Finding(split, what, rows, len(texts["target"].problems)))
            rows = parted(texts, tokenizer) if config.data.cot == "program" else []
            what = "training row begins with other tokens than its forced header"
            found.append(Finding(split, what, rows, len(texts["target"].problems)))
    return [finding for finding in found if finding.rows]


_NAMES = {"prompt": "prompt", "target": "target", "sampling_prompt": "sampling prompt"}


def none_left(split: str, texts: Mapping[str, Texts], limits: Mapping[str, int]) -> list[Finding]:
    """What a run ends on where all rows of a stage, or all prompts of a split, are longer than the `limits` of each."""
    found = []
    for what, names in (("rows", ("prompt", "target")), ("prompts", ("sampling_prompt",))):
        problems = texts[names[0]].problems
        long = {
            identity
            for name in names
            if name in limits
            for identity, _ in longer(texts[name], texts[name].lengths, limits[name])
        }
        rows = [(problem.id, "") for problem in problems] if len(long) == len(problems) else []
        found.append(Finding(split, f"none of the {what} is left", rows, len(problems), stops=True))
    return found


def longer(kind: Texts, lengths: Sequence[int], longest: int) -> list[tuple[str, str]]:
    """The rows of more than `longest` tokens."""
    rows = zip(kind.problems, lengths)
    return [(problem.id, f"{length} tokens") for problem, length in rows if length > longest]


def unknown(kind: Texts, tokenizer: "PreTrainedTokenizerBase") -> list[tuple[str, str]]:
    """The rows that a run refuses because the tokenizer has no tokens for something in them, with what this is."""
    found = []
    for problem, text, ids in zip(kind.problems, kind.texts, kind.ids):
        if not ids:
            found.append((problem.id, repr(text)))
        elif has_hole(text, ids, tokenizer):
            pieces = _pieces(text, tokenizer)
            found.append((problem.id, ", ".join(map(repr, dict.fromkeys(pieces)))))
    return found


def changed(kind: Texts, tokenizer: "PreTrainedTokenizerBase") -> list[tuple[str, str]]:
    """The rows without unknown tokens that decode to another text, with the first place where they differ."""
    found = []
    for problem, text, ids in zip(kind.problems, kind.texts, kind.ids):
        decoded = str(tokenizer.decode(ids, clean_up_tokenization_spaces=False))
        if decoded != text and not has_hole(text, ids, tokenizer):
            found.append((problem.id, first_difference(text, decoded)))
    return found


def parted(texts: Mapping[str, Texts], tokenizer: "PreTrainedTokenizerBase") -> list[tuple[str, str]]:
    """The rows whose program begins with its forced header, but not in tokens: with where sampling parts from training.

    A model that learned the tokens of prompt and target is then sampled from behind tokens that it never saw together.
    """
    sampling = {
        problem.id: row for problem, row in zip(texts["sampling_prompt"].problems, texts["sampling_prompt"].ids)
    }
    strings = dict(zip(sampling, texts["sampling_prompt"].texts))
    found = []
    for i, problem in enumerate(texts["target"].problems):
        row = texts["prompt"].ids[i] + texts["target"].ids[i]
        forced = sampling[problem.id]
        text = texts["prompt"].texts[i] + texts["target"].texts[i]
        if text.startswith(strings[problem.id]) and row[: len(forced)] != forced:
            place = next((j for j, (a, b) in enumerate(zip(forced, row)) if a != b), len(row))
            a, b = (tokenizer.decode(ids[place : place + 1]) for ids in (forced, row))
            found.append((problem.id, f"{a!r} is {b!r}"))
    return found


def _to_sample(targets: Texts, config: Config, tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """Tokens that a model would have to sample to write each target: the forced header is not sampled."""
    if config.data.cot == "text":
        return targets.lengths
    headers = token_ids([program_header(p, config.data.templates) for p in targets.problems], tokenizer)
    return [length - len(header) for length, header in zip(targets.lengths, headers)]


def _pieces(text: str, tokenizer: "PreTrainedTokenizerBase") -> list[str]:
    """The parts of a text that became unknown tokens; all of it where the tokenizer cannot tell."""
    if not tokenizer.is_fast:
        return [text]
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    pieces = [
        text[a:b]
        for token, (a, b) in zip(encoded["input_ids"], encoded["offset_mapping"])
        if token == tokenizer.unk_token_id
    ]
    return [piece for piece in pieces if piece != tokenizer.unk_token]
