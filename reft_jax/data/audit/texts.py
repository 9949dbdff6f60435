"""What is in a set of problems, and what is wrong with it, before anything is trained on it.

Beside the data flow: problems in, findings out; `python -m reft_jax.data` puts them together and shows them. This is
about texts and answers, `audit_tokens` about lengths. Nothing is removed or changed.
"""

import ast
import dataclasses
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from reft_jax.config import CotKind, RewardConfig, Rules, TemplateConfig
from reft_jax.data.prompts import program_header, target_text
from reft_jax.data.readers import question_key
from reft_jax.problem import Problem
from reft_jax.reward.answers import extract_answer, is_correct, parse_gold
from reft_jax.reward.parse import program_of
from reft_jax.reward.pool import ProgramRunner
from reft_jax.reward.verdicts import verdicts_of

Key = Callable[[Problem], str]

_NO_CHAIN = "no chain of thought: for reinforcement alone"
SAME: dict[str, Key] = {
    "same text": lambda problem: problem.question,
    "same letters and digits": lambda problem: question_key(problem.question),
    "same but for options": lambda problem: question_key(without_options(problem)),
}
"""When two questions are the same, each way with what must be equal; each finds all that those before it find."""


@dataclasses.dataclass(frozen=True)
class Finding:
    """Rows of a set that something is to be said of.

    Attributes:
        split: the set, such as `train`.
        what: what is the matter with them.
        rows: (id, what exactly) of each.
        total: how many rows were looked at.
        stops: whether a run would end on it.
    """

    split: str
    what: str
    rows: list[tuple[str, str]]
    total: int
    stops: bool = False

    def record(self) -> dict[str, Any]:
        """The finding as a JSON object."""
        rows = [{"id": identity, "detail": detail} for identity, detail in self.rows]
        return {"set": self.split, "what": self.what, "stops": self.stops, "total": self.total, "rows": rows}


def contents(problems: Sequence[Problem], stated_after: Sequence[str]) -> dict[str, Any]:
    """Counts of a set: rows, chains of thought, kinds of answer, and lengths in characters.

    `stated` is how many chains of thought state an answer behind `stated_after`, as `other_statements` reads them.
    """
    chains = [problem.cot for problem in problems if problem.cot is not None]
    kinds = [problem.answer_kind for problem in problems]
    return {
        "rows": len(problems),
        "with_cot": len(chains),
        "without_cot": len(problems) - len(chains),
        "answer_kinds": {kind: kinds.count(kind) for kind in dict.fromkeys(kinds)},
        "stated": sum(_stated(problem, stated_after) is not None for problem in problems),
        "characters": {
            "question": spread([len(problem.question) for problem in problems]),
            "cot": spread([len(chain) for chain in chains]),
        },
    }


def spread(lengths: Sequence[int]) -> dict[str, float] | None:
    """Mean, percentiles (the smallest length that so many percent do not exceed) and maximum; None of no lengths."""
    if not lengths:
        return None
    percentiles = np.percentile(lengths, (50, 90, 99), method="inverted_cdf")
    return {
        "mean": round(float(np.mean(lengths)), 1),
        **{f"p{share}": int(value) for share, value in zip((50, 90, 99), percentiles)},
        "max": max(lengths),
    }


def missing_chains(problems: Sequence[Problem]) -> list[tuple[str, str]]:
    """The rows without a chain of thought."""
    return [(problem.id, "") for problem in problems if problem.cot is None]


def wrong_chains(
    problems: Sequence[Problem],
    cot: CotKind,
    templates: TemplateConfig,
    reward: RewardConfig,
    runner: ProgramRunner | None,
) -> list[tuple[str, str]]:
    """The rows whose training target is not read as the gold answer by the run's own reward, with what it gave.

    A program is run. Prose is read behind the answer trigger, where the target has the gold answer as published.

    Raises:
        RuntimeError: programs cannot be run here.
    """
    chains = [problem for problem in problems if problem.cot is not None and problem.has_gold]
    targets = [target_text(problem, templates, cot) for problem in chains]
    trigger = templates.answer_trigger
    judged = verdicts_of(chains, targets, cot=cot, answer_trigger=trigger, config=reward, runner=runner)
    wrong = [item for item in zip(chains, targets, judged) if item[2].outcome != "correct"]
    results = runner.run([target for _, target, _ in wrong], reward.rules) if runner and cot == "program" else []
    details = [result.detail for result in results] or [""] * len(wrong)
    found = []
    for (problem, _, verdict), detail in zip(wrong, details):
        gave = f"gives {verdict.value!r}" if verdict.outcome == "wrong" else f"{verdict.outcome}: {detail}".rstrip(": ")
        found.append((problem.id, f"gold {problem.answer}, {gave}"))
    return found


