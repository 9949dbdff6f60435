"""`python -m reft_jax.reward FILE.jsonl`: what the reward says of a file of completions, under both sets of rules.

For a run's `rollouts.jsonl` and `evaluations.jsonl`, or any JSONL whose rows have a completion and its gold answer. It
shows the outcomes side by side and the rows where the rules disagree, which is where a reward is worth a look.
"""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from reft_jax.config import Answer, CotKind, RewardConfig, SettingsParser, TemplateConfig
from reft_jax.config.invocation import program
from reft_jax.config.ranges import NonNegativeInt
from reft_jax.config.validation import range_errors, refuse
from reft_jax.files import json_lines, user_path
from reft_jax.problem import AnswerKind, Problem
from reft_jax.reward.answers import likely_answer_kind, parse_gold
from reft_jax.reward.parse import likely_cot
from reft_jax.reward.pool import ProgramRunner
from reft_jax.reward.verdicts import Verdict, outcome_counts, verdicts_of


class Row(NamedTuple):
    """A completion to judge: its line in the file, from 1, its problem and its text."""

    line: int
    problem: Problem
    completion: str


_RECORDS = "; a run writes RUN_DIR/rollouts.jsonl, and `sample` such files"


class Audit(NamedTuple):
    """The verdicts on a file's rows, in its order, under each set of rules."""

    rows: list[Row]
    lenient: list[Verdict]
    reference: list[Verdict]

    def disagreements(self) -> list[tuple[Row, Verdict, Verdict]]:
        """Rows that the rules reward differently or for different reasons."""
        rows = zip(self.rows, self.lenient, self.reference)
        return [(row, a, b) for row, a, b in rows if (a.reward, a.outcome) != (b.reward, b.outcome)]


def read_rows(path: Path, completion_field: str, gold_field: str, answer: Answer = "auto") -> list[Row]:
    """The rows of a JSONL file; `auto` is a row's own `answer_kind`, else a choice where the gold answer is one letter.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: naming the line and the field of what is missing or of a wrong type, the file without rows, or all
            lines whose gold answer cannot be read.
    """
    rows, faults = [], []
    for number, place, fields in json_lines(path):
        completion = _field(fields, completion_field, place, "completion_field")
        gold = str(_field(fields, gold_field, place, "gold_field", number=True))
        own = next((kind for kind in get_args(AnswerKind) if kind == fields.get("answer_kind")), None)
        kind: AnswerKind = own if own == "none" else answer if answer != "auto" else own or likely_answer_kind(gold)
        problem = Problem(str(fields.get("id", number)), "", gold, kind)
        rows.append(Row(number, problem, str(completion)))
        try:
            parse_gold(gold, kind)
        except ValueError as error:
            faults.append(f"{place}: {error}")
    if faults:
        raise ValueError("\n".join(faults))
    if not rows:
        raise ValueError(f"{path}: holds no rows")
    return rows


def _field(fields: dict[str, Any], name: str, place: str, option: str, *, number: bool = False) -> str | int | float:
    value = fields.get(name)
    if isinstance(value, str) or (number and isinstance(value, int | float) and not isinstance(value, bool)):
        return value
    problem = f"is a {type(value).__name__}" if name in fields else f"is missing; there are {', '.join(fields)}"
    raise ValueError(f"{place}: field `{name}` {problem}: name another by --{option}")


def audit(rows: Sequence[Row], cot: CotKind, answer_trigger: str, config: RewardConfig) -> Audit:
    """Judges all rows under both sets of rules.

    Raises:
        ValueError: a gold answer cannot be parsed; names the row's id.
        RuntimeError: programs cannot be run here.
    """
    problems, texts = [row.problem for row in rows], [row.completion for row in rows]
    limits = config.workers, config.program_timeout_s, config.program_memory_mb
    with ProgramRunner(*limits, deadline=config.batch_deadline_s, sandbox=config.sandbox) as runner:
        judged = [
            verdicts_of(
                problems,
                texts,
                cot=cot,
                answer_trigger=answer_trigger,
                config=dataclasses.replace(config, rules=rules),
                runner=runner,
            )
            for rules in ("lenient", "reference")
        ]
    return Audit(list(rows), *judged)


