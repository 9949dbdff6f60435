"""The answer of `python -m reft_jax.data` for people: tables of what is there, and of what is the matter with it."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

_SPREAD = ("mean", "p50", "p90", "p99", "max")


def show(report: Mapping[str, Any], console: Console, limit: int) -> None:
    """Prints a report; of each finding up to `limit` rows, 0 for all."""
    console.print(_sets(report))
    console.print(_lengths(report))
    if report["tokenizer"] is None:
        note = "No tokenizer, so no lengths in tokens and nothing on buckets: name one with --tokenizer."
        console.print(note, soft_wrap=True)
    for key, sizes in report["buckets"].items():
        console.print(f"{key}: auto, made {sizes}", soft_wrap=True)
    findings = report["findings"]
    if not findings:
        console.print("Nothing to report.")
        return
    console.print(_findings(report))
    for finding in findings:
        console.print(Text(f"{finding['set']}: {finding['what']}", "bold"), soft_wrap=True)
        for row in finding["rows"][: limit or None]:
            console.print(Text(f"  {row['id']}  {row['detail']}".rstrip()), soft_wrap=True)
        if 0 < limit < len(finding["rows"]):
            console.print(Text(f"  and {len(finding['rows']) - limit:,} more; --show 0 shows all", "dim"))


def _sets(report: Mapping[str, Any]) -> Table:
    columns = ["rows", "with CoT", "without", "answers"] + (["state an answer"] if report["cot"] == "text" else [])
    kind = "Python programs" if report["cot"] == "program" else "prose"
    table = Table("", *columns, title=f"Problems; chains of thought are {kind}", title_justify="left")
    for name, held in report["sets"].items():
        answers = ", ".join(f"{count:,} {kind}" for kind, count in held["answer_kinds"].items())
        counts = [f"{held[key]:,}" for key in ("rows", "with_cot", "without_cot")]
        stated = [f"{held['stated']:,}"] if report["cot"] == "text" else []
        table.add_row(name, *counts, answers, *stated)
    return table


def _lengths(report: Mapping[str, Any]) -> Table:
    table = Table("", "", *_SPREAD, title="Lengths", title_justify="left")
    for column in table.columns[2:]:
        column.justify = "right"
    for name, held in report["sets"].items():
        for unit in ("characters", "tokens"):
            for what, values in held.get(unit, {}).items():
                if values is not None:
                    numbers = [f"{values[key]:,.1f}" if key == "mean" else f"{values[key]:,}" for key in _SPREAD]
                    table.add_row(name, f"{what.replace('_', ' ')}, {unit}", *numbers)
        table.add_section()
    return table


def _findings(report: Mapping[str, Any]) -> Table:
    table = Table("", "finding", "rows", "share", "stops a run", title="Findings", title_justify="left")
    for finding in report["findings"]:
        rows = len(finding["rows"])
        share = f"{rows / max(finding['total'], 1):.2%}"
        stops = Text("yes", "bold red") if finding["stops"] else Text("no")
        table.add_row(finding["set"], Text(finding["what"]), f"{rows:,}", share, stops)
    return table
