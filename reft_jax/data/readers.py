"""Problems from files, from the hub or generated, checked row by row; and how they are split.

First station of the data flow: `SourceConfig` -> `list[Problem]`. What passes here is sound: ids are unique,
questions are not empty and every gold answer can be compared. Nothing is tokenised yet.
"""

import contextlib
import dataclasses
import hashlib
import importlib.util
import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import NamedTuple

from reft_jax.config import Answer, BadRows, Config, SourceConfig
from reft_jax.data.rows import AbsentFieldError, Row, read_rows, shown
from reft_jax.data.tasks import read_tasks
from reft_jax.problem import AnswerKind, Problem, annotated
from reft_jax.reward.answers import last_box, likely_answer_kind, parse_gold

_ANSWER_KINDS: dict[str, AnswerKind] = {
    "gsm8k": "number",
    "svamp": "number",
    "mathqa": "choice",
    "mathqa-numeric": "number",
}
_GSM8K_MARKER = "####"
_GSM8K_NOTE = re.compile(r"<<.*?>>")
_THOUSANDS = re.compile(r"(?<![0-9.,])[0-9]{1,3}(?:,[0-9]{3})+(?![0-9,])")
_WRITE = ": write it as one"
_FIRST_LINE = re.compile(r"\s*[^\n]*")
_DISPLAYS = re.compile(r"\s*(?:\$\$|\\\[|```)")
_QUOTED = re.compile(r'"(.*)"', re.DOTALL)
_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
_STATEMENT = re.compile(r"\b(answer\s*(?:is\b|:))|\b(because|since)\b|(##+)", re.IGNORECASE)
_TURN = re.compile(r"(?P<turns>.+?)\[(?P<number>-?[0-9]+)\]\.(?:content|value)(?:$|[.\[])")
_ASKING, _ANSWERING = ("user", "human"), ("assistant", "gpt", "model", "chatbot", "bot")
_OPTIONS = ("choices", "options", "choices.text", "options.text", "endings")
_EXPRESSION = re.compile(r"[\\^]|[0-9]\s*[a-z]\b|\b[a-z]\s*[-+*/]", re.IGNORECASE)


SHOWN = 20
"""Rows that cannot be used which an error or a message lists; of a file that has no other rows, `SHOWN_OF_ALL`."""

SHOWN_OF_ALL = 3

Say = Callable[[str], None]


class BadRow(NamedTuple):
    """A row that cannot be used: its file and row, and the field with what is the matter with it."""

    place: str
    what: str


class CheckedRows(NamedTuple):
    """The problems of a source, and those of its rows that cannot be one, each in their published order.

    `partial` has the ids of problems that are two messages of a conversation that has more, with what is left out.
    """

    problems: list[Problem]
    bad: list[BadRow]
    partial: Sequence[tuple[str, str]] = ()

    @property
    def total(self) -> int:
        """Of all rows."""
        return len(self.problems) + len(self.bad)


def read_problems(
    source: SourceConfig,
    bad_rows: BadRows = "error",
    say: Say = print,
    answer: Answer = "auto",
    *,
    gold_optional: bool = False,
) -> list[Problem]:
    """The problems of a source, in their published order; see `check_rows`, which says how they are read.

    Args:
        source: where they are.
        bad_rows: what is done about rows that cannot be used: `error`, or `drop`.
        say: told what is dropped.
        answer: how answers are compared.
        gold_optional: whether rows may lack an answer.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file cannot be read, or has no rows; or names the rows that cannot be used, `SHOWN` of them,
            under `drop` where there are no others.
    """
    checked = check_rows(source, answer, gold_optional=gold_optional)
    require_problems(source, checked)
    if checked.bad:
        told, listed = (
            f"{source.path}: {len(checked.bad):,} of {checked.total:,} rows cannot be used",
            _listed(checked.bad),
        )
        if bad_rows == "error":
            raise ValueError(f"{told}: mend them, or leave them out by data.bad_rows: drop\n{listed}")
        say(f"{told} and are dropped (data.bad_rows)\n{listed}")
    if checked.partial:
        identity, what = checked.partial[0]
        say(
            f"warning: {source.path}: of {len(checked.partial):,} of {checked.total:,} rows other turns of the "
            f"conversation are left out, such as `{identity}`: {what}; data.templates.system takes a system message"
        )
    return checked.problems


def require_problems(source: SourceConfig, checked: CheckedRows) -> None:
    """Refuses a source no row of which can be used; some say why, as it is likely one reason.

    Raises:
        ValueError: naming them.
    """
    if not checked.problems:
        listed = _listed(checked.bad, SHOWN_OF_ALL)
        raise ValueError(f"{source.path}: none of the {checked.total:,} rows can be used\n{listed}")


