"""Problems from files, from the hub or generated, checked row by row; and how they are split.

First station of the data flow: `SourceConfig` -> `list[Problem]`. What passes here is sound: ids are unique,
questions are not empty and every gold answer can be compared. Nothing is tokenised yet.
"""

import dataclasses
import hashlib
import itertools
import re
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path

from reft_jax.config import Config, SourceConfig
from reft_jax.data.rows import Row, read_rows
from reft_jax.problem import AnswerKind, Problem
from reft_jax.reward.answers import likely_answer_kind, parse_gold

_ANSWER_KINDS: dict[str, AnswerKind] = {
    "gsm8k": "number",
    "svamp": "number",
    "mathqa": "choice",
    "mathqa-numeric": "number",
}
_GSM8K_MARKER = "#### "
_GSM8K_NOTE = re.compile(r"<<.*?>>")
_QUOTED = re.compile(r'"(.*)"', re.DOTALL)


def read_problems(source: SourceConfig) -> list[Problem]:
    """Reads and checks all problems of a source, in their published order.

    - `reft_json`: the reference's JSON list of `item_id, question, answer_value[, answer_cot]`. The data set is the
      first id before its first `_`; it decides how answers are compared.
    - `gsm8k`: JSONL of `question, answer`, the answer being the reasoning, then `#### N`. `<<...>>` notes and the
      commas of N are removed, and line n (from 0) becomes `gsm8k_n`: what the reference's own files hold.
    - `mathqa`: MathQA's JSON list of `Problem, Rationale, options, correct, ...`, or a hub data set with these columns
      (`regisss/math_qa`). The question is `Problem`, a line break and `options` as published, and row n (from 0)
      becomes `mathqa_n`: what the reference's own files hold. The quotes around three of four rationales are removed.
    - `jsonl`, `hub`: the fields that `source` names. `question_field` may list several (`Body,Question`), joined by a
      blank. An answer that holds `#### N` is taken apart as GSM8K's.
    - `generated`: the embedded problems of the split `source.path`.

    A file that ends in `.parquet` is read as that, with the same fields.

    Gold answers keep their published text, since it stands in N-CoT targets; they are compared in a normal form that
    `parse_gold` makes. Numbers in a file are accepted as answers and keep all their digits.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: names file, row (from 1; the line in JSONL) and field of whatever is missing, of a wrong type,
            empty, a duplicate or cannot be parsed.
    """
    if source.kind == "none":
        raise ValueError("the source's `kind` is `none`: there is nothing to read")
    if source.kind == "generated":
        return _generated(source)

    source = _with_published_fields(source)
    rows = list(itertools.islice(read_rows(source), source.limit or None))
    if not rows:
        raise ValueError(f"{source.path}: holds no rows")
    answer_kind = _answer_kind(source, rows[0])
    problems: dict[str, Problem] = {}
    for row in rows:
        problem = _problem(source, row, answer_kind)
        if problem.id in problems:
            raise ValueError(f"{row.place}: field `{source.id_field}`: `{problem.id}` is also the id of an earlier row")
        problems[problem.id] = problem
    return list(problems.values())


def read_sets(config: Config) -> dict[str, list[Problem]]:
    """The problems of a run by split, [] where there are none: `train`, `dev`, `test` and `pretrain`.

    Dev is carved from train, unless `data.dev` is a source of its own.

    Raises:
        FileNotFoundError, ValueError: as `read_problems`.
    """
    data = config.data
    train, dev, test = (read_problems(s) if s.kind != "none" else [] for s in (data.train, data.dev, data.test))
    if data.dev.kind == "none":
        train, dev = split_dev(train, data.dev_fraction)
    pretrain = read_problems(config.pretrain.source) if config.pretrain.epochs else []
    return {"train": train, "dev": dev[: config.evaluation.dev_limit or None], "test": test, "pretrain": pretrain}


def question_key(question: str) -> str:
    """The question reduced to lower-case letters and digits: equal for questions that differ in layout only."""
    return "".join(character for character in question.lower() if character.isalnum())


def question_hash(question: str) -> int:
    """The sha256 of the `question_key`, below 2^256: what decides whether a question is in dev."""
    return int.from_bytes(hashlib.sha256(question_key(question).encode()).digest(), "big")


def split_dev(problems: Sequence[Problem], fraction: float) -> tuple[list[Problem], list[Problem]]:
    """Splits problems into (train, dev), each in its old order.

    A problem is in dev where its `question_hash`, read as a fraction of 2^256, is below `fraction`. So
    equal questions stay on one side, and more data moves no question that was there before.
    """
    in_dev = [question_hash(problem.question) < fraction * 2.0**256 for problem in problems]
    train = [problem for problem, dev in zip(problems, in_dev) if not dev]
    return train, [problem for problem, dev in zip(problems, in_dev) if dev]


