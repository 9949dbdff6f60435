"""What the model said to the same question at the warm-up, on the way and at the end, as small as a page takes it."""

import collections
import dataclasses
import hashlib
import json
from collections.abc import Collection, Sequence
from typing import Any

from reft_jax.records.records import json_value
from reft_jax.report.folder import Completion, RunFolder

SPLITS = ("test", "dev", "train")
"""In the order of the page."""

Key = tuple[str, str, str]
"""A question: its split, id and text, by which runs on the same data share it."""


@dataclasses.dataclass(frozen=True)
class ShownMoment:
    """A moment of a run; `role` is `before` at the warm-up, `after` at the end, else `during`."""

    run: int
    split: str
    label: str
    role: str


@dataclasses.dataclass(frozen=True)
class Shown:
    """How much of a split there is, and how much of it is on the page."""

    split: str
    questions: int
    of_questions: int
    completions: int
    of_completions: int


@dataclasses.dataclass(frozen=True)
class Browser:
    """The completions of a page; what repeats is held once, and named by its place in a list.

    Attributes:
        moments: in order of runs and time.
        outcomes, causes: names; the empty cause is that of a right answer.
        texts: completions.
        questions: [split, id, question, gold, rows]; a row is [moment, outcome, cause, reward, value, tokens, flags,
            text, detail, functions, scored], flags being 1 for one that ended and 2 for a suspicious one; `scored` is
            null, or [head, texts of the tokens, {name: one number a token}].
        shown: what was left out, by split.
    """

    moments: list[ShownMoment]
    outcomes: list[str]
    causes: list[str]
    texts: list[str]
    questions: list[list[Any]]
    shown: list[Shown]


class _Places:
    """A list of different values, and the place of each."""

    def __init__(self) -> None:
        self._places: dict[Any, int] = {}

    def __getitem__(self, value: Any) -> int:
        return self._places.setdefault(value, len(self._places))

    def __contains__(self, value: object) -> bool:
        return value in self._places

    def __iter__(self) -> Any:
        return iter(self._places)


def embedded(value: object) -> str:
    """A value as JSON that may stand inside a `<script>` of a page: no text in it can end that, or begin a comment."""
    text = json.dumps(json_value(value), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def size(value: object) -> int:
    """Bytes of a value on the page, with what separates it from the next."""
    return len(embedded(value).encode()) + 1


def key(completion: Completion) -> Key:
    """The question of a completion."""
    return completion.moment.split, completion.id, completion.question


def browser(runs: Sequence[RunFolder], room: int, wanted: Collection[Key] = ()) -> Browser:
    """The questions that fit, each with all that was said to it: those that are wanted, then others drawn by a hash.

    So a sample is one of questions, the same for every run and in every page that is made of them.

    Args:
        runs: in order.
        room: bytes that the completions may take.
        wanted: questions that come first.
    """
    moments: dict[tuple[int, Any], int] = {}
    described: list[ShownMoment] = []
    for number, run in enumerate(runs):
        for moment in run.moments:
            role = "before" if moment in run.before else "after" if moment in run.after else "during"
            moments[number, moment] = len(described)
            described.append(ShownMoment(number, moment.split, run.describe(moment), role))
    asked: dict[Key, list[tuple[int, Completion]]] = collections.defaultdict(list)
    for number, run in enumerate(runs):
        for completion in run.completions:
            asked[key(completion)].append((moments[number, completion.moment], completion))
    first = set(wanted)
    drawn = {own: hashlib.sha256(repr(own).encode()).digest() for own in asked}
    order = sorted(asked, key=lambda own: (own not in first, drawn[own]))
    outcomes, causes, texts = _Places(), _Places(), _Places()
    _ = causes[""]
    entries: dict[Key, list[Any]] = {}
    left = room - size([dataclasses.asdict(moment) for moment in described])
    for own in order:
        split, identity, question = own
        rows = sorted(asked[own], key=lambda row: row[0])
        fresh = {completion.text for _, completion in rows if completion.text not in texts}
        packed = [_row(moment, completion, outcomes, causes, texts) for moment, completion in rows]
        entry = [split, identity, question, rows[0][1].gold, packed]
        left -= size(entry) + sum(size(text) for text in fresh)
        if left < 0:
            break
        entries[own] = entry
    # Shown by split, and within one as drawn: what is wanted would else stand at the top, and look like all of it.
    questions = [entries[own] for own in sorted(entries, key=lambda own: (SPLITS.index(own[0]), drawn[own]))]
    used = {row[7] for *_, rows in questions for row in rows}
    kept = [text for place, text in enumerate(texts) if place in used]  # all but those of the question that did not fit
    total = collections.Counter(split for split, _, _ in asked)
    of_completions = collections.Counter(completion.moment.split for run in runs for completion in run.completions)
    shown = [
        Shown(
            split,
            sum(entry[0] == split for entry in questions),
            total[split],
            sum(len(entry[4]) for entry in questions if entry[0] == split),
            of_completions[split],
        )
        for split in SPLITS
        if total[split]
    ]
    return Browser(described, list(outcomes), list(causes), kept, questions, shown)


def _row(moment: int, completion: Completion, outcomes: _Places, causes: _Places, texts: _Places) -> list[Any]:
    return [
        moment,
        outcomes[completion.outcome],
        causes[completion.cause],
        round(completion.reward, 6),
        completion.value,
        completion.tokens,
        completion.ended + 2 * bool(completion.suspicious),
        texts[completion.text],
        completion.detail,
        dict(completion.functions) or None,
        None if (scored := completion.scored) is None else [scored.head, list(scored.texts), dict(scored.scores)],
    ]