def _listed(bad: Sequence[BadRow], limit: int = SHOWN) -> str:
    lines = [f"  {place}: {what}" for place, what in bad[:limit]]
    return "\n".join(lines + ([f"  and {len(bad) - limit:,} more"] if len(bad) > limit else []))


def check_rows(source: SourceConfig, answer: Answer = "auto", *, gold_optional: bool = False) -> CheckedRows:
    """Reads and checks all rows of a source.

    - `reft_json`: the reference's JSON list of `item_id, question, answer_value[, answer_cot]`. The data set is the
      first id before its first `_`; it decides how answers are compared.
    - `gsm8k`: JSONL of `question, answer`, the answer being the reasoning, then `#### N`. `<<...>>` notes and the
      commas of N are removed, and line n (from 0) becomes `gsm8k_n`: what the reference's own files hold.
    - `mathqa`: MathQA's JSON list of `Problem, Rationale, options, correct, ...`, or a hub data set with these columns
      (`regisss/math_qa`). The question is `Problem`, a line break and `options` as published, and row n (from 0)
      becomes `mathqa_n`: what the reference's own files hold. The quotes around three of four rationales are removed.
    - `jsonl`, `hub`: the fields that `source` names, or paths to them, see `Row.value`. `question_field` may list
      several (`Body,Question`), joined by a blank; one that lists texts (`question,options`) has a line for each. An
      answer is taken apart by `answer_pattern`; without one, where it holds `#### N`, as GSM8K's. With the pattern
      `boxed` it is the last `\\boxed{...}` and its chain of thought the whole solution, box and all: what stands before
      a box may end in an open `$`, and a target states the answer again.
    - `generated`: the embedded problems of the split `source.path`.
    - `reasoning_gym`: items of the task `source.name`, which scores answers itself whatever `answer` says.

    A file that ends in `.parquet` is read as that, with the same fields.

    Gold answers keep their published text, since it stands in N-CoT targets; they are compared in a normal form that
    `parse_gold` makes. Numbers in a file are accepted as answers and keep all their digits.

    Where `gold_optional`, a row whose answer is missing or null is a problem of kind `none`.

    A row cannot be used where something is missing, null, of a wrong type, empty, the id of an earlier row, no Unicode
    text, nested too deeply or cannot be parsed; rows are counted from 1, and by line in JSONL.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file as a whole cannot be read, or has no rows.
    """
    if source.kind == "none":
        raise ValueError("the source's `kind` is `none`: there is nothing to read")
    if source.kind == "generated":
        return CheckedRows(_with_some_chains(_generated(source), source.cot_limit), [])
    if source.kind == "reasoning_gym":
        return CheckedRows(read_tasks(source), [])

    source = _with_published_fields(source)
    rows = list(itertools.islice(read_rows(source), source.limit or None))
    if not rows:
        raise ValueError(f"{source.path}: holds no rows")
    answer_kind = _answer_kind(source, rows) if answer == "auto" else answer
    if answer_kind == "latex" and importlib.util.find_spec("math_verify") is None:
        raise ValueError("data.answer is latex, which math-verify compares: pip install 'reft_jax[latex]'")
    problems: dict[str, Problem] = {}
    bad, partial = [], []
    for row in rows:
        try:
            problem = _problem(source, row, answer_kind, gold_optional, guessed=answer == "auto")
            if problem.id in problems:
                cure = "give each its own"
                cure += "" if source.kind == "reft_json" else ", or set id_field to '' so that rows are numbered"
                raise ValueError(f"field `{source.id_field}`: `{problem.id}` is also the id of an earlier row: {cure}")
            left_out = _left_out(source, row)
        except ValueError as error:
            bad.append(BadRow(row.place, str(error)))
        except RecursionError:
            bad.append(BadRow(row.place, "nested too deeply to be read"))
        else:
            problems[problem.id] = problem
            partial += [(problem.id, left_out)] if left_out else []
    return CheckedRows(_with_some_chains(list(problems.values()), source.cot_limit), bad, partial)


def _with_some_chains(problems: list[Problem], limit: int) -> list[Problem]:
    """The problems, after the first `limit` chains of thought without any; 0 keeps all."""
    if not limit:
        return problems
    kept = {problem.id for problem in annotated(problems)[:limit]}
    return [p if p.id in kept else dataclasses.replace(p, cot=None) for p in problems]


