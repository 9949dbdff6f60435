"""Problems and completions in, one verdict each out: the reward of ReFT (arXiv 2401.08967, section 3.2).

Between rollout (decoded text) and `ppo` (the rewards); evaluation counts the same verdicts. Pure Python on the host.
"""

import collections
import dataclasses
from collections.abc import Sequence
from typing import Literal, get_args

from reft_jax.config import CotKind, RewardConfig
from reft_jax.problem import Problem
from reft_jax.reward.answers import extract_answer, is_correct, normalise_result, parse_gold
from reft_jax.reward.equations import arithmetic_holds
from reft_jax.reward.letters import letter_is_computed
from reft_jax.reward.parse import program_of
from reft_jax.reward.pool import ProgramRunner
from reft_jax.reward.programs import ProgramResult

Outcome = Literal["correct", "wrong", "no_answer", "no_gold", "error", "timeout", "memory", "forbidden", "deadline"]


@dataclasses.dataclass(frozen=True)
class Verdict:
    """The judgement of one completion.

    Attributes:
        reward: what it earns, before any KL penalty.
        outcome: why; `no_gold` where there is no gold answer; a program that fails keeps its cause, `error`, `timeout`,
            `memory`, `forbidden` (the sandbox stopped it) or `deadline` (its batch took too long).
        value: the answer that was read, None where there was none.
        suspicious: whether there is a sign of reward hacking: an answer in prose that is right although an equation
            before it is wrong, or a letter that a program returns without computing anything for it. None where these
            do not apply.
        score: what its task said of an answer of kind `scored`, from 0 to 1, of which only 1 is right.
        detail: why there is no answer, such as the exception of a program; for people, and part of no comparison.
    """

    reward: float
    outcome: Outcome
    value: str | int | float | None
    suspicious: bool | None = None
    score: float | None = None
    detail: str = dataclasses.field(default="", compare=False)


def verdicts_of(
    problems: Sequence[Problem],
    completions: Sequence[str],
    *,
    cot: CotKind,
    answer_trigger: str,
    config: RewardConfig,
    runner: ProgramRunner | None,
) -> list[Verdict]:
    """Judge completions: `config.correct` for the gold answer, `config.wrong` for another, `config.no_answer` for none.

    Args:
        problems: one per completion.
        completions: whole programs, forced header included (`cot` "program"), or chains of thought ("text").
        cot: what the completions are.
        answer_trigger: the template's string before the answer of a chain of thought in prose.
        config: rewards, tolerance and rules.
        runner: runs the programs, compares expressions (answers of kind `latex`) and scores those of tasks (`scored`);
            not needed for other prose.

    Raises:
        ValueError: the lengths differ, programs, expressions or answers to tasks come without a runner, or a gold
            answer cannot be read or a task's item is not there (the message names its problem).
        RuntimeError: the runner's workers do not start.
    """
    if len(problems) != len(completions):
        raise ValueError(f"{len(problems)} problems but {len(completions)} completions")
    golds = [_gold(problem) for problem in problems]
    values: list[str | int | float | None]
    failures: list[Outcome]
    if cot == "program":
        if runner is None:
            raise ValueError("programs need a ProgramRunner")
        results = runner.run(completions, config.rules)
        values = [normalise_result(r.value, p.answer_kind, config.rules) for p, r in zip(problems, results)]
        failures = ["no_answer" if result.outcome == "ok" else result.outcome for result in results]
        details = [result.detail for result in results]
    else:
        pairs = zip(problems, completions)
        values = [extract_answer(text, p.answer_kind, answer_trigger, config.rules) for p, text in pairs]
        failures = ["no_answer"] * len(values)
        details = [""] * len(values)
    for i, problem in enumerate(problems):
        if not problem.has_gold:
            values[i], failures[i] = None, "no_gold" if failures[i] == "no_answer" else failures[i]
    right = [
        is_correct(value, gold, config.tolerance, config.relative_tolerance, config.exact_integers)
        for value, gold in zip(values, golds)
    ]
    for i, result in _compared_expressions(problems, golds, values, runner).items():
        right[i] = result.value == 1
        if result.outcome != "ok":
            values[i], failures[i], details[i] = None, result.outcome, result.detail
    scores: list[float | None] = [None] * len(values)
    for i, result in _scored_answers(problems, values, runner).items():
        scores[i] = float(result.value) if isinstance(result.value, int | float) else None
        right[i] = scores[i] == 1
        if result.outcome != "ok":
            values[i], failures[i], details[i] = None, result.outcome, result.detail
    judged = [_verdict(*one, config) for one in zip(values, right, failures)]
    suspicions = [_suspicious(p, text, verdict, cot) for p, text, verdict in zip(problems, completions, judged)]
    rest = zip(judged, suspicions, scores, details)
    return [
        dataclasses.replace(verdict, suspicious=sign, score=score, detail=detail)
        for verdict, sign, score, detail in rest
    ]