def show(result: Audit, limit: int) -> None:
    """Prints the outcomes, and up to `limit` rows where the rules disagree."""
    import rich.console
    import rich.table

    terminal = rich.console.Console(highlight=False)
    table = rich.table.Table("", "lenient", "reference", title="Completions by outcome", title_justify="left")
    counts = outcome_counts(result.lenient), outcome_counts(result.reference)
    for outcome in counts[0]:
        if counts[0][outcome] or counts[1][outcome]:
            table.add_row(outcome, *(f"{count[outcome]:,}" for count in counts))
    both, n = (result.lenient, result.reference), len(result.rows)
    table.add_section()
    if with_gold := sum(row.problem.has_gold for row in result.rows):
        table.add_row("share right", *(f"{count['correct'] / with_gold:.2%}" for count in counts))
    table.add_row("mean reward", *(f"{sum(verdict.reward for verdict in judged) / n:.4f}" for judged in both))
    if any(verdict.suspicious is not None for verdict in result.lenient):
        table.add_row("suspicious", *(f"{sum(verdict.suspicious is True for verdict in judged):,}" for judged in both))
    terminal.print(table)

    rows = result.disagreements()
    terminal.print(f"The rules disagree in {len(rows):,} of {n:,} rows" + (":" if rows else "."))
    for row, lenient, reference in rows[: limit or None]:
        terminal.print(
            f"line {row.line}, {row.problem.id}: gold {row.problem.answer}, "
            f"lenient {lenient.outcome} {lenient.value!r}, reference {reference.outcome} {reference.value!r}",
            markup=False,
        )
        terminal.print("    " + _end(row.completion, terminal.width - 8), markup=False, style="dim")
    if 0 < limit < len(rows):
        terminal.print(f"and {len(rows) - limit:,} more; --show 0 shows all")


def _end(text: str, width: int) -> str:
    """The end of a text in one line, which is where its answer is."""
    line = " ".join(text.split())
    return line if len(line) <= width else "..." + line[-width:]


def main(arguments: Sequence[str] | None = None) -> int:
    """Judges and prints as `arguments` (or the command line) say; returns 2 where something is wrong, else 0."""
    parser = SettingsParser(prog=program("reward"), description=__doc__)
    parser.add_argument("file", type=str, help="JSONL file with a completion and a gold answer in each row")
    parser.add_argument("--cot", type=Literal["auto", "program", "text"], default="auto", help="what completions are")
    parser.add_argument("--answer", type=Answer, default="auto", help="how answers are read and compared")
    parser.add_argument("--completion_field", type=str, default="completion", help="field with the completion")
    parser.add_argument("--gold_field", type=str, default="gold", help="field with the gold answer")
    parser.add_argument(
        "--answer_trigger", type=str, default=TemplateConfig().answer_trigger, help="string before an answer in prose"
    )
    parser.add_argument(
        "--show", type=NonNegativeInt, default=20, help="rows shown where the rules disagree; 0 shows all"
    )
    parser.add_class_arguments(RewardConfig, "reward", skip={"rules", "functions"})
    options = parser.instantiate(parser.parse_args(arguments))
    config = options.reward
    try:
        refuse(range_errors(config, "reward."))
        rows = read_rows(user_path(options.file), options.completion_field, options.gold_field, options.answer)
        cot: CotKind = likely_cot([row.completion for row in rows]) if options.cot == "auto" else options.cot
        print(f"{options.file}: {len(rows):,} completions, read as {'programs' if cot == 'program' else 'prose'}")
        show(audit(rows, cot, options.answer_trigger, config), options.show)
    except (OSError, ValueError, RuntimeError) as error:
        print(f"error: {error}{_RECORDS * isinstance(error, FileNotFoundError)}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