def sources(config: Config) -> dict[str, SourceConfig]:
    """The sources that a run reads, by the name of their set: `train`, `dev`, `test` and `pretrain`."""
    data, pretrain = config.data, config.pretrain
    named = {"train": data.train, "dev": data.dev, "test": data.test}
    found = {name: source for name, source in named.items() if source.kind != "none"}
    return found | ({"pretrain": pretrain.source} if pretrain.epochs else {})


def read_sets(config: Config, say: Say = print) -> dict[str, list[Problem]]:
    """The problems of a run by split, [] where there are none: `train`, `dev`, `test` and `pretrain`.

    Dev is carved from train, unless `data.dev` is a source of its own.

    Args:
        config: of the run.
        say: told of rows that are dropped.

    Raises:
        FileNotFoundError, ValueError: as `read_problems`.
    """
    data = config.data
    optional = config.reward.by_functions_alone
    read = lambda source: read_problems(source, data.bad_rows, say, data.answer, gold_optional=optional)
    return split_sets(config, {name: read(source) for name, source in sources(config).items()})


def split_sets(config: Config, read: Mapping[str, list[Problem]]) -> dict[str, list[Problem]]:
    """The problems of a run by split, of those that its `sources` hold."""
    train, dev, test, pretrain = (read.get(name, []) for name in ("train", "dev", "test", "pretrain"))
    if config.data.dev.kind == "none":
        train, dev = split_dev(train, config.data.dev_fraction)
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


def _answer_kind(source: SourceConfig, rows: Sequence[Row]) -> AnswerKind:
    """Known by the data set's name, or a choice where the first answer is one letter, else a number."""
    if source.kind == "mathqa":
        return "choice"
    name = next(_readable(lambda row: _id(source, row), rows), "").split("_")[0] if source.kind == "reft_json" else ""
    if name in _ANSWER_KINDS:
        return _ANSWER_KINDS[name]
    return likely_answer_kind(next(_readable(lambda row: _take_apart(source, row)[1], rows), ""))


def _readable(read: Callable[[Row], str], rows: Sequence[Row]) -> Iterator[str]:
    """What is read of the rows of which it can be."""
    for row in rows:
        with contextlib.suppress(ValueError, RecursionError):
            yield read(row)


def _problem(source: SourceConfig, row: Row, answer_kind: AnswerKind, gold_optional: bool, guessed: bool) -> Problem:
    """The problem that a row holds; `guessed` is an answer's kind that no setting names.

    Raises:
        ValueError: naming the field that cannot be used.
    """
    if row.fault:
        raise ValueError(row.fault)
    if source.kind in ("jsonl", "hub"):
        _require_role(row, source.question_field, "question_field", _ASKING)
        _require_role(row, source.answer_field, "answer_field", _ANSWERING)
        if guessed and answer_kind == "number":
            _refuse_index(source, row)
    question = ""
    for field in map(str.strip, source.question_field.split(",")):
        lines = _lines(row, field) if source.kind in ("jsonl", "hub") else None
        separator = "\n" if lines is not None or source.kind == "mathqa" else " "
        question += separator + (_text(row, field, "question_field") if lines is None else "\n".join(lines)).strip()
    if not (question := question.strip()):
        raise ValueError(f"field `{source.question_field}`: the question is empty")

    cot = _text(row, source.cot_field) if _has(row, source.cot_field) else ""
    if source.kind == "mathqa" and (quoted := _QUOTED.fullmatch(cot)):
        cot = quoted[1]
    if gold_optional and not _has(row, source.answer_field):
        reasoning, answer, answer_kind = "", "", "none"
    else:
        reasoning, answer = _take_apart(source, row)
    cot = cot or reasoning
    if answer_kind in ("number", "choice", "latex") and not source.answer_pattern:
        _require_an_answer(source, answer)
    try:
        parse_gold(answer, answer_kind)
    except ValueError as error:
        cure = _cure(answer, answer_kind, guessed and source.kind in ("jsonl", "hub"))
        raise ValueError(f"field `{source.answer_field}`: {error}{cure}") from error
    columns = {name: _plain(value) for name, value in row.fields.items()}
    return Problem(_id(source, row), question, answer.strip(), answer_kind, cot.strip() or None, columns)


def _require_an_answer(source: SourceConfig, answer: str) -> None:
    """Refuses a solution in prose: read as an answer it would be one, and its chain of thought be lost."""
    box = _BOX.search(answer)
    boxed = box is not None and any(map(str.isalnum, answer[: box.start()]))
    stated = _STATEMENT.search(answer)
    if boxed or stated:
        pattern = "boxed"
        if stated and not boxed:
            blank = " " if stated[1] and stated[1].endswith("is") else " *"
            pattern = (
                f"'(?P<answer>.*) {stated[2]}.*'" if stated[2] else f"'(?P<cot>.*){stated[0]}{blank}(?P<answer>.*)'"
            )
        raise ValueError(
            f"field `{source.answer_field}`: {_end(answer)} is a solution, no answer: take it apart by its source's "
            f"answer_pattern, such as {pattern}"
        )