def other_statements(
    problems: Sequence[Problem], stated_after: Sequence[str], reward: RewardConfig
) -> list[tuple[str, str]]:
    """The rows whose prose states an answer that is not the gold one, behind the last of a string of `stated_after`.

    The strings are tried in their order, until there is an answer behind one that a person could read.
    """
    limits = reward.tolerance, reward.relative_tolerance, reward.exact_integers
    return [
        (problem.id, f"gold {problem.answer}, states {value!r}")
        for problem in problems
        if problem.has_gold
        and (value := _stated(problem, stated_after)) is not None
        and not is_correct(value, parse_gold(problem.answer, problem.answer_kind), *limits)
    ]


def broken_headers(problems: Sequence[Problem], templates: TemplateConfig, rules: Rules) -> list[tuple[str, str]]:
    """The rows whose question makes a forced program header that is no Python, whatever follows it.

    `lenient` rules leave such a docstring out (`parse.program_of`).
    """
    found = []
    for problem in problems:
        with warnings.catch_warnings(action="ignore"):  # of backslashes in the question
            try:
                program = program_header(problem, templates).rstrip("\n") + "\n    return 0"
                ast.parse(program if rules == "reference" else program_of(program))
            except (SyntaxError, ValueError) as error:  # the latter of a null character
                found.append((problem.id, str(getattr(error, "msg", error))))
            except (RecursionError, MemoryError):
                found.append((problem.id, "nested too deeply to be parsed"))
    return found


def other_headers(problems: Sequence[Problem], templates: TemplateConfig) -> list[tuple[str, str]]:
    """The rows whose program does not begin with the header that sampling forces, with where it leaves it."""
    found = []
    for problem in problems:
        header = program_header(problem, templates)
        if problem.cot is not None and not problem.cot.startswith(header):
            found.append((problem.id, first_difference(header, problem.cot)))
    return found


def first_difference(a: str, b: str) -> str:
    """The first place where two texts differ, as it stands in each."""
    place = next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))
    return f"{a[place : place + 12]!r} is {b[place : place + 12]!r}"


def without_options(problem: Problem) -> str:
    """The question without its last line, which holds the options where it is multiple choice and has several."""
    return (problem.answer_kind == "choice" and problem.question.rpartition("\n")[0]) or problem.question


def repeats(problems: Sequence[Problem], key: Key) -> list[tuple[str, str]]:
    """The rows whose question, by `key`, an earlier row asks already; says so where the answers differ."""
    first: dict[str, Problem] = {}
    found = []
    for problem in problems:
        earlier = first.setdefault(key(problem), problem)
        if earlier is not problem:
            mine, its = (parse_gold(p.answer, p.answer_kind) for p in (problem, earlier))
            differs = "" if mine == its else f", answer {problem.answer} instead of {earlier.answer}"
            found.append((problem.id, f"as `{earlier.id}`{differs}"))
    return found


def shared(a: Sequence[Problem], b: Sequence[Problem], key: Key) -> list[tuple[str, str]]:
    """The rows of `a` whose question, by `key`, stands in `b` too."""
    others = {key(problem): problem.id for problem in reversed(b)}
    asked = ((problem.id, others.get(key(problem))) for problem in a)
    return [(identity, f"as `{other}`") for identity, other in asked if other is not None]


def look_at_texts(
    sets: dict[str, list[Problem]],
    trained: set[str],
    cot: CotKind,
    templates: TemplateConfig,
    reward: RewardConfig,
    runner: ProgramRunner | None,
    stated_after: Sequence[str],
) -> list[Finding]:
    """All findings on texts and answers, those without rows left out.

    Args:
        sets: problems by split.
        trained: the splits that a supervised stage learns, where some row must have a chain of thought.
        cot: what the chains of thought are.
        templates: the strings around them.
        reward: how answers are compared, and the limits of programs.
        runner: runs programs; not needed for prose.
        stated_after: see `other_statements`.

    Raises:
        RuntimeError: programs cannot be run here.
    """
    found = []
    for split, problems in sets.items():
        without = missing_chains(problems) if split in trained else []
        learned_none = len(without) == len(problems)
        rows = {_NO_CHAIN: without}
        rows["target does not give its own answer"] = wrong_chains(problems, cot, templates, reward, runner)
        if cot == "text":
            rows["prose states another answer"] = other_statements(problems, stated_after, reward)
        else:
            rows["forced header is no Python"] = broken_headers(problems, templates, reward.rules)
            rows["program begins otherwise than its forced header"] = other_headers(problems, templates)
        choices = any(problem.answer_kind == "choice" for problem in problems)
        for how, key in SAME.items() if choices else list(SAME.items())[:2]:
            rows[f"question asked before, {how}"] = repeats(problems, key)
            if split != "test":
                rows[f"question of test, {how}"] = shared(problems, sets.get("test", []), key)
        stops = {_NO_CHAIN: learned_none}
        found += [
            Finding(split, what, some, len(problems), stops.get(what, False)) for what, some in rows.items() if some
        ]
    return found


def _stated(problem: Problem, stated_after: Sequence[str]) -> str | int | float | None:
    """The answer that the prose of a problem states; None where it states none that can be read."""
    answers = (extract_answer(problem.cot or "", problem.answer_kind, text, "lenient") for text in stated_after)
    return next((answer for answer in answers if answer is not None), None)