def shared_questions(a: Sequence[Problem], b: Sequence[Problem]) -> list[str]:
    """Ids of the problems in `a` whose question, by `question_key`, is asked in `b` too."""
    keys = {question_key(problem.question) for problem in b}
    return [problem.id for problem in a if question_key(problem.question) in keys]


def is_within(a: Sequence[Problem], b: Sequence[Problem]) -> bool:
    """Whether every question of `a`, and there is one, is asked in `b` too."""
    return bool(a) and len(shared_questions(a, b)) == len(a)


def _generated(source: SourceConfig) -> list[Problem]:
    from reft_jax.data.embedded.problems import generate_problems

    match source.path:
        case "train" | "test" | "pretrain" as split:
            return generate_problems(split)[: source.limit or None]
        case other:
            raise ValueError(f"a source of kind `generated` has `path` train, test or pretrain, not `{other}`")


def _with_published_fields(source: SourceConfig) -> SourceConfig:
    """`source` with the field names that its layout fixes."""
    if source.kind == "reft_json":
        return dataclasses.replace(
            source,
            id_field="item_id",
            question_field="question",
            answer_field="answer_value",
            cot_field="answer_cot",
        )
    if source.kind == "gsm8k":
        return dataclasses.replace(source, id_field="", question_field="question", answer_field="answer", cot_field="")
    if source.kind == "mathqa":
        return dataclasses.replace(
            source, id_field="", question_field="Problem,options", answer_field="correct", cot_field="Rationale"
        )
    return source


def _answer_kind(source: SourceConfig, first: Row) -> AnswerKind:
    """Configured, or known by the data set's name, or a choice where the first answer is one letter."""
    if source.answer_kind != "auto":
        return source.answer_kind
    if source.kind == "mathqa":
        return "choice"
    name = _text(first, source.id_field, numbers=True).split("_")[0] if source.kind == "reft_json" else ""
    if name in _ANSWER_KINDS:
        return _ANSWER_KINDS[name]
    return likely_answer_kind(_text(first, source.answer_field, numbers=True))


def _problem(source: SourceConfig, row: Row, answer_kind: AnswerKind) -> Problem:
    separator = "\n" if source.kind == "mathqa" else " "
    parts = [_text(row, field.strip()).strip() for field in source.question_field.split(",")]
    if not (question := separator.join(parts).strip()):
        raise ValueError(f"{row.place}: field `{source.question_field}`: the question is empty")

    cot = _text(row, source.cot_field) if row.fields.get(source.cot_field) is not None else ""
    if source.kind == "mathqa" and (quoted := _QUOTED.fullmatch(cot)):
        cot = quoted[1]
    answer = _text(row, source.answer_field, numbers=True)
    reasoning, marker, final = answer.rpartition(_GSM8K_MARKER)
    if marker:
        cot, answer = cot or _GSM8K_NOTE.sub("", reasoning), final.replace(",", "")
    elif source.kind == "gsm8k":
        raise ValueError(f"{row.place}: field `{source.answer_field}`: no `{_GSM8K_MARKER}N` at its end")
    try:
        parse_gold(answer, answer_kind)
    except ValueError as error:
        raise ValueError(f"{row.place}: field `{source.answer_field}`: {error}") from error
    columns = {name: float(value) if isinstance(value, Decimal) else value for name, value in row.fields.items()}
    return Problem(_id(source, row), question, answer.strip(), answer_kind, cot.strip() or None, columns)


def _id(source: SourceConfig, row: Row) -> str:
    """The published id; rows of layouts that need none are numbered, as `<data set>_<0-based row>`."""
    if source.kind == "reft_json" or row.fields.get(source.id_field) is not None:
        return _text(row, source.id_field, numbers=True)
    return f"{source.kind if source.kind in ('gsm8k', 'mathqa') else Path(source.path).stem}_{row.index}"


def _text(row: Row, field: str, *, numbers: bool = False) -> str:
    """The text of a field that must be there; `numbers` are taken too and written out."""
    value = row.fields.get(field)
    if value is None:
        raise ValueError(f"{row.place}: field `{field}` is missing; there are {', '.join(map(str, row.fields))}")
    if numbers and isinstance(value, int | float | Decimal) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise ValueError(f"{row.place}: field `{field}` should be text, is {type(value).__name__} {value!r}")
    return value