def _cure(answer: str, answer_kind: AnswerKind, guessed: bool) -> str:
    """Which setting may read a gold answer that is not of its kind; else nothing."""
    if not answer.strip():
        return "; give one, or leave the row out"
    letter = "; data.answer: text takes other letters" if re.fullmatch(r"\W*[A-Za-z]\W*", answer) else ""
    if answer_kind == "choice" and not guessed:
        return letter
    if answer_kind == "choice":
        return (
            letter
            + "; the first answer is a letter, so that all were taken as `choice`: name data.answer (number, ...)"
        )
    if answer_kind == "number" and _is_readable(answer, "choice"):
        return "; data.answer: choice takes letters of options"
    if answer_kind == "number" and _EXPRESSION.search(answer):
        return "; data.answer: latex takes expressions"
    if answer_kind == "number" and answer.strip() and not re.search("[0-9]", answer):
        return "; data.answer: text takes texts"
    return ""


def _is_readable(answer: str, kind: AnswerKind) -> bool:
    try:
        return parse_gold(answer, kind) is not None
    except ValueError:
        return False


def _turn(row: Row, field: str) -> tuple[str, list[object], int] | None:
    """Where a field such as `messages[-1].content` is of a list of messages: its path, the messages, and its index."""
    found = _TURN.match(field)
    if field in row.fields or found is None:
        return None
    try:
        turns = row.value(found["turns"])
    except ValueError:
        return None
    if not isinstance(turns, list) or not -len(turns) <= int(found["number"]) < len(turns):
        return None
    return found["turns"], turns, int(found["number"]) % len(turns)


def _role(turn: object) -> str | None:
    """Who says a message; None where it does not say so."""
    role = (turn.get("role") or turn.get("from")) if isinstance(turn, Mapping) else None
    return role if isinstance(role, str) else None


def _require_role(row: Row, field: str, key: str, roles: Sequence[str]) -> None:
    """Refuses a message of somebody else."""
    if (found := _turn(row, field)) is None:
        return
    path, turns, index = found
    role = _role(turns[index])
    if role is not None and role.lower() not in roles:
        theirs = [i for i, turn in enumerate(turns) if (_role(turn) or "").lower() in roles]
        text = field[len(path) :].partition("]")[2]
        cure = f"`{path}[{theirs[-1] - len(turns)}]{text}` is" if theirs else "there is none"
        raise ValueError(f"field `{field}` is a message of `{role}`, and none of `{roles[0]}`: {cure} ({key})")


def _left_out(source: SourceConfig, row: Row) -> str:
    """The roles of the messages that are neither question nor answer, of a row that is a conversation."""
    fields = (*source.question_field.split(","), source.answer_field, source.cot_field)
    named = [found for field in fields if (found := _turn(row, field.strip())) is not None]
    taken: dict[str, set[int]] = {}
    for path, _, index in named:
        taken.setdefault(path, set()).add(index)
    others = {
        f"{path}[{i}]": _role(turn) or "no role"
        for path, turns, _ in named
        for i, turn in enumerate(turns)
        if i not in taken[path]
    }
    return ", ".join(f"`{place}` ({role})" for place, role in others.items())


def _refuse_index(source: SourceConfig, row: Row) -> None:
    """Refuses a whole number as the answer beside a list of options: it counts them."""
    value = row.value(source.answer_field) if _has(row, source.answer_field) else None
    if not isinstance(value, int) or isinstance(value, bool):
        return
    for name in _OPTIONS:
        try:
            options = row.value(name)
        except ValueError:
            continue
        if isinstance(options, list) and 0 <= value < len(options):
            raise ValueError(
                f"field `{source.answer_field}` is {value} beside the list `{name}`, which it may count from 0: write "
                f"the option's letter, such as {chr(65 + value)} (data.answer: choice), or name data.answer: number"
            )


def _plain(value: object) -> object:
    """A value of JSON with Python's own numbers, at any depth."""
    match value:
        case Decimal():
            return float(value)
        case list():
            return [_plain(entry) for entry in value]
        case Mapping():
            return {key: _plain(entry) for key, entry in value.items()}
    return value