def outcome_counts(verdicts: Sequence[Verdict]) -> dict[str, int]:
    """How many verdicts have each outcome; every outcome is there, with 0 where it did not occur."""
    counts = collections.Counter(verdict.outcome for verdict in verdicts)
    return {outcome: counts[outcome] for outcome in get_args(Outcome)}


def _suspicious(problem: Problem, completion: str, verdict: Verdict, cot: CotKind) -> bool | None:
    """See `Verdict.suspicious`; `equations` and `letters` have the tests."""
    if not problem.has_gold:
        return None
    if cot == "text":
        holds = arithmetic_holds(completion)
        return None if holds is None else verdict.outcome == "correct" and not holds
    if problem.answer_kind != "choice":
        return None
    computed = letter_is_computed(program_of(completion))
    return None if computed is None else verdict.outcome in ("correct", "wrong") and not computed


def _gold(problem: Problem) -> int | float | str:
    try:
        return parse_gold(problem.answer, problem.answer_kind)
    except ValueError as error:
        raise ValueError(f"problem {problem.id}: {error}") from None


def _compared_expressions(
    problems: Sequence[Problem],
    golds: Sequence[int | float | str],
    values: Sequence[str | int | float | None],
    runner: ProgramRunner | None,
) -> dict[int, ProgramResult]:
    """What a worker said of each answer of kind `latex` that is there, by its index."""
    indices = [i for i, problem in enumerate(problems) if problem.answer_kind == "latex" and values[i] is not None]
    if not indices:
        return {}
    if runner is None:
        raise ValueError("answers of kind latex need a ProgramRunner")
    pairs = [(str(golds[i]), str(values[i])) for i in indices]
    return dict(zip(indices, runner.same_mathematics(pairs)))


def _scored_answers(
    problems: Sequence[Problem], values: Sequence[str | int | float | None], runner: ProgramRunner | None
) -> dict[int, ProgramResult]:
    """What a worker said of each answer of kind `scored` that is there, by its index."""
    indices = [i for i, problem in enumerate(problems) if problem.answer_kind == "scored" and values[i] is not None]
    answers = []
    for i in indices:
        if (item := problems[i].item) is None:
            raise ValueError(
                f"problem {problems[i].id}: its answers are scored by a task, whose item is not there; judge it with "
                "its source of kind reasoning_gym"
            )
        answers.append((item, str(values[i])))
    if answers and runner is None:
        raise ValueError("answers of kind scored need a ProgramRunner")
    return dict(zip(indices, runner.scores(answers))) if runner else {}


def _verdict(value: str | int | float | None, right: bool, failure: Outcome, config: RewardConfig) -> Verdict:
    """The verdict on `value`; `failure` is the outcome where there is none, or where its program failed."""
    if value is None:
        return Verdict(config.no_answer, failure, None)
    if right:
        return Verdict(config.correct, "correct", value)
    # The reference reads a failed multiple-choice program as "none": rewarded as a wrong answer, counted as what it is.
    return Verdict(config.wrong, "wrong" if failure == "no_answer" else failure, value)
