"""The record that every part of the package is about: one question with its gold answer."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

AnswerKind = Literal["number", "choice", "latex", "text", "scored", "none"]


@dataclasses.dataclass(frozen=True)
class TaskItem:
    """An item of a task that scores answers itself.

    Attributes:
        name: of the task, such as `countdown`.
        config: the task's parameters, as JSON.
        entry: what the task's scorer needs of the item; only a worker opens it.
    """

    name: str
    config: str
    entry: str = dataclasses.field(repr=False)

    @property
    def task(self) -> tuple[str, str]:
        """Name and parameters."""
        return self.name, self.config


@dataclasses.dataclass(frozen=True)
class Problem:
    """One math word problem.

    Attributes:
        id: unique within its source, such as `svamp_12`.
        question: the text as published, options included where it is multiple choice.
        answer: the gold answer as published, such as `"18"`, `"b"` or `"\\frac{1}{2}"`.
        answer_kind: how `answer` is compared: as a number, as a letter of a choice, as mathematics or as text; `scored`
            is one that a task scores itself, to which there may be many right answers or none that is known; to
            one of kind `none` there is no gold answer, and nothing is right or wrong.
        cot: the annotated chain of thought, prose or a Python program, where there is one.
        columns: the row as published, for reward functions of the user's own.
        item: what scores an answer of kind `scored`.
    """

    id: str
    question: str
    answer: str
    answer_kind: AnswerKind = "number"
    cot: str | None = None
    columns: Mapping[str, Any] = dataclasses.field(default_factory=dict, compare=False, repr=False)
    item: TaskItem | None = dataclasses.field(default=None, compare=False, repr=False)

    @property
    def has_gold(self) -> bool:
        """Whether an answer can be right or wrong."""
        return self.answer_kind != "none"


def annotated(problems: Sequence[Problem]) -> list[Problem]:
    """Those that have a chain of thought; the others are questions for reinforcement alone."""
    return [problem for problem in problems if problem.cot is not None]