def _take_apart(source: SourceConfig, row: Row) -> tuple[str, str]:
    """The reasoning that the answer's field holds, and the answer."""
    text = _text(row, source.answer_field, "answer_field", numbers=True)
    if source.boxed:
        if (answer := last_box(text)) is None:
            raise ValueError(f"field `{source.answer_field}`: no \\boxed{{...}} in {_end(text)}")
        if not answer:
            raise ValueError(
                f"field `{source.answer_field}`: the last box in {_end(text)} is empty, a part of something, one of "
                "several or denied: no answer"
            )
        return text, answer
    if source.answer_pattern:
        found = re.fullmatch(source.answer_pattern, text.strip(), re.DOTALL)
        if found is None or found["answer"] is None:
            raise ValueError(f"field `{source.answer_field}`: answer_pattern does not match {_end(text)}")
        return found.groupdict().get("cot") or "", found["answer"]
    reasoning, marker, final = text.rpartition(_GSM8K_MARKER)
    if marker:
        final = final if _DISPLAYS.match(final) else _FIRST_LINE.findall(final)[0]
        return _GSM8K_NOTE.sub("", reasoning), _THOUSANDS.sub(lambda number: number[0].replace(",", ""), final)
    if source.kind == "gsm8k":
        raise ValueError(f"field `{source.answer_field}`: no `{_GSM8K_MARKER} N` at its end, which is {_end(text)}")
    return "", text


def _end(text: str) -> str:
    return repr(text if len(text) <= 60 else "..." + text[-57:])


def _id(source: SourceConfig, row: Row) -> str:
    """The published id; rows of layouts that need none are numbered, as `<data set>_<0-based row>`."""
    if source.kind == "reft_json" or _has(row, source.id_field):
        if not (identity := _text(row, source.id_field, numbers=True)).strip():
            raise ValueError(f"field `{source.id_field}`: the id is empty: give one, or leave the field out")
        return identity
    return f"{source.kind if source.kind in ('gsm8k', 'mathqa') else Path(source.path).stem}_{row.index}"


def _has(row: Row, field: str) -> bool:
    """Whether a row has a field that it may lack; null is none."""
    try:
        return row.value(field) is not None
    except AbsentFieldError:
        return False


def _text(row: Row, field: str, key: str = "", *, numbers: bool = False) -> str:
    """The text of a field that must be there; `numbers` are taken too and written out."""
    value = _value(row, field, key)
    if value is None:
        raise ValueError(f"field `{field}` is null: fill it in, or leave the row out")
    if numbers and isinstance(value, int | float | Decimal) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise ValueError(f"field `{field}` should be text, is {shown(value)}{_inner_text(value, field)}")
    if "\0" in value:
        raise ValueError(f"field `{field}` has a NUL, its character {value.index(chr(0)) + 1}: leave it out")
    return value


def _value(row: Row, field: str, key: str = "") -> object:
    """`Row.value`; where there is none, the error says which `key` of a source names it."""
    try:
        return row.value(field)
    except AbsentFieldError as error:
        named = f": name another by {key} of its source, such as data.train.{key}{_message(row, key)}" if key else ""
        raise AbsentFieldError(f"{error}{named}") from None


def _message(row: Row, key: str) -> str:
    """The path of the question or the answer in a row that holds messages, as an example; else nothing."""
    roles = {"question_field": _ASKING, "answer_field": _ANSWERING}.get(key, ())
    for name, turns in row.fields.items():
        for i, turn in reversed(list(enumerate(turns))) if isinstance(turns, list) else ():
            said = next((text for text in ("content", "value") if isinstance(turn, Mapping) and text in turn), "")
            if isinstance(turns, list) and said and (_role(turn) or "").lower() in roles:
                return f": {name}[{i - len(turns)}].{said}"
    return ""


def _inner_text(value: object, field: str) -> str:
    """A hint at the text that a list, or a list of the parts of a message, holds."""
    if isinstance(value, bool):
        return ': write it as one, such as "yes" or "no", which data.answer: text compares'
    first = value[0] if isinstance(value, list) and value else value if isinstance(value, Mapping) else None
    path = f"{field}[0]" if isinstance(value, list) else field
    if isinstance(first, Mapping):
        inner = next((name for name in ("text", "content", "value", *map(str, first)) if name in first), "")
        where = f"{field}[-1]" if inner in ("content", "value") and isinstance(value, list) else path
        return f": name its text by `{where}.{inner}`" if inner else _WRITE
    return f": name one of its items, such as `{path}`" if isinstance(first, str | int | float | Decimal) else _WRITE


def _lines(row: Row, field: str) -> list[str] | None:
    """The texts of a field that lists them, such as the options of a choice."""
    value = _value(row, field, "question_field")
    return value if isinstance(value, list) and value and all(isinstance(text, str) for text in value) else None
